"""`fasttracks demo`, `track` and `reconstruct`: from a video or tracks to a reconstruction."""

import argparse
import math
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fasttracks
from fasttracks.cli.console import (
    check_writable,
    claim,
    open_in_browser,
    output_path,
    progress,
    say,
    stage,
    table,
    with_pictures,
)
from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.long.assemble import TOGETHER
from fasttracks.long.windows import LONGEST, shown
from fasttracks.network import TracksTo4D
from fasttracks.performance.sample import CLIP
from fasttracks.reconstruction import Reconstruction
from fasttracks.summary import summary
from fasttracks.track_files import is_track_file
from fasttracks.trackers import Tracker, configured, read_whole, to_tracks
from fasttracks.tracks import Tracks, focal_camera
from fasttracks.video import Video, probe, read_video

# Options of a video, as they are where they aren't given.
VIDEO = {"tracker": "klt", "checkpoint": None, "start": 0.0, "frames": TOGETHER, "every": 1,
         "max_size": 1024, "grid": None, "mask": None}  # fmt: skip


def demo(options: argparse.Namespace) -> None:
    """Reconstruct the bundled tracks."""
    say("Two grazing sheep, filmed by hand: 50 frames, tracked with 'fasttracks track'.")
    output = Path(options.output) / "reconstruction.npz"
    for file in with_pictures(output):
        check_writable(file)
        claim(file)
    tracks = Tracks.load(CLIP)
    result = _reconstruct(tracks, load_model(options), options)
    frames = read_video(CLIP.with_suffix(".mp4"), times=tracks.times).frames
    finish(result, output, "sheep", frames)
    say(f"open {output.with_suffix('.html')} in a browser")


def track(options: argparse.Namespace) -> None:
    """Video to track file."""
    output = output_path(options, "-tracks.npz")
    set_video_options(options)
    tracks, _ = _track(options, tracker_of(options))
    tracks.save(output)
    say(f"{tracks!r}\nwrote {output}")


def reconstruct(options: argparse.Namespace) -> None:
    """Track file or video to reconstruction."""
    output = output_path(options, "-reconstruction.npz", pictures=True)
    frames = None
    if is_track_file(options.input):
        _refuse_video_options(options)
        tracks, model = Tracks.load(options.input), load_model(options)
    else:
        set_video_options(options)
        tracker = tracker_of(options)
        probe(options.input)  # first: what is wrong with it need not wait for the model,
        model = load_model(options)  # nor what is wrong with that for the tracker
        tracks, video = _track(options, tracker)
        frames = video.frames
    name = output.stem.removesuffix("-reconstruction")
    finish(_reconstruct(tracks, model, options), output, name, frames)
    if options.open:
        open_in_browser(output.with_suffix(".html"))


def _refuse_video_options(options: argparse.Namespace) -> None:
    for name in VIDEO:
        if getattr(options, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')}: expected with a video alone, and {options.input} is "
                "a track file, which is taken whole"
            )


def set_video_options(options: argparse.Namespace) -> None:
    """Give those of a video that are not given the values that they have then."""
    for name, value in VIDEO.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def tracker_of(options: argparse.Namespace) -> Tracker:
    """The tracker that the options ask for; InputError where they are at fault."""
    return configured(
        options.tracker,
        checkpoint=options.checkpoint,
        device=options.device,
        grid=options.grid,
        mask=options.mask,
    )


def _track(options: argparse.Namespace, tracker: Tracker) -> tuple[Tracks, Video]:
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
    known = probe(options.input)
    length = known["seconds"] or (known["frames"] or 0) / 25  # images are taken for 25 a second
    if count == options.frames and length > video.times[-1] + 1.5 / video.fps:
        say(f"  left out what follows, up to {length:.2f} s; --frames takes more")
    if options.mask is not None:
        whole = replace(whole, content=None)  # which the mask's pixels don't know of
    with stage(f"track ({options.tracker})"):
        tracks = to_tracks(whole, tracker, every=options.every, progress=sys.stderr.isatty())
    return tracks, video


def load_model(options: argparse.Namespace) -> TracksTo4D:
    with stage("load model"):
        return fasttracks.load(options.model, device=options.device, precision=options.precision)


def _reconstruct(
    tracks: Tracks, model: TracksTo4D, options: argparse.Namespace
) -> "Reconstruction[np.ndarray]":
    intrinsics = _intrinsics(tracks, options.focal)
    frames, count = tracks.tracks.shape[:2]
    long = frames > LONGEST
    tokens = shown(torch.from_numpy(tracks.visibility)) if long else frames * count
    if intrinsics is None and tracks.intrinsics is None and model.config.predicts_focal:
        tokens += min(frames, 400) * min(count, 128)  # that tell the focal length first
    if options.refine == "finetune":
        tokens = 0  # it shows its own progress
    with stage("reconstruct"), progress(model, tokens):
        return fasttracks.reconstruct(
            tracks, model=model, intrinsics=intrinsics, refine=options.refine
        )


def _intrinsics(tracks: Tracks, focal: float | None) -> Any:
    if focal is None:
        return None
    check_focal(focal)
    return focal_camera(tracks, focal)


def check_focal(focal: float) -> None:
    """Raise InputError where --focal is no number of pixels."""
    if not 0 < focal < math.inf:
        raise InputError(f"--focal: expected pixels above 0, found {focal:g}")


def finish(
    result: "Reconstruction[np.ndarray]",
    output: Path,
    name: str,
    frames: np.ndarray | None = None,
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
            draw(result, picture, frames)
            web.write_text(page(result, name, frames), encoding="utf-8")
    table({**summary(result), "wrote": ", ".join(map(str, files))})
