"""How well `moving` tells what moves: `python benchmarks/moving.py --data DATA`.

Held-out scenes, eight of each of six kinds, as the network gives them and bundle-adjusted:
precision and recall in percent of the tracks that are seen twice, and the still ones that are
called moving; beside the former rule, log γ by three robust deviations above the median. With
cat.mp4, bear.mp4 and sheep.mp4 in DATA, the same for tracks that are in or beside the animal in
some frames, by outlines drawn by eye: what is in them need not move, as paws and a body that lies
don't. Prints a table and writes results/moving-MODEL.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import machine
import numpy as np
import torch

import fasttracks
from fasttracks.inputs import hold
from fasttracks.reconstruction_data import tell_moving
from fasttracks.refine.bundle import bundle
from fasttracks.scenes.generator import Clips, generate, seeded
from fasttracks.scenes.held_out import VALIDATION
from fasttracks.scenes.library import load as load_library
from fasttracks.scenes.variety import CASUAL

RESULTS = Path(__file__).parent / "results"
KINDS = {
    **VALIDATION,
    "crowd": replace(CASUAL, frozen=0, company=(0, 0, 0.4, 0.6), fill=(0.6, 1.0), on_subject=1.0),
    "nothing moves": replace(CASUAL, frozen=1.0),
}
# In pixels, by frame. Beside is what is over BESIDE pixels away from all outlines.
BESIDE = 15
OUTLINES: dict[str, dict[int, list[str]]] = {
    "cat": {
        0: [
            "108,158 140,165 185,135 215,165 222,240 245,290 210,340 215,365 195,368 "
            "198,420 165,425 150,365 105,370 60,355 45,315 58,255 108,225"
        ],
        49: [
            "205,80 240,100 290,105 330,88 325,170 310,200 305,255 300,310 270,340 290,365 "
            "270,378 240,355 235,415 210,420 200,370 110,365 55,330 60,290 110,230 185,170 "
            "200,130"
        ],
    },
    "bear": {
        0: [
            "102,251 146,222 244,215 366,234 427,300 456,410 390,422 366,349 293,354 "
            "268,417 195,417 159,349 110,325"
        ],
        49: [
            "115,325 146,264 244,234 342,227 427,271 459,337 444,403 342,410 317,373 "
            "244,378 220,417 183,410 171,349 122,349"
        ],
    },
    "sheep": {
        0: [
            "149,215 207,170 248,114 300,101 346,122 352,190 331,242 310,342 294,342 "
            "279,273 253,346 238,346 228,259 197,263 176,226",
            "480,190 528,139 518,97 569,81 611,87 600,114 631,170 621,197 497,205",
        ],
        49: [
            "161,128 207,103 279,112 325,149 331,221 304,304 269,346 238,294 197,346 "
            "176,346 166,242",
            "472,180 538,87 600,77 621,170 610,197 476,205",
        ],
    },
}


def former(gamma: np.ndarray) -> np.ndarray:
    """The rule before Otsu's."""
    level = np.log(gamma)
    median = np.median(level)
    return level > median + 3 * 1.4826 * np.median(np.abs(level - median))


def judge(
    gamma: np.ndarray, adjusted: np.ndarray, seen: np.ndarray, moving: np.ndarray, still: np.ndarray
) -> dict[str, dict[str, float]]:
    """Scores of γ (N,) by the former rule and by `moving`, and of that after bundle adjustment."""
    twice = seen.sum(0) > 1
    ways = {
        "former": former(gamma),
        "moving": tell_moving(gamma, seen),
        "moving, bundle": tell_moving(adjusted, seen),
    }
    return {name: score(found, moving & twice, still & twice) for name, found in ways.items()}


def score(found: np.ndarray, moving: np.ndarray, still: np.ndarray) -> dict[str, float]:
    """Percent: of what is found, of what moves, of what stands still; NaN where there is none."""
    hits, alarms = int((found & moving).sum()), int((found & still).sum())
    parts = {
        "precision": (hits, hits + alarms),
        "recall": (hits, int(moving.sum())),
        "alarms": (alarms, int(still.sum())),
    }
    return {name: 100 * a / b if b else float("nan") for name, (a, b) in parts.items()}


@torch.no_grad()
def scene(clip: Clips, model: Any) -> dict[str, dict[str, float]]:
    """Scores of a generated clip."""
    weight = model.points.weight
    tracks = hold(clip.tracks).to(weight.device)
    given = model(tracks.to(weight.dtype))
    adjusted, _ = bundle(given, tracks, (clip.focal == 1).to(weight.device))
    gamma, after = (p.motion[0].float().cpu().numpy() for p in (given, adjusted))
    moving = clip.moving[0].numpy()
    return judge(gamma, after, clip.tracks[0, ..., 2].numpy() > 0, moving, ~moving)


def animal(video: Path, model: Any) -> dict[str, dict[str, float]]:
    """Scores of a real clip by its outlines."""
    tracks = fasttracks.track(video, frames=50)
    seen = np.asarray(tracks.visibility)
    inside, beside = np.zeros((2, seen.shape[1]), bool)
    for frame, outlines in OUTLINES[video.stem].items():
        for n in np.flatnonzero(seen[frame]):
            place = tuple(map(float, tracks.tracks[frame, n]))
            depth = max(cv2.pointPolygonTest(_polygon(text), place, True) for text in outlines)
            inside[n] |= depth > 0
            beside[n] |= depth < -BESIDE
    gamma, after = (
        fasttracks.reconstruct(tracks, model=model, refine=refine).motion
        for refine in ("none", "bundle")
    )
    return judge(gamma, after, seen, inside & ~beside, beside & ~inside)


def _polygon(text: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in text.split()], np.float32)


def summary(rows: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Means and medians over clips, of each rule."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for way in rows[0]:
        table = {key: [row[way][key] for row in rows] for key in rows[0][way]}
        table = {key: [v for v in values if not np.isnan(v)] for key, values in table.items()}
        found[way] = {
            how.__name__: {k: round(float(how(v)), 1) for k, v in table.items() if v}
            for how in (np.mean, np.median)
        }
    return found


def main() -> None:
    """Measure every kind, then the real clips that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with recordings and the three videos")
    parser.add_argument("--model", default="base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clips", type=int, default=8, help="of each kind")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--tracks", type=int, default=256)
    options = parser.parse_args()

    model = fasttracks.load(options.model, device=options.device, precision=options.precision)
    library = load_library(options.data, "validation", torch.device("cpu"))
    record: dict[str, Any] = {}
    for kind, variety in KINDS.items():
        rows = []
        for i in range(options.clips):
            clip = generate(
                1,
                options.frames,
                options.tracks,
                library=library,
                generator=seeded(6000 + i, "validation", "cpu"),
                variety=replace(variety, assumed_focal=model.config.assumed_focal),
            )
            rows.append(scene(clip, model))
        record[kind] = summary(rows)
        _print(kind, record[kind])
    for name in OUTLINES:
        video = (options.data or Path()) / f"{name}.mp4"
        if video.exists():
            record[name] = summary([animal(video, model)])
            _print(name, record[name])
    setup = {k: v for k, v in vars(options).items() if k not in ("data", "device")}
    device = model.points.weight.device.type
    path = RESULTS / f"moving-{Path(options.model).stem}.json"
    path.write_text(json.dumps({**machine.describe(device), **setup, **record}, indent=1) + "\n")


def _print(kind: str, found: dict[str, dict[str, dict[str, float]]]) -> None:
    for way, values in found.items():
        means = "  ".join(f"{key} {value:5.1f}" for key, value in values["mean"].items())
        print(f"{kind:14} {way:15} mean  {means}", flush=True)


if __name__ == "__main__":
    main()
