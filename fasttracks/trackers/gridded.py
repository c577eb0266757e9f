"""Any tracker, started on an even grid of points, of which a mask may choose some."""

from dataclasses import dataclass

import numpy as np

from fasttracks.errors import InputError
from fasttracks.trackers.queries import Tracker, grid_queries

_MOST = 400  # points along a side


@dataclass(frozen=True)
class Gridded:
    """A tracker with queries of its own where none are given; see `Tracker`.

    Attributes:
        tracker: what follows the points.
        grid: points along each side of a grid, or along that of as many points in the mask.
        mask: (H, W) or (H, W, 3) uint8, stretched over the frames; points start where it is 128 or
            more.
    """

    tracker: Tracker
    grid: int
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.grid <= _MOST:
            raise InputError(f"grid: expected 1 to {_MOST} points a side, found {self.grid}")
        if self.mask is not None and not self._chosen(self.mask).any():
            raise InputError("mask: expected some of it to be bright, all of it is below 128")

    def __call__(
        self, frames: np.ndarray, queries: np.ndarray | None = None, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track; see `Tracker`."""
        if queries is None:
            queries = self._queries(*frames.shape[:3])
        return self.tracker(frames, queries, progress=progress)

    def _queries(self, count: int, height: int, width: int) -> np.ndarray:
        if self.mask is None:
            return grid_queries(count, height, width, self.grid)
        chosen = self._chosen(self.mask)
        side = min(_MOST, round(self.grid / np.sqrt(chosen.mean())))
        queries = grid_queries(count, height, width, side)
        scale = np.array(chosen.shape[::-1]) / (width, height)
        x, y = ((queries[:, 1:] + 0.5) * scale).astype(int).T
        queries = queries[chosen[y, x]]
        if not len(queries):
            raise InputError("mask: its bright part is too small for any point of the grid")
        return queries

    @staticmethod
    def _chosen(mask: np.ndarray) -> np.ndarray:
        return (mask if mask.ndim == 2 else mask.max(-1)) >= 128
