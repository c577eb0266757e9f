"""A world that windows are joined to, one after the other, in memory of fixed size on one device.

All of it, the network included, is one function of tensors, captured as a CUDA graph on a GPU.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttracks.geometry import Prediction
from fasttracks.graphs import capture
from fasttracks.inputs import hold
from fasttracks.long.assemble import mobility_in, sureness
from fasttracks.long.join import (
    LEAST_SHARED,
    LEAST_SURE,
    POLAR,
    ROUNDS,
    Shared,
    Similarity,
    join,
    nearest_rotation,
)
from fasttracks.network import TracksTo4D
from fasttracks.parallax import LEAST
from fasttracks.refine.bundle import bundle_tensors
from fasttracks.refine.evidence import LEVEL, MOBILITY_POWER, NOISE, STILL
from fasttracks.refine.positive_definite import has_kernels

_MEMORY = 50.0  # windows after which an older one counts less for a point
# The rules of `_step`, as the kernels are given them.
_WEIGHING = {
    "QUANTILE": LEVEL,
    "NOISE": NOISE,
    "STILL": STILL,
    "POWER": MOBILITY_POWER,
    "LEAST": math.radians(LEAST),
}
_JOINING = {
    "LEAST_SHARED": LEAST_SHARED,
    "LEAST_SURE": LEAST_SURE,
    "ROUNDS": ROUNDS,
    "POLAR": POLAR,
    "MEMORY": _MEMORY,
}


class State(NamedTuple):
    """What is known of the T frames of the window and the N tracks in its slots, float64."""

    rotation: Tensor  # (T, 3, 3) camera to world
    position: Tensor  # (T, 3)
    frame_weight: Tensor  # (T,) 0 where nothing is known
    points: Tensor  # (N, 3) where they stand still
    point_weight: Tensor  # (N,)
    log_scale: Tensor  # () of the last window
    started: Tensor  # () 0 before the first window


class Seen(NamedTuple):
    """What one window brought, float32."""

    left: np.ndarray  # (hop, 12): rotation and position of the frames that left it, now final
    poses: np.ndarray  # (T, 12) of its frames, so far
    points: np.ndarray  # (N, 3) in the newest frame, in the world
    mobility: np.ndarray  # (N,) about 1 for a still point, up to 10
    scale: np.ndarray  # () of this window over that of the one before
    shared: np.ndarray  # () still points that tell it
    residual: np.ndarray  # () median distance of these to where they were, over their depth


class World:
    """The state, and how a window changes it."""

    def __init__(self, model: TracksTo4D, frames: int, tracks: int, hop: int, refine: bool) -> None:
        self._model, self._hop, self._refine = model, hop, refine
        heads = model.points.weight
        self._has_kernels = has_kernels(heads.device)
        # What is given: the window, then flags of tracks; staged where the GPU reads it itself.
        self._given = heads.new_zeros(3 * (frames + 1) * tracks, dtype=torch.float32)
        self._staged = torch.zeros(self._given.shape, pin_memory=heads.is_cuda)
        self._window, self._flags = _parts(self._given, frames, tracks)
        double = heads.new_zeros((), dtype=torch.float64)
        eye = torch.eye(3, dtype=double.dtype, device=double.device)
        self._blank = State(
            eye.repeat(frames, 1, 1),
            double.new_zeros(frames, 3),
            double.new_zeros(frames),
            double.new_zeros(tracks, 3),
            double.new_zeros(tracks),
            double,
            double,
        )
        self._state = State(*(value.clone() for value in self._blank))
        self._shapes = ((hop, 12), (frames, 12), (tracks, 3), (tracks,), (), (), ())
        size = sum(math.prod(shape) for shape in self._shapes)
        self._seen = torch.zeros(size, pin_memory=heads.is_cuda)
        self._graph: torch.cuda.CUDAGraph | None = None
        if heads.is_cuda:
            with torch.cuda.device(heads.device), torch.no_grad():
                if self._has_kernels:
                    from fasttracks.kernels.ahead import compile_ahead

                    compile_ahead(self._work, heads.device)
                self._graph, _ = capture(self._work)
            self._begin()  # capturing ran once, on nothing

    def push(
        self, window: np.ndarray, shown: np.ndarray, own: np.ndarray, fresh: np.ndarray, anew: bool
    ) -> Seen | None:
        """Join a window (T, N, 3), `hop` frames after the last one.

        Args:
            window: u, v and visibility.
            shown: (N,) whole numbers: the slot that each slot shows.
            own: (N,) bool: slots that show their own.
            fresh: (N,) bool: slots with another track than before.
            anew: begin a world of its own.

        Returns:
            What it brought; None where not all is finite, after which the next world has to begin
            anew.
        """
        if anew:
            self._begin()
        staged, flags = (part.numpy() for part in _parts(self._staged, *window.shape[:2]))
        staged[:] = window
        flags[0], flags[1], flags[2] = own, fresh, shown
        if self._graph is None:
            with torch.no_grad():
                self._work()
        else:
            self._graph.replay()
        if self._given.is_cuda:
            torch.cuda.current_stream(self._given.device).synchronize()
        flat = self._seen.numpy().copy()
        if not np.isfinite(flat).all():
            return None
        parts, start = [], 0
        for shape in self._shapes:
            end = start + math.prod(shape)
            parts.append(flat[start:end].reshape(shape))
            start = end
        return Seen(*parts)

    def _begin(self) -> None:
        for value, blank in zip(self._state, self._blank, strict=True):
            value.copy_(blank)

    def _work(self) -> None:
        """One window: the state is replaced, and all that is seen staged."""
        self._given.copy_(self._staged, non_blocking=True)
        if self._has_kernels:
            flat = self.by_kernels(self._predict)
        else:
            state, flat = self._step(self._state)
            for old, new in zip(self._state, state, strict=True):
                old.copy_(new)
        self._seen.copy_(flat, non_blocking=True)

    def _predict(self, tracks: Tensor) -> Prediction:
        """What the network says of tracks (1, T, N, 3), bundle-adjusted if that is asked for."""
        prediction = self._model(tracks.to(self._model.points.weight.dtype))
        if not self._refine:
            return prediction
        known = torch.ones(1, dtype=torch.bool, device=tracks.device)
        adjusted = bundle_tensors(*prediction, tracks, known)
        return Prediction(*adjusted[: len(prediction)])

    def by_kernels(self, predict: Callable[[Tensor], Prediction]) -> Tensor:
        """`_step` on a GPU, which changes the state in place; the network is given."""
        from fasttracks.kernels import join as kernel

        tracks = kernel.show(self._window, self._flags)
        flat = self._given.new_empty(self._seen.shape)
        p = predict(tracks)
        kernel.join(p, tracks, self._flags, self._state, flat, self._hop, _WEIGHING, _JOINING)
        return flat

    def _step(self, state: State) -> tuple[State, Tensor]:
        """The new state, and `Seen`, flat."""
        hop = self._hop
        own, fresh, shown = self._flags.double()
        begun = state.started > 0
        tracks = hold(self._window[:, shown.long()])[None]
        p = self._predict(tracks)
        visible = tracks[0, ..., 2].double() * own
        mobility = mobility_in(p)
        sure = sureness(p, mobility, visible)
        rotation, position = p.rotation[0].double(), p.position[0].double()
        static = p.basis[0, 0].double()

        left = torch.cat([state.rotation[:hop].flatten(1), state.position[:hop]], 1)
        shift = (torch.arange(len(rotation), device=own.device) + hop).clamp(max=len(rotation) - 1)
        frame_weight = state.frame_weight[shift]
        frame_weight[len(rotation) - hop :] = 0
        point_weight = state.point_weight * (1 - fresh)
        old_rotation, old_position = state.rotation[shift], state.position[shift]
        weight = visible * (sure * point_weight / (1 + point_weight))
        fit = join(
            Shared(rotation, position, static),
            Shared(old_rotation, old_position, state.points),
            weight * (frame_weight > 0)[:, None],
            frame_weight,
            state.log_scale,
        )
        # Each window has a scale of its own, so it is not low-passed: what would be left of it adds
        # up in the world's points.
        found = fit.similarity
        similarity = Similarity(
            torch.where(begun, found.scale, 1.0),
            torch.where(begun, found.rotation, self._blank.rotation[0]),
            torch.where(begun, found.shift, 0.0),
        )
        rotation = similarity.rotation @ rotation
        moved = similarity.points(torch.cat([position, static, p.points[0, -1].double()]))
        position, static, newest = moved.split([len(position), len(static), len(static)])

        # Windows see their middle best.
        count = len(rotation)
        frame = torch.arange(count, device=own.device, dtype=rotation.dtype)
        gain = torch.minimum(frame + 1, count - frame) / count
        share = gain / (frame_weight + gain)
        blended = nearest_rotation(torch.lerp(old_rotation, rotation, share[:, None, None]))
        known = (frame_weight > 0)[:, None]
        rotation = torch.where(known[..., None], blended, rotation)
        position = torch.where(known, torch.lerp(old_position, position, share[:, None]), position)
        more = sure * own
        part = (more / (point_weight + more).clamp(min=1e-12))[:, None]
        points = torch.lerp(state.points, static, part)
        points = torch.where((point_weight > 0)[:, None], points, static)
        after = State(
            rotation,
            position,
            frame_weight + gain,
            points,
            (point_weight + more).clamp(max=_MEMORY),
            similarity.scale.log(),
            torch.ones_like(state.started),
        )
        seen = (
            left,
            torch.cat([rotation.flatten(1), position], 1),
            newest,
            mobility,
            (found.scale.log() - state.log_scale).exp(),
            fit.points,
            fit.residual,
        )
        return after, torch.cat([value.float().reshape(-1) for value in seen])


def _parts(flat: Tensor, frames: int, tracks: int) -> tuple[Tensor, Tensor]:
    """A window (T, N, 3) and flags (3, N), views of a flat tensor."""
    window, flags = flat.split([frames * tracks * 3, 3 * tracks])
    return window.view(frames, tracks, 3), flags.view(3, tracks)
