"""From videos of people who film while they walk to cameras and points, against 3D truth.

`python benchmarks/real_video.py FOLDER` of clips/NAME.npz (Stereo4D's annotations), videos/NAME.mp4
and windows.json, the frames to take: [{"clip": NAME, "start": frame, "stride": frames, "frames":
count, "movers": whether what moves there is real}, ...]. Prints tables and writes
results/real_video-MODEL.json, figures only. By column, in percent unless said:

- ate, rpe_position of the camera's path, after a similarity, beside the best straight line and
  parabola in time; rpe_rotation in degrees a frame;
- AbsRel of what moves with a scale a clip, a frame, or the cameras' scale; of still points with
  their own scale or the cameras'; each beside _flat, the guess that all depths are equal;
- recall, alarm: of moving and still tracks, those in `rec.moving`; focal: found / true;
- px, px_true: still tracks' errors in pixels under our cameras and the truth's. Where they are
  alike an ATE tells no more, and the truth is good to 0.15–0.25 % of the path;
- of the tracker: movers, tracks of all its own that follow a moving point; and started on such
  points' first positions: alive, within 2, 4, 8 px, and the error in pixels.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import machine
import numpy as np
import stereo4d
import torch

import fasttracks
from fasttracks.files import write_npz
from fasttracks.trackers import get_tracker, to_tracks
from fasttracks.video import Video, read_video

RESULTS = Path(__file__).parent / "results"
POINTS = 100  # of the truth that the tracker is started on
LEAST = 10  # frames that those are seen in

Figures = dict[str, dict[str, float]]  # by table, then by column


def decode(path: Path, window: dict[str, Any]) -> Video:
    """The frames from a window's first to its last, those between strides too."""
    rate = 1 / np.median(np.diff(read_video(path, frames=10).times))
    count = (window["frames"] - 1) * window["stride"] + 1
    video = read_video(path, start=max(0, window["start"] - 0.5) / rate, frames=count)
    expected = window["start"] + np.arange(count)
    if not np.array_equal(np.rint(video.times * rate), expected):
        raise fasttracks.InputError(f"{path}: frames are missing from {expected[0]} on")
    return video


def follow(
    window: dict[str, Any], truth: stereo4d.Truth, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """A window's tracks and visibility, and the tracker's figures; from the cache, if they are."""
    name = "{clip}-{start}-{stride}-{frames}".format_map(window)
    cached = options.cache and options.cache / f"{name}-{options.tracker}.npz"
    if cached and cached.is_file():
        return dict(np.load(cached))
    video = decode(options.folder / "videos" / f"{window['clip']}.mp4", window)
    tracker = get_tracker(options.tracker)
    points = np.flatnonzero(truth.visible.sum(0) >= LEAST)
    points = points[:: max(1, -(-len(points) // POINTS))]
    stride = window["stride"]
    figures = stereo4d.judge_tracker(tracker, video.frames, truth, points, stride)
    found = to_tracks(video, tracker, every=stride)
    assert found.visibility is not None
    arrays = {"tracks": found.tracks, "visibility": found.visibility}
    arrays |= {name: np.array(value) for name, value in figures.items()}
    if cached:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_npz(cached, arrays)
    return arrays


def choose(visible: np.ndarray, partner: np.ndarray, count: int | None, oracle: bool) -> np.ndarray:
    """The numbers of the tracks to reconstruct from: what moves first, then those seen longest.

    With `oracle`, tracks of what moves are left out.
    """
    order = np.lexsort((-visible.sum(0), partner < 0))[:count]
    return order[partner[order] < 0] if oracle else order


def measure(window: dict[str, Any], options: argparse.Namespace) -> Figures:
    """One window's figures."""
    frames = window["start"] + window["stride"] * np.arange(window["frames"])
    truth = stereo4d.Truth.load(options.folder / "clips" / f"{window['clip']}.npz", frames)
    truth.visible &= window.get("movers", True)
    arrays = follow(window, truth, options)
    tracks, visible = arrays.pop("tracks"), arrays.pop("visibility")
    partner, far = stereo4d.partners(tracks, visible, truth)
    followed = int((partner >= 0).sum()) if window.get("movers", True) else np.nan
    own = {"tracks": tracks.shape[1], "seen": 100 * visible.mean(), "movers": followed}
    figures: Figures = {"tracker": own | {name: float(v) for name, v in arrays.items()}}
    if options.tracker_only:
        return figures

    some = choose(visible, partner, options.tracks, options.oracle)
    tracks, visible, partner, far = tracks[:, some], visible[:, some], partner[some], far[some]
    if options.oracle:
        points = np.flatnonzero(truth.visible.sum(0) >= LEAST)
        points = points[:: max(1, -(-len(points) // POINTS))]
        tracks = np.concatenate([tracks, truth.tracks[:, points]], axis=1)
        visible = np.concatenate([visible, truth.visible[:, points]], axis=1)
        partner = np.append(partner, points)
        far = np.append(far, np.zeros(len(points), bool))
    model = fasttracks.load(options.model, device=options.device)
    for lens in options.intrinsics:
        camera = stereo4d.INTRINSICS if lens == "known" else None
        for refine in options.refine:
            rec = fasttracks.reconstruct(
                tracks,
                visible,
                intrinsics=camera,
                image_size=(stereo4d.SIZE, stereo4d.SIZE),
                refine=refine,
                model=model,
            )
            table = f"refine {refine}, intrinsics {lens}"
            figures[table] = stereo4d.judge(rec, truth, partner, far)
    return figures


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """The medians over clips, those without a figure left out."""
    columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
    known = {name: column[np.isfinite(column)] for name, column in columns.items()}
    return {name: stereo4d.median(column) for name, column in known.items()}


def show(name: str, rows: list[dict[str, float]]) -> str:
    """A table of clips, their medians in the last line."""
    numbers = [*map(str, range(1, len(rows) + 1)), "median"]
    lines = [" ".join([f"{'clip':>6}", *(f"{column:>13}" for column in rows[0])])]
    for number, row in zip(numbers, [*rows, summary(rows)], strict=True):
        lines.append(" ".join([f"{number:>6}", *(f"{value:13.3g}" for value in row.values())]))
    return "\n".join([name, *lines])


def record(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> dict:
    """What goes into the file: figures, and what they were made with."""
    made_with = ("model", "tracker", "tracks", "oracle")
    medians = {name: summary(rows) for name, rows in results.items()}
    rounded = {name: [_rounded(row) for row in rows] for name, rows in results.items()}
    return {
        **machine.describe(options.device),
        **{name: getattr(options, name) for name in made_with},
        "clips": len(next(iter(results.values()))),
        "medians": {name: _rounded(row) for name, row in medians.items()},
        "by clip": rounded,
    }


def _rounded(row: dict[str, float]) -> dict[str, float | None]:
    return {name: float(f"{v:.4g}") if np.isfinite(v) else None for name, v in row.items()}


def main() -> None:
    """Measure the clips of a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--refine", nargs="+", default=["none", "bundle"])
    parser.add_argument("--intrinsics", nargs="+", default=["known"], choices=["known", "unknown"])
    parser.add_argument(
        "--tracks", type=int, help="most to reconstruct from, those on movers first"
    )
    parser.add_argument("--oracle", action="store_true", help="what moves by the truth's tracks")
    parser.add_argument("--tracker", default="klt")
    parser.add_argument("--tracker-only", action="store_true", help="reconstruct nothing")
    parser.add_argument("--model", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="to keep tracks in, or find")
    parser.add_argument("--jobs", type=int, default=1, help="clips at a time")
    parser.add_argument("-o", "--output", type=Path, help="else in results/")
    options = parser.parse_args()

    windows = json.loads((options.folder / "windows.json").read_text())
    results: dict[str, list[dict[str, float]]] = {}
    threads = max(1, torch.get_num_threads() // options.jobs)
    with ProcessPoolExecutor(
        options.jobs, get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        for figures in pool.map(partial(measure, options=options), windows):
            for name, row in figures.items():
                results.setdefault(name, []).append(row)
                print(f"{name}:", *(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    for name, rows in results.items():
        print("\n" + show(name, rows))
    kind = "-tracker" if options.tracker_only else "-oracle" if options.oracle else ""
    output = options.output or RESULTS / f"real_video-{Path(options.model).stem}{kind}.json"
    output.write_text(json.dumps(record(results, options), indent=1) + "\n")


if __name__ == "__main__":
    main()
