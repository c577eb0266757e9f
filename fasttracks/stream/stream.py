"""`Stream`: a frame's tracks in, the newest camera and points out."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fasttracks.checks import as_numbers, intrinsics_fault
from fasttracks.errors import InputError
from fasttracks.inputs import hold
from fasttracks.long.windows import FOCAL_TRACKS
from fasttracks.network import TracksTo4D
from fasttracks.stream.slots import Slots
from fasttracks.stream.world import Seen, World
from fasttracks.trackers.online import OnlineKLT
from fasttracks.tracks import check_image_size, guessed_camera
from fasttracks.weights import load

MOVES = 2.0  # mobility from which a track counts as moving
_LEAST_LINKS = 3  # tracks that lead from a window to a new frame, where that has some
_WORST_SCALE, _WORST_RESIDUAL = 2.7, 0.5  # of a window that still fits the world
_LEAST_TRUSTED = 8  # still points that tell so


class Final(NamedTuple):
    """Cameras that no further frame changes, of m frames in their order."""

    frames: np.ndarray  # (m,) int64 numbers of frames, from 0, as they were pushed
    times: np.ndarray  # (m,) float64
    camera_to_world: np.ndarray  # (m, 4, 4) float32
    segment: int


class Health(NamedTuple):
    """How well the newest window fits the world so far."""

    scale: float  # of the window over that of the one before; about 1 if they agree
    shared: int  # still points that tell the scale
    residual: float  # median distance of these to where they were, as a share of their depth


class Update(NamedTuple):
    """What a push brings, of n tracks."""

    frame: int  # its number, from 0
    time: float
    camera_to_world: np.ndarray  # (4, 4) float32, of this frame, so far
    intrinsics: np.ndarray  # (3, 3) pixels
    ids: np.ndarray  # (n,) int64
    points: np.ndarray  # (n, 3) float32 in the world, in this frame
    visible: np.ndarray  # (n,) bool: seen in this frame
    moving: np.ndarray  # (n,) bool: moves on its own
    final: list[Final]  # mostly one; one more after a reset
    health: Health
    segment: int  # one more after each reset: cameras of two segments share no world
    reset: str | None  # why a new world began with this update, or None


class Stream:
    """Cameras and points of frames as they arrive, in a world that stays put.

    Every `hop` frames the network looks at the last `window` frames again, and what it says is
    brought to the world so far by all frames and still points that they share. What is returned of
    the newest frame is a first answer; a camera becomes final when its frame leaves the window, as
    the mean of what all windows said, and never changes after that.

    Memory is fixed: `max_tracks` slots, which tracks that are lost leave to newborn ones, spread
    over the image. Where frames don't hang together, as after a cut or where all tracks were lost,
    or a window contradicts the world, a new world begins: a reset. The same pushes give the same
    answers, bit for bit, on one device. For one thread.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | TracksTo4D = "base",
        window: int = 50,
        hop: int = 1,
        max_tracks: int = 256,
        *,
        intrinsics: Any = None,
        image_size: Sequence[int] | None = None,
        refine: str = "none",
        device: str | torch.device = "auto",
        precision: str = "auto",
    ) -> None:
        """Load and, on a GPU, capture all that a push does.

        Args:
            model: a shipped name, a path to .safetensors, or a loaded model, which then stays on
                its device and in its precision.
            window: frames that the network sees at once.
            hop: frames from one look to the next.
            max_tracks: that are held at once.
            intrinsics: (3, 3) pixels. None: a guess from `image_size`, which a model that predicts
                the focal length corrects once, in the first window.
            image_size: (height, width) pixels; needed without intrinsics.
            refine: "bundle" adjusts each window to its tracks.
            device: "auto", "cpu", "cuda", ...
            precision: "auto", "fp32", "fp16" or "bf16".

        Raises:
            InputError: an argument is off.
        """
        for name, value, least in (
            ("window", window, 8),
            ("hop", hop, 1),
            ("max_tracks", max_tracks, 8),
        ):
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name}: expected a whole number, {least} or more, found {value}")
        if hop >= window:
            raise InputError(f"hop: expected less than the window's {window} frames, found {hop}")
        if refine not in ("none", "bundle"):
            raise InputError(f"refine: expected 'none' or 'bundle', found {refine!r}")
        if not isinstance(model, TracksTo4D):
            model = load(model, device=device, precision=precision)
        self._model = model
        self._camera, self._settled = _camera(intrinsics, image_size, model)
        self._hop = hop
        self._slots = Slots(window, max_tracks)
        self._world = World(model, window, max_tracks, hop, refine == "bundle")
        self._count, self._segment = 0, 0
        self._time = -np.inf
        self._times = np.zeros(window)
        self._last: Seen | None = None  # of this segment
        self._last_times, self._last_first = self._times, 0
        self._pending: list[Final] = []
        self._reason: str | None = None
        self._tracker: OnlineKLT | None = None

    def push(
        self, ids: Any, positions: Any, visibility: Any = None, time: float | None = None
    ) -> Update | None:
        """Add the next frame.

        Args:
            ids: (n,) whole numbers, each a track's for as long as it lives.
            positions: (n, 2) x, y in pixels; NaN where unseen.
            visibility: (n,) bool; None: every finite position was seen.
            time: seconds, later than the last frame's; None: 1 after it.

        Returns:
            What is known now; None until a window is full, and between hops.

        Raises:
            InputError: an argument is off; the frame is then not taken, and the stream goes on.
        """
        ids, positions = _checked(ids, positions, visibility)
        time = self._check_time(time)
        places = _normalised(positions, self._camera)
        slots = self._slots.of(ids)
        if self._slots.frames and len(ids):
            linked = int((slots >= 0).sum())
            few = linked < _LEAST_LINKS and len(ids) >= 4 * _LEAST_LINKS
            if not linked or few:
                self._reset(f"only {linked} tracks lead here from the frames before")
        self._time = time
        self._times = np.append(self._times[1:], time)
        self._slots.push(ids, places, slots)
        self._count += 1
        if self._slots.frames and not self._slots.seen.any():
            self._reset("no track was seen in a whole window")
            return None
        frames = self._slots.frames
        window = len(self._times)
        if frames < window or (frames - window) % self._hop:
            return None
        if not self._settled:
            self._settle()
        return self._look()

    def push_frame(self, image: np.ndarray, time: float | None = None) -> Update | None:
        """Add the next frame as an image, whose points the stream's own KLT follows.

        image (H, W, 3) uint8 RGB, always of one size, in whose pixels the intrinsics are; the rest
        is as in `push`. Frames are either all pushed so or none.
        """
        if self._tracker is None:
            self._tracker = OnlineKLT(len(self._slots.ids))
        time = self._check_time(time)  # before the tracker takes the frame
        return self.push(*self._tracker.push(image), time=time)

    def finish(self) -> list[Final]:
        """Cameras of the frames that are still in the window; the stream begins anew after it.

        Frames after the last look, fewer than a hop, have none.
        """
        self._reset("finished")
        done, self._pending, self._reason = self._pending, [], None
        return done

    def _look(self) -> Update | None:
        """Show the window to the network and join it to the world."""
        slots = self._slots
        shown, own = slots.shown()
        anew = self._last is None
        seen = self._world.push(slots.window, shown, own, slots.fresh, anew)
        if seen and not anew and (fault := _fault(seen)):
            self._end_segment(fault)
            anew = True
            seen = self._world.push(slots.window, shown, own, slots.fresh, anew)
        if seen is None:
            self._reset("the network's answer is not finite")
            return None
        slots.fresh[:] = False
        size = len(self._times)
        first = self._count - size
        final = self._pending
        if not anew:
            numbers = np.arange(self._last_first, first)
            times = self._last_times[: len(numbers)]
            final = [*final, Final(numbers, times, _poses(seen.left), self._segment)]
        self._last, self._last_first, self._last_times = seen, first, self._times.copy()
        reason, self._pending, self._reason = self._reason, [], None
        which = np.flatnonzero(own & (slots.ids >= 0))
        return Update(
            self._count - 1,
            self._time,
            _poses(seen.poses[-1:])[0],
            self._camera.copy(),
            slots.ids[which],
            seen.points[which],
            slots.window[-1, which, 2] > 0,
            seen.mobility[which] > MOVES,
            final,
            Health(float(seen.scale), int(seen.shared), float(seen.residual)),
            self._segment,
            reason,
        )

    def _reset(self, reason: str) -> None:
        """Forget the window; what was said of its frames is final."""
        self._end_segment(reason)
        self._slots.clear()

    def _end_segment(self, reason: str) -> None:
        if self._last is None:
            return
        numbers = self._last_first + np.arange(len(self._last_times))
        poses = _poses(self._last.poses)
        self._pending.append(Final(numbers, self._last_times, poses, self._segment))
        self._last, self._reason = None, reason
        self._segment += 1

    def _settle(self) -> None:
        """Correct the focal length by what the network says of the first window, then hold it."""
        best = np.flatnonzero(self._slots.shown()[1])[:FOCAL_TRACKS]
        heads = self._model.points.weight
        inputs = torch.from_numpy(self._slots.window[:, best]).to(heads.device, heads.dtype)
        with torch.no_grad():
            factor = float(self._model(hold(inputs)[None]).focal.mean().clamp(0.1, 10))
        self._slots.window[..., :2] /= factor
        self._camera = self._camera @ np.diag([factor, factor, 1.0])
        self._settled = True

    def _check_time(self, time: float | None) -> float:
        if time is None:
            return self._time + 1 if np.isfinite(self._time) else 0.0
        value = as_numbers(time, "time")
        if value.shape != () or not np.isfinite(value) or not value > self._time:
            after = f"later than the last frame's {self._time:g}" if self._count else "a number"
            raise InputError(f"time: expected seconds, {after}, found {time!r}")
        return float(value)


def _camera(
    intrinsics: Any, image_size: Sequence[int] | None, model: TracksTo4D
) -> tuple[np.ndarray, bool]:
    """Intrinsics (3, 3), and whether they stand."""
    if intrinsics is not None:
        camera = as_numbers(intrinsics, "intrinsics").astype(np.float64)
        if camera.shape != (3, 3):
            raise InputError(f"intrinsics: expected shape (3, 3), found {camera.shape}")
        if fault := intrinsics_fault(camera):
            raise InputError(f"intrinsics: {fault}")
        return camera, True
    size = check_image_size(image_size)
    if size is None:
        raise InputError("intrinsics: expected them, or image_size for a guess, found neither")
    camera = guessed_camera(model.config.assumed_focal, size, None)
    return camera, not model.config.predicts_focal


def _checked(ids: Any, positions: Any, visibility: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) and positions (n, 2) of what is seen in a frame."""
    positions = as_numbers(positions, "positions").astype(np.float64)
    ids = as_numbers(ids, "ids")
    if positions.size == 0 and ids.size == 0:
        return np.zeros(0, np.int64), np.zeros((0, 2))
    if positions.ndim != 2 or positions.shape[1] != 2 or ids.shape != positions.shape[:1]:
        raise InputError(
            f"positions: expected shape (n, 2), and ids (n,), found {positions.shape} and "
            f"{ids.shape}"
        )
    whole = ids.dtype.kind in "biu" or (ids == np.floor(ids)).all()
    if not whole or (ids < 0).any():
        raise InputError("ids: expected whole numbers, 0 or more")
    ordered = np.sort(ids)
    if (ordered[1:] == ordered[:-1]).any():
        raise InputError("ids: expected each once, found some twice")
    seen = np.isfinite(positions).all(1)
    if visibility is not None:
        given = as_numbers(visibility, "visibility")
        if given.shape != ids.shape:
            raise InputError(f"visibility: expected shape {ids.shape}, found {given.shape}")
        seen &= given > 0.5
    return ids[seen].astype(np.int64), positions[seen]


def _normalised(positions: np.ndarray, camera: np.ndarray) -> np.ndarray:
    y = (positions[:, 1] - camera[1, 2]) / camera[1, 1]
    x = (positions[:, 0] - camera[0, 2] - camera[0, 1] * y) / camera[0, 0]
    return np.stack([x, y], -1).astype(np.float32)


def _fault(seen: Seen) -> str | None:
    """Why a window does not fit the world, if it doesn't."""
    scale, residual = float(seen.scale), float(seen.residual)
    if seen.shared < _LEAST_TRUSTED:
        return None
    if not 1 / _WORST_SCALE < scale < _WORST_SCALE:
        return f"a window's scale is {scale:.2f} times the world's"
    if not residual < _WORST_RESIDUAL:
        return f"still points are off by {residual:.0%} of their depth"
    return None


def _poses(flat: np.ndarray) -> np.ndarray:
    """Camera to world (m, 4, 4) of rotations and positions (m, 12)."""
    poses = np.zeros((len(flat), 4, 4), np.float32)
    poses[:, :3, :3] = flat[:, :9].reshape(-1, 3, 3)
    poses[:, :3, 3] = flat[:, 9:]
    poses[:, 3, 3] = 1
    return poses
