"""From a video to point tracks: one interface, several trackers."""

import os
from typing import Any, Protocol

import numpy as np

from fasttracks.errors import InputError
from fasttracks.tracks import Tracks
from fasttracks.video import Video, read_video

MAX_GRIDS = 10


class Tracker(Protocol):
    """What follows points through a clip."""

    def __call__(
        self, frames: np.ndarray, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track grids of points, those of `grid_queries` in its order.

        Args:
            frames: (T, H, W, 3) uint8 RGB, T ≥ 1.
            progress: show a progress bar.

        Returns:
            tracks: (T, N, 2) float32 (x, y) in pixels of `frames`, with (0, 0) at the centre
                of the top-left pixel; a lost point keeps its last position.
            visibility: (T, N) bool.

        Raises:
            InputError: the frames have another shape or type, or the tracker can't be had.
        """


def track(
    video: str | os.PathLike[str],
    tracker: str = "klt",
    *,
    start: float = 0.0,
    frames: int | None = 50,
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
        frames: read at most this many; None: all.
        every: take every so many frames.
        max_size: shrink the longer side to this many pixels for tracking; None: don't.
        progress: show progress bars.
        options: of the tracker's class, `KLT`, `TAPNext` or `CoTracker`.

    Raises:
        InputError: the video or the tracker can't be had, or an option is off.
    """
    follow = get_tracker(tracker, **options)
    clip = read_video(
        video, start=start, frames=frames, every=every, max_size=max_size, progress=progress
    )
    return to_tracks(clip, follow, progress=progress)


def to_tracks(video: Video, tracker: Tracker, *, progress: bool = False) -> Tracks:
    """Tracks of decoded frames, in pixels of the source they were shrunk from."""
    if len(video.frames) < 2:
        raise InputError(f"video: expected at least 2 frames, found {len(video.frames)}")
    tracks, visibility = tracker(video.frames, progress=progress)
    height, width = video.image_size
    # Pixel centres are whole numbers, so borders, at -0.5, are what scales.
    scale = np.array([width, height]) / video.frames.shape[2:0:-1]
    return Tracks(
        (tracks + 0.5) * scale - 0.5,
        visibility,
        image_size=video.image_size,
        fps=video.fps,
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


def get_tracker(name: str, **options: Any) -> Tracker:
    """The tracker called `name`, "klt", "tapnext" or "cotracker", with its class's options."""
    if name == "klt":
        from fasttracks.trackers.klt import KLT

        return KLT(**options)
    if name == "tapnext":
        from fasttracks.trackers.tapnext import TAPNext

        return TAPNext(**options)
    if name == "cotracker":
        from fasttracks.trackers.cotracker import CoTracker

        return CoTracker(**options)
    raise InputError(f"tracker: expected 'klt', 'tapnext' or 'cotracker', found {name!r}")


def grid_queries(
    frames_count: int, height: int, width: int, grid: int = 15, every: int = 20
) -> np.ndarray:
    """Points to track: a grid × grid of cell centres, started afresh every so many frames.

    Grids start on frames 0, every, 2 · every, … and on the last; further apart in a long
    clip, which would otherwise have more than `MAX_GRIDS` of them.

    Returns:
        (N, 3) float32 rows of (frame, x, y), grid by grid.
    """
    step = max(every, -(-frames_count // (MAX_GRIDS - 1)))
    starts = sorted({*range(0, frames_count, step), frames_count - 1})
    cell = (np.arange(grid) + 0.5) / grid
    start, y, x = np.meshgrid(starts, cell * height - 0.5, cell * width - 0.5, indexing="ij")
    return np.stack([start, x, y], axis=-1).reshape(-1, 3).astype(np.float32)


def check_frames(frames: np.ndarray) -> None:
    """Raise InputError unless `frames` is a (T, H, W, 3) uint8 array with T ≥ 1."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InputError(
            f"frames: expected uint8 (T, H, W, 3), found {frames.dtype} {frames.shape}"
        )
