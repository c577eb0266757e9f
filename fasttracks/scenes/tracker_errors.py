"""Tracks as trackers deliver them: exact projections spoiled in the ways that trackers fail."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.inputs import hold
from fasttracks.scenes.sampling import Draw, Range
from fasttracks.scenes.variety import Variety

PIXEL = 1 / 500  # `Variety` counts in pixels of a camera with this focal length


class Texture(NamedTuple):
    """What tracks are on."""

    surface: Tensor  # (B, N) int64: bones, then other solids, then planes
    bones: int  # how many of each there are
    solids: int  # with the bones
    planes: int


class _Clip(NamedTuple):
    truth: Tensor  # (B, T, N, 2)
    visible: Tensor  # (B, T, N) bool
    age: Tensor  # (B, T, N) frames since the query, negative before


def add_tracker_errors(
    draw: Draw,
    variety: Variety,
    truth: Tensor,
    visible: Tensor,
    query: Tensor,
    extent: Tensor,
    texture: Texture,
) -> Tensor:
    """Tracks (B, T, N, 3) of u, v and visibility that a tracker might deliver.

    truth (B, T, N, 2) and extent (B, 2), half the image's sides, in coordinates normalised by the
    true focal length; visible (B, T, N); query (B, N) the frames in which tracks start, from which
    trackers run both ways. Unseen positions are held, as networks get them.
    """
    clips, frames, tracks, _ = truth.shape
    time = torch.arange(frames, device=draw.device)[:, None]
    bound = 1.5 * extent[:, None, None]
    truth = torch.minimum(truth.maximum(-bound), bound)  # none guesses far outside the image
    clip = _Clip(truth, visible, time - query[:, None])

    def some(share: Range) -> Tensor:
        """Tracks (B, N) that fail in one way; most clips have few, some have many."""
        part = share[0] + (share[1] - share[0]) * draw.unit(clips, 1).square()
        return draw.chance(part, clips, tracks)

    position, seen = _switch(draw, clip, some(variety.jumps), some(variety.sticky))

    dark = _runs(draw, variety.hidden, clip)
    lost = _onwards(draw.chance(2 / frames, *seen.shape), clip.age) & some(variety.lost)[:, None]
    klt = draw.chance(variety.klt, clips, 1, 1)
    gone = _onwards(~seen, clip.age) & klt & draw.chance(0.9, clips, 1, tracks)
    visibility = seen & ~dark & ~lost & ~gone

    if variety.bare[1] > 0 or variety.mortal[1] > 0:
        visibility = visibility & ~(klt & _dies(draw, variety, clip, texture))
    if variety.lifetime < math.inf:
        rate = draw.log_uniform((0.2, 5), clips, 1, tracks) / variety.lifetime
        visibility = visibility & ~(klt & _onwards(draw.chance(rate, *seen.shape), clip.age))

    amount = draw.uniform(variety.drift, clips, 1, 1, 1) * draw.unit(clips, 1, tracks, 1)
    position = position + _walk(draw, clip, amount * PIXEL)
    if variety.slips[1] > 0:
        angle = 2 * torch.pi * draw.unit(clips, 1, tracks)
        edge = torch.stack([angle.cos(), angle.sin()], -1)
        slip = _walk(draw, clip, draw.log_uniform((0.1, 1), clips, 1, tracks, 1) * PIXEL)[..., :1]
        position = position + torch.where(some(variety.slips)[:, None, :, None], slip * edge, 0.0)
    level = draw.uniform(variety.noise, clips, 1, 1, 1)
    level = level * (0.5 * draw.normal(clips, 1, tracks, 1)).exp()
    position = position + level * PIXEL * draw.normal(*position.shape)
    position = hold(torch.cat([position, visibility[..., None].float()], -1))[..., :2]

    astray = some(variety.outliers)[:, None, :, None]
    wander = _walk(draw, clip, draw.log_uniform((1, 12), clips, 1, tracks, 1) * PIXEL)
    position = position + torch.where(astray, wander, 0.0)
    visibility = visibility | (astray[..., 0] & ~gone)
    wrong = draw.chance(draw.uniform(variety.flags, clips, 1, 1), *visibility.shape)

    inside = (position.abs() <= extent[:, None, None]).all(-1)
    visibility = (visibility ^ wrong) & inside
    clean = draw.chance(variety.clean, clips, 1, 1)
    visibility = torch.where(clean, visible, visibility)
    position = torch.where(clean[..., None], truth, position)
    position = torch.minimum(position.maximum(-bound), bound)
    return hold(torch.cat([position, visibility[..., None].float()], -1))


def _onwards(event: Tensor, age: Tensor) -> Tensor:
    """Frames at or after an event, seen from the query in either direction: (B, T, N) bool."""
    later = (event & (age > 0)).cumsum(1) > 0
    earlier = (event & (age < 0)).flip(1).cumsum(1).flip(1) > 0
    return torch.where(age > 0, later, earlier & (age < 0))


def _dies(draw: Draw, variety: Variety, clip: _Clip, texture: Texture) -> Tensor:
    """Frames (B, T, N) after KLT lost a track for want of texture, or as it is on a body."""
    clips, frames, tracks = clip.visible.shape
    part = draw.uniform(variety.bare, clips, 1)
    share = part.expand(-1, texture.solids)
    share = torch.cat([share, part.sqrt().expand(-1, texture.planes)], 1)
    smooth = draw.chance(share, *share.shape).gather(1, texture.surface)
    fragile = draw.chance(torch.where(smooth, 0.9, 0.3 * part), clips, tracks)
    a_frame = torch.where(fragile, draw.uniform((0.2, 0.8), clips, tracks), 0.0)
    moves = (texture.surface < texture.bones) * draw.uniform(variety.mortal, clips, 1)
    a_frame = a_frame.maximum(moves * draw.unit(clips, tracks))
    return _onwards(draw.chance(a_frame[:, None], clips, frames, tracks), clip.age)


def _walk(draw: Draw, clip: _Clip, step: Tensor) -> Tensor:
    """Random walks (B, T, N, 2), 0 at the query; step (B, 1, N or 1, 1) a frame."""
    walk = (draw.normal(*clip.truth.shape) * step).cumsum(1)
    query = (clip.age == 0)[..., None]
    return walk - (walk * query).sum(1, keepdim=True)


def _runs(draw: Draw, share: Range, clip: _Clip) -> Tensor:
    """Frames (B, T, N) that are missed in runs, a share of each clip; never the query's."""
    clips, frames, tracks = clip.visible.shape
    time = torch.arange(frames, device=draw.device, dtype=torch.float32).expand(clips, -1)
    # Waves of 8 to 60 frames, nearly normal, with the threshold that a normal one would have.
    wave = draw.waves(time, (tracks,), (1 / 60, 1 / 8), 0.0)
    wave = wave / wave.square().mean((1, 2), keepdim=True).sqrt()
    part = share[0] + (share[1] - share[0]) * draw.unit(clips, 1, 1).square()
    threshold = 2**0.5 * torch.erfinv((1 - 2 * part).clamp(-0.999, 0.999))
    return (wave.transpose(1, 2) > threshold) & (part > 0) & (clip.age != 0)


def _switch(draw: Draw, clip: _Clip, jumps: Tensor, sticky: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and visibility after some tracks (B, N) went on with a neighbour's.

    A jumping one switches in any frame, a sticky one when it is occluded; on the longer side of
    its query.
    """
    truth, visible, age = clip
    frames, tracks = truth.shape[1:3]
    ahead = age[:, -1] >= -age[:, 0]  # (B, N)
    way = torch.where(ahead[:, None], age, -age)
    first = torch.where((way > 0) & ~visible, way, frames).amin(1)  # (B, N) until occluded
    sometime = 1 + draw.index(frames, *first.shape)
    delay = torch.where(jumps, sometime, torch.where(sticky, first, frames))
    now = way == delay[:, None]  # (B, T, N), one frame or none
    event = now.int().argmax(1)  # (B, N)

    def rows(values: Tensor) -> Tensor:
        """All tracks' values (B, T, N, ...) in each track's own frame: (B, N, N, ...)."""
        clip_index = torch.arange(len(values), device=values.device)[:, None]
        return values[clip_index, event]

    here = rows(truth)
    own = torch.where(now[..., None], truth, 0.0).sum(1)  # (B, N, 2)
    gap = (here - own[:, :, None]).norm(dim=-1)
    itself = torch.eye(tracks, dtype=torch.bool, device=gap.device)
    gap = gap * (1 + draw.unit(*gap.shape)) + 100.0 * (itself | ~rows(visible))
    distance, other = gap.min(-1)
    # Trackers take only what is near: within 40 px.
    takes = now.any(1) & (distance < 40 * PIXEL)

    def follow(values: Tensor) -> Tensor:
        return values.gather(2, other[:, None].expand(-1, frames, -1))

    taken = takes[:, None] & (way >= delay[:, None])
    theirs = torch.stack([follow(truth[..., 0]), follow(truth[..., 1])], -1)
    # It keeps a bit of the distance at which it met the other.
    offset = 0.3 * (own - here.gather(2, other[..., None, None].expand(-1, -1, -1, 2))[:, :, 0])
    position = torch.where(taken[..., None], theirs + offset[:, None], truth)
    return position, torch.where(taken, follow(visible), visible)
