"""Lucas–Kanade tracking (KLT) with memory of what each point looked like; OpenCV and numpy."""

from dataclasses import dataclass

import numpy as np

from fasttracks.errors import InputError
from fasttracks.trackers import check_frames, grid_queries
from fasttracks.trackers.follower import Flow, Follower, Frame


@dataclass(frozen=True)
class KLT:
    """Follows each point from its frame forwards and backwards; see `Follower`.

    Attributes:
        window: side of the patch that Lucas–Kanade compares, in pixels.
        max_error: between where a step began and where tracking back leads, in pixels.
        min_recent: correlation with the patch of the last change that tells where a point is.
        min_born: correlation with the patch at birth that does.
        least: correlation with the former below which a point is lost.
        renew: correlation with the former below which it is taken anew.
        patience: frames that a point is followed while its patch is not found.
        max_change: of a point's colour from one frame to the next, of 255.
        memory: frames that a lost point is looked for.
        min_found: correlation that finds it.
    """

    window: int = 11
    max_error: float = 0.5
    min_recent: float = 0.7
    min_born: float = 0.8
    least: float = 0.4
    renew: float = 0.9
    patience: int = 3
    max_change: float = 20.0
    memory: int = 20
    min_found: float = 0.85
    grid: int = 15
    every: int = 20

    def __post_init__(self) -> None:
        for name, least in (("grid", 1), ("every", 1), ("window", 3)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name}: expected a whole number, {least} or more, found {value}")

    def __call__(
        self, frames: np.ndarray, queries: np.ndarray | None = None, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track; see `Tracker`."""
        check_frames(frames)
        count, height, width, _ = frames.shape
        if queries is None:
            queries = grid_queries(count, height, width, self.grid, self.every)
        prepared = [Frame(frame) for frame in frames]
        flows = [Flow(*pair) for pair in zip(prepared[:-1], prepared[1:], strict=True)]
        return self._follow(prepared, flows, queries)

    def _follow(self, frames, flows, queries):
        count = len(frames)
        start = queries[:, 0].astype(int)
        tracks = np.tile(queries[:, 1:].astype(np.float32), (count, 1, 1))
        visible = np.zeros(tracks.shape[:2], bool)
        ways = (
            (list(range(count)), [None, *flows]),
            (list(reversed(range(count))), [None, *(flow.reversed() for flow in reversed(flows))]),
        )
        for order, led in ways:
            follower, known = Follower(self), np.zeros(0, int)
            previous = None
            for t, flow in zip(order, led, strict=True):
                follower.push(frames[t], flow)
                seen = follower.visible
                if previous is not None:
                    tracks[t, known] = tracks[previous, known]
                tracks[t, known[seen]] = follower.position[seen]
                visible[t, known[seen]] = True
                new = np.flatnonzero(start == t)
                if len(new):
                    follower.add(queries[new, 1:])
                    known = np.append(known, new)
                    tracks[t, new], visible[t, new] = queries[new, 1:], True
                previous = t
        return tracks, visible
