"""Streets, corridors and paths that a camera passes through, and who else is on the way.

What people film while they walk or ride: a long straight path along the view, walls and parked
cars at the sides, the far end of the street in the same picture, and passers-by. World: metres, z
up, the ground at 0, the way along x.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttracks.scenes import places
from fasttracks.scenes.bodies import Bodies, animate
from fasttracks.scenes.camera_paths import hand, look_at
from fasttracks.scenes.library import Library
from fasttracks.scenes.places import Things
from fasttracks.scenes.rays import Planes
from fasttracks.scenes.sampling import (
    Draw,
    constant,
    frame_along,
    multiply,
    orthonormal,
    rotate,
    rotate_back,
    upright,
)
from fasttracks.scenes.scene import Lens, Scene, assemble
from fasttracks.scenes.variety import PLACES, Variety

PASSERS_BY = 5  # bodies a clip
_HOUSES, _CRATES, _POLES, _CARS = 14, 10, 14, 2
_DISTANCE = 6.0  # about how far things are, which small motions and roughness are measured by
_FREE = 0.5  # around the camera


def compose(draw: Draw, library: Library, variety: Variety, lens: Lens, frames: int) -> Scene:
    """Scenes of a batch, one a lens, in each of which a camera is on its way."""
    batch = len(lens.focal)
    span = draw.log_uniform(variety.span, batch, 1)
    times = span * torch.linspace(0, 1, frames, device=draw.device)
    clock = torch.where(draw.chance(variety.frozen, batch, 1), span / 2, times)
    rotation, position, speed, view = _walk(draw, variety, times, lens.sides)

    place = draw.pick(variety.places, batch)
    room, street = (place == PLACES.index(name) for name in ("room", "street"))
    width = draw.log_uniform((1.2, 10), batch, 2)  # free to either side of the way
    width = torch.where(room[:, None], draw.log_uniform((0.9, 5), batch, 2), width)
    bodies = _passers_by(draw, library, variety, clock, lens, position, speed, view, width)
    cars = _cars(draw, variety, clock, position, speed, width)
    boxes = _along_the_way(draw, variety, street, room, width, position)
    cones = _poles(draw, variety, room, width, position)
    planes = _enclose(draw, street, room, width, position)
    none = cars.scale[:, :0]
    balls = Things(cars.rotation[:, :, :0], cars.position[:, :, :0], none, none)
    solids, parents = assemble(bodies, cones, balls, boxes, cars, frames)
    distance = torch.full((batch,), _DISTANCE, device=draw.device)
    return Scene(
        solids, planes, parents, library.reliefs, bodies.skin, rotation, position, distance
    )


def _walk(
    draw: Draw, variety: Variety, times: Tensor, sides: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cameras on their way: rotations (B, T, 3, 3), positions (B, T, 3).

    Also their speed (B, 1) a second, and which way they look (B, 1), an angle from the x axis.
    """
    clips, frames = times.shape
    span = times[:, -1:] - times[:, :1] + 1e-3
    moves = ~draw.chance(variety.halt, clips, 1)
    length = draw.log_uniform(variety.travel, clips, 1) * moves
    progress = torch.linspace(-0.5, 0.5, frames, device=draw.device).expand(clips, -1)
    uneven = draw.waves(times, (3,), (0.1, 0.6), 0.5)
    along = progress + 0.04 * draw.unit(clips, 1) * uneven[:, 0]

    slant = 0.07 * draw.normal(clips, 1)  # of the way to the street's axis
    bend = 0.05 * draw.normal(clips, 1) * draw.log_uniform((0.2, 4), clips, 1)
    height = draw.log_uniform((0.7, 2.6), clips, 1)
    x = length * along
    y = length * (slant * along + 0.5 * bend * along.square())
    z = height + length * 0.02 * draw.normal(clips, 1) * along
    # A walker's steps: up and down with each, to the side with every other one.
    bob = draw.log_uniform((0.001, 0.03), clips, 2) * moves
    step = 2 * math.pi * (draw.uniform((1.5, 2.3), clips, 1) * times + draw.unit(clips, 1))
    y = y + bob[:, :1] * (step / 2).sin()
    z = (z + bob[:, 1:] * step.sin()).clamp(min=0.3)
    position = torch.stack([x, y, z], -1)

    aside = math.pi * draw.uniform((-1, 1), clips, 1)
    glance = torch.where(draw.chance(variety.aside, clips, 1), aside, 0.07 * draw.normal(clips, 1))
    follows = draw.unit(clips, 1)
    sweep = math.radians(1) * draw.log_uniform((0.02, 6), clips, 1) * draw.sign(clips, 1)
    sweep = (sweep * span).clamp(-0.6, 0.6)
    yaw = slant + glance + follows * bend * along
    yaw = yaw + sweep * (progress + 0.1 * uneven[:, 1])
    pitch = -0.05 + 0.07 * draw.normal(clips, 1) + 0.1 * sweep * uneven[:, 2] * draw.unit(clips, 1)
    ahead = torch.stack([yaw.cos(), yaw.sin(), pitch.tan()], -1)
    up = constant((0.0, 0, 1), draw.device) + 0.025 * draw.normal(clips, 1, 3)
    rotation = look_at(position, position + ahead, up)

    turn, shift = hand(draw, variety, times)
    steady = (0.9 / sides).clamp(max=1)[:, None, None, None]
    rigid = draw.chance(0.5, clips, 1, 1, 1) & ~moves[..., None, None]  # on a tripod
    steady = torch.where(rigid, 0.0, steady)
    level = torch.eye(3, device=draw.device)
    turn = orthonormal(level + steady * (turn - level))
    position = position + torch.where(rigid[..., 0], 0.0, 0.5 * _DISTANCE * shift)
    return multiply(rotation, turn), position, length / span, slant + glance


def _passers_by(
    draw: Draw,
    library: Library,
    variety: Variety,
    clock: Tensor,
    lens: Lens,
    camera: Tensor,
    speed: Tensor,
    view: Tensor,
    width: Tensor,
) -> Bodies:
    """People and animals that walk along, against, across or with the camera, or stand about.

    camera (B, T, 3), its speed (B, 1) and view (B, 1) as of `_walk`; width (B, 2) to either side.
    """
    lead = (len(clock), PASSERS_BY)
    small = draw.chance(0.2, *lead)
    size = torch.where(small, draw.log_uniform((0.3, 1), *lead), draw.uniform((1.1, 1.9), *lead))
    fill = draw.log_uniform(variety.fill, *lead)
    away = (size * lens.sides[:, None] / fill).clamp(1.0, 30)

    # Where in the image, at the clip's middle; within the walls if there are any.
    half = (lens.extent[:, :1] / lens.focal[:, None]).clamp(max=1)
    bearing = view + (half * draw.uniform((-0.9, 0.9), *lead)).atan()
    middle = camera[:, camera.shape[1] // 2]
    x, y = middle[:, :1] + away * bearing.cos(), middle[:, 1:2] + away * bearing.sin()
    y = torch.minimum(y.maximum(0.3 - width[:, 1:]), width[:, :1] - 0.3)

    own = draw.log_uniform((0.5, 1.8), *lead)
    like = speed * draw.uniform((0.7, 1.5), *lead)  # as fast as whoever films
    pace = torch.where(draw.chance(0.6, *lead) & (speed > 0.2), like.clamp(max=3), own)
    pace = torch.where(draw.chance(0.12, *lead), 0.0, pace)
    with_camera = torch.where(draw.chance(0.5, *lead), 0.0, math.pi)
    way = with_camera + 0.12 * draw.normal(*lead)
    way = torch.where(draw.chance(0.2, *lead), 2 * math.pi * draw.unit(*lead), way)
    velocity = pace[..., None] * torch.stack([way.cos(), way.sin()], -1)  # (B, S, 2)

    span = clock[:, -1:] - clock[:, :1]
    bodies = animate(draw, library, variety, clock, size, pace * span + 0.05 * size)
    # Turned so that they face where they go, and their drift made into the way they go.
    place = bodies.position.mean(3)  # (B, S, T, 3)
    drift = place[:, :, -1] - place[:, :, 0]
    turn = upright(way - torch.atan2(drift[..., 1], drift[..., 0]))[:, :, None, None]
    since = clock - clock.mean(1, keepdim=True)
    drift = drift[:, :, None] * (since / (span + 1e-6))[:, None, :, None]
    level = constant((1.0, 1, 0), draw.device)
    centre = (place.mean(2, keepdim=True) + drift) * level
    position = rotate(turn, bodies.position - centre[..., None, :])
    path = torch.stack([x, y], -1)[:, :, None] + velocity[:, :, None] * since[:, None, :, None]
    position = position + pad(path, (0, 1))[..., None, :]

    gap = (position[..., :2] - camera[:, None, :, None, :2]).norm(dim=-1)
    near = (gap - bodies.shape[:, :, None, :, 1]).amin((2, 3)) < _FREE
    count = draw.pick(variety.company, len(clock), 1)
    shown = (torch.arange(PASSERS_BY, device=draw.device) < count) & ~near
    position = places.put_away(position, shown[:, :, None, None])
    return bodies._replace(rotation=multiply(turn, bodies.rotation), position=position)


def _cars(
    draw: Draw, variety: Variety, clock: Tensor, camera: Tensor, speed: Tensor, width: Tensor
) -> Things:
    """Things that drive along the way (B, T, 2 · _CARS), each a box with a smaller one on top."""
    lead = (len(clock), _CARS)
    half = draw.uniform((0.6, 1.2), *lead, 3) * constant((2.0, 0.8, 0.5), draw.device)
    half = half * draw.log_uniform((0.3, 1.3), *lead, 1)
    pace = draw.sign(*lead) * (speed * draw.uniform((0, 2), *lead) + draw.unit(*lead) * 2)
    side = draw.sign(*lead)
    lane = torch.where(side > 0, width[:, :1], width[:, 1:]) * draw.uniform((0.3, 0.9), *lead)
    x = camera[:, -1, :1] + draw.log_uniform((2, 40), *lead)
    since = clock - clock.mean(1, keepdim=True)
    x = x[:, None] + pace[:, None] * since[..., None]  # (B, T, C)
    low = torch.stack([x, (side * lane)[:, None].expand_as(x), half[:, None, :, 2] + 0 * x], -1)
    rotation = upright(0.08 * draw.normal(*lead))[:, None].expand(-1, clock.shape[1], -1, -1, -1)

    gap = (low - camera[:, :, None])[..., :2].norm(dim=-1).amin(1) - half[..., :2].norm(dim=-1)
    shown = draw.chance(variety.movers, len(clock), 1) & draw.chance(0.7, *lead) & (gap > _FREE)
    low = places.put_away(low, shown[:, None])
    cabin = half * draw.uniform((0.4, 0.9), *lead, 3)
    above = half[..., 2:] + cabin[..., 2:]
    top = low + above[:, None] * constant((0.0, 0, 1), draw.device)
    return Things(
        torch.cat([rotation, rotation], 2),
        torch.cat([low, top], 2),
        torch.cat([half, cabin], 1),
        half[:, :0],
    )


def _along_the_way(
    draw: Draw, variety: Variety, street: Tensor, room: Tensor, width: Tensor, camera: Tensor
) -> Things:
    """Houses in two rows, and parked cars, stalls, benches or furniture before them."""
    clips = len(width)
    side = 1 - 2.0 * (torch.arange(_HOUSES, device=draw.device) % 2)
    free = torch.where(side > 0, width[:, :1], width[:, 1:])
    house = draw.log_uniform((1.5, 9), clips, _HOUSES, 3)  # half sides
    house[..., 2] = 0.8 * house[..., 2]
    reach = 2 * house[..., 0] + draw.chance(0.3, clips, _HOUSES) * draw.uniform(
        (0, 6), clips, _HOUSES
    )
    ends = reach.unflatten(1, (-1, 2)).cumsum(1).flatten(1)
    x = camera[:, 0, :1] - 8 * draw.unit(clips, 1) + ends - house[..., 0]
    setback = draw.unit(clips, _HOUSES).square() * 0.3 * free
    y = side * (free + setback + house[..., 1])
    here = street[:, None] & draw.chance(0.92, clips, _HOUSES)
    houses = torch.stack([x, y, house[..., 2]], -1), house, here

    lead = (clips, _CRATES)
    half = draw.log_uniform((0.12, 1.0), *lead, 3)
    half = half * torch.where(room[:, None, None], 0.5, 1.0) * constant((1.5, 1, 1), draw.device)
    side = draw.sign(*lead)
    free = torch.where(side > 0, width[:, :1], width[:, 1:])
    y = side * (free - half[..., 1] * draw.uniform((0.8, 2), *lead)).clamp(min=0.1)
    x = camera[:, :1, 0] + draw.log_uniform((1.5, 50), *lead) - 1
    here = draw.chance(draw.uniform(variety.clutter, clips, 1), *lead)
    crates = torch.stack([x, y, half[..., 2] * draw.uniform((0.8, 1), *lead)], -1), half, here

    position, half, here = (torch.cat([a, b], 1) for a, b in zip(houses, crates, strict=True))
    rotation = upright(0.03 * draw.normal(clips, _HOUSES + _CRATES))
    away = camera[:, :, None] - position[:, None]
    gap = (rotate_back(rotation[:, None], away).abs() - half[:, None]).amax(-1).amin(1)
    return Things(rotation, places.put_away(position, here & (gap > _FREE)), half, half[:, :0])


def _poles(draw: Draw, variety: Variety, room: Tensor, width: Tensor, camera: Tensor) -> Things:
    """Poles and trunks, bushes on the ground and crowns above it."""
    lead = (len(width), _POLES)
    kind = draw.pick((0.45, 0.3, 0.25), *lead)
    pole, bush = kind == 0, kind == 1
    radius = draw.log_uniform((0.25, 2.2), *lead) * torch.where(room[:, None], 0.3, 1.0)
    radius = torch.where(pole, 0.12 * radius + 0.02, radius)
    length = torch.where(pole, draw.log_uniform((0.8, 8), *lead), 0.8 * radius)
    end = radius * draw.uniform((0.6, 1), *lead)
    rise = torch.where(pole | bush, 0.0, radius + draw.uniform((1.5, 5), *lead))
    side = draw.sign(*lead)
    free = torch.where(side > 0, width[:, :1], width[:, 1:])
    x = camera[:, :1, 0] + draw.log_uniform((1, 50), *lead) - 1
    y = side * torch.where(pole, free * draw.uniform((0.5, 1.2), *lead), free + 0.3 * radius)
    position = torch.stack([x, y, rise], -1)
    axis = torch.cat([0.05 * draw.normal(*lead, 2), torch.ones_like(rise)[..., None]], -1)
    rotation = frame_along(axis, constant((1.0, 0, 0), draw.device).expand_as(axis))
    scale = draw.uniform((0.7, 1.4), *lead, 3)
    scale[..., 2] = 1
    gap = (camera[:, :, None, :2] - position[:, None, :, :2]).norm(dim=-1).amin(1)
    here = draw.chance(draw.uniform(variety.clutter, lead[0], 1), *lead)
    here = here & (gap > 1.4 * radius + _FREE)
    shape = torch.stack([length, radius, end], -1)
    return Things(rotation, places.put_away(position, here), scale, shape)


def _enclose(draw: Draw, street: Tensor, room: Tensor, width: Tensor, camera: Tensor) -> Planes:
    """The far end, what is behind, the sides, ceiling or sky, and the ground.

    Outdoors the sides and the end are hills or façades far off, or the sky, as good as infinite.
    """
    clips = len(width)
    yaw = 0.5 * math.pi * torch.arange(4, device=draw.device) + 0.05 * draw.normal(clips, 4)
    level = torch.stack([yaw.cos(), yaw.sin(), torch.zeros_like(yaw)], -1)
    vertical = constant(((0.0, 0.0, 1.0), (0.0, 0.0, -1.0)), draw.device).expand(clips, -1, -1)
    normal = torch.cat([level, vertical], 1)
    reach = (camera[:, :, None] * normal[:, None]).sum(-1).amax(1)  # (B, 6)

    far = torch.where(draw.chance(0.5, clips, 1), 1.0, 8.0) * draw.log_uniform((20, 100), clips, 2)
    beside = torch.where(street[:, None], 40.0, draw.log_uniform((6, 200), clips, 2))
    sky = draw.log_uniform((50, 1000), clips, 1)
    open_air = torch.cat([far[:, :1], beside[:, :1], far[:, 1:], beside[:, 1:], sky], 1)
    ends = draw.log_uniform((3, 25), clips, 2)
    ceiling = draw.uniform((0.3, 2), clips, 1)
    inside = torch.cat([ends[:, :1], width[:, :1], ends[:, 1:], width[:, 1:], ceiling], 1)
    offset = torch.where(room[:, None], inside, open_air) + reach[:, :5].clamp(min=0.0)
    return Planes(normal, torch.cat([offset, torch.zeros_like(sky)], 1))
