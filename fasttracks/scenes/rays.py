"""Rays and lines of sight against rounded cones, boxes and planes, in closed form."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.scenes.sampling import rotate_back

# A surface this near the point, as a share of its distance, does not hide it.
TOLERANCE = 1e-3
_TESTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 25}


Components = Sequence[Tensor]  # x, y, z


class Solids(NamedTuple):
    """M solids of B clips in T frames: first the rounded cones, then the boxes.

    A solid is stretched by `scale` along its own axes and then posed. Before that a rounded
    cone is the hull of a ball of radius a at 0 and one of radius b at (0, 0, length), with
    |a − b| < length; a box is the cube [−1, 1]³.
    """

    rotation: Tensor  # (B, T, M, 3, 3) to the world
    position: Tensor  # (B, T, M, 3)
    scale: Tensor  # (B, M, 3)
    cones: Tensor  # (B, C, 3) length, a, b of the first C solids

    def at(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations (B, N, M, 3, 3), positions (B, N, M, 3) of all solids at frames (B, N)."""
        clip = torch.arange(len(frames), device=frames.device)[:, None]
        return self.rotation[clip, frames], self.position[clip, frames]


class Planes(NamedTuple):
    """P planes of B clips: the scene lies where normal · x ≤ offset."""

    normal: Tensor  # (B, P, 3)
    offset: Tensor  # (B, P)


def first_hit(
    solids: Solids, planes: Planes, frames: Tensor, origin: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """What N rays a clip meet first, each in its own frame (B, N).

    origin, direction (B, N, 3). Returns how far, in units of direction (B, N), and the index
    of the solid (B, N), M for a plane. Planes enclose the scene, so every ray meets something.
    """
    rotation, position = solids.at(frames)
    scale = solids.scale[:, None]
    start = rotate_back(rotation, origin[:, :, None] - position) / scale
    along = rotate_back(rotation, direction[:, :, None].expand_as(position)) / scale
    entry = _enter(start.unbind(-1), along.unbind(-1), solids.cones[:, None])

    approach = (planes.normal[:, None] * direction[:, :, None]).sum(-1)
    gap = planes.offset[:, None] - (planes.normal[:, None] * origin[:, :, None]).sum(-1)
    wall = torch.where(approach > 1e-6, gap / approach, torch.inf).amin(-1)
    return torch.cat([entry, wall[..., None]], -1).min(-1)


def in_sight(
    solids: Solids, planes: Planes, camera: Tensor, points: Tensor, slack: Tensor
) -> Tensor:
    """Whether points (B, T, N, 3) are seen from the camera (B, T, 3), nothing being between.

    slack (B, N, M): how deep a point may lie in a solid, along the line of sight, in world
    units. Returns (B, T, N) bool.
    """
    clips, _, tracks, _ = points.shape
    test = _compiled() if points.is_cuda else _in_sight
    at_once = _TESTS_AT_ONCE.get(points.device.type, _TESTS_AT_ONCE["cpu"])
    at_once = max(1, at_once // (clips * tracks * solids.scale.shape[1]))
    seen = [
        test(Solids(rotation, position, solids.scale, solids.cones), planes, eye, target, slack)
        for rotation, position, eye, target in zip(
            *(x.split(at_once, 1) for x in (solids.rotation, solids.position, camera, points)),
            strict=True,
        )
    ]
    return torch.cat(seen, 1)


def _in_sight(
    solids: Solids, planes: Planes, camera: Tensor, points: Tensor, slack: Tensor
) -> Tensor:
    scale = solids.scale[:, None]
    start = rotate_back(solids.rotation, camera[:, :, None] - solids.position) / scale
    x, y, z = (points - camera[:, :, None])[..., None].unbind(-2)  # (B, T, N, 1)
    along = []
    for axis in range(3):
        a, b, c = (solids.rotation[..., axis] / scale[..., axis, None])[:, :, None].unbind(-1)
        along.append(torch.addcmul(torch.addcmul(x * a, y, b), z, c))
    starts = [s[:, :, None] for s in start.unbind(-1)]
    entry = _enter(starts, along, solids.cones[:, None, None])

    distance = (x * x + y * y + z * z).sqrt()
    hidden = (entry < 1 - TOLERANCE - slack[:, None] / distance).any(-1)
    for normal, offset in zip(planes.normal.unbind(1), planes.offset.unbind(1), strict=True):
        beyond = (points * normal[:, None, None]).sum(-1) - offset[:, None, None]
        hidden |= beyond > TOLERANCE * distance[..., 0]
    return ~hidden


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """`_in_sight`, which is half of a GPU's time for a clip otherwise.

    Made where it is wanted, as torch.compile takes seconds to import.
    """
    return torch.compile(_in_sight, dynamic=True)


def _enter(start: Components, along: Components, cones: Tensor) -> Tensor:
    """Where rays enter solids, in each solid's own unstretched frame; inf where they don't.

    start, along: three components (..., M) each; cones (..., C, 3).
    """
    count = cones.shape[-2]
    return torch.cat(
        [
            _enter_cones([s[..., :count] for s in start], [a[..., :count] for a in along], cones),
            _enter_boxes([s[..., count:] for s in start], [a[..., count:] for a in along]),
        ],
        -1,
    )


def _enter_cones(start: Components, along: Components, cones: Tensor) -> Tensor:
    """The hull's entry is the earliest of both balls' and the flank's, a cone between them.

    A missed part is NaN (the root of a negative), which fmin passes over.
    """
    x, y, z = along
    length, a, b = cones.unbind(-1)
    square = x * x + y * y + z * z
    # From the ray's nearest point to 0, where start · along = 0; float32 would cancel further out.
    nearest = -(start[0] * x + start[1] * y + start[2] * z) / square
    px, py, pz = (torch.addcmul(s, nearest, d) for s, d in zip(start, along, strict=True))
    p2 = px * px + py * py + pz * pz

    ball = -((a * a - p2) / square).sqrt()
    half = -length * z
    rest = p2 + length * (length - 2 * pz) - b * b
    end_ball = (-half - (half * half - square * rest).sqrt()) / square

    # In the half-plane (ρ, z) the flank is ρ cos + z sin = a, between its circles of contact.
    sin = (a - b) / length
    cos2 = 1 - sin * sin
    lead = cos2 * square - z * z
    half = z * (a * sin - pz)
    rest = cos2 * p2 - pz * pz + (2 * a * sin) * pz - a * a
    flank = (-half - (half * half - lead * rest).sqrt()) / lead
    height = pz + flank * z - a * sin
    flank = torch.where((height >= 0) & (height <= length * cos2), flank, torch.nan)

    entry = nearest + torch.fmin(torch.fmin(ball, end_ball), flank)
    return torch.where(entry > 0, entry, torch.inf)


def _enter_boxes(start: Components, along: Components) -> Tensor:
    sides = [(-s / d, (1 / d).abs()) for s, d in zip(start, along, strict=True)]
    x, y, z = (middle - half for middle, half in sides)
    enter = torch.maximum(torch.maximum(x, y), z)
    x, y, z = (middle + half for middle, half in sides)
    leave = torch.minimum(torch.minimum(x, y), z)
    return torch.where((enter > 0) & (enter < leave), enter, torch.inf)
