"""Low-rank motion of points before known cameras, by alternating Gauss–Newton steps.

World points X(t, n) = Σ_k c_k(t) B_k(n). Given the coefficients c, tracks don't see each other, and
each is 3 K unknowns; given the basis B, neither do frames, K - 1 unknowns each.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttracks.geometry import MIN_DEPTH, compose, project, to_camera
from fasttracks.refine.cameras import choose
from fasttracks.refine.positive_definite import has_kernels, inverse_factor, solve, solve_chain

_COEFFICIENT_WEIGHT = 1.0  # of the sum over bases of a coefficient's mean square
_NO_EFFECT = 1e-6  # motion by a basis, in the network's units, in which scenes are some 15 away


class Motion(NamedTuple):
    """Low-rank points of B clips."""

    coefficients: Tensor  # (B, T, K), the first exactly 1
    basis: Tensor  # (B, K, N, 3)


class Sight(NamedTuple):
    """Known cameras and what they saw."""

    rotation: Tensor  # (B, T, 3, 3) camera to world
    position: Tensor  # (B, T, 3)
    focal: Tensor  # (B, T)
    positions: Tensor  # (B, T, N, 2) image coordinates
    weight: Tensor  # (B, T, N), 0 where there is nothing
    scale: Tensor  # (B, N) of the Cauchy distribution of a track's offsets
    log_depth: Tensor  # (B, T, N) expected
    depth_weight: Tensor  # (B, T, N)
    reach: Tensor  # (B, N) deviation of the basis, k ≥ 1: how far a point moves on its own
    smooth: Tensor  # (B, N) weight of an acceleration's square


def adjust_motion(motion: Motion, sight: Sight, rounds: int) -> Motion:
    """Lower the cost of each track, and of each clip, in turn; no step raises it.

    The coefficients returned have mean 0 and mean square 1, so that a track's first basis is the
    middle of its way. A track without any weight keeps to its basis.
    """
    sight = Sight(*(value.contiguous() for value in sight))  # as kernels take it
    damping = torch.full_like(sight.reach, 1e-3)
    current = cost(motion, sight)
    for _ in range(rounds):
        prior = _prior(motion.coefficients, sight)
        for _ in range(2):
            motion, current, damping = _step_basis(motion, sight, prior, current, damping)
        motion, current = _step_coefficients(motion, sight, current)
    return _normalised(motion)


def _normalised(motion: Motion) -> Motion:
    """The same points by coefficients of mean 0 and mean square 1; a basis of no effect is 0."""
    c, basis = motion.coefficients[..., 1:], motion.basis[:, 1:]
    mean = c.mean(1)
    first = motion.basis[:, 0] + (mean[..., None, None] * basis).sum(1)
    c = c - mean[:, None]
    size = c.square().mean(1).sqrt()
    used = size * basis.abs().amax((2, 3)) > _NO_EFFECT
    c = torch.where(used[:, None], c / size[:, None], 0.0)
    basis = torch.where(used[..., None, None], basis * size[..., None, None], 0.0)
    return Motion(
        torch.cat([motion.coefficients[..., :1], c], -1), torch.cat([first[:, None], basis], 1)
    )


def cost(motion: Motion, sight: Sight) -> Tensor:
    """What is lowered, one value a track (B, N)."""
    m, s = motion, sight
    if has_kernels(s.weight.device):
        from fasttracks.kernels import adjust_motion as kernel

        return kernel.cost(m, s)
    points = compose(m.basis, m.coefficients)
    camera = to_camera(points, s.rotation, s.position)
    square = (project(camera, s.focal) - s.positions).square().sum(-1)
    depth = camera[..., 2].clamp(min=MIN_DEPTH).log() - s.log_depth
    seen = s.weight * torch.log1p(square / s.scale.square()[:, None])
    bend = points.diff(n=2, dim=1).square().sum((1, 3)) if points.shape[1] > 2 else 0.0
    return (
        (seen + s.depth_weight * depth.square()).sum(1)
        + m.basis[:, 1:].square().sum((1, 3)) / s.reach.square()
        + s.smooth * bend
    )


def principal(points: Tensor, count: int) -> Tensor:
    """An orthonormal basis (B, T, count) over time of what points (B, T, N, 3) move by, mostly.

    By subspace iteration from the slowest cosines, count ≤ T; those stay where nothing moves.
    """
    away = (points - points.mean(1, keepdim=True)).flatten(2)
    frames = away.shape[1]
    gram = away @ away.mT
    eye = torch.eye(frames, dtype=gram.dtype, device=gram.device)
    gram = gram / (gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-30) + 1e-6 * eye
    time = (torch.arange(frames, dtype=gram.dtype, device=gram.device) + 0.5) * (math.pi / frames)
    order = torch.arange(1, count + 1, dtype=gram.dtype, device=gram.device) % frames
    space = (time[:, None] * order).cos().expand(len(gram), -1, -1)
    for _ in range(8):
        space = gram @ space
        square = space.mT @ space
        square.diagonal(dim1=1, dim2=2).mul_(1 + 1e-12)
        space = space @ inverse_factor(square)
    return space


def _by_point(motion: Motion, sight: Sight) -> tuple[Tensor, Tensor]:
    """Hessians (B, T, N, 3, 3) and gradients (B, T, N, 3) of observations by world points."""
    s = sight
    if has_kernels(s.weight.device):
        from fasttracks.kernels import adjust_motion as kernel

        return kernel.by_point(motion, s)
    P = to_camera(compose(motion.basis, motion.coefficients), s.rotation, s.position)
    depth = P[..., 2].clamp(min=MIN_DEPTH)
    image = project(P, s.focal)
    offset = image - s.positions
    weight = s.weight / (s.scale.square()[:, None] + offset.square().sum(-1))
    a, d = s.focal[..., None] / depth, (P[..., 2] > MIN_DEPTH) / depth
    b, c = -d * image[..., 0], -d * image[..., 1]
    zero = torch.zeros_like(a)
    rows = torch.stack([a, zero, b, zero, a, c, zero, zero, d], -1).unflatten(-1, (3, 3))
    rows = (rows.flatten(2, 3) @ s.rotation.mT).view_as(rows)
    weights = torch.stack([weight, weight, s.depth_weight], -1)[..., None]
    residual = torch.cat([offset, (depth.log() - s.log_depth)[..., None]], -1)[..., None]
    weighted = weights * rows
    hessian = (rows[..., None] * weighted[..., None, :]).sum(-3)
    return hessian, (weighted * residual).sum(-2)


def _second_differences(frames: int, like: Tensor) -> Tensor:
    return torch.eye(frames, dtype=like.dtype, device=like.device).diff(n=2, dim=0)


def _prior(coefficients: Tensor, sight: Sight) -> Tensor:
    """What is known of tracks' bases, (B, N, K, K): their size, and that they bend little."""
    bend = coefficients.diff(n=2, dim=1)
    linear = (bend.mT @ bend)[:, None] * sight.smooth[..., None, None]
    linear.diagonal(dim1=2, dim2=3)[..., 1:].add_(1 / sight.reach.square()[..., None])
    return linear


def _step_basis(
    motion: Motion, sight: Sight, prior: Tensor, current: Tensor, damping: Tensor
) -> tuple[Motion, Tensor, Tensor]:
    """One damped step of each track's basis; its cost and damping too, before and after."""
    c, basis = motion
    batch, bases, tracks, _ = basis.shape
    H, g = _by_point(motion, sight)
    pairs = (c[..., None] * c[..., None, :]).flatten(2)  # (B, T, K K)
    A = (pairs.mT @ H.flatten(2)).view(batch, bases, bases, tracks, 3, 3)
    A = A.permute(0, 3, 1, 4, 2, 5).contiguous()  # (B, N, K, 3, K, 3)
    A.diagonal(dim1=3, dim2=5).add_(prior[..., None])
    A = A.view(batch, tracks, 3 * bases, 3 * bases)
    right = (c.mT @ g.flatten(2)).view(batch, bases, tracks, 3).transpose(1, 2)
    right = right + prior @ basis.transpose(1, 2)
    diagonal = A.diagonal(dim1=2, dim2=3)
    floor = 1e-9 * diagonal.mean(-1, keepdim=True) + 1e-12
    diagonal.add_(damping[..., None] * diagonal + floor)
    step = solve(A, right.flatten(2)[..., None])
    step = step.view(batch, tracks, bases, 3).transpose(1, 2)

    trial = motion._replace(basis=basis - step)
    after = cost(trial, sight)
    better = after < current
    basis = torch.where(better[:, None, :, None], trial.basis, basis)
    damping = torch.where(better, damping / 10, damping * 10).clamp(1e-9, 1e6)
    return motion._replace(basis=basis), torch.where(better, after, current), damping


def _solve_bent(own: Tensor, stiff: Tensor, bend: Tensor, right: Tensor) -> Tensor:
    """Solutions x (B, T, f) of own(t) x(t) + Σ_s stiff(t, s) bend x(s) = right(t), with
    stiff(t, s) = 0 for |t - s| > 2: of two frames together, each pair touches the next alone.
    """
    batch, frames, size = right.shape
    odd = frames % 2  # then a last frame is made up
    unit = torch.eye(size, dtype=own.dtype, device=own.device).expand(batch, odd, size, size)
    own = torch.cat([own, unit], 1).unflatten(1, (-1, 2))
    right, stiff = pad(right, (0, 0, 0, odd)), pad(stiff, (0, odd, 0, odd))
    stiff = stiff.unflatten(1, (-1, 2)).unflatten(0, (-1, 2))  # (T / 2, 2, T / 2, 2)

    def blocks(offset: int) -> Tensor:
        pairs = stiff.diagonal(offset, dim1=0, dim2=2).permute(2, 0, 1)
        both = pairs[None, :, :, None, :, None] * bend[:, None, None, :, None]
        if offset == 0:
            both.diagonal(dim1=2, dim2=4).add_(own.permute(0, 1, 3, 4, 2))
        return both.flatten(4).flatten(2, 3)

    found = solve_chain(blocks(0), blocks(1), right.reshape(batch, own.shape[1], 2 * size, 1))
    return found.reshape(batch, frames + odd, size)[:, :frames]


def _step_coefficients(motion: Motion, sight: Sight, current: Tensor) -> tuple[Motion, Tensor]:
    """One step of each clip's coefficients, lightly damped; the tracks' cost too."""
    c, basis = motion
    H, g = _by_point(motion, sight)
    b, own = basis[:, 1:], c[..., 1:]
    frames, free = own.shape[1:]
    # Of each point, products of what two coefficients move it by: (B, K - 1, K - 1, N, 3, 3).
    pairs = b[:, :, None, ..., None] * b[:, None, ..., None, :]
    A = (H.flatten(2) @ pairs.flatten(3).flatten(1, 2).mT).view(-1, frames, free, free)
    b = b.flatten(2)
    right = -(g.flatten(2) @ b.mT)
    bend = (b * sight.smooth.repeat_interleave(3, 1)[:, None]) @ b.mT  # (B, K - 1, K - 1)
    D = _second_differences(frames, c)
    stiff = D.mT @ D
    right = right - stiff @ own @ bend
    # Without a prior nothing would hold the coefficients of a basis that hardly moves anything.
    prior = _COEFFICIENT_WEIGHT / frames
    right = right - prior * own
    held = A.diagonal(dim1=2, dim2=3)
    diagonal = held + prior + stiff.diagonal()[:, None] * bend.diagonal(dim1=1, dim2=2)[:, None]
    floor = 1e-9 * diagonal.mean((1, 2), keepdim=True) + (1e-12 + prior)
    held.add_(1e-2 * diagonal + floor)
    step = _solve_bent(A, stiff, bend, right)
    trial = motion._replace(coefficients=torch.cat([c[..., :1], own + step], -1))
    after = cost(trial, sight)
    less = prior * (c.square() - trial.coefficients.square()).sum((1, 2))
    better = after.sum(1) < current.sum(1) + less
    motion = motion._replace(coefficients=choose(better, trial.coefficients, c))
    return motion, choose(better, after, current)
