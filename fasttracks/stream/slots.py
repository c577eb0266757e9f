"""The last frames of a stream in memory of fixed size: each track has a slot while it is seen."""

import numpy as np

_CELLS = 8  # of the image, each way, that tracks are spread over
_CROWD = 3  # tracks in a cell that may lose a young one to a newborn in an empty cell; twice as
# many may lose any


class Slots:
    """A window of T frames and N slots.

    Attributes:
        window: (T, N, 3) float32: normalised image coordinates and visibility, the newest frame
            last.
        ids: (N,) int64 of the tracks in the slots, -1 where there is none.
        fresh: (N,) bool: slots whose track is another than when this was last cleared.
        seen: (N,) int64: in how many of the window's frames each was.
        frames: how many of the window's frames have been pushed.
    """

    def __init__(self, frames: int, tracks: int) -> None:
        # Twice as long as a window, which moves on by a frame with each push, and then back.
        self._all = np.zeros((2 * frames, tracks, 3), np.float32)
        self._length, self._first = frames, 0
        self.ids = np.full(tracks, -1, np.int64)
        self.fresh = np.ones(tracks, bool)
        self.seen = np.zeros(tracks, np.int64)
        self.frames = 0
        self._slot: dict[int, int] = {}

    @property
    def window(self) -> np.ndarray:
        return self._all[self._first : self._first + self._length]

    def clear(self) -> None:
        """Forget all frames and tracks."""
        self._all[:] = 0
        self.ids[:], self.fresh[:], self.seen[:], self.frames = -1, True, 0, 0
        self._slot.clear()

    def of(self, ids: np.ndarray) -> np.ndarray:
        """The slots (n,) of tracks, -1 for those that have none."""
        get = self._slot.get
        return np.array([get(i, -1) for i in ids.tolist()], np.int64)

    def push(self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray) -> None:
        """Add a frame: the tracks (n,) that are seen in it, where (n, 2), and their slots (n,).

        The slots are those of `of`, before this frame or before all were forgotten.
        """
        self.seen -= self.window[0, :, 2] > 0
        if self._first == self._length:
            self._all[: self._length] = self.window
            self._first = 0
        self._first += 1
        newest = self.window[-1]
        newest[:] = self.window[-2]
        newest[:, 2] = 0  # held where it was, but not seen
        self.frames += 1
        self._free(np.flatnonzero((self.ids >= 0) & (self.seen == 0)))
        known = (slots >= 0) & (self.ids[slots] == ids)
        slots = slots[known]
        newest[slots, :2] = positions[known]
        newest[slots, 2] = 1
        self.seen[slots] += 1
        if len(slots) < len(ids):
            self._admit(ids[~known], positions[~known])

    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """What the network is shown.

        Returns:
            The slot (N,) that each slot shows, as those without a track that is seen twice repeat
            others' (the network has no masks), and which (N,) show their own.
        """
        own = self.seen >= 2
        if not own.any():
            own = self.seen > 0
        source = np.arange(len(own))
        some = np.flatnonzero(own)
        if 0 < len(some) < len(own):
            source[~own] = np.resize(some, len(own))[~own]
        return source, own

    def _free(self, slots: np.ndarray) -> None:
        if not len(slots):
            return
        for slot in slots:
            del self._slot[int(self.ids[slot])]
        self.ids[slots], self.seen[slots] = -1, 0
        self.window[:, slots] = 0

    def _admit(self, ids: np.ndarray, positions: np.ndarray) -> None:
        """Give slots to newborn tracks: first where fewest others are.

        They take free slots, then those of tracks that are lost for longest, then, for cells
        without any track, those of the youngest tracks where these crowd.
        """
        alive = np.flatnonzero(self.window[-1, :, 2])
        low = np.concatenate([positions, self.window[-1, alive, :2]]).min(0)
        high = np.concatenate([positions, self.window[-1, alive, :2]]).max(0)

        def cells(places: np.ndarray) -> np.ndarray:
            share = (places - low) / np.maximum(high - low, 1e-9)
            x, y = np.minimum(share * _CELLS, _CELLS - 1).astype(int).T
            return y * _CELLS + x

        crowd = np.bincount(cells(self.window[-1, alive, :2]), minlength=_CELLS**2)
        cell = cells(positions)
        # The k-th newborn of a cell waits as if k more tracks were in it.
        order = np.argsort(cell, kind="stable")
        rank = np.empty(len(ids), int)
        rank[order] = np.arange(len(ids)) - np.searchsorted(cell[order], cell[order])
        order = np.argsort(crowd[cell] + rank, kind="stable")

        free = np.flatnonzero(self.ids < 0)
        lost = np.flatnonzero((self.ids >= 0) & (self.window[-1, :, 2] == 0))
        seen = self.window[::-1, lost, 2]
        lost = lost[np.argsort(-seen.argmax(0), kind="stable")]
        places = np.concatenate([free, lost])[: len(ids)]
        if len(places) < len(ids):
            empty = int((crowd[cell[order[len(places) :]]] == 0).sum())
            there = cells(self.window[-1, alive, :2])
            age = self.seen[alive]
            spare = (crowd[there] >= _CROWD) & (age < self._length / 2)
            spare |= crowd[there] >= 2 * _CROWD
            order_of_age = np.argsort(age, kind="stable")
            crowded = alive[order_of_age][spare[order_of_age]]
            places = np.concatenate([places, crowded[:empty]])
        self._free(places[self.ids[places] >= 0])
        for number, slot in zip(order, places, strict=False):
            self.ids[slot] = ids[number]
            self._slot[int(ids[number])] = int(slot)
            self.window[-1, slot, :2], self.window[-1, slot, 2] = positions[number], 1
            self.fresh[slot], self.seen[slot] = True, 1
