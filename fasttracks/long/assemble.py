"""A prediction for a clip of any length: from windows of it to one world.

1. The network looks at windows, half overlapping, each bundle-adjusted if asked for (`windows`).
2. Each is brought to those before by a robust similarity (`join`).
3. If asked for, all cameras and still points are adjusted together (`joint`). Which tracks stand
   still is judged anew between the rounds: by the network, in all windows, and by how far their
   positions are from one point's.
4. What moves is fitted window by window before these cameras, at the distance that the network sees
   it at beside what stands still, and cross-faded (`motion`).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import MIN_DEPTH, Prediction, exponential, logarithm, to_camera
from fasttracks.long.join import Shared, Similarity, join, weighted_median
from fasttracks.long.joint import Joint
from fasttracks.long.motion import blend
from fasttracks.long.windows import Network, Window, look
from fasttracks.parallax import LEAST, ray_spread
from fasttracks.refine.bundle import STATIC_FRAMES, STATIC_SCALE, bundle
from fasttracks.refine.cameras import Evidence, Scene
from fasttracks.refine.evidence import MOBILITY_POWER, evidence_of, level_of, mobility_of

TOGETHER = 3000  # frames that are adjusted together, whose system has 2.6 GB
_ROUNDS, _ITERATIONS = 6, 4
_FRAMES_AT_ONCE = 256
_BUCKET = 64  # tracks, by which windows' sizes on a GPU differ


class World(NamedTuple):
    """A long clip as its windows tell it, all in one world; T frames, N tracks."""

    rotation: Tensor  # (T, 3, 3) camera to world
    position: Tensor  # (T, 3)
    log_focal: Tensor  # () of the one correction of the focal length
    points: Tensor  # (N, 3) still points; 0 for tracks of no window
    log_depth: Tensor  # (T, N) as the network sees it, 0 where no window has a track
    known: Tensor  # (T, N) bool: whether one has
    gamma: Tensor  # (N,) γ
    mobility: Tensor  # (N,) 1 where it stands still as far as the network knows, or more
    level: Tensor  # () the network's own error, radians


def predict(
    run: Network, tracks: Tensor, known_focal: Tensor, refine: bool
) -> tuple[Prediction, list[str | None]]:
    """Predictions for B long clips of tracks (B, T, N, 3), as `refine.bundle.bundle` returns them.

    Points have so many bases as all windows together. For each clip also how refinement went.
    """
    with torch.no_grad():
        parts = [_one(run, *clip, refine) for clip in zip(tracks, known_focal, strict=True)]
    most = max(p.coefficients.shape[-1] for p, _ in parts)
    assert all(p.coefficients.shape[-1] == most for p, _ in parts)  # clips are of one length
    fields = zip(*(p for p, _ in parts), strict=True)
    return Prediction(*map(torch.cat, fields)), [how for _, how in parts]


def _one(
    run: Network, tracks: Tensor, known_focal: Tensor, refine: bool
) -> tuple[Prediction, str | None]:
    known = known_focal[None]
    network: list[Prediction] = []

    def answer(inputs: Tensor) -> Prediction:
        prediction = run(inputs)
        network.append(prediction)
        return bundle(prediction, inputs, known)[0] if refine else prediction

    windows = look(answer, tracks.float(), _BUCKET if tracks.is_cuda else None)
    placed = place(windows, tracks)
    world = gather(windows, placed, network, tracks)
    scene = Scene(
        world.rotation[None].double(),
        world.position[None].double(),
        world.log_focal[None].double(),
        world.points[None].double(),
    )
    outcome = None
    mobility = world.mobility[None].double()
    seen = tracks[..., 2].sum(0)[None]
    scale = world.gamma[None].double()
    together = refine and len(tracks) <= TOGETHER
    if together:
        scene, scale, outcome = _adjusted(scene, world, tracks, known)
    elif refine:
        outcome = f"over {TOGETHER} frames, windows were adjusted each on its own"
    static = (scale * mobility < STATIC_SCALE) if together else mobility < 2
    static = static & (seen >= STATIC_FRAMES) & world.known.any(0)
    return blend(windows, network, scene, tracks, static, scale, world.gamma), outcome


def place(windows: Sequence[Window], tracks: Tensor) -> list[Similarity]:
    """The similarity that brings each window to the world of the first, by the one before."""
    one = tracks.new_ones((), dtype=torch.float64)
    eye = torch.eye(3, dtype=one.dtype, device=one.device)
    placed = [Similarity(one, eye, one.new_zeros(3))]
    for before, after in pairwise(windows):
        frames = slice(after.frames.start, before.frames.stop)
        here, there = _common(after.which, before.which)
        visible = tracks[frames][:, after.which[here], 2].double()
        sure = (
            sureness(
                w.prediction,
                mobility_in(w.prediction),
                tracks[w.frames][:, w.which, 2].double(),
            )[which]
            for w, which in ((after, here), (before, there))
        )
        weight = visible * math.prod(sure)
        fit = join(
            _shared(after, frames, here),
            _shared(before, frames, there),
            weight,
            weight.new_ones(len(weight)),
        )
        placed.append(placed[-1].after(fit.similarity))
    return placed


def mobility_in(prediction: Prediction) -> Tensor:
    """`mobility_of` the tracks of one clip (B = 1), (n,) float64."""
    gamma = prediction.motion[0].double()
    return mobility_of(gamma, level_of(gamma))


def sureness(prediction: Prediction, mobility: Tensor, visible: Tensor) -> Tensor:
    """How surely each track of one clip (B = 1) stands still at a known distance: (n,), 0 to 1.

    mobility (n,), visible (T, n).
    """
    p = prediction
    still = mobility**-MOBILITY_POWER
    spread = ray_spread(p.basis[0, 0].double(), p.position[0].double(), visible)
    return still * (spread / (spread + math.radians(LEAST))).square() + 1e-6 * still


def _common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Where numbers of both a (n,) and b (m,) stand in each, once each."""
    place = torch.full((int(torch.cat([a, b]).max()) + 1,), -1, device=a.device)
    place[b] = torch.arange(len(b), device=a.device)
    first = torch.zeros_like(a, dtype=torch.bool)
    once = torch.full_like(place, len(a))
    once.scatter_reduce_(0, a, torch.arange(len(a), device=a.device), "amin")
    first[once[once < len(a)]] = True
    here = torch.nonzero(first & (place[a] >= 0))[:, 0]
    return here, place[a[here]]


def _shared(window: Window, frames: slice, which: Tensor) -> Shared:
    p = window.prediction
    own = slice(frames.start - window.frames.start, frames.stop - window.frames.start)
    return Shared(
        p.rotation[0, own].double(), p.position[0, own].double(), p.basis[0, 0, which].double()
    )


def gather(
    windows: Sequence[Window],
    placed: Sequence[Similarity],
    network: Sequence[Prediction],
    tracks: Tensor,
) -> World:
    """What windows say together: cameras cross-faded, points by the window that saw them most."""
    frames, count = tracks.shape[:2]
    like = tracks.new_zeros((), dtype=torch.float64)
    rotation, position = like.new_zeros(frames, 3, 3), like.new_zeros(frames, 3)
    points, log_depth = like.new_zeros(count, 3), tracks.new_zeros(frames, count)
    known = torch.zeros(frames, count, dtype=torch.bool, device=tracks.device)
    most = like.new_zeros(count)
    log_gamma, log_mobility, total = (like.new_zeros(count) for _ in range(3))
    levels, done = [], 0
    for window, similarity, raw in zip(windows, placed, network, strict=True):
        part, which, p = window.frames, window.which, window.prediction
        turn = similarity.rotation @ p.rotation[0].double()
        centre = similarity.points(p.position[0].double())
        old = slice(part.start, done)
        ramp = torch.arange(1, done - part.start + 1, device=like.device) / (done - part.start + 1)
        ramp = ramp.to(like.dtype)[:, None]
        n = len(ramp)
        between = logarithm(rotation[old].mT @ turn[:n])
        rotation[old] = rotation[old] @ exponential(ramp * between)
        position[old] = torch.lerp(position[old], centre[:n], ramp)
        rotation[done : part.stop], position[done : part.stop] = turn[n:], centre[n:]

        static = p.basis[0, 0].double()
        visible = tracks[part][:, which, 2].double()
        seen = visible.sum(0)
        depth = to_camera(static[None, None], p.rotation.double(), p.position.double())[0, ..., 2]
        depth = (depth.clamp(min=MIN_DEPTH) * similarity.scale).log()
        # Of a half that two windows share each has the quarter nearer to its middle.
        own = slice(part.start if not done else (part.start + done) // 2, part.stop)
        log_depth[own, which] = depth[own.start - part.start :].to(log_depth.dtype)
        known[own, which] = True
        better = seen > most[which]
        points[which[better]] = similarity.points(static)[better]
        most[which] = most[which].maximum(seen)

        gamma = raw.motion[0].double()
        level = level_of(gamma)
        levels.append(level[0].log())
        for sums, value in ((log_gamma, gamma), (log_mobility, mobility_of(gamma, level))):
            sums[which] = sums[which] + seen * value.log()
        total[which] = total[which] + seen
        done = part.stop
    total = total.clamp(min=1)
    return World(
        rotation,
        position,
        torch.stack([w.prediction.focal.double().log().mean() for w in windows]).median(),
        points,
        log_depth,
        known,
        torch.where(most > 0, (log_gamma / total).exp(), 1.0),
        (log_mobility / total).exp(),
        torch.stack(levels).mean().exp(),
    )


def _adjusted(
    scene: Scene, world: World, tracks: Tensor, known_focal: Tensor
) -> tuple[Scene, Tensor, str]:
    """The scene adjusted to all tracks together, each track's scale (1, N), and how it went."""
    joint = Joint(_evidence(scene, world, tracks, known_focal))
    e = joint.evidence
    damping, gain = 1e-4, 1.0
    for i in range(_ROUNDS):
        joint.fit_scale(scene, 10)
        _measure_depths(joint, scene, world)
        scene, damping, gain = joint.adjust(scene, min(damping, 1e-3), _ITERATIONS)
        if i > 1 and gain < 1e-4:
            break
    joint.fit_scale(scene, 20)
    return scene, e.scale.double(), "converged" if gain < 1e-3 else "not fully converged"


def _evidence(scene: Scene, world: World, tracks: Tensor, known_focal: Tensor) -> Evidence:
    visible = tracks[None, ..., 2:].float()
    often = visible * (visible.sum(1, keepdim=True) > 1)
    middle = world.log_depth[world.known].median().exp().double()
    return evidence_of(
        scene,
        torch.cat([tracks[None, ..., :2].float(), often], -1),
        world.log_depth[None].float(),
        often[..., 0] * world.known,
        world.level.expand(1, 1),
        world.mobility[None].float(),
        middle.expand(1),
        known_focal,
    )


def _measure_depths(joint: Joint, scene: Scene, world: World) -> None:
    """Let expected depths have each frame's scale: windows' own scales are no evidence."""
    for begin in range(0, len(world.known), _FRAMES_AT_ONCE):
        part = slice(begin, begin + _FRAMES_AT_ONCE)
        camera = to_camera(scene.points[:, None], scene.rotation[:, part], scene.position[:, part])
        log = camera[0, ..., 2].clamp(min=MIN_DEPTH).log() - world.log_depth[part]
        weight = joint.evidence.weight[0, part] * world.known[part]
        off = weighted_median(log, weight.double())[:, None]
        joint.evidence.log_depth[0, part] = (world.log_depth[part] + off).float()
