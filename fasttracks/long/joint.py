"""Bundle adjustment of all cameras and still points of a long clip together.

The cost is that of `refine.bundle`, minimised by the same Levenberg–Marquardt steps. A point is
seen in some frames only: points are taken in groups that are seen in about the same ones, and
eliminated from the cameras of these (Schur complement). So memory is that of the cameras' system,
36 T² numbers, which its factor replaces, and of one group.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.refine.cameras import (
    Evidence,
    Normal,
    Scene,
    add_cameras,
    cost,
    diagonal_of,
    invert_points,
    moved,
    normal_equations,
    points_step,
    solve_cameras,
    weighted,
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
        right = cameras.cameras_right
        system = right.new_zeros(1, right.shape[1], right.shape[1])
        for group in self.groups:
            normal = normal_equations(*self._part(scene, group))
            cameras.cameras[:, group.frames] += normal.cameras
            cameras.by_focal[:, group.frames] += normal.by_focal
            cameras.focal.add_(normal.focal)
            self._eliminate(system, right, group, normal, damp)
        add_cameras(system, cameras)
        system.diagonal(dim1=-2, dim2=-1).add_(damp * diagonal_of(cameras))
        free = torch.ones_like(right)
        free[:, :6] = 0
        free[:, -1] = self.evidence.focal_free
        step = solve_cameras(system, right, free)
        del system
        shift = torch.zeros_like(scene.points)
        for group in self.groups:
            normal = normal_equations(*self._part(scene, group))
            rows = self._unknowns(group)
            own = torch.cat([step[:, rows[0] : rows[1]], step[:, -1:]], 1)
            inverse = invert_points(normal, damp)
            shift[:, group.which] = points_step(normal, inverse, own)
        return step, shift

    def _eliminate(
        self, system: Tensor, right: Tensor, group: Group, normal: Normal, damp: Tensor
    ) -> None:
        """Add what a group's points leave of its cameras' equations; no second system is made."""
        begin, end = self._unknowns(group)
        other = normal.mixed.flatten(2)[0]
        mixed = weighted(normal, invert_points(normal, damp)).flatten(2)[0]
        system[0, begin:end, begin:end].addmm_(mixed[:-1], other[:-1].mT, alpha=-1)
        edge = mixed @ other[-1]
        system[0, begin:end, -1] -= edge[:-1]
        system[0, -1, begin:end] -= edge[:-1]
        system[0, -1, -1] -= edge[-1]
        own = normal.cameras_right[0] - mixed @ normal.points_right.flatten()
        right[0, begin:end] += own[:-1]
        right[0, -1] += own[-1]

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
    alike = span.bincount().tolist()  # a group of two spans would reach over most of the clip
    for which in (part for same in order.split(alike) for part in same.split(_GROUP)):
        if len(which):
            begin, end = int(first[which].min()), int(last[which].max()) + 1
            yield Group(slice(begin, end), which)
