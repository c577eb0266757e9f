"""`fasttracks demo`, `track` and `reconstruct`: from a video or tracks to a reconstruction."""

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import fasttracks
from fasttracks.cli.console import (
    check_writable,
    open_in_browser,
    output_path,
    say,
    stage,
    table,
    with_pictures,
)
from fasttracks.cli.describe import summary
from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.network import TracksTo4D
from fasttracks.performance.sample import CLIP
from fasttracks.reconstruction import Reconstruction
from fasttracks.tracks import Tracks
from fasttracks.video import Video


def demo(options: argparse.Namespace) -> None:
    """Reconstruct the bundled tracks."""
    say("Two grazing sheep, filmed by hand: 50 frames, tracked with 'fasttracks track'.")
    output = Path(options.output) / "reconstruction.npz"
    for file in with_pictures(output):
        check_writable(file)
    _finish(_reconstruct(Tracks.load(CLIP), _load(options), options), output)


def track(options: argparse.Namespace) -> None:
    """Video to track file."""
    output = output_path(options, "-tracks.npz")
    tracks, _ = _track(options)
    tracks.save(output)
    say(f"{tracks!r}\nwrote {output}")


def reconstruct(options: argparse.Namespace) -> None:
    """Track file or video to reconstruction."""
    output = output_path(options, "-reconstruction.npz", pictures=True)
    if Path(options.input).suffix.lower() == ".npz":
        tracks, frames, model = Tracks.load(options.input), None, _load(options)
    else:
        model = _load(options)  # first: what is wrong with it need not wait for the tracker
        tracks, video = _track(options)
        frames = video.frames
    _finish(_reconstruct(tracks, model, options), output, frames)
    if options.open:
        open_in_browser(output.with_suffix(".html"))


def _track(options: argparse.Namespace) -> tuple[Tracks, Video]:
    from fasttracks.trackers import get_tracker, read_whole, to_tracks

    if options.checkpoint and options.tracker != "cotracker":
        raise InputError(
            f"--checkpoint: only cotracker takes one, found --tracker {options.tracker}"
        )
    cotracker = {"checkpoint": options.checkpoint, "device": options.device}
    tracker = get_tracker(options.tracker, **cotracker if options.tracker == "cotracker" else {})
    with stage("decode"):
        whole = read_whole(
            options.input,
            start=options.start,
            frames=options.frames,
            every=options.every,
            max_size=options.max_size,
            progress=sys.stderr.isatty(),
        )
    video = whole[:: options.every]
    count, height, width, _ = video.frames.shape
    span = f"{video.times[0]:.2f} to {video.times[-1]:.2f} s"
    say(f"  {count} frames of {width}×{height} px, {span}")
    with stage(f"track ({options.tracker})"):
        tracks = to_tracks(whole, tracker, every=options.every, progress=sys.stderr.isatty())
    return tracks, video


def _load(options: argparse.Namespace) -> TracksTo4D:
    with stage("load model"):
        return fasttracks.load(options.model, device=options.device, precision=options.precision)


def _reconstruct(
    tracks: Tracks, model: TracksTo4D, options: argparse.Namespace
) -> "Reconstruction[np.ndarray]":
    with stage("reconstruct"):
        return fasttracks.reconstruct(
            tracks,
            model=model,
            intrinsics=_intrinsics(tracks, options.focal),
            refine=options.refine,
        )


def _intrinsics(tracks: Tracks, focal: float | None) -> Any:
    if focal is None:
        return None
    if not 0 < focal < math.inf:
        raise InputError(f"--focal: expected pixels above 0, found {focal:g}")
    camera = tracks.camera().copy()
    camera[:, (0, 1), (0, 1)] = focal
    return camera


def _finish(
    result: "Reconstruction[np.ndarray]", output: Path, frames: np.ndarray | None = None
) -> None:
    """Write a reconstruction, its picture and its page: all or none."""
    from fasttracks.viewers.page import page
    from fasttracks.viewers.picture import draw

    files = with_pictures(output)
    with ExitStack() as stack:
        arrays, picture, web = (stack.enter_context(replacing(file)) for file in files)
        with stage("write"):
            result.save(arrays)
        with stage("draw"):
            draw(result, picture)
            name = output.stem.removesuffix("-reconstruction")
            web.write_text(page(result, name, frames), encoding="utf-8")
    table({**summary(result), "wrote": ", ".join(map(str, files))})
