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
        frames: how many of the window's frames have been pushed.
    """

    def __init__(self, frames: int, tracks: int) -> None:
        self.window = np.zeros((frames, tracks, 3), np.float32)
        self.ids = np.full(tracks, -1, np.int64)
        self.fresh = np.ones(tracks, bool)
        self.frames = 0
        self._slot: dict[int, int] = {}

    def clear(self) -> None:
        """Forget all frames and tracks."""
        self.window[:] = 0
        self.ids[:], self.fresh[:], self.frames = -1, True, 0
        self._slot.clear()

    @property
    def full(self) -> bool:
        """Whether all of the window has been pushed."""
        return self.frames >= len(self.window)

    def linked(self, ids: np.ndarray) -> int:
        """How many of the tracks (n,) have been seen in the window."""
        return sum(map(self._slot.__contains__, ids.tolist()))

    def push(self, ids: np.ndarray, positions: np.ndarray) -> None:
        """Add a frame: the tracks (n,) that are seen in it, where (n, 2)."""
        self.window[:-1] = self.window[1:]
        self.window[-1, :, 2] = 0  # held where it was, but not seen
        self.frames += 1
        gone = np.flatnonzero((self.ids >= 0) & ~self.window[:, :, 2].any(0))
        self._free(gone)
        slots = np.array([self._slot.get(i, -1) for i in ids.tolist()], np.int64)
        known = slots >= 0
        self.window[-1, slots[known], :2] = positions[known]
        self.window[-1, slots[known], 2] = 1
        self._admit(ids[~known], positions[~known])

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """What the network is shown.

        Returns:
            (T, N, 3), in which slots without a track that is seen twice repeat others' (the network
            has no masks), and which slots (N,) show their own.
        """
        own = self.window[:, :, 2].sum(0) >= 2
        if not own.any():
            own = self.window[:, :, 2].any(0)
        shown = np.flatnonzero(own)
        if not len(shown):
            return self.window, own
        source = np.where(own, np.arange(len(own)), np.resize(shown, len(own)))
        return self.window[:, source], own

    def _free(self, slots: np.ndarray) -> None:
        for slot in slots:
            del self._slot[int(self.ids[slot])]
        self.ids[slots] = -1
        self.window[:, slots] = 0

    def _admit(self, ids: np.ndarray, positions: np.ndarray) -> None:
        """Give slots to newborn tracks: first where fewest others are.

        They take free slots, then those of tracks that are lost for longest, then, for cells
        without any track, those of the youngest tracks where these crowd.
        """
        if not len(ids):
            return
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
            age = self.window[:, alive, 2].sum(0)
            spare = (crowd[there] >= _CROWD) & (age < len(self.window) / 2)
            spare |= crowd[there] >= 2 * _CROWD
            order_of_age = np.argsort(age, kind="stable")
            crowded = alive[order_of_age][spare[order_of_age]]
            places = np.concatenate([places, crowded[:empty]])
        self._free(places[self.ids[places] >= 0])
        for number, slot in zip(order, places, strict=False):
            self.ids[slot] = ids[number]
            self._slot[int(ids[number])] = int(slot)
            self.window[-1, slot, :2], self.window[-1, slot, 2] = positions[number], 1
            self.fresh[slot] = True
