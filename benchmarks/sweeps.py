"""Accuracy against what makes clips hard, one plot each: `python benchmarks/sweeps.py --data DATA`.

First each kind of held-out scenes as training validates on them, mean and median over many clips,
and what the network could do at best: `best_of_bases`.
Then casual clips with one thing varied: track noise, outliers, occlusion, parallax, an unknown
focal length, tracks and frames. Writes results/sweeps-MODEL.json and .png.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import fasttracks
from fasttracks.evaluation.metrics import Estimate, Truth, metrics
from fasttracks.geometry import project, to_camera
from fasttracks.scenes.held_out import VALIDATION, VALIDATION_FRAMES, VALIDATION_TRACKS
from fasttracks.scenes.library import load as load_library
from fasttracks.scenes.variety import CASUAL, Variety
from fasttracks.training.judging import judge, judge_each
from fasttracks.training.sources import Batch, scenes

RESULTS = Path(__file__).parent / "results"
METRICS = {"absrel": "AbsRel", "rpe_rotation": "RPE, ° a frame", "ate": "ATE, % of the path"}
PLAIN = replace(CASUAL, clean=0.0, unknown_focal=0.0)
ORBIT = replace(PLAIN, cameras=(1.0, 0, 0, 0, 0, 0, 0))
SIZE = (VALIDATION_FRAMES, VALIDATION_TRACKS)

# What is varied: by value, the scenes and (frames, tracks).
SWEEPS: dict[str, dict[float, tuple[Variety, tuple[int, int]]]] = {
    "track noise, px": {v: (replace(PLAIN, noise=(v, v)), SIZE) for v in (0, 0.5, 1, 2, 4)},
    "outliers, share of tracks": {
        v: (replace(PLAIN, outliers=(v, v)), SIZE) for v in (0, 0.05, 0.1, 0.2, 0.3)
    },
    "hidden, share of observations": {
        v: (replace(PLAIN, hidden=(v, v)), SIZE) for v in (0, 0.15, 0.3, 0.45, 0.6)
    },
    "parallax, ° around the subject": {
        v: (replace(ORBIT, swing=(v, v)), SIZE) for v in (2, 5, 10, 20, 40, 60)
    },
    "clips without intrinsics, share": {
        v: (replace(PLAIN, unknown_focal=v), SIZE) for v in (0, 0.5, 1)
    },
    "tracks": {v: (PLAIN, (SIZE[0], v)) for v in (50, 100, 256, 512)},
    "frames": {v: (PLAIN, (v, SIZE[1])) for v in (12, 24, 36, 50, 75, 100)},
}


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with mocap_cmu.npz and camera_paths.npz")
    parser.add_argument("--model", default="base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=64, help="for each value")
    options = parser.parse_args()

    network = fasttracks.load(options.model, device=options.device, precision="fp32")
    device = network.points.weight.device
    library = load_library(options.data, "validation", device)
    at_once = min(16, options.clips)

    def batches(variety: Variety, size: tuple[int, int], clips: int) -> list[Batch]:
        variety = replace(variety, assumed_focal=network.config.assumed_focal)
        source = scenes(library, 3, (variety,))
        return [source((at_once, *size), i) for i in range(clips // at_once)]

    kinds: dict[str, Any] = {}
    for name, variety in VALIDATION.items():
        clips = batches(variety, SIZE, 4 * options.clips)
        found = judge_each(network, clips)
        limits = [best_of_bases(truth, network.config.bases) for _, truth in clips if truth]
        kinds[name] = {
            "mean": {key: round(values.nanmean().item(), 4) for key, values in found.items()},
            "median": {key: round(values.nanmedian().item(), 4) for key, values in found.items()},
            "mean of the best of its bases": {
                key: round(torch.cat([limit[key] for limit in limits]).nanmean().item(), 4)
                for key in ("absrel", "absrel_moving", "reprojection")
            },
        }
        print(name, kinds[name], flush=True)

    sweeps: dict[str, Any] = {}
    for name, values in SWEEPS.items():
        sweeps[name] = {}
        for value, (variety, size) in values.items():
            sweeps[name][value] = judge(network, batches(variety, size, options.clips))
            print(name, value, {key: sweeps[name][value][key] for key in METRICS}, flush=True)

    output = RESULTS / f"sweeps-{Path(options.model).stem}"
    about = {**machine.describe(device.type), "clips": options.clips}
    record = {**about, "kinds": kinds, "sweeps": sweeps}
    output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    draw(sweeps, output.with_suffix(".png"))


def best_of_bases(truth: Truth, bases: int) -> dict[str, Tensor]:
    """Metrics, one value a clip, of the truth with its points as near as so many bases come.

    Points move about their means by the bases - 1 principal components of the clip.
    """
    world = truth.points_camera @ truth.rotation.mT + truth.position[:, :, None]
    moves = (world - world.mean(1, keepdim=True)).flatten(2).double()
    u, s, v = torch.linalg.svd(moves, full_matrices=False)
    moves = (u * s[:, None])[..., : bases - 1] @ v[:, : bases - 1]
    points = world.mean(1, keepdim=True) + moves.view(world.shape).float()
    camera = to_camera(points, truth.rotation, truth.position)
    image = project(camera, truth.focal[:, None].expand(world.shape[:2]))
    return metrics(Estimate(camera, truth.rotation, truth.position, image), truth)


def draw(sweeps: dict[str, Any], path: Path) -> None:
    """A column for each sweep, a row for each metric."""
    figure = Figure(figsize=(3 * len(sweeps), 2.4 * len(METRICS)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(METRICS), len(sweeps), sharey="row")
    for column, (name, values) in enumerate(sweeps.items()):
        for row, (metric, label) in enumerate(METRICS.items()):
            axis = axes[row, column]
            axis.plot(list(values), [result[metric] for result in values.values()], "ko-")
            axis.set(xlabel=name if row == len(METRICS) - 1 else "", ylabel="" if column else label)
    for axis in axes[:, 0]:
        axis.set_ylim(bottom=0)  # of the whole row, once all is in it
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
