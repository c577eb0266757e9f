"""Windows brought into one world, by the frames and still points that they share."""

from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import rotation_from_6d

LEAST_SHARED = 8  # still points seen in shared frames that tell the scale, each with a
LEAST_SURE = 0.01  # weight of more than this
ROUNDS, POLAR = 4, 4  # of robust means, and of the polar part


class Similarity(NamedTuple):
    """x ↦ scale · rotation x + shift."""

    scale: Tensor  # ()
    rotation: Tensor  # (3, 3)
    shift: Tensor  # (3,)

    def points(self, points: Tensor) -> Tensor:
        """Of points (..., 3)."""
        return self.scale * turned(points, self.rotation) + self.shift

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
    residual: Tensor  # () median distance of these after it, over that from the cameras


def join(
    source: Shared, target: Shared, weight: Tensor, frame_weight: Tensor, held: Tensor | None = None
) -> Fit:
    """The similarity that brings `source` to `target`, robustly. Waits for no device.

    Orientations tell the rotation. Distances of points from cameras tell the scale, by their
    ratio's weighted median, near ones more. Camera centres and points tell the shift, by their
    geometric median.

    Args:
        source: what is to be moved.
        target: where to.
        weight: (L, n) of each point in each frame, 0 where it is not seen: by how sure it stands
            still and how surely its depth is known.
        frame_weight: (L,) of the cameras.
        held: the logarithm () of the scale where too few points tell it; None: 0.
    """
    rotation = _mean_rotation(target.rotation @ source.rotation.mT, frame_weight)
    here, there = (
        (s.points - s.position[:, None]).norm(dim=-1).clamp(min=1e-6) for s in (source, target)
    )
    by_point = weight.sum(0)
    share = weight / by_point.clamp(min=1e-12)
    ratio = (share * (there / here).log()).sum(0)
    count = (by_point > LEAST_SURE * len(weight)).sum()
    distance = (share * there).sum(0).clamp(min=1e-6)
    # What is off by a share of its distance is off by less if it is near.
    firm = by_point / distance
    log_scale = weighted_median(ratio, firm)
    other = torch.zeros_like(log_scale) if held is None else held
    scale = torch.where(count >= LEAST_SHARED, log_scale, other).exp()

    moved = scale * turned(torch.cat([source.position, source.points]), rotation)
    offsets = torch.cat([target.position, target.points]) - moved
    # A camera's centre is as far off as its window is.
    halves = [w / w.sum().clamp(min=1e-12) for w in (frame_weight, firm)]
    shift = _geometric_median(offsets, torch.cat(halves))
    off = (offsets[len(source.position) :] - shift).norm(dim=-1) / distance
    return Fit(Similarity(scale, rotation, shift), count, weighted_median(off, by_point))


def turned(points: Tensor, rotation: Tensor) -> Tensor:
    """Points (..., 3) by a rotation (3, 3), in less time than a library's product takes."""
    return (points[..., None, :] * rotation).sum(-1)


def weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    """Medians (...) of values (..., n) by weight (..., n); 0 where there is no weight."""
    if not values.shape[-1]:
        return values.new_zeros(values.shape[:-1])
    values, order = values.sort(dim=-1)
    total = weight.gather(-1, order).cumsum(-1)
    half = total[..., -1:] / 2
    index = torch.searchsorted(total, half).clamp(max=values.shape[-1] - 1)
    return torch.where(half > 0, values.gather(-1, index), 0.0)[..., 0]


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Rotations (..., 3, 3) nearest to means of near ones: Newton's iteration for the polar part.

    Higham, "Computing the Polar Decomposition – with Applications", 1986, without inverses. The
    rows are made orthonormal at the end, whatever came in.
    """
    for _ in range(POLAR):
        matrix = 1.5 * matrix - 0.5 * matrix @ (matrix.mT @ matrix)
    return rotation_from_6d(matrix[..., :2, :].flatten(-2))


def _mean_rotation(rotations: Tensor, weight: Tensor) -> Tensor:
    """A robust chordal mean (3, 3) of rotations (L, 3, 3): those far off count less."""
    pull = weight
    for _ in range(ROUNDS):
        mean = (pull[:, None, None] * rotations).sum(0) / pull.sum().clamp(min=1e-12)
        pull = weight / ((rotations - mean).square().sum((1, 2)).sqrt() + 1e-4)
    return nearest_rotation(mean)


def _geometric_median(points: Tensor, weight: Tensor) -> Tensor:
    """The place (3,) with the least weighted sum of distances to points (n, 3): Weiszfeld's."""
    place = (weight[:, None] * points).sum(0) / weight.sum().clamp(min=1e-12)
    for _ in range(ROUNDS):
        pull = weight / ((points - place).norm(dim=-1) + 1e-6)
        place = (pull[:, None] * points).sum(0) / pull.sum().clamp(min=1e-12)
    return place
