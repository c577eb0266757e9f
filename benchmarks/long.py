"""Long clips and streams: `python benchmarks/long.py -o FILE [--data DATA]`, on a GPU.

Accuracy: generated takes of 400 and of 2,000 frames, tracks born and lost all along, reconstructed
whole (`reconstruct(refine="bundle")`) and as a stream without look-ahead beyond its window; beside
them one pass over all frames, and a common way to stitch windows: 20 frames, 10 shared, a rigid
transform from the middle shared frame, scale 1, rotations averaged. Takes of 100 frames, which are
one pass, to compare with. Medians over clips.

Latency: pushes of 256 tracks into a window of 50, hop 1, in milliseconds; memory over 10,000
pushes; whether a replay is bit-identical.

The file is written after each clip and each part; what failed is in it as text, and the rest goes
on. `--parts` chooses. On a CPU `--clips 1 --frames 170 --pushes 9 --window 12 --slots 32` tells
whether it runs.
"""

import argparse
import hashlib
import json
import os
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
from fasttracks import clips
from fasttracks.cli.generate import in_pixels
from fasttracks.evaluation.metrics import Estimate, Truth, align, metrics
from fasttracks.geometry import Prediction
from fasttracks.inputs import hold
from fasttracks.long.join import nearest_rotation
from fasttracks.long.windows import LONGEST
from fasttracks.network import TracksTo4D
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.held_out import kind
from fasttracks.scenes.library import load as load_library
from fasttracks.tracks import Tracks, normalise

TRACKS_A_FRAME, MOST_TRACKS = 3, 4000  # of a clip
ONE_PASS, STREAMED = 500, 1000  # frames of the longest clips that are seen so
STITCH, STITCH_SHARED = 20, 10
PARTS = ("latency", "latency-bundle", "accuracy")
WAYS = ("whole", "unrefined", "stream", "stream-bundle", "stitched", "one-pass")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--data", metavar="FOLDER", help="with mocap_cmu.npz, camera_paths.npz")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--frames", type=int, nargs="+", default=(400, 2000, 100))
    parser.add_argument("--clips", type=int, nargs="+", default=(12, 6, 12), help="of each length")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--pushes", type=int, default=10_000)
    parser.add_argument("--window", type=int, default=50, help="of a stream, in frames")
    parser.add_argument("--slots", type=int, default=256, help="of a stream, for tracks")
    parser.add_argument("--model", default="base")
    parser.add_argument(
        "--seconds", type=float, default=170, help="begin no more clips after these"
    )
    options = parser.parse_args()
    if len(options.frames) != len(options.clips):
        parser.error("--clips: expected as many numbers as --frames has")
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = fasttracks.load(options.model, device=device)
    bench = _Benchmark(options, model, device)
    for name, work in (("latency", bench.latency), ("latency-bundle", bench.latency_bundle)):
        if name in options.parts:
            bench.part(name, work)
    # Each length leaves an equal share of what time is left to those after it.
    lengths = options.frames if "accuracy" in options.parts else []
    for i, (frames, count) in enumerate(zip(lengths, options.clips, strict=False)):
        now = time.perf_counter()
        until = now + (start + options.seconds - now) / (len(lengths) - i)
        bench.part(f"{frames} frames", partial(bench.accuracy, count, frames, until))


class _Benchmark:
    def __init__(self, options: argparse.Namespace, model: TracksTo4D, device: str) -> None:
        self.options, self.model, self.device = options, model, device
        self.found: dict[str, Any] = machine.describe(device)

    def part(self, name: str, work: Callable[[dict[str, Any]], None]) -> None:
        """Do one part, which fills what is kept of it, or keep why it failed."""
        start = time.perf_counter()
        kept: dict[str, Any] = {}
        self.found[name] = kept
        try:
            work(kept)
        except Exception as error:  # the others may still work
            traceback.print_exc()
            kept["failed"] = _said(error)
        kept["seconds"] = round(time.perf_counter() - start, 1)
        self.write()
        print(f"{name}: {json.dumps({k: v for k, v in kept.items() if k != 'clips'})}", flush=True)

    def write(self) -> None:
        """Write all that has been found so far."""
        Path(self.options.output).write_text(json.dumps(self.found, indent=1) + "\n")

    def accuracy(self, clips: int, frames: int, until: float, kept: dict[str, Any]) -> None:
        """Each way on clips of one length; no more of them are begun after a time."""
        rows: list[dict[str, Any]] = []
        kept |= {"asked": clips, "medians": {}, "clips": rows}
        for i in range(clips):
            if time.perf_counter() > until and rows:
                print(f"  out of time after {i} of {clips} clips", flush=True)
                break
            begin = time.perf_counter()
            tracks, truth, camera = self._clip(i, frames)
            row: dict[str, Any] = {
                "tracks": tracks.tracks.shape[1],
                "generated in": round(time.perf_counter() - begin, 1),
            }
            rows.append(row)
            for name, way in self._ways(frames).items():
                row[name] = self._tried(name, partial(way, tracks, truth, camera))
                kept["medians"] = _medians(rows)
                self.write()
            brief = {
                name: [round(found.get(k, np.nan), 3) for k in ("ate", "rpe_rotation")]
                for name, found in row.items()
                if isinstance(found, dict)
            }
            print(f"  clip {i}, {row['tracks']} tracks: {brief}", flush=True)

    def _tried(self, name: str, way: Callable[[], dict[str, float]]) -> dict[str, Any]:
        """What a way finds, or why it failed, the seconds it took and the GPU's memory."""
        begin = time.perf_counter()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found: dict[str, Any] = {}
        try:
            found |= way()
        except Exception as error:
            traceback.print_exc()
            found["failed"] = _said(error)
            print(f"  {name}: {found['failed']}", flush=True)
        found["seconds"] = time.perf_counter() - begin
        if self.device == "cuda":
            found["GB"] = torch.cuda.max_memory_allocated() / 1e9
        return found

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

    def _ways(self, frames: int) -> dict[str, Callable[..., dict[str, float]]]:
        ways: dict[str, Callable[..., dict[str, float]]] = {
            "whole": partial(self._whole, refine="bundle"),
            "unrefined": partial(self._whole, refine="none"),
        }
        if LONGEST < frames <= STREAMED:
            ways["stream"] = partial(self._stream, refine="none")
            ways["stream-bundle"] = partial(self._stream, refine="bundle")
        if frames > LONGEST:  # else "unrefined" is one pass
            ways["stitched"] = self._stitched
        if LONGEST < frames <= ONE_PASS:
            ways["one-pass"] = self._one_pass
        return {name: way for name, way in ways.items() if name in self.options.ways}

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
        with patch.object(clips, "LONGEST", len(tracks.tracks)):
            return self._whole(tracks, truth, camera, refine="none")

    def _look(self, window: Tensor) -> Prediction:
        """The network's answer for the tracks that a window sees twice."""
        often = window[..., 2].sum(0) > 1
        with torch.no_grad():
            return self.model(hold(window[:, often])[None])

    def latency(self, kept: dict[str, Any]) -> None:
        """Pushes without refinement: times, memory, replay."""
        pushes = self.options.pushes
        few = min(pushes, 500)
        first = self._pushes(pushes, "none", kept, few)
        self.write()
        again = self._pushes(few, "none", {}, few)
        kept["replay is bit-identical"] = first == again

    def latency_bundle(self, kept: dict[str, Any]) -> None:
        """Pushes whose windows are bundle-adjusted."""
        self._pushes(max(self.options.pushes // 20, 60), "bundle", kept, 0)

    def _pushes(self, pushes: int, refine: str, kept: dict[str, Any], compared: int) -> str:
        """A walk past still points, 256 seen at a time, pushed frame by frame.

        Returns a hash of the first `compared` answers.
        """
        window, slots = self.options.window, self.options.slots
        camera = [[500, 0, 320], [0, 500, 240], [0, 0, 1]]
        stream = fasttracks.Stream(self.model, window, 1, slots, intrinsics=camera, refine=refine)
        warm = window + 10  # pushes before those that are timed
        # 256 points within view at a time. For fewer pushes these are the first of the same.
        x = np.arange(-4, 0.02 * (warm + pushes) + 4, 1 / 32)
        others = np.random.default_rng(0).uniform((-2, 5), (2, 9), (len(x), 2))
        points = np.concatenate([x[:, None], others], 1)
        milliseconds: list[float] = []
        answers, resets = hashlib.sha256(), 0
        memory = []
        for t in range(warm + pushes):
            seen = np.flatnonzero(np.abs(points[:, 0] - 0.02 * t) < 4)
            ahead = points[seen] - (0.02 * t, 0.05 * np.sin(0.1 * t), 0)
            pixels = 500 * ahead[:, :2] / ahead[:, 2:] + (320, 240)
            pixels += np.random.default_rng((1, t)).normal(0, 0.3, pixels.shape)
            if t >= warm and (t - warm) % max(pushes // 10, 1) == 0:
                memory.append(_memory(self.device))
            begin = time.perf_counter()
            update = stream.push(seen, pixels)
            if t >= warm:
                milliseconds.append(1e3 * (time.perf_counter() - begin))
            if update:
                resets += update.reset is not None
                if not np.isfinite(update.points).all():
                    raise ValueError(f"points of push {t} are not finite")
                if t < compared:
                    answers.update(update.points.tobytes() + update.camera_to_world.tobytes())
        memory.append(_memory(self.device))
        kept |= {
            "pushes": pushes,
            "tracks seen": len(seen),
            "ms": {f"p{q}": round(float(np.percentile(milliseconds, q)), 3) for q in (50, 95, 99)},
            "host MB": [round(m[0]) for m in memory],
            "device MB": [round(m[1]) for m in memory],
            "resets": resets,
        }
        return answers.hexdigest()


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


def _medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each way's figures, over the clips that it did not fail on; `clips` counts these."""
    ways: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        for way, found in row.items():
            if isinstance(found, dict) and "failed" not in found:
                ways.setdefault(way, []).append(found)
    return {
        way: {"clips": len(found)}
        | {
            name: round(float(np.nanmedian([f.get(name, np.nan) for f in found])), 4)
            for name in sorted(set().union(*found))
        }
        for way, found in ways.items()
    }


def _memory(device: str) -> tuple[float, float]:
    """MB of this process on the host, and of tensors on the GPU."""
    held = torch.cuda.memory_allocated() / 1e6 if device == "cuda" else 0.0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, held


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
