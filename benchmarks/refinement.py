"""What refinement gains and costs: `python benchmarks/refinement.py --data DATA`.

Held-out scenes of the kinds that training validates on, and orbits with track noise; each clip
as the network gives it, after bundle adjustment, after fine-tuning, and after both. Prints a
table and writes results/refinement-DEVICE.json, with the curve of error against seconds.
`reprojection_median` beside `tracks_median`, the tracker's own error, says how near the noise is;
`absrel_still` is AbsRel of the points that stand still, after a scale of their own.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

import fasttracks
from fasttracks.evaluation.metrics import FOCAL_LENGTH, Estimate, metrics
from fasttracks.geometry import Prediction
from fasttracks.learning import forward, unsupervised
from fasttracks.network import TracksTo4D
from fasttracks.refine.bundle import bundle
from fasttracks.refine.finetune import finetune
from fasttracks.scenes.generator import Clips, generate, seeded
from fasttracks.scenes.held_out import VALIDATION
from fasttracks.scenes.library import load as load_library
from fasttracks.scenes.variety import CASUAL

RESULTS = Path(__file__).parent / "results"
METRICS = ("absrel", "absrel_moving", "absrel_still", "ate", "rpe_rotation", "reprojection")
KINDS = {
    **VALIDATION,
    "orbit": replace(
        CASUAL,
        cameras=(1.0, 0, 0, 0, 0, 0, 0),
        swing=(20.0, 80.0),
        unknown_focal=0.0,
        clean=0.0,
        noise=(0.25, 1.0),
    ),
}
WORSE = 1.02

Step = Callable[[Clips, Prediction | None], Prediction]


def ways(network: TracksTo4D, tuning: list[int]) -> dict[str, Step]:
    """The ways to reconstruct a clip, by name; "a + b" does b on what a gave."""

    def adjusted(clip: Clips, before: Prediction | None) -> Prediction:
        assert before is not None
        return bundle(before, clip.tracks, clip.focal == 1)[0]

    found: dict[str, Step] = {"forward": lambda clip, _: network(clip.tracks)}
    found["forward + bundle"] = adjusted
    for steps in tuning:
        found[f"finetune {steps}"] = partial(_tuned, network, steps)
        found[f"finetune {steps} + bundle"] = adjusted
    return found


def _tuned(network: TracksTo4D, steps: int, clip: Clips, _: Prediction | None) -> Prediction:
    return finetune(network, clip.tracks, steps=steps)[0]


def measure(every: dict[str, Step], clip: Clips) -> dict[str, dict[str, float]]:
    """Metrics and seconds of one clip, by way."""
    rows: dict[str, dict[str, float]] = {}
    done: dict[str, Prediction] = {}
    truth = clip.truth
    still = truth._replace(visible=truth.visible & ~truth.moving[:, None])
    given = _median_offset(clip.tracks[..., :2], clip, clip.tracks[..., 2] > 0)
    for name, step in every.items():
        first = name.removesuffix(" + bundle")
        _wait(clip)
        start = time.perf_counter()
        with torch.set_grad_enabled("finetune" in name):
            p = done[name] = step(clip, done.get(first))
        _wait(clip)
        seconds = time.perf_counter() - start + (rows[first]["seconds"] if first in rows else 0)
        estimate = Estimate(p.points_camera, p.rotation, p.position, p.projection)
        found = metrics(estimate, truth)
        found["absrel_still"] = metrics(estimate, still)["absrel"]
        rows[name] = {
            **{key: float(found[key]) for key in METRICS},
            "reprojection_median": _median_offset(p.projection, clip, clip.visible),
            "tracks_median": given,
            "seconds": seconds,
        }
    return rows


def _median_offset(positions: torch.Tensor, clip: Clips, which: torch.Tensor) -> float:
    """Median pixels at f = 525 between image positions and the exact ones, of visible points."""
    offset = FOCAL_LENGTH * (positions - clip.truth_tracks).norm(dim=-1)
    return offset[which & clip.visible].median().item()


def _wait(clip: Clips) -> None:
    if clip.tracks.is_cuda:
        torch.cuda.synchronize()


def summary(rows: list[dict[str, float]], forward: list[dict[str, float]]) -> dict[str, Any]:
    """Means, medians, the worst; how many clips got worse than the network's answer, or halved."""
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    given = {name: np.array([row[name] for row in forward]) for name in METRICS}
    return {
        "mean": {name: round(float(np.nanmean(v)), 4) for name, v in table.items()},
        "median": {name: round(float(np.nanmedian(v)), 4) for name, v in table.items()},
        "worst": {name: round(float(np.nanmax(v)), 4) for name, v in table.items()},
        "worse by over 2 %": {n: int((table[n] > WORSE * given[n]).sum()) for n in METRICS},
        "at least halved": {n: int((table[n] <= given[n] / 2).sum()) for n in METRICS},
    }


def speed(network: TracksTo4D, clip: Clips) -> dict[str, Any]:
    """Seconds of bundle adjustment and of 500 steps of fine-tuning, on one clip."""
    found: dict[str, Any] = {"frames": clip.tracks.shape[1], "tracks": clip.tracks.shape[2]}
    with torch.no_grad():
        given = network(clip.tracks)
        times = []
        for _ in range(21):
            _wait(clip)
            start = time.perf_counter()
            adjusted, _ = bundle(given, clip.tracks, clip.focal == 1)
            _wait(clip)
            times.append(1000 * (time.perf_counter() - start))
    for name, p in (("ate before", given), ("ate after", adjusted)):
        estimate = Estimate(p.points_camera, p.rotation, p.position, p.projection)
        found[name] = round(float(metrics(estimate, clip.truth)["ate"]), 4)
    found["bundle ms, first call"] = round(times[0], 1)
    found["bundle ms, median"] = round(float(np.median(times[1:])), 2)
    for which in ("first", "second"):
        _wait(clip)
        start = time.perf_counter()
        _, report = finetune(network, clip.tracks, steps=500)
        _wait(clip)
        seconds, steps = time.perf_counter() - start, report.steps[0]
        found[f"fine-tuning, {which} call"] = {
            "steps": steps,
            "seconds": round(seconds, 2),
            "steps/s": round(steps / seconds, 1),
        }
    found["steps of compiled torch"] = compiled_steps(network, clip)
    return found


def compiled_steps(network: TracksTo4D, clip: Clips, tracks: int = 256) -> dict[str, float]:
    """Fine-tuning's step by torch.compile, on as many tracks: seconds of the first, then a second.

    The whole network and the loss in one graph, Adam fused.
    """
    tuned = copy.deepcopy(network).float().requires_grad_(True)
    optimizer = torch.optim.Adam(tuned.parameters(), 1e-9, fused=True)
    inputs = clip.tracks[:, :, :tracks].contiguous()

    @torch.compile(dynamic=False)
    def loss() -> torch.Tensor:
        return unsupervised(forward(tuned, inputs), inputs).total.sum()

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def timed(steps: int) -> float:
        _wait(clip)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(clip)
        return time.perf_counter() - start

    first = timed(1)
    timed(5)
    return {"first step, seconds": round(first, 1), "steps/s": round(100 / timed(100), 1)}


def main() -> None:
    """Measure every kind in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with mocap_cmu.npz and camera_paths.npz")
    parser.add_argument("--model", default="base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--clips", type=int, default=12, help="of each kind")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--tracks", type=int, default=256)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument(
        "--tuning", type=int, nargs="*", default=[], metavar="STEPS", help="also fine-tune so long"
    )
    parser.add_argument("--tuned-clips", type=int, default=2, help="of each kind, when fine-tuning")
    options = parser.parse_args()

    network = fasttracks.load(options.model, device=options.device)
    device = network.points.weight.device
    library = load_library(options.data, "validation", device)
    kinds: dict[str, Any] = {}
    compared: dict[str, list[dict[str, float]]] = {}  # clips that went every way
    for kind in options.kinds:
        rows: dict[str, list[dict[str, float]]] = {}
        for i in range(options.clips):
            clip = generate(
                1,
                options.frames,
                options.tracks,
                library=library,
                generator=seeded(1000 * options.seed + i, "validation", device),
                variety=replace(KINDS[kind], assumed_focal=network.config.assumed_focal),
            )
            every = ways(network, options.tuning if i < options.tuned_clips else [])
            if not kinds and not rows:  # what is loaded or compiled once is not counted
                measure(every, clip)
            for name, row in measure(every, clip).items():
                rows.setdefault(name, []).append(row)
        fewest = min(map(len, rows.values()))
        for name, found in rows.items():
            compared.setdefault(name, []).extend(found[:fewest])
        kinds[kind] = {
            name: {"clips": len(v), **summary(v, rows["forward"][: len(v)])}
            for name, v in rows.items()
        }
        for name, found in kinds[kind].items():
            means = "  ".join(f"{key} {value:8.4f}" for key, value in found["median"].items())
            worse = found["worse by over 2 %"]["ate"]
            print(f"{kind:9} {name:24} median  {means}  ATE worse {worse}/{found['clips']}")

    timed = None
    if device.type == "cuda":
        clip = generate(
            1,
            50,
            1000,
            library=library,
            generator=seeded(1000 * options.seed, "validation", device),
            variety=replace(KINDS["orbit"], assumed_focal=network.config.assumed_focal),
        )
        timed = speed(network, clip)
        print(timed)
    record = {
        **machine.describe(device.type),
        "model": options.model,
        "frames": options.frames,
        "tracks": options.tracks,
        "kinds": kinds,
        "speed": timed,
        "error against seconds, on the same clips": {
            name: {k: summary(found, compared["forward"])[k] for k in ("mean", "worst")}
            for name, found in compared.items()
        },
    }
    for name, found in record["error against seconds, on the same clips"].items():
        for which, values in found.items():
            print(f"{name:24} {which:6}", *(f"{key} {value:.4f}" for key, value in values.items()))
    # "NVIDIA H100 80GB HBM3" is h100, as in the other results' names.
    name = torch.cuda.get_device_name().split()[1].lower() if device.type == "cuda" else "cpu"
    path = RESULTS / f"refinement-{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
