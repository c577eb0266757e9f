"""One batch of scenes: lenses, and everything that stands and moves before a moving camera."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttracks.scenes import places
from fasttracks.scenes.bodies import BODIES, Bodies, animate, ride
from fasttracks.scenes.camera_paths import film
from fasttracks.scenes.library import Library
from fasttracks.scenes.places import Things
from fasttracks.scenes.rays import Planes, Solids
from fasttracks.scenes.sampling import Draw, constant
from fasttracks.scenes.skeletons import BONES
from fasttracks.scenes.variety import PHONE, Variety

MOVERS = 2  # things a clip that drive or roll: each a ball or a car of two boxes
_ASPECTS = ((16, 9), (4, 3), (1, 1), (9, 16), (3, 4))
_ASPECT_WEIGHTS = (0.4, 0.25, 0.1, 0.15, 0.1)


@dataclass
class Lens:
    """Focal lengths and images of B clips; the principal point is the centre."""

    focal: Tensor  # (B,) true over assumed
    pixels: Tensor  # (B,) assumed, in pixels
    extent: Tensor  # (B, 2) half sides over the assumed focal length
    sides: Tensor  # (B,) true focal length in longer sides


def choose_lens(draw: Draw, variety: Variety, batch: int) -> Lens:
    """Lenses from wide to long, images from wide to tall."""
    shape = draw.pick(_ASPECT_WEIGHTS, batch)
    aspects = constant(_ASPECTS, draw.device)
    half = (aspects / aspects.amax(1, keepdim=True))[shape] / 2
    sides = draw.log_uniform(variety.focal, batch)
    unknown = draw.chance(variety.unknown_focal, batch)
    if variety.phone:
        phone = unknown & draw.chance(variety.phone, batch)
        sides = torch.where(phone, draw.log_uniform(PHONE, batch), sides)
    assumed = torch.where(unknown, variety.assumed_focal, sides)
    longer = draw.log_uniform((360, 1280), batch)
    return Lens(sides / assumed, assumed * longer, half / assumed[:, None], sides)


@dataclass
class Scene:
    """M solids of B clips in T frames, and who films them."""

    solids: Solids
    planes: Planes
    parent: Tensor  # (B, M) int64 the solid whose skin a solid's blends into, or itself
    reliefs: Tensor  # (K, J, R, S) of skins, and
    skin: Tensor  # (B, S) int64 which of them a body wears
    rotation: Tensor  # (B, T, 3, 3) of the camera
    position: Tensor  # (B, T, 3)
    distance: Tensor  # (B,) about how far the subject is

    @property
    def body_bones(self) -> int:
        """How many of the solids, the first ones, are bones of bodies."""
        return BONES * self.skin.shape[1]


def compose(draw: Draw, library: Library, variety: Variety, lens: Lens, frames: int) -> Scene:
    """The scenes of a batch, one a lens."""
    batch = len(lens.focal)
    span = draw.log_uniform(variety.span, batch, 1)
    times = span * torch.linspace(0, 1, frames, device=draw.device)
    # What moves lives on a clock that stands still in frozen clips.
    clock = torch.where(draw.chance(variety.frozen, batch, 1), span / 2, times)

    distance = draw.log_uniform((4, 16), batch)
    size = draw.log_uniform(variety.fill, batch) * distance / lens.sides
    size = size.minimum(0.55 * distance)
    relative = draw.log_uniform((0.4, 1.6), batch, BODIES)
    relative[:, 0] = 1.0
    sizes = (size[:, None] * relative).minimum(0.6 * distance[:, None])
    reach = 0.6 * distance[:, None] * draw.uniform((0.3, 1.5), batch, BODIES)
    bodies = animate(draw, library, variety, clock, sizes, reach)
    bodies = _spread(draw, bodies, sizes)

    subject = bodies.position[:, 0].mean(2)  # (B, T, 3)
    rotation, position = film(draw, library, variety, times, subject, distance, size, lens.sides)
    bodies = _company(draw, variety, bodies, position, distance)

    place = places.choose(draw, variety, batch)
    # Nothing stands in the way of the camera, the subject, or the view of it.
    clear = torch.cat([torch.lerp(position, subject, way) for way in (0, 0.3, 0.6, 1)], 1)
    boxes = places.boxes(draw, variety, place, distance, clear)
    cones = places.cones(draw, variety, distance, position, subject, clear)
    balls, cars = _movers(draw, variety, clock, position, distance, size)
    inside = bodies.position[:, 0].flatten(1, 2)
    planes = places.enclose(draw, variety, place, distance, position, inside)
    solids, parents = assemble(bodies, cones, balls, boxes, cars, frames)
    skin = bodies.skin
    return Scene(solids, planes, parents, library.reliefs, skin, rotation, position, distance)


def _spread(draw: Draw, bodies: Bodies, sizes: Tensor) -> Bodies:
    """Put the second and third body beside the subject."""
    angle = 2 * math.pi * draw.unit(len(sizes), BODIES)
    gap = draw.uniform((0.5, 2.5), len(sizes), BODIES) * (sizes + sizes[:, :1])
    gap[:, 0] = 0
    shift = torch.stack([angle.cos() * gap, angle.sin() * gap, torch.zeros_like(gap)], -1)
    return bodies._replace(position=bodies.position + shift[:, :, None, None])


def _company(
    draw: Draw, variety: Variety, bodies: Bodies, camera: Tensor, distance: Tensor
) -> Bodies:
    """Put away bodies that a clip has none of, and those that walk into the camera."""
    count = draw.pick(variety.company, len(distance))
    slot = torch.arange(BODIES, device=draw.device)
    gap = (bodies.position - camera[:, None, :, None]).norm(dim=-1)
    near = (gap - bodies.shape[:, :, None, :, 0]).amin((2, 3)) < 0.2 * distance[:, None]
    away = (slot >= count[:, None]) | (near & (slot > 0))
    shift = torch.where(away, -places.AWAY, 0.0)[:, :, None, None, None]
    up = constant((0, 0, 1), draw.device)
    return bodies._replace(position=bodies.position + shift * up)


def _movers(
    draw: Draw, variety: Variety, clock: Tensor, camera: Tensor, distance: Tensor, size: Tensor
) -> tuple[Things, Things]:
    """Balls that bounce (B, T, MOVERS), cars of two boxes each (B, T, 2 · MOVERS)."""
    batch = len(clock)
    lead = (batch, MOVERS)
    large = (draw.log_uniform((0.3, 1.5), *lead) * size[:, None]).minimum(0.5 * distance[:, None])
    span = clock[:, -1:] - clock[:, :1] + 1e-3
    speed = draw.log_uniform((0.05, 1.5), *lead) * distance[:, None] / span.clamp(min=1)
    ball = draw.chance(0.5, *lead)
    half = 0.5 * large[..., None] * draw.uniform((0.4, 1.0), *lead, 3)
    radius = 0.4 * large
    rest = torch.where(ball, radius, half[..., 2])
    bounce = torch.where(ball, large * draw.unit(*lead), 0.0)
    rotation, path = ride(draw, clock, MOVERS, speed, bounce, rest)
    start = places.scatter(draw, lead, 0.6 * distance[:, None])
    path = path + start[:, None]

    near = (path - camera[:, :, None]).norm(dim=-1).amin(1) < large + 0.2 * distance[:, None]
    shown = draw.chance(variety.movers, batch, 1) & draw.chance(0.7, *lead) & ~near
    balls = Things(
        rotation,
        places.put_away(path, (shown & ball)[:, None]),
        torch.ones(*lead, 3, device=draw.device),
        torch.stack([0.1 * radius, radius, radius], -1),
    )
    body = places.put_away(path, (shown & ~ball)[:, None])
    cabin = half * draw.uniform((0.4, 0.9), *lead, 3)
    above = torch.zeros_like(half)
    above[..., 2] = half[..., 2] + cabin[..., 2]
    cars = Things(
        torch.cat([rotation, rotation], 2),
        torch.cat([body, body + above[:, None]], 2),
        torch.cat([half, cabin], 1),
        half[:, :0],
    )
    return balls, cars


def assemble(
    bodies: Bodies, cones: Things, balls: Things, boxes: Things, cars: Things, frames: int
) -> tuple[Solids, Tensor]:
    """All solids of a scene in one table, bones first in the order of the bodies; their parents.

    A parent (B, M) is the solid whose skin a solid's blends into: its bone's parent, else itself.
    """

    def fixed(value: Tensor) -> Tensor:
        return value[:, None].expand(-1, frames, *value.shape[1:])

    bone_scale = pad(bodies.flatness, (0, 1), value=1.0)
    solids = Solids(
        rotation=torch.cat(
            [
                bodies.rotation.transpose(1, 2).flatten(2, 3),
                fixed(cones.rotation),
                balls.rotation,
                fixed(boxes.rotation),
                cars.rotation,
            ],
            2,
        ),
        position=torch.cat(
            [
                bodies.position.transpose(1, 2).flatten(2, 3),
                fixed(cones.position),
                balls.position,
                fixed(boxes.position),
                cars.position,
            ],
            2,
        ),
        scale=torch.cat(
            [bone_scale.flatten(1, 2), cones.scale, balls.scale, boxes.scale, cars.scale], 1
        ),
        cones=torch.cat([bodies.shape.flatten(1, 2), cones.shape, balls.shape], 1),
    )
    clips, count = solids.scale.shape[:2]
    itself = torch.arange(count, device=solids.scale.device).expand(clips, -1)
    first = BONES * torch.arange(bodies.parent.shape[1], device=itself.device)[:, None]
    own = itself[:, : bodies.parent[0].numel()].unflatten(1, bodies.parent.shape[1:])
    parent = torch.where(bodies.parent < BONES, bodies.parent + first, own)
    return solids, torch.cat([parent.flatten(1), itself[:, parent[0].numel() :]], 1)
