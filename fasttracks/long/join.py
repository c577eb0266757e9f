"""Windows brought into one world, by the frames and still points that they share."""

from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import rotation_angle, to_camera

LEAST_SHARED = 8  # still points seen in shared frames that tell the scale
_ROUNDS = 10


class Similarity(NamedTuple):
    """x ↦ scale · rotation x + shift."""

    scale: Tensor  # ()
    rotation: Tensor  # (3, 3)
    shift: Tensor  # (3,)

    def points(self, points: Tensor) -> Tensor:
        """Of points (..., 3)."""
        return self.scale * points @ self.rotation.mT + self.shift

    def after(self, first: "Similarity") -> "Similarity":
        """First the other, then this one."""
        return Similarity(
            self.scale * first.scale, self.rotation @ first.rotation, self.points(first.shift)
        )


class Shared(NamedTuple):
    """What one window, or the world, says of frames and still points that another says, too."""

    rotation: Tensor  # (L, 3, 3) camera to world
    position: Tensor  # (L, 3)
    points: Tensor  # (n, 3) still points


class Fit(NamedTuple):
    """How two agree."""

    similarity: Similarity
    points: Tensor  # () number of still points that tell the scale
    residual: Tensor  # () median distance of these after it, over their depth


def join(source: Shared, target: Shared, weight: Tensor) -> Fit:
    """The similarity that brings `source` to `target`, robustly.

    weight (L, n): of each point in each frame, 0 where it is not seen: by how sure it stands still
    and how surely its depth is known. Orientations tell the rotation. Depths in the shared frames
    tell the scale, by their ratio's weighted median; where they are fewer than `LEAST_SHARED` the
    scale is 1. Camera centres and points tell the shift, by their geometric median.
    """
    rotation = _mean_rotation(target.rotation @ source.rotation.mT)
    here, there = (
        to_camera(s.points[None, None], s.rotation[None], s.position[None])[0, ..., 2]
        for s in (source, target)
    )
    sure = torch.where((here > 0) & (there > 0), weight, 0.0)
    ratio = (there.clamp(min=1e-6) / here.clamp(min=1e-6)).log()
    count = (sure > 0).any(0).sum()
    known = count >= LEAST_SHARED
    scale = torch.where(known, weighted_median(ratio.flatten(), sure.flatten()).exp(), 1.0)

    centres = target.position - scale * source.position @ rotation.mT
    others = target.points - scale * source.points @ rotation.mT
    by_point = sure.sum(0)
    depth = (there * sure).sum(0) / by_point.clamp(min=1e-9)
    # A camera's centre is as far off as its window's; a point's by about its depth's error.
    share = by_point / by_point.sum().clamp(min=1e-9) / depth.clamp(min=1e-6)
    share = share * depth.median() if len(depth) else share
    weights = torch.cat([torch.full_like(centres[:, 0], 1 / len(centres)), share])
    shift = _geometric_median(torch.cat([centres, others]), weights)
    off = (others - shift).norm(dim=-1) / depth.clamp(min=1e-6)
    return Fit(Similarity(scale, rotation, shift), count, weighted_median(off, by_point))


def weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    """The median () of values (n,) by weight (n,); 0 where there is no weight."""
    order = values.argsort()
    total = weight[order].cumsum(0)
    if not len(values):
        return values.new_zeros(())
    index = torch.searchsorted(total, total[-1:] / 2).clamp(max=len(values) - 1)
    return torch.where(total[-1] > 0, values[order[index]][0], 0.0)


def _mean_rotation(rotations: Tensor) -> Tensor:
    """A robust mean (3, 3) of rotations (L, 3, 3): chordal, those far off reweighted."""
    weight = torch.ones_like(rotations[:, 0, 0])
    mean = rotations[0]
    for _ in range(_ROUNDS):
        u, _, vt = torch.linalg.svd((weight[:, None, None] * rotations).sum(0))
        flip = torch.ones_like(u[0])
        flip[2] = torch.det(u @ vt).sign()
        mean = u @ (flip[:, None] * vt)
        angle = rotation_angle(mean.mT @ rotations)
        weight = 1 / (angle + 1e-4)
    return mean


def _geometric_median(points: Tensor, weight: Tensor) -> Tensor:
    """The place (3,) with the least weighted sum of distances to points (n, 3): Weiszfeld's."""
    place = (weight[:, None] * points).sum(0) / weight.sum()
    for _ in range(_ROUNDS):
        pull = weight / ((points - place).norm(dim=-1) + 1e-6)
        place = (pull[:, None] * points).sum(0) / pull.sum()
    return place
