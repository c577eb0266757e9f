"""TAPNext and TAPNext++ (Google DeepMind): points found again after they were hidden.

The network is written anew from a description (`network`); its weights are free for all uses
(Apache-2.0) and not part of this package: `TAPNext` says how to get them.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fasttracks.errors import InputError
from fasttracks.trackers.queries import check_frames, check_queries, grid_queries
from fasttracks.trackers.tapnext.checkpoint import found

if TYPE_CHECKING:
    from torch import Tensor

    from fasttracks.trackers.tapnext.session import Session

_SPACE = 256  # see `network`
_AT_ONCE = 8  # frames that are brought to the GPU together
_PATIENCE = 30.0  # seconds that a CPU may take without a warning


@dataclass(frozen=True)
class TAPNext:
    """Tracks all points together, forwards through the clip and backwards through its reverse.

    Both directions run side by side, one frame at a time, in memory that doesn't depend on the
    clip's length. Points read each other in every frame, so that a track depends, a little, on
    which others there are. One clip at a time: calls from several threads need trackers of their
    own.

    Attributes:
        checkpoint: a file that `fasttracks convert` made from a released one.
        device: "auto" (cuda if there is one), "cpu", "cuda", "cuda:1", …
        precision: "auto" (fp16 on cuda, else fp32), "fp32", "fp16", "bf16".
        size: 256 or 512, the side to which frames are resized; None: what the weights are for.
        grid: points along each side of a grid.
        every: frames between grids.
        certain: call a point visible where the product of visibility and certainty, the
            probability that it is within 8/256 of the image of where it seems to be, is above a
            half; False: where visibility alone is.
        few: where there are fewer points than this, a grid of 8 × 8 helpers around each, within
            16/256 of the image, runs along.
    """

    checkpoint: str | os.PathLike[str] | None = None
    device: str = "auto"
    precision: str = "auto"
    size: int | None = None
    grid: int = 15
    every: int = 20
    certain: bool = True
    few: int = 16

    def __post_init__(self) -> None:
        for name, least in (("grid", 1), ("every", 1), ("few", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name}: expected a whole number, {least} or more, found {value}")
        if self.size not in (None, 256, 512):
            raise InputError(f"size: expected 256 or 512, found {self.size}")

    def __call__(
        self, frames: np.ndarray, queries: np.ndarray | None = None, *, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Track; see `Tracker`.

        Args:
            frames: (T, H, W, 3) uint8 RGB.
            queries: (N, 3) rows of frame, x, y; None: those of `grid_queries`, in its order.
            progress: show a progress bar.
        """
        import torch
        from tqdm import tqdm

        check_frames(frames)
        count, height, width, _ = frames.shape
        if queries is None:
            queries = grid_queries(count, height, width, self.grid, self.every)
        queries = check_queries(queries, frames)
        if not len(queries):
            return np.zeros((count, 0, 2), np.float32), np.zeros((count, 0), bool)
        start = queries[:, 0].astype(int)
        points, birth = _to_space(queries[:, 1:], (height, width)), start
        if len(points) < self.few:
            points, birth = _with_helpers(points), np.tile(start, 65)
        directions = [birth, count - 1 - birth] if start.any() else [birth]

        with self._memory(len(points)):
            session = self._session(len(directions), len(points))
            session.reset()
            session.declare(
                torch.arange(len(points)),
                torch.tensor(np.stack(directions)),
                torch.tensor(np.stack([points] * len(directions))),
            )
            steps = []
            began = time.perf_counter()
            for t in tqdm(range(count), desc="track", unit="frame", disable=not progress):
                if t % _AT_ONCE == 0:
                    images = self._images(frames, range(t, min(t + _AT_ONCE, count)), directions)
                steps.append(session.step(images[t % _AT_ONCE]).clone())
                if t == 0 and session.device.type == "cpu":
                    _warn_of_time(time.perf_counter() - began, count, progress)
            out = torch.stack(steps).cpu().numpy()

        forwards, backwards = out[:, 0], out[::-1, -1]
        onwards = np.arange(count)[:, None] >= start
        out = np.where(onwards[..., None], forwards[:, : len(start)], backwards[:, : len(start)])
        tracks, visible = self._read(out, (height, width))
        tracks[start, np.arange(len(start))] = queries[:, 1:]
        visible[start, np.arange(len(start))] = True
        return _held(tracks, visible, start), visible

    def online(self, rows: int) -> Online:
        """Follow a live video, with room for so many points in all.

        Every row costs time from the first frame on, whether it is used or not.
        """
        if rows < 1:
            raise InputError(f"rows: expected at least 1, found {rows}")
        with self._memory(rows):
            return Online(self, self._new_session(1, rows), rows)

    def _images(self, frames: np.ndarray, which: range, directions: list[Any]) -> Tensor:
        """Some steps' input (steps, B, S, S, 3), on the device."""
        import torch

        from fasttracks.trackers.tapnext.session import resized

        _, size, device = self._loaded
        backwards = [len(frames) - 1 - t for t in which]
        order = [list(which), backwards][: len(directions)]
        images = torch.from_numpy(frames[np.concatenate(order)]).to(device)
        return resized(images, size).unflatten(0, (len(order), -1)).transpose(0, 1)

    def _read(self, out: np.ndarray, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The network's (..., 4) to positions (..., 2) (x, y) in pixels, and visibility (...)."""
        if not np.isfinite(out).all():
            raise InputError(
                "tapnext: the network's answer is not finite; the weights are off, or "
                "precision='bf16' or 'fp32' is needed"
            )
        height, width = image_size
        tracks = out[..., 1::-1] * (np.array([width, height]) / _SPACE) - 0.5
        logit, certainty = out[..., 2], out[..., 3]
        if not self.certain:
            return tracks.astype(np.float32), logit > 0
        # σ(v) c > 1/2 without a sigmoid that could overflow
        return tracks.astype(np.float32), 2 * certainty > 1 + np.exp(-logit.clip(-80))

    @cached_property
    def _loaded(self) -> tuple[Any, int, Any]:
        """The network, the frames' side and the device, loaded on first use."""
        from fasttracks.trackers.tapnext.weights import load
        from fasttracks.weights import resolve_device, resolve_precision

        device = resolve_device(self.device)
        dtype = resolve_precision(self.precision, device)
        model, size = load(found(self.checkpoint), device, dtype)
        return model, self.size or size, device

    def _new_session(self, batch: int, rows: int) -> Session:
        from fasttracks.trackers.tapnext.session import Session

        model, size, _ = self._loaded
        return Session(model, rows, size, batch=batch)

    @cached_property
    def _sessions(self) -> dict[tuple[int, int], Session]:
        """The last one, by directions and rows, to be used again."""
        return {}

    def _session(self, batch: int, rows: int) -> Session:
        if (batch, rows) not in self._sessions:
            self._sessions.clear()  # first: there may not be memory for both
            self._sessions[batch, rows] = self._new_session(batch, rows)
        return self._sessions[batch, rows]

    @contextmanager
    def _memory(self, points: int) -> Iterator[None]:
        """Say in one line where there isn't enough."""
        try:
            yield
        except RuntimeError as error:
            from fasttracks.trackers.tapnext.session import out_of_memory

            if not out_of_memory(error):
                raise
            self._sessions.clear()
            raise InputError(
                f"tapnext: not enough memory for {points} points; track fewer, or on another device"
            ) from None


class Online:
    """A live video's points, which may join in any frame; made by `TAPNext.online`.

    Attributes:
        rows: points that there is room for.
        joined: points so far.
    """

    def __init__(self, tracker: TAPNext, session: Session, rows: int) -> None:
        self.rows = rows
        self.joined = 0
        self._tracker = tracker
        self._session = session
        self._frame = 0

    def push(
        self, frame: np.ndarray, points: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The next frame.

        Args:
            frame: (H, W, 3) uint8 RGB; its size may change.
            points: (n, 2) (x, y) in this frame's pixels, of points that join in it.

        Returns:
            tracks: (N, 2) float32 (x, y) in this frame's pixels, of all that joined, in order.
            visibility: (N,) bool. Where it is False, a track is where the network takes the
                hidden point to be.

        Raises:
            InputError: a frame or points of another form, or more points than there is room for.
        """
        import torch

        from fasttracks.trackers.tapnext.session import resized

        check_frames(frame[None])
        size = frame.shape[:2]
        new = _points(points, frame)
        if self.joined + len(new) > self.rows:
            raise InputError(
                f"points: there is room for {self.rows - self.joined} more, found {len(new)}; "
                "ask for more rows before the first frame"
            )
        fresh = np.arange(self.joined, self.joined + len(new))
        with self._tracker._memory(self.rows):
            if len(new):
                self._session.declare(
                    torch.from_numpy(fresh),
                    torch.full((1, len(new)), self._frame),
                    torch.from_numpy(_to_space(new, size))[None],
                )
            image = torch.from_numpy(np.ascontiguousarray(frame)).to(self._session.device)
            answer = self._session.step(resized(image[None], self._session.size))
            out = answer[0, : self.joined + len(new)].cpu().numpy()
        self.joined += len(new)
        self._frame += 1
        tracks, visible = self._tracker._read(out, size)
        tracks[fresh], visible[fresh] = new, True
        return tracks, visible


def _points(points: np.ndarray | None, frame: np.ndarray) -> np.ndarray:
    """Points (n, 2) of a frame, or InputError."""
    points = np.zeros((0, 2)) if points is None else np.asarray(points, dtype=float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"points: expected shape (n, 2), found {points.shape}")
    return check_queries(np.insert(points, 0, 0, axis=1), frame[None])[:, 1:]


def _to_space(points: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Pixels (n, 2) (x, y) to (n, 2) (y, x) in 256 space."""
    return ((points[:, ::-1] + 0.5) * _SPACE / np.array(image_size)).astype(np.float32)


def _with_helpers(points: np.ndarray) -> np.ndarray:
    """Points (n, 2), then 64 helpers around each, 4 apart and inside the image: (65 n, 2)."""
    offset = 4 * np.arange(8) - 14.0
    grid = np.stack(np.meshgrid(offset, offset, indexing="ij"), -1).reshape(64, 1, 2)
    helpers = (points + grid).reshape(-1, 2).clip(0.5, _SPACE - 0.5)
    return np.concatenate([points, helpers]).astype(np.float32)


def _held(tracks: np.ndarray, visible: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Tracks (T, N, 2) that stay where they were last seen, going on from their start."""
    time = np.arange(len(tracks))[:, None]
    before = np.maximum.accumulate(np.where(visible & (time >= start), time, -1), 0)
    after = np.where(visible & (time <= start), time, len(tracks))
    after = np.minimum.accumulate(after[::-1], 0)[::-1]
    seen = np.where(time >= start, before, after)
    return np.take_along_axis(tracks, seen[..., None], 0)


def _warn_of_time(first: float, count: int, progress: bool) -> None:
    """Say how long a clip will take, from its first frame's seconds; the bar says it too."""
    if first * count > _PATIENCE and not progress:
        minutes = first * count / 60
        warnings.warn(
            f"tapnext: about {minutes:.0f} min on this CPU ({first:.1f} s a frame, {count} frames)",
            stacklevel=3,
        )
