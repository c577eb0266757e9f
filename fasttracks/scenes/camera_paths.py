"""Camera paths: rigs around a subject, a hand that shakes, and recorded paths."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from fasttracks.geometry import exponential
from fasttracks.scenes.library import Library, Paths
from fasttracks.scenes.sampling import (
    Draw,
    at_times,
    constant,
    multiply,
    orthonormal,
    rotate,
    rotate_back,
)
from fasttracks.scenes.variety import CAMERAS, Variety

# What a hand adds, measured on TUM's fr1_xyz held to a scene about 1 m away: RMS per half octave
# at 1 Hz and its fall with frequency.
_HAND_POSITION, _HAND_POSITION_SLOPE = 0.003, 2.7  # of the distance
_HAND_ROTATION, _HAND_ROTATION_SLOPE = 0.009, 1.3  # radians
_HAND_BAND = (0.35, 12.0)  # Hz; slower motion is the rigs'


def film(
    draw: Draw,
    library: Library,
    variety: Variety,
    times: Tensor,
    subject: Tensor,
    distance: Tensor,
    size: Tensor,
    sides: Tensor,
) -> tuple[Tensor, Tensor]:
    """Cameras about `distance` (B,) from a subject of `size` (B,) at places (B, T, 3).

    times (B, T) in seconds, sides (B,) the focal length in longer sides of the image. Returns
    rotations (B, T, 3, 3) camera to world and positions (B, T, 3), above the ground z = 0.
    """
    clips, frames = times.shape
    weights = list(variety.cameras)
    if library.paths is None:
        weights[CAMERAS.index("recorded")] = 0
    kind = draw.pick(weights, clips, 1)
    is_kind = {name: (kind == i).float() for i, name in enumerate(CAMERAS)}
    position, target, up, glance = _rig(draw, variety, is_kind, times, subject, distance, size)
    rotation = multiply(look_at(position, target, up), glance)

    hand_rotation, hand_position = hand(draw, variety, times)
    # A longer lens is held steadier, or nothing would stay in the image.
    steady = (0.9 / sides).clamp(max=1)[:, None, None, None]
    real = is_kind["recorded"][..., None] > 0
    if library.paths is not None:
        path_rotation, path_position = _recorded(draw, variety, library.paths, times)
        hand_rotation = torch.where(real[..., None], path_rotation, hand_rotation)
        hand_position = torch.where(real, path_position, hand_position)
    middle = rotation[:, frames // 2, None]
    position = position + rotate(middle, hand_position * distance[:, None, None])
    # Half of those who walk a recorded path keep their eyes on the subject.
    aims = real & draw.chance(0.5, clips, 1, 1)
    rotation = torch.where(aims[..., None], look_at(position, target, up), rotation)
    steady = torch.where(aims[..., None], 0.25 * steady, steady)
    level = torch.eye(3, device=draw.device)
    hand_rotation = orthonormal(level + steady * (hand_rotation - level))

    # Softly above the ground.
    least = 0.05 * distance[:, None]
    height = least + least * softplus((position[..., 2] - least) / least)
    position = torch.cat([position[..., :2], height[..., None]], -1)
    return multiply(rotation, hand_rotation), position


def _rig(
    draw: Draw,
    variety: Variety,
    is_kind: dict[str, Tensor],
    times: Tensor,
    subject: Tensor,
    distance: Tensor,
    size: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the operator intends, before the hand.

    Returns positions and places to look at (B, T, 3), what is up (B, 1, 3), and rotations
    (B, T, 3, 3) to look elsewhere by. is_kind: of each kind of camera whether a clip has it,
    0 or 1 (B, 1).
    """
    clips, frames = times.shape
    orbit, follow, pan = is_kind["orbit"], is_kind["follow"], is_kind["pan"]

    # Progress from -½ to ½ over the clip, at a pace that varies.
    progress = torch.linspace(-0.5, 0.5, frames, device=draw.device).expand(clips, -1)
    progress = progress * draw.sign(clips, 1)
    uneven = draw.waves(times, (4,), (0.05, 0.4), 0.3)
    uneven = uneven / (uneven.abs().amax(-1, keepdim=True) + 1e-3)
    sweep = progress + 0.25 * draw.unit(clips, 1) * uneven[:, 0]

    swing = math.radians(1) * draw.log_uniform(variety.swing, clips, 1)
    swing = swing * (orbit + follow * 0.5 * draw.unit(clips, 1))
    azimuth = 2 * math.pi * draw.unit(clips, 1) + swing * sweep
    elevation = draw.uniform((-0.02, 0.9), clips, 1) * draw.unit(clips, 1).sqrt()
    elevation = elevation + (0.3 * swing * draw.unit(clips, 1) + 0.05 * orbit) * uneven[:, 1]
    radius = 1 + is_kind["dolly"] * draw.uniform((0.2, 0.8), clips, 1) * sweep
    radius = radius + 0.03 * orbit * uneven[:, 2]
    arm = torch.stack(
        [
            elevation.cos() * azimuth.cos(),
            elevation.cos() * azimuth.sin(),
            elevation.sin(),
        ],
        -1,
    )
    arm = arm * (radius * distance[:, None])[..., None]
    stride = normalize(draw.normal(clips, 1, 3) * constant((1, 1, 0.15), draw.device), dim=-1)
    length = distance[:, None] * draw.log_uniform((0.05, 0.9), clips, 1) * is_kind["walk"]
    arm = arm + stride * (length * sweep)[..., None]

    # Where the operator stands and looks: at the subject, late and not exactly, or at a place.
    smooth = _lag(draw, times, subject)
    middle = subject.mean(1, keepdim=True)
    attention = torch.maximum(draw.chance(0.6, clips, 1).float(), follow) * (1 - pan)
    attention = (attention * draw.uniform((0.5, 1), clips, 1))[..., None]
    target = middle + attention * (smooth - middle)
    wander = draw.waves(times, (3,), (0.1, 1), 0.7).transpose(1, 2) * 0.03
    target = target + size[:, None, None] * (0.2 * draw.normal(clips, 1, 3) + wander)
    stand = torch.maximum(follow, is_kind["recorded"] * draw.chance(0.25, clips, 1))[..., None]
    position = middle + stand * (smooth - middle) + arm

    # Too near for its lens to take the subject in: step back.
    gap = (position - subject).norm(dim=-1, keepdim=True)
    short = (0.5 * distance[:, None, None] - gap).amax(1, keepdim=True).clamp(min=0)
    position = position + short * normalize(arm, dim=-1)

    tilt = torch.where(draw.chance(variety.slope, clips, 1, 1), 0.2, 0.03)
    up = draw.normal(clips, 1, 3) * tilt + constant((0, 0, 1), draw.device)
    turn = draw.uniform((0.1, 0.7), clips, 1) * pan * sweep
    glance = torch.stack([0.2 * turn * uneven[:, 3], turn, torch.zeros_like(turn)], -1)
    return position, target, up, exponential(glance)


def _lag(draw: Draw, times: Tensor, path: Tensor) -> Tensor:
    """A path (B, T, 3) averaged over the recent past, as an operator follows it."""
    memory = draw.log_uniform((0.05, 1.5), len(times), 1, 1)
    age = times[:, :, None] - times[:, None, :]
    weight = torch.exp(-age.abs() / memory) * torch.where(age >= 0, 1.0, 0.3)
    weight = weight / weight.sum(-1, keepdim=True)
    return (weight[..., None] * path[:, None]).sum(2)


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Rotations camera to world: z to the target, y down. All (B, T, 3), up (B, 1, 3)."""
    z = normalize(target - position, dim=-1)
    x = normalize(torch.linalg.cross(z, up.expand_as(z)), dim=-1)
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)


def hand(draw: Draw, variety: Variety, times: Tensor) -> tuple[Tensor, Tensor]:
    """A shaking hand: rotations (B, T, 3, 3), positions (B, T, 3) as a share of the distance."""
    scale = draw.log_uniform(variety.shake, len(times), 1, 2)
    turn = draw.waves(times, (3,), _HAND_BAND, _HAND_ROTATION_SLOPE).transpose(1, 2)
    move = draw.waves(times, (3,), _HAND_BAND, _HAND_POSITION_SLOPE).transpose(1, 2)
    root = math.sqrt(2)
    return (
        exponential(root * _HAND_ROTATION * scale[..., :1] * turn),
        root * _HAND_POSITION * scale[..., 1:] * move,
    )


def _recorded(draw: Draw, variety: Variety, paths: Paths, times: Tensor) -> tuple[Tensor, Tensor]:
    """Pieces of recorded paths relative to their middle: rotations, positions."""
    clips, frames = times.shape
    path = draw.pick(paths.weight, clips)
    room = (paths.count[path] - 2)[:, None]
    rate = 30 * draw.log_uniform((0.5, 1.5), clips, 1)
    since = times - times[:, :1]
    rate = torch.minimum(rate, room / (since[:, -1:] + 1e-3))
    begin = draw.unit(clips, 1) * (room - rate * since[:, -1:]).clamp(min=0)
    where = begin + rate * since
    where = torch.where(draw.chance(0.5, clips, 1), where, room - where)  # also backwards
    where = paths.first[path][:, None] + where.clamp(min=0)
    rotation = orthonormal(at_times(paths.rotation, where))
    position = at_times(paths.position, where)
    middle = rotation[:, frames // 2, None]
    rotation = multiply(middle.mT.contiguous(), rotation)
    position = rotate_back(middle, position - position[:, frames // 2, None])
    # No further than leaves the operator on this side of the subject.
    reach = position.norm(dim=-1).amax(1)[:, None, None]
    scale = draw.log_uniform(variety.recorded, clips, 1, 1)
    return rotation, position * torch.minimum(scale, 0.7 / (reach + 1e-6))
