"""Where scenes happen: floor, walls and sky, and the boxes, rocks and poles that stand about."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.scenes.rays import Planes
from fasttracks.scenes.sampling import Draw, constant, frame_along, rotate, rotate_back, upright
from fasttracks.scenes.variety import PLACES, Variety

BOXES, CONES = 18, 14  # fixed things a clip; 8 of the boxes are a street's houses
HOUSES = 8
AWAY = 1e4  # where what a clip doesn't have is put, out of all sight


_CLEAR = 0.12  # of the distance to the subject: no thing is nearer to a camera


class Things(NamedTuple):
    """M things of B clips: boxes of half sides `scale`, or rounded cones; see `Solids`."""

    rotation: Tensor  # (B, M, 3, 3), or (B, T, M, 3, 3) if it moves
    position: Tensor  # (B, M, 3), or (B, T, M, 3)
    scale: Tensor  # (B, M, 3)
    shape: Tensor  # (B, M, 3) of rounded cones: length, radius at the start, at the end; or none


def choose(draw: Draw, variety: Variety, clips: int) -> Tensor:
    """The place of each clip (B,), an index into PLACES."""
    return draw.pick(variety.places, clips)


def boxes(draw: Draw, variety: Variety, place: Tensor, distance: Tensor, clear: Tensor) -> Things:
    """Crates, furniture and, in a street, houses left and right of it.

    None comes near the places `clear` (B, Q, 3).
    """
    clips = len(place)
    street = (place == PLACES.index("street"))[:, None]
    unit = distance[:, None]
    side = draw.log_uniform((0.03, 0.2), clips, BOXES, 3) * unit[..., None]
    position = scatter(draw, (clips, BOXES), unit)
    turn = 2 * math.pi * draw.unit(clips, BOXES)
    shown = draw.chance(draw.uniform(variety.clutter, clips, 1).square(), clips, BOXES)

    row = torch.arange(BOXES, device=draw.device)
    along = ((row // 2) - (HOUSES / 2 - 1) / 2 + 0.3 * draw.normal(clips, BOXES)) * 1.3 * unit
    width = draw.uniform((0.6, 2), clips, 1) * unit
    houses = draw.uniform((0.35, 0.7), clips, BOXES, 3) * unit[..., None]
    houses = houses * constant((1, 0.6, 1.5), draw.device)
    across = (2.0 * (row % 2) - 1) * (width + houses[..., 1])
    way = 2 * math.pi * draw.unit(clips, 1)
    rows = rotate(upright(way), torch.stack([along, across, torch.zeros_like(across)], -1))
    house = street & (row < HOUSES)
    side = torch.where(house[..., None], houses, side)
    position = torch.where(house[..., None], rows, position)
    turn = torch.where(house, way, turn)
    shown = shown | house
    rise = side[..., 2] * draw.uniform((0.6, 1), clips, BOXES)  # some are dug in
    position = position + rise[..., None] * constant((0, 0, 1), draw.device)
    rotation = upright(turn)
    away = clear[:, :, None] - position[:, None]
    gap = (rotate_back(rotation[:, None], away).abs() - side[:, None]).amax(-1).amin(1)
    shown = shown & (gap > _CLEAR * unit)
    return Things(rotation, put_away(position, shown), side, side[:, :0])


def cones(
    draw: Draw,
    variety: Variety,
    distance: Tensor,
    camera: Tensor,
    subject: Tensor,
    clear: Tensor,
) -> Things:
    """Rocks and mounds, poles and trunks, some of them between camera and subject.

    camera, subject (B, T, 3); none comes near the places `clear` (B, Q, 3).
    """
    clips = len(distance)
    unit = distance[:, None]
    pole = draw.chance(0.3, clips, CONES)
    radius = draw.log_uniform((0.02, 0.2), clips, CONES) * unit
    radius = torch.where(pole, radius * 0.25, radius)
    length = torch.where(pole, draw.log_uniform((0.2, 1.5), clips, CONES) * unit, 0.6 * radius)
    end = radius * draw.uniform((0.6, 1), clips, CONES)
    position = scatter(draw, (clips, CONES), unit)
    scale = draw.uniform((0.6, 1.6), clips, CONES, 3)
    scale[..., 2] = 1.0
    rise = torch.where(pole, 0.0, -0.5 * radius * draw.unit(clips, CONES))
    shown = draw.chance(draw.uniform(variety.clutter, clips, 1).square(), clips, CONES)

    front = draw.chance(variety.foreground, clips, 1)
    front = front & (torch.arange(CONES, device=draw.device) < draw.uniform((1, 4), clips, 1))
    between = draw.uniform((0.25, 0.6), clips, CONES, 1)
    between = torch.lerp(subject.mean(1)[:, None], camera.mean(1)[:, None], between)
    aside = draw.normal(clips, CONES, 3) * unit[..., None] * 0.15
    level = constant((1, 1, 0), draw.device)
    position = torch.where(front[..., None], (between + aside) * level, position)
    radius = torch.where(front, 0.3 * radius + 0.005 * unit, radius)
    length, end = torch.where(front, unit, length), torch.where(front, radius * 0.8, end)
    scale = torch.where(front[..., None], 1.0, scale)
    rise, shown = torch.where(front, 0.0, rise), shown | front

    axis = torch.cat([0.15 * draw.normal(clips, CONES, 2), torch.ones_like(position[..., :1])], -1)
    rotation = frame_along(axis, constant((1.0, 0.0, 0.0), draw.device).expand_as(axis))
    position = position + rise[..., None] * constant((0, 0, 1), draw.device)
    gap = (clear[:, :, None, :2] - position[:, None, :, :2]).norm(dim=-1).amin(1)
    shown = shown & (gap > radius * scale.amax(-1) + _CLEAR * unit)
    shape = torch.stack([length, radius, end], -1)
    return Things(rotation, put_away(position, shown), scale, shape)


def enclose(
    draw: Draw, variety: Variety, place: Tensor, distance: Tensor, camera: Tensor, inside: Tensor
) -> Planes:
    """Floor, four walls and ceiling around cameras (B, T, 3) and places (B, Q, 3) inside."""
    clips = len(place)
    room = (place == PLACES.index("room"))[:, None]
    backdrop = (place == PLACES.index("backdrop"))[:, None]
    yaw = 2 * math.pi * draw.unit(clips, 1) + math.pi / 2 * torch.arange(4, device=draw.device)
    yaw = yaw + 0.08 * draw.normal(clips, 4)
    zero = torch.zeros_like(yaw)
    normal = torch.stack([yaw.cos(), yaw.sin(), zero], -1)
    vertical = constant(((0.0, 0.0, 1.0), (0.0, 0.0, -1.0)), draw.device).expand(clips, -1, -1)
    normal = torch.cat([normal, vertical], 1)  # (B, 6, 3)

    held = torch.cat([camera, inside], 1)
    reach = (held[:, :, None] * normal[:, None]).sum(-1).amax(1)  # (B, 6)
    open_air = draw.log_uniform(variety.openness, clips, 6)
    margin = torch.where(room, draw.log_uniform((0.08, 1.2), clips, 6), open_air)
    margin = torch.where(backdrop, draw.log_uniform((0.1, 2), clips, 6), margin)
    offset = reach + margin * distance[:, None]
    # The floor is at 0, but far below where there is only a backdrop.
    floor = torch.where(backdrop, draw.uniform((0.5, 3), clips, 1) * distance[:, None], 0.0)
    return Planes(normal, torch.cat([offset[:, :5], floor], 1))


def scatter(draw: Draw, shape: tuple[int, int], unit: Tensor) -> Tensor:
    """Places (B, M, 3) on the ground around the subject, near and far."""
    radius = draw.log_uniform((0.2, 3), *shape) * unit
    angle = 2 * math.pi * draw.unit(*shape)
    return torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros_like(radius)], -1)


def put_away(position: Tensor, shown: Tensor) -> Tensor:
    """Positions (..., 3), far below where not `shown` (...)."""
    height = torch.where(shown, position[..., 2], -AWAY)
    return torch.cat([position[..., :2], height[..., None]], -1)
