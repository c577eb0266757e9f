"""What cameras and static points are held against, and how a scene fits that.

The terms are those of `bundle`; its docstring has the symbols.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import MIN_DEPTH, camera_steps, project, rotation_angle, to_camera
from fasttracks.parallax import ray_spread
from fasttracks.refine.cameras import Evidence, Scene
from fasttracks.refine.positive_definite import has_kernels

# Image offsets are in units of the focal length, thus about radians.
NOISE = 0.5 / 525  # least σ: half a pixel at a focal length of 525
DEPTH = 0.3  # standard deviation of the logarithm of the network's depths
FOCAL = 0.4  # and of that of its focal length
CAMERA = 1.5  # of its camera steps, over the least γ: radians, and median depths
STILL = 2.5  # over the least γ, the γ up to which a track counts as still
LEVEL = 0.005  # share of tracks whose γ is less than the network's own error
MOBILITY_POWER = 4  # of m, by which tracks that the network sees move count less


def level_of(gamma: Tensor) -> Tensor:
    """The least γ (..., 1) of clips (..., N): the network's own error, in radians."""
    return torch.quantile(gamma, LEVEL, dim=-1, keepdim=True).clamp(min=NOISE)


def mobility_of(gamma: Tensor, level: Tensor) -> Tensor:
    """γ (..., N) over what still tracks have, by `level_of`: 1 for these, up to 10."""
    # Where even the least γ is large, all may move.
    return (gamma / (STILL * level.clamp(max=10 * NOISE))).clamp(1, 10)


def evidence_of(
    start: Scene,
    tracks: Tensor,
    log_depth: Tensor,
    known: Tensor,
    level: Tensor,
    mobility: Tensor,
    middle: Tensor,
    known_focal: Tensor,
) -> Evidence:
    """What cameras and static points are held against.

    Args:
        start: whose camera steps and focal length are the network's.
        tracks: (B, T, N, 3).
        log_depth: (B, T, N) as the network sees it.
        known: (B, T, N) visibility where it does, 0 elsewhere.
        level: (B, 1), see `level_of`.
        mobility: (B, N), see `mobility_of`.
        middle: (B,) median depths.
        known_focal: (B,) bool.
    """
    turn, step = camera_steps(start.rotation, start.position)
    pairs = turn[..., 0, 0].shape
    deviation = CAMERA * level
    free = (~known_focal).to(start.log_focal.dtype)
    discount = mobility[:, None] ** MOBILITY_POWER
    return Evidence(
        tracks[..., :2].contiguous(),
        tracks[..., 2] / discount,
        torch.full_like(mobility, 10 * NOISE),
        log_depth,
        # One expectation a track, not one a frame: its errors are the same in all. Mobility
        # weighs both alike: a track that pulls less at cameras has its own best point still.
        known / (DEPTH**2 * known.sum(1, keepdim=True).clamp(min=1)) / discount,
        turn,
        step,
        deviation.square().reciprocal().expand(pairs),
        (deviation * middle[:, None]).square().reciprocal().expand(pairs),
        start.log_focal,
        torch.full_like(free, FOCAL**-2),
        free,
    )


class Fit(NamedTuple):
    """How a scene fits its evidence."""

    scale: Tensor  # (B, N) most likely scale of a track's Cauchy distribution, at least NOISE
    misfit: Tensor  # (B, N) minus the log likelihood of a track at that scale
    firmness: Tensor  # (B, N) trust in a track's expected depth, less if it is farther: 0 to 1
    spread: Tensor  # (B, N) degrees that the rays to a point are spread over
    square: Tensor  # (B, T, N) squared offsets
    change: Tensor  # (B,) mean square by which camera turns differ from what is expected


def fit_of(
    scene: Scene, evidence: Evidence, visibility: Tensor, scale: Tensor, iterations: int
) -> Fit:
    """How a scene fits its evidence: scales found from `scale`, rays of what is visible."""
    e = evidence
    if has_kernels(scale.device):
        from fasttracks.kernels import adjust_fit as kernel

        return Fit(*kernel.fit(scene, e, visibility, scale, iterations, NOISE, DEPTH))
    camera, square = _offsets(scene, e)
    scale = _scale(square, e.weight, scale, iterations)
    terms = (scale / NOISE).log()[:, None] + torch.log1p(square / scale.square()[:, None])
    off = camera[..., 2].clamp(min=MIN_DEPTH).log() - e.log_depth
    farther = (e.depth_weight * off).sum(1) / e.depth_weight.sum(1).clamp(min=1e-9)
    turn, _ = camera_steps(scene.rotation, scene.position)
    change = (rotation_angle(e.turn.mT @ turn).square() * e.turn_weight).sum(1)
    return Fit(
        scale,
        (e.weight * terms).sum(1),
        (1 + (farther.clamp(min=0) / DEPTH).square()).square().reciprocal(),
        ray_spread(scene.points, scene.position, visibility).rad2deg(),
        square,
        change / max(turn.shape[1], 1),
    )


def fit_scale(scene: Scene, evidence: Evidence, scale: Tensor, iterations: int) -> Tensor:
    """Each track's most likely Cauchy scale (B, N), no less than the noise, from `scale`."""
    _, square = _offsets(scene, evidence)
    return _scale(square, evidence.weight, scale, iterations)


def _offsets(scene: Scene, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Points (B, T, N, 3) before the cameras, and squared offsets (B, T, N) in the images."""
    camera = to_camera(scene.points[:, None], scene.rotation, scene.position)
    focal = scene.log_focal.exp()[:, None].expand(camera.shape[:2])
    return camera, (project(camera, focal) - evidence.positions).square().sum(-1)


def _scale(square: Tensor, weight: Tensor, scale: Tensor, iterations: int) -> Tensor:
    """A fixed point of σ² = 2 mean(σ² r² / (σ² + r²)), from `scale`."""
    if has_kernels(square.device):
        from fasttracks.kernels import fit_scale as kernel

        return kernel.fit_scale(square, weight.contiguous(), scale.contiguous(), iterations, NOISE)
    count = weight.sum(1).clamp(min=1e-9)
    variance = scale.square()
    for _ in range(iterations):
        v = variance[:, None]
        variance = (2 * (weight * v * square / (v + square)).sum(1) / count).clamp(min=NOISE**2)
    return variance.sqrt()
