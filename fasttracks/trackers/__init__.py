"""From a video to point tracks: one interface, several trackers."""

import os
from typing import Any, Protocol

import numpy as np

from fasttracks.errors import InputError
from fasttracks.tracks import Tracks
from fasttracks.video import Video, check_count, read_video

GRID = 15  # points along each side of a grid
EVERY = 20  # frames between grids
MAX_GRIDS = 10


class Tracker(Protocol):
    """What follows points through a clip."""

    def __call__(
        self, frames: np.ndarray, queries: np.ndarray | None = None, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track points.

        Args:
            frames: (T, H, W, 3) uint8 RGB, T ≥ 1.
            queries: (N, 3) rows of frame, x, y: where tracks start; None: where the tracker
                finds good.
            progress: show a progress bar.

        Returns:
            tracks: (T, N, 2) float32 (x, y) in pixels of `frames`, with (0, 0) at the centre
                of the top-left pixel; a lost point keeps its last position.
            visibility: (T, N) bool.

        Raises:
            InputError: frames or queries have another shape or type, or the tracker can't be had.
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
        tracker: "klt" or "cotracker".
        start: seconds to skip.
        frames: keep at most this many; None: all.
        every: keep one frame in this many. Points are followed through those between, too.
        max_size: shrink the longer side to this many pixels for tracking; None: don't.
        progress: show progress bars.
        options: of the tracker's class, `KLT` or `CoTracker`.

    Raises:
        InputError: the video or the tracker can't be had, or an option is off.
    """
    follow = get_tracker(tracker, **options)
    clip = read_whole(
        video, start=start, frames=frames, every=every, max_size=max_size, progress=progress
    )
    return to_tracks(clip, follow, every=every, progress=progress)


def read_whole(
    video: str | os.PathLike[str], *, frames: int | None = 50, every: int = 1, **options: Any
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
    tracks, visibility = tracker(video.frames, progress=progress)
    if every > 1:
        video, tracks, visibility = video[::every], tracks[::every], visibility[::every]
        often = visibility.sum(0) > 1
        if often.any():
            tracks, visibility = tracks[:, often], visibility[:, often]
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
    """The tracker called `name`, "klt" or "cotracker", with the options of its class."""
    if name == "klt":
        from fasttracks.trackers.klt import KLT

        return KLT(**options)
    if name == "cotracker":
        from fasttracks.trackers.cotracker import CoTracker

        return CoTracker(**options)
    raise InputError(f"tracker: expected 'klt' or 'cotracker', found {name!r}")


def usual_count(frames: int) -> int:
    """How many tracks a clip gets."""
    return GRID**2 * len(_grid_starts(frames))


def _grid_starts(frames: int, every: int = EVERY) -> list[int]:
    step = max(every, -(-frames // (MAX_GRIDS - 1)))
    return sorted({*range(0, frames, step), frames - 1})


def grid_queries(
    frames_count: int, height: int, width: int, grid: int = GRID, every: int = EVERY
) -> np.ndarray:
    """Points to track: a grid × grid of places, started afresh every so many frames.

    Grids start on frames 0, every, 2 · every, … and on the last; further apart in a long
    clip, which would otherwise have more than `MAX_GRIDS` of them. Each of four in turn lies
    between the others' points.

    Returns:
        (N, 3) float32 rows of (frame, x, y), grid by grid.
    """
    queries = []
    for turn, start in enumerate(_grid_starts(frames_count, every)):
        across, down = ((0.25, 0.25), (0.75, 0.75), (0.75, 0.25), (0.25, 0.75))[turn % 4]
        x = (np.arange(grid) + across) / grid * width - 0.5
        y = (np.arange(grid) + down) / grid * height - 0.5
        row, column = np.meshgrid(y, x, indexing="ij")
        points = np.stack([np.full_like(row, start), column, row], axis=-1)
        queries.append(points.reshape(-1, 3))
    return np.concatenate(queries).astype(np.float32)


def check_queries(queries: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """`queries` in float32; InputError unless (N, 3) rows of frame, x, y in (T, H, W, 3) frames."""
    queries = np.asarray(queries)
    if queries.ndim != 2 or queries.shape[1] != 3 or queries.dtype.kind not in "iuf":
        raise InputError(
            f"queries: expected rows of frame, x, y, found {queries.dtype} {queries.shape}"
        )
    most = np.array(frames.shape)[[0, 2, 1]] - [1, 0.5, 0.5]
    good = (queries >= [0, -0.5, -0.5]) & (queries <= most)
    good[:, 0] &= queries[:, 0] == np.floor(queries[:, 0])
    if not good.all():
        count, height, width, _ = frames.shape
        raise InputError(
            f"queries: expected whole frames 0 to {count - 1} and pixels of {width}×{height}, "
            f"found {queries[~good.all(1)][0].tolist()}"
        )
    return queries.astype(np.float32)


def check_frames(frames: np.ndarray) -> None:
    """Raise InputError unless `frames` is a (T, H, W, 3) uint8 array with T ≥ 1."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InputError(
            f"frames: expected uint8 (T, H, W, 3), found {frames.dtype} {frames.shape}"
        )
