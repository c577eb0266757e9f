"""Bodies in motion: procedural creatures, recorded people, and things that drive or bounce."""

import math
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttracks.geometry import exponential
from fasttracks.scenes.library import Library, People
from fasttracks.scenes.sampling import (
    Draw,
    at_times,
    constant,
    multiply,
    orthonormal,
    rotate,
    upright,
)
from fasttracks.scenes.skeletons import BONES, Skeletons
from fasttracks.scenes.variety import ACTIONS, Variety

BODIES = 3  # slots a clip; the first is the subject


class Bodies(NamedTuple):
    """S bodies of J bones in B clips, standing on z = 0, each about its own origin."""

    rotation: Tensor  # (B, S, T, J, 3, 3) to the world
    position: Tensor  # (B, S, T, J, 3) of the bones' starts
    shape: Tensor  # (B, S, J, 3) length, radius at the start, at the end
    flatness: Tensor  # (B, S, J, 2)
    parent: Tensor  # (B, S, J) int64, J for the root
    skin: Tensor  # (B, S) int64 the reliefs that they wear


def animate(
    draw: Draw, library: Library, variety: Variety, times: Tensor, size: Tensor, reach: Tensor
) -> Bodies:
    """Bodies of about `size` (B, S) that stray no further than about `reach` (B, S).

    times (B, T) in seconds.
    """
    bodies = _creatures(draw, library.skeletons, variety, times, size, reach)
    if library.people is None:
        return bodies
    recorded = draw.chance(variety.person, *size.shape)
    people = _people(draw, library.people, times, size)
    return Bodies(
        *(
            torch.where(recorded.reshape(*size.shape, *[1] * (a.ndim - 2)), b, a)
            for a, b in zip(bodies, people, strict=True)
        )
    )


def ride(
    draw: Draw, times: Tensor, count: int, speed: Tensor, bounce: Tensor, height: Tensor
) -> tuple[Tensor, Tensor]:
    """Paths of `count` things about the origin: rotations (B, T, count, 3, 3), positions.

    speed, bounce, height (B, count): per second, height of the hops, of the centre at rest.
    """
    heading, path = _stroll(draw, times, (count,), speed[..., None].expand(-1, -1, times.shape[1]))
    rate, phase = draw.log_uniform((0.5, 2), *speed.shape), draw.unit(*speed.shape)
    hop = (math.pi * (rate[..., None] * times[:, None] + phase[..., None])).sin().abs()
    up = bounce[..., None] * hop + height[..., None]
    position = torch.cat([path, up[..., None]], -1)
    return upright(heading).transpose(1, 2), position.transpose(1, 2)


def _stroll(
    draw: Draw, times: Tensor, shape: tuple[int, ...], speed: Tensor
) -> tuple[Tensor, Tensor]:
    """A walk that turns: headings (B, *shape, T), places (B, *shape, T, 2) with mean 0.

    speed (B, *shape, T) in units per second.
    """
    lead = (times.shape[0], *shape)
    span = (times[:, -1] - times[:, 0]).reshape(-1, *[1] * (len(shape) + 1))
    turn = 0.5 * draw.normal(*lead, 1) * (3 / (span + 1e-6)).clamp(max=1)
    wander = draw.waves(times, shape, (0.05, 0.5), 0.5) * draw.log_uniform((0.05, 0.6), *lead, 1)
    start = 2 * math.pi * draw.unit(*lead, 1)
    clock = times.reshape(times.shape[0], *[1] * len(shape), -1)
    heading = start + turn * clock + wander
    step = torch.diff(clock, dim=-1, prepend=clock[..., :1])
    velocity = torch.stack([heading.cos(), heading.sin()], -1) * (speed * step)[..., None]
    path = velocity.cumsum(-2)
    return heading, path - path.mean(-2, keepdim=True)


def _creatures(
    draw: Draw,
    skeletons: Skeletons,
    variety: Variety,
    times: Tensor,
    size: Tensor,
    reach: Tensor,
) -> Bodies:
    lead = size.shape  # (B, S)
    kind = draw.index(len(skeletons.leg), *lead)
    s = Skeletons(**{f.name: getattr(skeletons, f.name)[kind] for f in fields(Skeletons)})
    shape, flatness, offset = _vary(draw, s, size)

    action = draw.pick(variety.actions, *lead)
    walk, _, rear, lie, jump = ((action == i).float() for i in range(len(ACTIONS)))
    # A stride carries the body twice its legs' swing; slow down where that would lead too far.
    span = times[:, -1:] - times[:, :1] + 1e-6
    stride = 2 * (s.leg * size).clamp(min=0.3 * size) * 0.9
    rate = draw.log_uniform((0.6, 3), *lead) * (size / size.amax(1, keepdim=True)) ** -0.5
    rate = torch.minimum(rate, reach / (span * stride)) * (walk + jump).clamp(min=0.02)
    vigour = (walk + jump) * draw.uniform((0.5, 1.3), *lead)

    clock = times[:, None]  # (B, 1, T)
    pace = 1 + 0.2 * draw.waves(times, lead[1:], (0.05, 0.3), 0.0).clamp(-2, 2)
    speed = (vigour.clamp(max=1) * rate * stride)[..., None] * pace
    heading, path = _stroll(draw, times, lead[1:], speed)

    gait = 2 * math.pi * rate[..., None] * clock + 6.3 * draw.unit(*lead, 1)
    style = torch.stack([torch.ones_like(rate), draw.unit(*lead).round(), draw.unit(*lead)], -1)
    phase = (s.phase * style[..., None, :]).sum(-1)  # (B, S, J)
    angle = (gait[..., None, :] + phase[..., None]).sin() * vigour[..., None, None]
    angle = angle * draw.uniform((0.6, 1.3), *lead, BONES, 1)
    unrest = draw.log_uniform((0.3, 2.5), *lead, 1, 1)
    wiggle = draw.waves(times, (*lead[1:], BONES, 3), (0.1, 2.5), 0.7)  # (B, S, J, 3, T)
    bend = s.swing[..., None] * angle[..., None, :]
    bend = bend + 0.5 * (s.wiggle * unrest[..., 0])[..., None, None] * wiggle
    rotation = multiply(s.rotation[:, :, None], exponential(bend.permute(0, 1, 4, 2, 3)))

    # The whole body: pitches up to rear, rolls to lie, and sways a little.
    sway = 0.04 * draw.waves(times, (*lead[1:], 3), (0.2, 1.5), 0.7).transpose(-1, -2)
    swell = draw.waves(times, lead[1:], (0.1, 0.4), 0.0).mul(1.5).sigmoid()
    pitch = -1.2 * rear[..., None] * swell
    roll = (lie * draw.sign(*lead) * 1.4)[..., None].expand_as(pitch)
    tilt = exponential(sway + torch.stack([roll, pitch, torch.zeros_like(roll)], -1))
    root = multiply(upright(heading), tilt)

    rotation, position = _forward(
        rotation, offset[:, :, None].expand(-1, -1, times.shape[1], -1, -1), s.parent, root
    )
    hop = (gait / 2).sin().abs() * (jump * size * draw.uniform((0.1, 0.6), *lead))[..., None]
    floor = _lowest(rotation, position, shape)
    shift = torch.cat([path, (hop - floor)[..., None]], -1)
    return Bodies(rotation, position + shift[..., None, :], shape, flatness, s.parent, s.skin)


def _vary(draw: Draw, s: Skeletons, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes (B, S, J, 3), flatness (B, S, J, 2) and offsets of varied proportions."""
    lead = size.shape

    def by_part(spread: float) -> Tensor:
        factor = (spread * draw.normal(*lead, 4)).exp()
        return factor.gather(-1, s.part)

    longer, thicker = by_part(0.15), by_part(0.2)
    thicker = thicker * (0.06 * draw.normal(*lead, BONES)).exp()
    length, a, b = s.shape.unbind(-1)
    new_length, a, b = length * longer, a * thicker, b * thicker
    b = torch.minimum(torch.maximum(b, a - 0.9 * new_length), a + 0.9 * new_length)
    flatness = s.flatness * (0.08 * draw.normal(*lead, BONES, 2)).exp()

    # What is joined to a bone follows its length along it and its radius across.
    joined = s.parent.clamp(max=BONES - 1)
    along = longer.gather(-1, joined)
    across = thicker.gather(-1, joined)
    offset = s.offset * torch.stack([across, across, along], -1) * size[..., None, None]
    return torch.stack([new_length, a, b], -1) * size[..., None, None], flatness, offset


def _forward(
    rotation: Tensor, offset: Tensor, parent: Tensor, root: Tensor
) -> tuple[Tensor, Tensor]:
    """Poses in the world from poses in the parents' frames, in log₂(depth) rounds.

    rotation (B, S, T, J, 3, 3), offset (B, S, T, J, 3), parent (B, S, J), root (B, S, T, 3, 3).
    Each round hangs every bone onto its ancestor and takes that one's ancestor as its own; row
    J is the root's parent, which hangs on itself.
    """
    rotation = torch.cat(
        [rotation, torch.eye(3, device=root.device).expand_as(root)[..., None, :, :]], -3
    )
    offset = pad(offset, (0, 0, 0, 1))
    parent = pad(parent, (0, 1), value=BONES)[:, :, None].expand(offset.shape[:-1])
    for _ in range(math.ceil(math.log2(BONES))):
        up = rotation.gather(-3, parent[..., None, None].expand_as(rotation))
        base = offset.gather(-2, parent[..., None].expand_as(offset))
        offset = base + rotate(up, offset)
        rotation = multiply(up, rotation)
        parent = parent.gather(-1, parent)
    root = root[..., None, :, :]
    return multiply(root, rotation[..., :BONES, :, :]), rotate(root, offset[..., :BONES, :])


def _lowest(rotation: Tensor, position: Tensor, shape: Tensor) -> Tensor:
    """Height (B, S, T) of the lowest part of bodies."""
    length, a, b = shape[:, :, None].unbind(-1)
    start = position[..., 2]
    end = start + rotation[..., 2, 2] * length
    return torch.minimum(start - a, end - b).amin(-1)


def _people(draw: Draw, people: People, times: Tensor, size: Tensor) -> Bodies:
    """Pieces of recordings, faster or slower, mirrored, turned and scaled."""
    lead = size.shape
    clip = draw.index(len(people.count), *lead)
    rate = 30 * draw.log_uniform((0.5, 1.6), *lead)[..., None]  # recorded frames a second
    room = (people.count[clip] - 2)[..., None]
    since = (times - times[:, :1])[:, None]
    rate = torch.minimum(rate, room / (since[..., -1:] + 1e-3))
    begin = draw.unit(*lead, 1) * (room - rate * since[..., -1:]).clamp(min=0)
    where = people.first[clip][..., None] + (begin + rate * since)  # (B, S, T)

    rotation = orthonormal(at_times(people.rotation, where))
    position = at_times(people.position, where)
    scale = size / 1.6
    who = draw.index(len(people.skin), *lead)
    shape = people.shape[who] * (0.05 * draw.normal(*lead, BONES, 1)).exp() * scale[..., None, None]
    fat = (0.15 * draw.normal(*lead, 1, 1)).exp()
    length, radii = people.shape[who][..., :1] * scale[..., None, None], shape[..., 1:] * fat
    radii = torch.minimum(radii, radii.flip(-1) + 0.9 * length)
    shape = torch.cat([length, radii], -1)
    flatness = people.flatness[who] * (0.08 * draw.normal(*lead, BONES, 2)).exp()

    centre = position[..., :1, :].mean(2, keepdim=True) * constant((1, 1, 0), draw.device)
    position = (position - centre) * scale[..., None, None, None]
    # The recordings' floors differ: the lowest place of the whole piece is on the ground.
    floor = _lowest(rotation, position, shape).amin(-1)[..., None, None]
    position = position - floor[..., None] * constant((0, 0, 1), draw.device)

    left = draw.sign(*lead)
    skin = torch.where(left > 0, people.skin[who], people.mirrored[who])
    mirror = left[..., None, None, None]
    flip = torch.cat([torch.ones_like(mirror), mirror, torch.ones_like(mirror)], -1)
    turn = upright(2 * math.pi * draw.unit(*lead))[:, :, None, None]
    # A reflection on both sides keeps a rotation proper; the skin is mirrored on its own.
    rotation = multiply(turn, flip[..., :, None] * rotation * _own_mirror(mirror))
    position = rotate(turn, position * flip)
    parent = people.parent.expand(*lead, -1)
    return Bodies(rotation, position, shape, flatness, parent, skin)


def _own_mirror(mirror: Tensor) -> Tensor:
    """Bones' frames reflected across their own x: (..., 1, 3) factors on columns."""
    one = torch.ones_like(mirror)
    return torch.cat([mirror, one, one], -1)[..., None, :]
