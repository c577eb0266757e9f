"""Videos to reconstructions, each stage timed: `python benchmarks/real_clips.py a.mp4 b.mp4`.

Prints a table and writes results/real_clips-MODEL.json, with a picture of each clip in --pictures.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import machine
import numpy as np

import fasttracks
from fasttracks.trackers import get_tracker, to_tracks
from fasttracks.video import read_video
from fasttracks.viewers.picture import draw

RESULTS = Path(__file__).parent / "results"
Value = TypeVar("Value")


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One clip's stages in seconds and its reprojection error in pixels."""
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Value]) -> Value:
        start = time.perf_counter()
        value = work()
        seconds[stage] = round(time.perf_counter() - start, 3)
        return value

    video = timed("decode", lambda: read_video(path, frames=options.frames, max_size=1024))
    tracker = get_tracker(options.tracker)
    tracks = timed("track", lambda: to_tracks(video, tracker, progress=sys.stderr.isatty()))
    model = timed("load", lambda: fasttracks.load(options.model, device=options.device))
    result = timed("reconstruct", lambda: fasttracks.reconstruct(tracks, model=model))
    assert isinstance(result, fasttracks.Reconstruction)
    if options.pictures:
        draw(result, options.pictures / f"{path.stem}.png")
    error = result.reprojection_error[result.visibility]
    return {
        "clip": path.name,
        "image": f"{video.image_size[1]}×{video.image_size[0]}",
        "frames": len(result.points),
        "tracks": len(result.motion),
        "seen": round(tracks.seen, 3),
        "median px": round(float(np.median(error)), 2),
        "p90 px": round(float(np.percentile(error, 90)), 2),
        "precision": str(next(model.blocks.parameters()).dtype).removeprefix("torch."),
        **{f"{stage} s": value for stage, value in seconds.items()},
    }


def main() -> None:
    """Measure the clips that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--model", default="base")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--tracker", default="klt")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()

    rows = [measure(path, options) for path in options.videos]
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>{len(name)}}" for name, value in row.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    record = {**machine.describe(options.device), "peak memory GB": round(peak, 2), "clips": rows}
    output = RESULTS / f"real_clips-{Path(options.model).stem}.json"
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
