"""What matters in training: short runs from scratch, one thing changed in each.

    python benchmarks/ablation.py --data DATA -o FOLDER

All are judged on the same held-out scenes. Prints a table and puts its runs, each with its commit,
into results/ablation.json, in place of those of the same name; the others stay if they were made on
such a device, as long and judged on as many clips. A run that is already in FOLDER is not repeated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import machine
import torch

from fasttracks.config import Config
from fasttracks.scenes.held_out import validation
from fasttracks.scenes.library import load as load_library
from fasttracks.scenes.variety import CASUAL, Variety
from fasttracks.training.loop import train
from fasttracks.training.run import Schedule, start
from fasttracks.training.sources import Batch, Source, scenes
from fasttracks.weights import resolve_device

RESULTS = Path(__file__).parent / "results"
# Not the schedule's own, which change: all runs of the table have the same, uncut.
SHAPES = ((24, 50, 100), (10, 50, 240), (40, 24, 128), (10, 50, 240),
          (10, 100, 120), (10, 50, 240), (24, 50, 100), (4, 50, 640))  # fmt: skip
METRICS = ("absrel", "absrel_moving", "rpe_rotation", "ate", "reprojection")
# By name: the number of bases, whether the truth supervises, whether γ is used, whether people
# and cameras move by recordings.
RUNS: dict[str, dict[str, Any]] = {
    "K = 12, supervised": {},
    "K = 2": {"bases": 2},
    "K = 30": {"bases": 30},
    "procedural scenes only": {"recordings": False},
    "the paper's loss": {"supervised": False},
    "the paper's loss without γ": {"supervised": False, "gamma": False},
}


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="for the runs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--clips", type=int, default=64, help="of each kind of held-out scenes")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=RUNS, metavar="NAME")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    device = resolve_device(options.device)
    held_out = validation(load_library(options.data, "validation", device), options.clips)
    about = machine.describe(device.type)
    commit = {"commit": about.pop("commit")}
    results = {}
    for name in options.runs:
        folder = options.output / name.replace(" ", "-").replace("'", "")
        if not (folder / "log.jsonl").is_file():
            ablate(folder, held_out, device, options.data, options.steps, **RUNS[name])
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        results[name] = commit | last["validation"]
        for kind, values in last["validation"].items():
            print(f"{name:28} {kind:10}", *(f"{m} {values[m]:.3f}" for m in METRICS), flush=True)
    path = RESULTS / "ablation.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    setting = {"device": about["device"], "steps": options.steps, "clips": options.clips}
    if setting.items() <= before.items():
        results = before["runs"] | results
    path.write_text(json.dumps({**about, **setting, "runs": results}, indent=1) + "\n")


def ablate(
    folder: Path,
    held_out: dict[str, list[Batch]],
    device: torch.device,
    data: str,
    steps: int,
    *,
    bases: int = 12,
    supervised: bool = True,
    gamma: bool = True,
    recordings: bool = True,
) -> None:
    """One run from random weights."""
    library = load_library(data if recordings else None, "train", device)
    source = scenes(library, 0, (CASUAL, Variety()), record=device.type == "cuda")
    schedule = Schedule(
        steps=steps,
        gamma=gamma,
        pose_warm_up=0 if supervised else min(500, steps // 10),
        shapes=SHAPES if device.type == "cuda" else ((1, 20, 50),),
        shortest=1.0,
    )
    run = start(Config(bases=bases), schedule, device)
    source = source if supervised else _without_truth(source)
    train(run, source, folder, validation=held_out, validate_every=steps)


def _without_truth(source: Source) -> Source:
    return lambda shape, step: (source(shape, step)[0], None)


if __name__ == "__main__":
    main()
