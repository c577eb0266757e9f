"""Bundle adjustment of all cameras and still points of a long clip together.

The cost is that of `refine.bundle`, minimised by the same Levenberg–Marquardt steps. A point is
seen in some frames only: points are taken in groups that are seen in about the same ones, and
eliminated from the cameras of these (Schur complement). So memory is that of the cameras' system
and its factor, 36 T² numbers each, and of one group.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.refine.cameras import (
    Evidence,
    Scene,
    cost,
    dense,
    diagonal_of,
    eliminate,
    invert_points,
    moved,
    normal_equations,
    points_step,
    solve_cameras,
)
from fasttracks.refine.evidence import fit_scale

_GROUP = 128  # points that are eliminated at a time


class Group(NamedTuple):
    """Points that are seen in about the same frames."""

    frames: slice
    which: Tensor  # (n,) int64


class Joint:
    """One clip's cameras and still points, and what they are held against.

    Evidence is for B = 1. It may be of less precision than the scene, whose it is given as needed.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.groups = list(_groups(evidence.weight[0]))

    def adjust(self, scene: Scene, damping: float, iterations: int) -> tuple[Scene, float, float]:
        """As `refine.cameras.adjust`: the scene, damping to go on with, the last step's gain."""
        current, gain = self.cost(scene), 0.0
        for _ in range(iterations):
            trial = moved(scene, *self._step(scene, damping))
            after = self.cost(trial)
            if after < current:  # False for NaN
                scene, gain, current = trial, 1 - after / current, after
                damping = max(damping / 5, 1e-9)
            else:
                gain, damping = 0.0, damping * 4
            if gain < 1e-6 and damping > 1e2:
                break
        return scene, damping, gain

    def cost(self, scene: Scene) -> float:
        """What `adjust` lowers."""
        total = cost(*self._cameras(scene))[0]
        for group in self.groups:
            total = total + cost(*self._part(scene, group))[0]
        return float(total)

    def fit_scale(self, scene: Scene, iterations: int) -> None:
        """Each track's most likely scale about its point, from what it is."""
        for group in self.groups:
            part, evidence = self._part(scene, group)
            found = fit_scale(part, evidence, evidence.scale, iterations)
            self.evidence.scale[:, group.which] = found.to(self.evidence.scale.dtype)

    def _step(self, scene: Scene, damping: float) -> tuple[Tensor, Tensor]:
        damp = scene.points.new_full((1,), damping)
        cameras = normal_equations(*self._cameras(scene))
        system, right = dense(cameras), cameras.cameras_right
        diagonal = system.diagonal(dim1=-2, dim2=-1)
        stiff = damp * diagonal
        for group in self.groups:
            normal = normal_equations(*self._part(scene, group))
            reduced = eliminate(normal, damp)
            rows = self._unknowns(group)
            inner, last = slice(rows[0], rows[1]), -1
            system[:, inner, inner] += reduced.system[:, :-1, :-1]
            system[:, inner, last] += reduced.system[:, :-1, -1]
            system[:, last, inner] += reduced.system[:, -1, :-1]
            system[:, last, last] += reduced.system[:, -1, -1]
            own = damp * diagonal_of(normal)
            stiff[:, inner] += own[:, :-1]
            stiff[:, last] += own[:, -1]
            right[:, inner] += reduced.right[:, :-1]
            right[:, last] += reduced.right[:, -1]
        diagonal += stiff
        free = torch.ones_like(right)
        free[:, :6] = 0
        free[:, -1] = self.evidence.focal_free
        step = solve_cameras(system, right, free)
        del system, cameras, diagonal
        shift = torch.zeros_like(scene.points)
        for group in self.groups:
            normal = normal_equations(*self._part(scene, group))
            rows = self._unknowns(group)
            own = torch.cat([step[:, rows[0] : rows[1]], step[:, -1:]], 1)
            inverse = invert_points(normal, damp)
            shift[:, group.which] = points_step(normal, inverse, own)
        return step, shift

    def _unknowns(self, group: Group) -> tuple[int, int]:
        return 6 * group.frames.start, 6 * group.frames.stop

    def _cameras(self, scene: Scene) -> tuple[Scene, Evidence]:
        """What concerns cameras alone: no points."""
        e = self.evidence
        none = e._replace(
            positions=e.positions[:, :, :0],
            weight=e.weight[:, :, :0],
            scale=e.scale[:, :0],
            log_depth=e.log_depth[:, :, :0],
            depth_weight=e.depth_weight[:, :, :0],
        )
        return scene._replace(points=scene.points[:, :0]), _like(none, scene)

    def _part(self, scene: Scene, group: Group) -> tuple[Scene, Evidence]:
        """What concerns a group's points, cameras' own terms left out."""
        e, frames, which = self.evidence, group.frames, group.which
        between = slice(frames.start, frames.stop - 1)
        part = Evidence(
            e.positions[:, frames][:, :, which],
            e.weight[:, frames][:, :, which],
            e.scale[:, which],
            e.log_depth[:, frames][:, :, which],
            e.depth_weight[:, frames][:, :, which],
            e.turn[:, between],
            e.step[:, between],
            torch.zeros_like(e.turn_weight[:, between]),
            torch.zeros_like(e.step_weight[:, between]),
            e.log_focal,
            torch.zeros_like(e.focal_weight),
            e.focal_free,
        )
        return (
            Scene(
                scene.rotation[:, frames],
                scene.position[:, frames],
                scene.log_focal,
                scene.points[:, which],
            ),
            _like(part, scene),
        )


def _like(evidence: Evidence, scene: Scene) -> Evidence:
    return Evidence(*(value.to(scene.points.dtype) for value in evidence))


def _groups(weight: Tensor) -> Iterator[Group]:
    """Groups of the tracks of weight (T, N): of like span, then by when they begin."""
    seen = weight > 0
    frames = len(seen)
    first = seen.int().argmax(0)
    last = frames - 1 - seen.flip(0).int().argmax(0)
    used = torch.nonzero(seen.sum(0) > 1)[:, 0]
    span = (last - first + 1)[used].double().log2().ceil().long()
    order = used[(span * frames + first[used]).argsort(stable=True)]
    for which in order.split(_GROUP):
        begin, end = int(first[which].min()), int(last[which].max()) + 1
        yield Group(slice(begin, end), which)
