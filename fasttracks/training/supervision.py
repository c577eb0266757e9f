"""The supervised loss: a prediction against the known truth of generated clips.

World frame and scale of a prediction are free, so points are compared in the cameras and
poses pair by pair, after one scale a clip.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from fasttracks.evaluation.metrics import Truth
from fasttracks.geometry import Prediction, project, to_camera

# What one unit of each term weighs. Distances are relative to depth, angles in radians.
WEIGHTS = {
    "points": 1.0,
    "static": 0.3,
    "moving": 0.5,
    "relief": 3.0,
    "reprojection": 5.0,
    "rotation": 2.0,
    "position": 2.0,
    "path": 0.5,
    "focal": 1.0,
}


_FAR = 12.0  # median depths: what is beyond is as good as infinite, and only its direction counts
_BODIES = 6  # numbers of `Truth.body` from here on are one


class Supervised(NamedTuple):
    """One value a clip, each (B,), before weighing; `total` after."""

    total: Tensor
    points: Tensor  # camera-frame points, relative to depth
    static: Tensor  # the static scene's, for points that don't move
    moving: Tensor  # camera-frame points again, for those that move: mostly few of a clip's
    relief: Tensor  # of visible moving points in depth, less the mean of their body in that frame
    reprojection: Tensor  # distance to the exact tracks, unseen points too
    rotation: Tensor  # relative rotations of frame pairs
    position: Tensor  # relative positions of frame pairs, relative to the median depth
    path: Tensor  # the same, relative to the length of the path
    focal: Tensor  # relative error of the focal length, squared below a tenth
    motion: Tensor  # -log likelihood of the static scene's reprojection under γ; trains γ alone


def supervised(prediction: Prediction, truth: Truth) -> Supervised:
    """Compare a prediction with the truth of its clips.

    The total is a logarithm: clips whose depth can't be known, with no parallax, have large
    losses and would drown the others.
    """
    p = prediction
    depth = truth.points_camera[..., 2]
    size = _median(depth, truth.visible)[:, None, None]
    # Unseen points are trained too, but a guess can't be as good there; those that have come to
    # the camera's side or behind it not at all, as their image is anywhere.
    weight = _normalised(truth.visible + 0.2 * (~truth.visible & (depth > 0.2 * size)))
    least = (0.5 * depth).clamp(min=0.01 * size).minimum(0.2 * size)
    far = _FAR * size[..., None]
    target = _nearer(truth.points_camera, far)
    depth = target[..., 2].maximum(least)

    # Bounded, for a prediction whose points are at or behind its cameras.
    middle = _median(p.points_camera[..., 2].detach(), truth.visible).clamp(min=0.5)
    scale = size[..., None] / middle[:, None, None, None]
    points = scale * p.points_camera
    static = scale * to_camera(p.basis[:, :1], p.rotation, p.position)
    still = _normalised(weight * ~truth.moving[:, None])
    movers = truth.moving[:, None]
    bounded = _nearer(points, far)
    error = _length(bounded - target) / depth
    static_error = _length(_nearer(static, far) - target) / depth

    # Tame at depth zero. Where points are in front, moving along a ray changes nothing: multiplied
    # by the guessed depth instead, an offset would be less for points that are too near.
    ahead = points[..., 2].maximum(least)[..., None]
    # In units of the true focal length, whatever was assumed.
    true_focal = truth.focal[:, None, None, None]
    offset = p.focal[..., None, None] * points[..., :2] / ahead - truth.tracks
    static_offset = project(static.detach(), p.focal.detach()) - truth.tracks
    squared = (static_offset / true_focal).square().sum(-1).clamp(max=1.0)
    gamma = p.motion[:, None]
    motion = _normalised(1.0 * truth.visible) * torch.log(gamma + squared / gamma)

    rotation, position = _pairs(p, truth, scale[..., 0])
    size = size[:, 0, 0]
    path = truth.position.diff(dim=1).norm(dim=-1).sum(1)
    terms = {
        "points": (weight * error).sum((1, 2)),
        "static": (still * static_error).sum((1, 2)),
        "moving": (_shares(weight * movers) * error).sum((1, 2)),
        "relief": _relief((bounded[..., 2] - depth) / depth, truth, movers & truth.visible),
        "reprojection": (weight * _length(offset / true_focal)).sum((1, 2)),
        "rotation": rotation,
        "position": position / size,
        "path": position / (path + 0.1 * size),
        # Square near zero: most clips have a known lens, and a median of them all is no correction.
        "focal": huber_loss(
            p.focal / truth.focal[:, None], torch.ones_like(p.focal), reduction="none", delta=0.1
        ).mean(1)
        / 0.1,
    }
    total = torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum(0)
    motion = motion.sum((1, 2))
    return Supervised(torch.log(0.1 + total) + 0.02 * motion, **terms, motion=motion)


def _nearer(points: Tensor, far: Tensor) -> Tensor:
    """Points (B, T, N, 3) beyond a depth (B, 1, 1, 1) moved to it along their rays."""
    return points * (far / points[..., 2:].clamp(min=1e-6)).clamp(max=1.0)


def _relief(error: Tensor, truth: Truth, chosen: Tensor) -> Tensor:
    """Mean size (B,) of relative depth errors (B, T, N), less their mean over body and frame.

    Of `chosen` points (B, T, N) alone, all clips alike however few they have.
    """
    body = torch.zeros_like(truth.moving, dtype=torch.long) if truth.body is None else truth.body
    numbers = torch.arange(_BODIES, device=error.device)
    member = (body.clamp(max=_BODIES - 1)[..., None] == numbers).float()  # (B, N, S)
    error = torch.where(chosen, error.clamp(-1, 1), 0.0)
    count = chosen.float() @ member  # (B, T, S)
    mean = (error @ member) / count.clamp(min=1)
    own = torch.where(chosen, error - mean @ member.mT, 0.0)
    return (_shares(chosen.float()) * own.abs()).sum((1, 2))


def _pairs(p: Prediction, truth: Truth, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of relative rotation and position over all frame pairs, near ones weighing more."""
    frames = torch.arange(p.rotation.shape[1], device=p.rotation.device)
    gap = (frames[:, None] - frames).abs()
    weight = (gap > 0) / gap.clamp(min=1)
    weight = weight / weight.sum().clamp(min=1e-9)

    def relative(rotation: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        back = rotation.mT[:, :, None]
        step = position[:, None] - position[:, :, None]
        return back @ rotation[:, None], (back @ step[..., None])[..., 0]

    turn, step = relative(p.rotation, scale * p.position)
    true_turn, true_step = relative(truth.rotation, truth.position)
    # For small angles the chord |A − B| is √2 times the angle between them.
    angle = _length((turn - true_turn).flatten(-2)) / 2**0.5
    return (weight * angle).sum((1, 2)), (weight * _length(step - true_step)).sum((1, 2))


def _length(vector: Tensor) -> Tensor:
    """Norm along the last axis, with a gradient at zero."""
    return (vector.square().sum(-1) + 1e-10).sqrt()


def _normalised(weight: Tensor) -> Tensor:
    return weight / weight.sum((1, 2), keepdim=True).clamp(min=1)


def _shares(weight: Tensor) -> Tensor:
    """Weights (B, T, N) that sum to 1 over a clip, or 0 if all are."""
    return weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-9)


def _median(values: Tensor, mask: Tensor) -> Tensor:
    """Of the chosen values (B, T, N) of each clip, or 1 where none is: clips without a seen point
    have no size to compare in.
    """
    chosen = values.masked_fill(~mask, float("nan")).flatten(1)
    return chosen.nanmedian(1).values.nan_to_num(1.0)
