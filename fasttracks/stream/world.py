"""A world that windows are joined to, one after the other, in memory of fixed size on one device.

All of it, the network included, is one function of tensors, captured as a CUDA graph on a GPU.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttracks.geometry import Prediction
from fasttracks.graphs import capture
from fasttracks.inputs import hold
from fasttracks.long.assemble import mobility_in, sureness
from fasttracks.long.join import Shared, join, nearest_rotation, turned
from fasttracks.network import TracksTo4D
from fasttracks.refine.bundle import bundle_tensors

_LOW_PASS = 0.3  # of a window's scale that is taken at once
_MEMORY = 50.0  # windows after which an older one counts less for a point


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
    """What one window brought."""

    left: Tensor  # (hop, 12): rotation and position of the frames that left it, now final
    poses: Tensor  # (T, 12) of its frames, so far
    points: Tensor  # (N, 3) in the newest frame, in the world
    mobility: Tensor  # (N,) about 1 for a still point, up to 10
    scale: Tensor  # () of this window over that of the one before
    shared: Tensor  # () still points that tell it
    residual: Tensor  # () median distance of these to where they were, over their depth


class World:
    """The state, and how a window changes it."""

    def __init__(self, model: TracksTo4D, frames: int, tracks: int, hop: int, refine: bool) -> None:
        self._model, self._hop, self._refine = model, hop, refine
        heads = model.points.weight
        # What is given: the window, then flags of tracks; staged where the GPU reads it itself.
        self._given = heads.new_zeros((frames + 1) * tracks * 3, dtype=torch.float32)
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
        self._sizes: Seen | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._flat = torch.zeros(0)
        if heads.is_cuda:
            with torch.cuda.device(heads.device), torch.no_grad():
                self._graph, self._flat = capture(self._work)
            self._state.started.zero_()  # capturing ran once, on nothing

    def push(
        self, window: np.ndarray, own: np.ndarray, fresh: np.ndarray, anew: bool
    ) -> Seen | None:
        """Join a window (T, N, 3), `hop` frames after the last one.

        own (N,) bool: slots that don't repeat another's track; fresh (N,) bool: slots with another
        track than before; anew: begin a world of its own. Returns tensors on the CPU; None where
        not all is finite, after which the next world has to begin anew.
        """
        staged, flags = (part.numpy() for part in _parts(self._staged, *window.shape[:2]))
        staged[:] = window
        flags[0], flags[1], flags[2] = own, fresh, anew
        self._given.copy_(self._staged, non_blocking=True)
        if self._graph is None:
            with torch.no_grad():
                self._flat = self._work()
        else:
            self._graph.replay()
        flat = self._flat.cpu()
        if not np.isfinite(flat.numpy()).all():
            return None
        assert self._sizes is not None
        return Seen(*torch._utils._unflatten_dense_tensors(flat, self._sizes))

    def _work(self) -> Tensor:
        """One window: the state is replaced; all that is seen, flat."""
        state, seen = self._step(self._state)
        for old, new in zip(self._state, state, strict=True):
            old.copy_(new)
        parts = [value.float().contiguous() for value in seen]
        if self._sizes is None:
            self._sizes = Seen(*(torch.empty(part.shape) for part in parts))
        return torch.cat([part.view(-1) for part in parts])

    def _step(self, state: State) -> tuple[State, Seen]:
        hop = self._hop
        own, fresh, anew = self._flags.double()
        begun = (state.started > 0) & (anew[0] == 0)
        state = State(*(torch.where(begun, a, b) for a, b in zip(state, self._blank, strict=True)))
        tracks = hold(self._window)[None]
        prediction = self._model(tracks.to(self._model.points.weight.dtype))
        if self._refine:
            known = torch.ones(1, dtype=torch.bool, device=tracks.device)
            adjusted = bundle_tensors(*prediction, tracks, known)
            prediction = Prediction(*adjusted[: len(prediction)])
        p = prediction
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
        log_scale = torch.lerp(state.log_scale, fit.similarity.scale.log(), _LOW_PASS)
        log_scale = torch.where(begun, log_scale, 0.0)
        eye = self._blank.rotation[0]
        turn = torch.where(begun, fit.similarity.rotation, eye)
        scale = log_scale.exp()
        # The scale that is taken is not quite the fit's: the newest shared camera goes where that
        # brings it.
        pivot = position[len(rotation) - hop - 1]
        shift_by = fit.similarity.points(pivot) - scale * turned(pivot, turn)
        shift_by = torch.where(begun, shift_by, 0.0)

        rotation = turn @ rotation
        moved = torch.cat([position, static, p.points[0, -1].double()])
        moved = scale * turned(moved, turn) + shift_by
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
        state = State(
            rotation,
            position,
            frame_weight + gain,
            points,
            (point_weight + more).clamp(max=_MEMORY),
            log_scale,
            torch.ones_like(state.started),
        )
        seen = Seen(
            left,
            torch.cat([rotation.flatten(1), position], 1),
            newest,
            mobility,
            (fit.similarity.scale.log() - state.log_scale).exp(),
            fit.points,
            fit.residual,
        )
        return state, seen


def _parts(flat: Tensor, frames: int, tracks: int) -> tuple[Tensor, Tensor]:
    """A window (T, N, 3) and flags (3, N), views of a flat tensor."""
    window, flags = flat.split([frames * tracks * 3, 3 * tracks])
    return window.view(frames, tracks, 3), flags.view(3, tracks)
