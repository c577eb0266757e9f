"""Lucas–Kanade tracking (KLT) with a memory of what each point looks like; OpenCV and numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.trackers.follower import Flow, Follower, Frame, Thresholds, to_gray
from fasttracks.trackers.queries import check_frames, check_queries, usual_count
from fasttracks.trackers.seeding import Grid, moving, place

BETWEEN = 10  # frames between starts
FIRST, LATER = 0.4, 10  # share of the tracks that begin at the first start, and how many times as
# many they are at most as begin at a later one
PER_FRAME, MOST = 3, 4000  # tracks of a long clip
SPARE = 1.2  # times as many tracks start as are asked for, as some are lost at once


@dataclass(frozen=True)
class KLT(Thresholds):
    """Follows each point from its frame forwards and backwards; see `Follower`.

    Attributes:
        tracks: how many, if no queries are given; None: 900 of 50 frames, up to 4000 of longer
            clips.
        The others: see `Thresholds`.
    """

    tracks: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("tracks", 1), ("window", 3), ("patience", 0), ("memory", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"{name}: expected a whole number, {least} or more, found {value}")

    def __call__(
        self, frames: np.ndarray, queries: np.ndarray | None = None, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track; see `Tracker`.

        Without queries tracks start on texture, on what moves and where others thin out. More
        start than are asked for; those seen longest stay.
        """
        from tqdm import tqdm

        check_frames(frames)
        flows: list[Flow] = []
        before = Frame(frames[0])
        for image in tqdm(frames[1:], desc="flow", unit="frame", disable=not progress):
            frame = Frame(image)
            flows.append(Flow(before, frame))
            before = frame
        with tqdm(total=2 * len(frames), desc="track", unit="frame", disable=not progress) as bar:
            if queries is not None:
                queries = check_queries(queries, frames)
                return self._both_ways(frames, flows, queries[:, 0].astype(int), queries, bar)
            count = self.tracks or max(usual_count(len(frames)), min(PER_FRAME * len(frames), MOST))
            start = _starts(len(frames), round(SPARE * count))
            tracks, visible = self._both_ways(frames, flows, start, None, bar)
        kept = _longest(start, visible.sum(0), count)
        return tracks[:, kept], visible[:, kept]

    def _both_ways(
        self,
        frames: np.ndarray,
        flows: Sequence[Flow],
        start: np.ndarray,
        queries: np.ndarray | None,
        bar: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tracks (T, N, 2) and visibility (T, N) of points that start in frames (N,).

        Without `queries` (N, 3) it is chosen on the way forwards where.
        """
        count, grid = len(frames), Grid(np.array(frames.shape[2:0:-1], np.float32))
        tracks = np.zeros((count, len(start), 2), np.float32)
        visible = np.zeros(tracks.shape[:2], bool)
        points = np.zeros((len(start), 2), np.float32) if queries is None else queries[:, 1:]
        ahead = [(t, t - 1, flow) for t, flow in enumerate([None, *flows])]
        back = [(t, t + 1, flow and flow.reversed()) for t, flow in enumerate([*flows, None])]
        for forward, way in ((True, ahead), (False, back[::-1])):
            follower, known = Follower(self), np.zeros(0, int)
            for t, before, flow in way:
                frame = Frame(frames[t])  # made again: all of a long clip would not fit in memory
                follower.push(frame, flow)
                seen = follower.visible
                visible[t, known] = seen
                if len(known):
                    held = tracks[before, known]
                    tracks[t, known] = np.where(seen[:, None], follower.position, held)
                new = np.flatnonzero(start == t)
                if len(new) and forward and queries is None:
                    subject = moving(grid, lambda t: to_gray(frames[t]), flows, t)
                    points[new] = place(grid, frame, subject, follower.position[seen], len(new))
                follower.add(points[new])
                known = np.append(known, new)
                tracks[t, new], visible[t, new] = points[new], True
                bar.update()
        return tracks, visible


def _starts(frames: int, tracks: int) -> np.ndarray:
    """The frames (N,) that tracks start in: many in the first, the rest evenly."""
    later = sorted({*range(BETWEEN, frames, BETWEEN), frames - 1} - {0})
    first = round(min(FIRST, LATER / (LATER + len(later))) * tracks) if later else tracks
    rest = np.array(later or [0])[np.arange(tracks - first) * len(later) // (tracks - first or 1)]
    return np.concatenate([np.zeros(first, int), rest])


def _longest(start: np.ndarray, seen: np.ndarray, count: int) -> np.ndarray:
    """The numbers of at most `count` tracks, those `seen` (N,) longest of each `start` (N,)."""
    order = np.lexsort((-seen, start))
    _, first, size = np.unique(start[order], return_index=True, return_counts=True)
    rank = np.empty(len(start))
    rank[order] = (np.arange(len(start)) - np.repeat(first, size)) / np.repeat(size, size)
    kept = np.argsort(rank, kind="stable")[:count]
    often = kept[seen[kept] > 1]
    return np.sort(often if len(often) else kept)
