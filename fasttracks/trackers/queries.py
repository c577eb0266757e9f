"""What trackers have in common: how they are called, where tracks start, and checks of both."""

from typing import Protocol

import numpy as np

from fasttracks.checks import as_numbers
from fasttracks.errors import InputError

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
    queries = as_numbers(queries, "queries")
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
    array = as_numbers(frames, "frames")
    if array is not frames or array.dtype != np.uint8 or array.shape[3:] != (3,) or not array.size:
        raise InputError(
            f"frames: expected a uint8 array (T, H, W, 3), found {array.dtype} {array.shape}"
        )
