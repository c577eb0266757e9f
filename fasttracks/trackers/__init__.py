"""From a video to point tracks: one interface, several trackers."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.trackers.queries import GRID, Tracker, grid_queries
from fasttracks.tracks import Tracks
from fasttracks.video import Video, check_count, read_video

__all__ = ["GRID", "Tracker", "configured", "get_tracker", "grid_queries", "read_whole",
           "to_tracks", "track"]  # fmt: skip


def track(
    video: str | os.PathLike[str],
    tracker: str = "klt",
    *,
    start: float = 0.0,
    frames: int | None = None,
    every: int = 1,
    max_size: int | None = 1024,
    progress: bool = False,
    **options: Any,
) -> Tracks:
    """Tracks of a video file, in pixels of the upright video.

    Args:
        video: a path.
        tracker: "klt", "tapnext" or "cotracker".
        start: seconds to skip.
        frames: keep at most this many; None: all.
        every: keep one frame in this many. Points are followed through those between, too.
        max_size: shrink the longer side to this many pixels for tracking; None: don't.
        progress: show progress bars.
        options: of the tracker's class, `KLT`, `TAPNext` or `CoTracker`.

    Raises:
        InputError: the video or the tracker can't be had, or an option is off.
    """
    follow = get_tracker(tracker, **options)
    clip = read_whole(
        video, start=start, frames=frames, every=every, max_size=max_size, progress=progress
    )
    return to_tracks(clip, follow, every=every, progress=progress)


def read_whole(
    video: str | os.PathLike[str], *, frames: int | None = None, every: int = 1, **options: Any
) -> Video:
    """What `read_video` keeps, and all frames between, for a tracker to go through."""
    for name, value in (("frames", frames), ("every", every)):
        check_count(name, value)
    count = None if frames is None else (frames - 1) * every + 1
    return read_video(video, frames=count, **options)


def to_tracks(video: Video, tracker: Tracker, *, every: int = 1, progress: bool = False) -> Tracks:
    """Tracks of decoded frames, in pixels of the source they were shrunk from.

    One frame in `every` is kept, and what is seen in two of those, if anything is.
    """
    if len(video.frames) <= every:
        raise InputError(
            f"video: expected at least 2 frames, found {-(-len(video.frames) // every)}"
        )
    height, width = video.image_size
    scale = np.array([width, height]) / video.frames.shape[2:0:-1]
    frames, corner = video.frames, np.zeros(2)
    if video.content:  # nothing can be followed in black bars
        top, left, bottom, right = np.rint(
            np.array(video.content) / np.tile(scale[::-1], 2)
        ).astype(int)
        frames, corner = frames[:, top:bottom, left:right], np.array([left, top])
    tracks, visibility = tracker(frames, progress=progress)
    tracks = tracks + corner
    if every > 1:
        video, tracks, visibility = video[::every], tracks[::every], visibility[::every]
        often = visibility.sum(0) > 1
        if often.any():
            tracks, visibility = tracks[:, often], visibility[:, often]
    # Pixel centres are whole numbers, so borders, at -0.5, are what scales.
    return Tracks(
        (tracks + 0.5) * scale - 0.5,
        visibility,
        image_size=video.image_size,
        fps=video.fps if video.fps > 0 else None,
        content=video.content,
        times=np.maximum.accumulate(video.times),
        colors=_colors(video.frames, tracks, visibility),
    )


def _colors(frames: np.ndarray, tracks: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """(N, 3) uint8: the median colour under each track where it is seen; grey where never."""
    count, height, width, _ = frames.shape
    x, y = np.rint(np.nan_to_num(tracks)).astype(int).clip(0, (width - 1, height - 1)).T
    seen = np.where(visibility.T[..., None], frames[np.arange(count), y, x], np.nan)
    seen[~visibility.any(0)] = 128
    return np.nanmedian(seen, axis=1).astype(np.uint8)


def configured(
    name: str,
    *,
    checkpoint: str | None = None,
    device: str = "auto",
    grid: int | None = None,
    mask: str | None = None,
) -> Tracker:
    """The tracker that options of the command line ask for: klt needs no checkpoint and no device.

    Args:
        name: as `get_tracker` takes it.
        checkpoint: of a tracker that is a network.
        device: of the same.
        grid: start so many points along each side; None: as the tracker does, or `GRID`.
        mask: an image; start points where it is bright.
    """
    if name == "klt" and checkpoint:
        raise InputError("--checkpoint: expected with --tracker tapnext or cotracker, not with klt")
    network = {"checkpoint": checkpoint, "device": device}
    tracker = get_tracker(name, **{} if name == "klt" else network)
    if grid is None and mask is None:
        return tracker
    from fasttracks.image_files import read_image
    from fasttracks.trackers.gridded import Gridded

    image = None if mask is None else read_image(Path(mask))
    return Gridded(tracker, GRID if grid is None else grid, image)


def get_tracker(name: str, **options: Any) -> Tracker:
    """The tracker called `name`, "klt", "tapnext" or "cotracker", with its class's options."""
    name = name if isinstance(name, str) else repr(name)
    if name == "klt":
        from fasttracks.trackers.klt import KLT

        return KLT(**options)
    if name == "tapnext":
        from fasttracks.trackers.tapnext import TAPNext
        from fasttracks.trackers.tapnext.checkpoint import found

        tapnext = TAPNext(**options)
        found(tapnext.checkpoint)  # that it lacks is better known before a video is decoded
        return tapnext
    if name == "cotracker":
        from fasttracks.trackers.cotracker import CoTracker

        return CoTracker(**options)
    raise InputError(f"tracker: expected 'klt', 'tapnext' or 'cotracker', found {name!r}")
