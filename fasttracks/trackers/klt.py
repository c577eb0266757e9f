"""Pyramidal Lucas–Kanade tracking (KLT), from OpenCV."""

from dataclasses import dataclass

import numpy as np

from fasttracks.errors import InputError
from fasttracks.trackers import check_frames, grid_queries


@dataclass(frozen=True)
class KLT:
    """Follows each point from its frame forwards and backwards, one frame at a time.

    A step counts if tracking back from where it leads returns to where it began, and the
    patches at both ends look alike. Otherwise the point is lost: it keeps its position and is
    unseen from there on in that direction.

    Attributes:
        grid: points along each side of a grid.
        every: frames between grids.
        window: side of the patch compared, in pixels.
        levels: pyramid levels above the full image.
        max_error: between where a step began and where tracking back leads, in pixels.
        max_difference: between the patches at both ends, the mean in gray levels of 255.
    """

    grid: int = 15
    every: int = 20
    window: int = 21
    levels: int = 3
    max_error: float = 0.5
    max_difference: float = 20.0

    def __post_init__(self) -> None:
        for name, least in (("grid", 1), ("every", 1), ("window", 3), ("levels", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name}: expected a whole number, {least} or more, found {value}")

    def __call__(
        self, frames: np.ndarray, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track; see `Tracker`."""
        import cv2
        from tqdm import tqdm

        check_frames(frames)
        count, height, width, _ = frames.shape
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        queries = grid_queries(count, height, width, self.grid, self.every)
        start = queries[:, 0].astype(int)

        tracks = np.tile(queries[:, 1:], (count, 1, 1))
        visible = start == np.arange(count)[:, None]
        forwards = [(t, t + 1) for t in range(count - 1)]
        backwards = [(t + 1, t) for t in reversed(range(count - 1))]
        for t, to in tqdm(forwards + backwards, desc="track", unit="frame", disable=not progress):
            begun = start <= t if to > t else start >= t
            tracks[to, begun] = tracks[t, begun]
            alive = np.flatnonzero(begun & visible[t])
            moved, found = self._step(gray[t], gray[to], tracks[t, alive])
            tracks[to, alive[found]] = moved[found]
            visible[to, alive[found]] = True
        return tracks, visible

    def _step(
        self, image: np.ndarray, other: np.ndarray, points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the (n, 2) `points` of one image are in the other, and which (n,) are found."""
        import cv2

        if not len(points):
            return points, np.zeros(0, bool)
        options = {"winSize": (self.window, self.window), "maxLevel": self.levels}
        moved, there, difference = cv2.calcOpticalFlowPyrLK(image, other, points, None, **options)
        back, again, _ = cv2.calcOpticalFlowPyrLK(other, image, moved, None, **options)
        found = (there & again & (difference <= self.max_difference)).ravel().astype(bool)
        found &= np.linalg.norm(back - points, axis=1) <= self.max_error
        found &= ((moved >= 0) & (moved <= np.array(image.shape[::-1]) - 1)).all(axis=1)
        return moved, found
