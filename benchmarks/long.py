"""Long clips and streams: `python benchmarks/long.py -o FILE [--data DATA]`, on a GPU.

Accuracy: generated takes of 400 and of 2,000 frames, tracks born and lost all along, reconstructed
whole (`reconstruct(refine="bundle")`) and as a stream without look-ahead beyond its window; beside
them one pass over all frames, and a common way to stitch windows: 20 frames, 10 shared, a rigid
transform from the middle shared frame, scale 1, rotations averaged. Medians over clips.

Latency: pushes of 256 tracks into a window of 50, hop 1, in milliseconds; memory over 10,000
pushes; whether a replay is bit-identical.

Each part is kept as it is done, and says so if it failed. On a CPU
`--clips 1 0 --pushes 9 --frames 170 0 --window 12 --slots 32` tells whether it runs.
"""

import argparse
import json
import resource
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import machine
import numpy as np
import torch
from torch import Tensor

import fasttracks
from fasttracks import pipeline
from fasttracks.cli.generate import in_pixels
from fasttracks.evaluation.metrics import Estimate, Truth, align, metrics
from fasttracks.geometry import Prediction
from fasttracks.inputs import hold
from fasttracks.long.join import nearest_rotation
from fasttracks.network import TracksTo4D
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.held_out import kind
from fasttracks.scenes.library import load as load_library
from fasttracks.stream.stream import Update
from fasttracks.tracks import Tracks, normalise

TRACKS_A_FRAME, MOST_TRACKS = 3, 4000  # of a clip
ONE_PASS, STREAMED = 500, 1000  # frames of the longest clips that are seen so
STITCH, STITCH_SHARED = 20, 10


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--data", metavar="FOLDER", help="with mocap_cmu.npz, camera_paths.npz")
    parser.add_argument("--clips", type=int, nargs=2, default=(12, 6), help="of each length")
    parser.add_argument("--frames", type=int, nargs=2, default=(400, 2000))
    parser.add_argument("--pushes", type=int, default=10_000)
    parser.add_argument("--window", type=int, default=50, help="of a stream, in frames")
    parser.add_argument("--slots", type=int, default=256, help="of a stream, for tracks")
    parser.add_argument("--model", default="base")
    parser.add_argument(
        "--seconds", type=float, default=190, help="begin no more clips after these"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = fasttracks.load(options.model, device=device)
    start = time.perf_counter()
    bench = _Benchmark(options, model, device)
    bench.part("latency", bench.latency)
    bench.part("latency, bundle-adjusted", bench.latency_bundle)
    # The first length leaves some of the time to the other.
    for count, frames, share in zip(options.clips, options.frames, (0.6, 1), strict=True):
        until = start + share * options.seconds
        bench.part(f"{frames} frames", partial(bench.accuracy, count, frames, until))


class _Benchmark:
    def __init__(self, options: argparse.Namespace, model: TracksTo4D, device: str) -> None:
        self.options, self.model, self.device = options, model, device
        self.found: dict[str, Any] = machine.describe(device)

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do one part, keep what it finds or why it failed, and write all so far."""
        start = time.perf_counter()
        try:
            self.found[name] = work()
        except Exception as error:  # the others may still work
            traceback.print_exc()
            self.found[name] = {"failed": f"{type(error).__name__}: {error}"}
        self.found[name]["seconds"] = round(time.perf_counter() - start, 1)
        Path(self.options.output).write_text(json.dumps(self.found, indent=1) + "\n")
        rest = {k: v for k, v in self.found[name].items() if k != "clips"}
        print(f"{name}: {json.dumps(rest)}", flush=True)

    def accuracy(self, clips: int, frames: int, until: float) -> dict[str, Any]:
        """Each way on clips of one length; no more of them are begun after a time."""
        rows: list[dict[str, dict[str, float]]] = []
        for i in range(clips):
            if time.perf_counter() > until and rows:
                print(f"  out of time after {i} of {clips} clips", flush=True)
                break
            row, tracks, truth, camera = {}, *self._clip(i, frames)
            for name, way in self._ways().items():
                if frames > {"one pass": ONE_PASS}.get(
                    name, STREAMED if "stream" in name else frames
                ):
                    continue
                begin = time.perf_counter()
                if self.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                try:
                    row[name] = way(tracks, truth, camera)
                except Exception as error:
                    traceback.print_exc()
                    row[name] = {"failed": 1.0}
                    print(f"  {name}: {type(error).__name__}: {error}", flush=True)
                row[name]["seconds"] = time.perf_counter() - begin
                if self.device == "cuda":
                    row[name]["GB"] = torch.cuda.max_memory_allocated() / 1e9
            rows.append(row)
            brief = {n: [round(r.get(k, np.nan), 3) for k in ("ate", "rpe_rotation")]
                     for n, r in row.items()}  # fmt: skip
            print(f"  clip {i}, {tracks.tracks.shape[1]} tracks: {brief}", flush=True)
        return {"medians": _medians(rows), "clips": rows}

    def _clip(self, i: int, frames: int) -> tuple[Tracks, Truth, np.ndarray]:
        variety = kind("long", frames)
        # Shadows and sight lines are tested for all frames × tracks × solids: on the GPU if any.
        library = load_library(self.options.data, "validation", self.device)
        generator = seeded((3 << 32) + 1000 * frames + i, library.split, self.device)
        count = min(TRACKS_A_FRAME * frames, MOST_TRACKS)
        torch.compiler.set_stance("force_eager")  # compiling takes longer than a few clips do
        clip = generate(1, frames, count, library=library, generator=generator, variety=variety)
        tracks, truth, camera = in_pixels(clip)
        truth = Truth(*(value.cpu() for value in truth if value is not None))
        points = truth.points_camera
        exact = points[..., :2] / points[..., 2:].clamp(min=1e-6)
        return tracks, truth._replace(tracks=exact, focal=torch.ones(1)), camera

    def _ways(self) -> dict[str, Callable[[Tracks, Truth, np.ndarray], dict[str, float]]]:
        return {
            "whole": lambda *clip: self._whole(*clip, refine="bundle"),
            "whole, unrefined": lambda *clip: self._whole(*clip, refine="none"),
            "stream": lambda *clip: self._stream(*clip, refine="none"),
            "stream, bundle-adjusted": lambda *clip: self._stream(*clip, refine="bundle"),
            "stitched": self._stitched,
            "one pass": self._one_pass,
        }

    def _whole(
        self, tracks: Tracks, truth: Truth, camera: np.ndarray, *, refine: str
    ) -> dict[str, float]:
        result = fasttracks.reconstruct(tracks, model=self.model, refine=refine)
        estimate = Estimate(
            *(torch.from_numpy(a)[None].double() for a in (
                result.points_camera,
                result.camera_to_world[:, :3, :3],
                result.camera_to_world[:, :3, 3],
                normalise(result.reprojection, camera),
            ))
        )  # fmt: skip
        return _judged(estimate, truth, tracks, camera)

    def _stream(
        self, tracks: Tracks, truth: Truth, camera: np.ndarray, *, refine: str
    ) -> dict[str, float]:
        hop = 1 if refine == "none" and self.device == "cuda" else 5
        known = None if tracks.intrinsics is None else tracks.intrinsics[0]
        stream = fasttracks.Stream(
            self.model,
            self.options.window,
            hop,
            self.options.slots,
            intrinsics=known,
            image_size=tracks.image_size,
            refine=refine,
        )
        final, resets = [], 0
        assert tracks.visibility is not None
        for places, seen in zip(tracks.tracks, tracks.visibility, strict=True):
            ids = np.flatnonzero(seen)
            update = stream.push(ids, places[ids])
            if update:
                final += update.final
                resets += update.reset is not None
        final += stream.finish()
        # After a reset nothing tells how the segments lie: the longest one is judged.
        segment = np.concatenate([np.full(len(f.frames), f.segment) for f in final])
        longest = segment == np.argmax(np.bincount(segment))
        frames = np.concatenate([f.frames for f in final])[longest]
        poses = np.concatenate([f.camera_to_world for f in final])[longest]
        poses_found = torch.from_numpy(poses)[None].double()
        part = truth.during(slice(int(frames[0]), int(frames[-1]) + 1))
        found = _path(poses_found[..., :3, :3], poses_found[..., :3, 3], part)
        return found | {"resets": float(resets), "judged": len(frames) / len(tracks.tracks)}

    def _stitched(self, tracks: Tracks, truth: Truth, camera: np.ndarray) -> dict[str, float]:
        """Windows of 20, 10 shared, joined by the middle shared camera alone; see above."""
        known = tracks.camera(self.model.config.assumed_focal)
        inputs = tracks.inputs(known).to(self.device, torch.float32)
        frames = len(inputs)
        rotation = torch.zeros(frames, 3, 3, dtype=torch.float64)
        position = torch.zeros(frames, 3, dtype=torch.float64)
        done = 0
        step = STITCH - STITCH_SHARED
        for begin in [*range(0, frames - STITCH, step), frames - STITCH]:
            p = self._look(inputs[begin : begin + STITCH])
            turn, place = p.rotation[0].double().cpu(), p.position[0].double().cpu()
            if done:
                middle = (begin + done) // 2
                back = rotation[middle] @ turn[middle - begin].T
                place = (place - place[middle - begin]) @ back.T + position[middle]
                turn = back @ turn
            shared = slice(begin, done)
            n = max(done - begin, 0)
            mean = nearest_rotation((rotation[shared] + turn[:n]) / 2)
            rotation[shared], position[shared] = mean, (position[shared] + place[:n]) / 2
            rotation[begin + n : begin + STITCH] = turn[n:]
            position[begin + n : begin + STITCH] = place[n:]
            done = begin + STITCH
        return _path(rotation[None], position[None], truth)

    def _one_pass(self, tracks: Tracks, truth: Truth, camera: np.ndarray) -> dict[str, float]:
        with patch.object(pipeline, "LONGEST", len(tracks.tracks)):
            return self._whole(tracks, truth, camera, refine="none")

    def _look(self, window: Tensor) -> Prediction:
        """The network's answer for the tracks that a window sees twice."""
        often = window[..., 2].sum(0) > 1
        with torch.no_grad():
            return self.model(hold(window[:, often])[None])

    def latency(self) -> dict[str, Any]:
        """Pushes without refinement: times, memory, replay."""
        pushes = self.options.pushes
        first = self._pushes(pushes, "none", keep=min(pushes, 500))
        again = self._pushes(min(pushes, 500), "none", keep=min(pushes, 500))
        same = all(
            np.array_equal(a.points, b.points)
            and np.array_equal(a.camera_to_world, b.camera_to_world)
            for a, b in zip(first["kept"], again["kept"], strict=True)
        )
        del first["kept"]
        return first | {"replay is bit-identical": same}

    def latency_bundle(self) -> dict[str, Any]:
        """Pushes whose windows are bundle-adjusted."""
        found = self._pushes(max(self.options.pushes // 20, 60), "bundle", keep=0)
        del found["kept"]
        return found

    def _pushes(self, pushes: int, refine: str, keep: int) -> dict[str, Any]:
        """A walk past still points, 256 seen at a time, pushed frame by frame."""
        window, slots = self.options.window, self.options.slots
        camera = [[500, 0, 320], [0, 500, 240], [0, 0, 1]]
        stream = fasttracks.Stream(self.model, window, 1, slots, intrinsics=camera, refine=refine)
        draw = np.random.default_rng(0)
        x = np.linspace(-4, 0.02 * pushes + 4, 32 * (round(0.02 * pushes) + 8))
        points = np.stack(
            [x, draw.uniform(-2, 2, len(x)), draw.uniform(5, 9, len(x))], -1
        )  # about 256 of them within view at a time
        milliseconds: list[float] = []
        kept: list[Update] = []
        memory = []
        for t in range(pushes + 60):
            seen = np.flatnonzero(np.abs(points[:, 0] - 0.02 * t) < 4)
            ahead = points[seen] - (0.02 * t, 0.05 * np.sin(0.1 * t), 0)
            pixels = 500 * ahead[:, :2] / ahead[:, 2:] + (320, 240)
            pixels += draw.normal(0, 0.3, pixels.shape)
            begin = time.perf_counter()
            update = stream.push(seen, pixels)
            if t >= 60:
                milliseconds.append(1e3 * (time.perf_counter() - begin))
            if update and len(kept) < keep:
                kept.append(update)
            if t % ((pushes + 60) // 10) == 0:
                memory.append(_memory(self.device))
        quantile = {f"p{q}": round(float(np.percentile(milliseconds, q)), 3) for q in (50, 95, 99)}
        return {
            "pushes": pushes,
            "tracks seen": len(seen),
            "ms": quantile,
            "host MB": [round(m[0]) for m in memory],
            "device MB": [round(m[1]) for m in memory],
            "kept": kept,
        }


def _judged(
    estimate: Estimate, truth: Truth, tracks: Tracks, camera: np.ndarray
) -> dict[str, float]:
    """The usual metrics, and those of what the tracker saw."""
    found = {name: float(value) for name, value in metrics(estimate, truth).items()}
    assert tracks.visibility is not None
    still = torch.from_numpy(tracks.visibility) & truth.visible[0] & ~truth.moving[0]
    pixels = normalise(tracks.tracks, camera)
    off = (estimate.projection[0] - torch.from_numpy(pixels)).norm(dim=-1) * camera[0, 0]
    found["still_reprojection"] = float(off[still].median())
    seen = truth._replace(visible=truth.visible & torch.from_numpy(tracks.visibility)[None])
    found["absrel_tracked"] = float(metrics(estimate, seen)["absrel"])
    return found | _path(estimate.rotation, estimate.position, truth)


def _path(rotation: Tensor, position: Tensor, truth: Truth) -> dict[str, float]:
    """ATE, RPE, and how the scale drifts from the first tenth to the last, in percent."""
    nothing = torch.ones_like(truth.points_camera)
    estimate = Estimate(nothing, rotation, position, nothing[..., :2])
    found = metrics(estimate, truth)
    count = max(rotation.shape[1] // 10, 20)
    scales = [
        align(position[:, part], truth.position[:, part])[0]
        for part in (slice(0, count), slice(-count, None))
    ]
    drift = 100 * abs(float((scales[1] / scales[0]).log()))
    names = ("ate", "rpe_rotation", "rpe_position")
    return {name: float(found[name]) for name in names} | {"scale_drift": drift}


def _medians(rows: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(way for row in rows for way in row)
    ways = {way: [row[way] for row in rows if way in row] for way in names}
    return {
        way: {
            name: round(float(np.nanmedian([f.get(name, np.nan) for f in found])), 4)
            for name in sorted(set().union(*found))
        }
        for way, found in ways.items()
    }


def _memory(device: str) -> tuple[float, float]:
    """MB of this process on the host, and of tensors on the GPU."""
    held = torch.cuda.memory_allocated() / 1e6 if device == "cuda" else 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, held


if __name__ == "__main__":
    main()
