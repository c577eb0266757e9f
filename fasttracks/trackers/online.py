"""KLT for frames as they arrive: points that are lost make room for new ones."""

from collections import deque

import numpy as np

from fasttracks.errors import InputError
from fasttracks.trackers.follower import Flow, Follower, Frame, Points, Thresholds
from fasttracks.trackers.seeding import HOPS, Grid, moving, place

_BETWEEN = 10  # frames from one start of tracks to the next, unless half of them are lost
_ENOUGH = 0.9  # of the tracks, from which no new ones start


class OnlineKLT:
    """Follows about `tracks` points through images pushed one by one, in memory of fixed size.

    New ones start where `seeding.place` puts them; one that is lost is looked for during
    `Thresholds.memory` frames, under its old id.
    """

    def __init__(self, tracks: int = 256, options: Thresholds | None = None) -> None:
        self._count = tracks
        self._follower = Follower(options or Thresholds())
        self._flows: deque[Flow] = deque(maxlen=HOPS[-1])
        self._grays: deque[np.ndarray] = deque(maxlen=HOPS[-1] + 1)
        self._ids = np.zeros(0, np.int64)
        self._next, self._since = 0, 0
        self._grid: Grid | None = None
        self._shape: tuple[int, ...] | None = None

    def push(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids (n,) and positions (n, 2) float32 pixels of the points seen in the next image.

        Raises:
            InputError: it is not (H, W, 3) uint8, or not of the size of those before.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(f"image: expected (H, W, 3) uint8, found {image.shape} {image.dtype}")
        if self._shape not in (None, image.shape):
            raise InputError(f"image: expected {self._shape} as before, found {image.shape}")
        self._shape = image.shape
        frame, before = Frame(image), self._follower.frame
        flow = None if before is None else Flow(before, frame)
        if flow is not None:
            self._flows.append(flow)
        self._grays.append(frame.gray)
        self._follower.push(frame, flow)
        self._forget()
        self._start(frame)
        seen = self._follower.visible
        return self._ids[seen], self._follower.position[seen]

    def _forget(self) -> None:
        """Drop the points that are no longer looked for."""
        follower = self._follower
        kept = follower.points.lost < follower.options.memory
        if kept.all():
            return
        follower.points = Points(*(value[kept] for value in vars(follower.points).values()))
        follower.born, follower.recent = follower.born.keep(kept), follower.recent.keep(kept)
        self._ids = self._ids[kept]

    def _start(self, frame: Frame) -> None:
        """Start new points where there are too few."""
        follower = self._follower
        alive = follower.position[follower.visible]
        self._since += 1
        lack = self._count - len(alive)
        due = self._since >= _BETWEEN and len(alive) < _ENOUGH * self._count
        if self._grid is not None and not due and len(alive) >= self._count / 2:
            return
        self._grid = self._grid or Grid(frame.size)
        flows = list(self._flows)
        subject = moving(self._grid, self._grays.__getitem__, flows, len(flows))
        follower.add(place(self._grid, frame, subject, alive, lack))
        self._ids = np.append(self._ids, self._next + np.arange(lack))
        self._next, self._since = self._next + lack, 0
