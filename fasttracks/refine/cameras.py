"""Levenberg–Marquardt over cameras and static points, the points eliminated (Schur complement).

Triggs et al., "Bundle Adjustment – A Modern Synthesis", 2000. A camera moves by a rotation
vector ω and a shift τ in its own frame, R ← R exp(ω), t ← t + R τ, so that a camera point
P = Rᵀ (X − t) changes by P × ω − τ + Rᵀ dX. An observation has three residuals: its offset in
the image, robust, and the logarithm of its depth over the depth that is expected, held so loosely
that it counts only where parallax tells nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import (
    MIN_DEPTH,
    camera_steps,
    cross_matrix,
    exponential,
    logarithm,
    project,
    to_camera,
)
from fasttracks.refine.positive_definite import has_kernels, solve_chain


class Scene(NamedTuple):
    """Cameras and static points of B clips."""

    rotation: Tensor  # (B, T, 3, 3) camera to world
    position: Tensor  # (B, T, 3)
    log_focal: Tensor  # (B,)
    points: Tensor  # (B, N, 3)


class Evidence(NamedTuple):
    """What a scene is held against."""

    positions: Tensor  # (B, T, N, 2) image coordinates
    weight: Tensor  # (B, T, N) of an observation, 0 where there is none
    scale: Tensor  # (B, N) of the Cauchy distribution of a track's offsets
    log_depth: Tensor  # (B, T, N) expected
    depth_weight: Tensor  # (B, T, N)
    turn: Tensor  # (B, T - 1, 3, 3) expected from each camera to the next
    step: Tensor  # (B, T - 1, 3) likewise, in the former's frame
    turn_weight: Tensor  # (B, T - 1)
    step_weight: Tensor  # (B, T - 1)
    log_focal: Tensor  # (B,) expected
    focal_weight: Tensor  # (B,)
    focal_free: Tensor  # (B,) 1 to adjust the focal length, 0 to hold it


class Normal(NamedTuple):
    """Normal equations: the cameras' 6 T + 1 unknowns (the focal length last) and the points'."""

    cameras: Tensor  # (B, T, 6, 6)
    beside: Tensor  # (B, T - 1, 6, 6) of each camera and the next
    by_focal: Tensor  # (B, T, 6) of cameras and the focal length
    focal: Tensor  # (B,)
    mixed: Tensor  # (B, 6 T + 1, N, 3)
    points: Tensor  # (B, N, 3, 3)
    cameras_right: Tensor  # (B, 6 T + 1) minus the gradient
    points_right: Tensor  # (B, N, 3)


class Adjusted(NamedTuple):
    """Where `adjust` ended."""

    scene: Scene
    damping: Tensor  # (B,) to go on with
    gain: Tensor  # (B,) share of the cost that the last iteration took off


def cost(scene: Scene, evidence: Evidence) -> Tensor:
    """What `adjust` lowers, one value a clip (B,)."""
    s, e = scene, evidence
    camera = to_camera(s.points[:, None], s.rotation, s.position)
    focal = s.log_focal.exp()[:, None].expand(camera.shape[:2])
    offset = project(camera, focal) - e.positions
    square = offset.square().sum(-1) / e.scale.square()[:, None]
    depth = camera[..., 2].clamp(min=MIN_DEPTH).log() - e.log_depth
    image = (e.weight * torch.log1p(square)).sum((1, 2))
    turn, step = _relative(s, e)
    return (
        image
        + (e.depth_weight * depth.square()).sum((1, 2))
        + (e.turn_weight * turn.square().sum(-1)).sum(1)
        + (e.step_weight * step.square().sum(-1)).sum(1)
        + e.focal_weight * (s.log_focal - e.log_focal).square()
    )


def adjust(scene: Scene, evidence: Evidence, damping: Tensor, iterations: int) -> Adjusted:
    """Lower the cost by damped Gauss–Newton steps; one that raises a clip's cost is not taken.

    damping (B,), relative to the diagonal, as Marquardt has it. Waits for no device.
    """
    if has_kernels(scene.points.device):
        from fasttracks.kernels import adjust as kernel

        scene = Scene(*(v.contiguous() for v in scene))
        evidence = Evidence(*(v.contiguous() for v in evidence))
        found, damping, gain = kernel.adjust(scene, evidence, damping.contiguous(), iterations)
        return Adjusted(Scene(*found), damping, gain)
    current = cost(scene, evidence)
    gain = torch.zeros_like(current)
    for _ in range(iterations):
        normal = normal_equations(scene, evidence)
        trial = moved(scene, *solve(normal, evidence.focal_free, damping))
        after = cost(trial, evidence)
        better = after < current  # False for NaN
        scene = Scene(*(choose(better, new, old) for new, old in zip(trial, scene, strict=True)))
        gain = torch.where(better, 1 - after / current, 0.0)
        current = torch.where(better, after, current)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-7, 1e6)
    return Adjusted(scene, damping, gain)


def normal_equations(scene: Scene, evidence: Evidence) -> Normal:
    """Gauss–Newton's normal equations of the cost, its Cauchy terms reweighted."""
    s, e = scene, evidence
    P = to_camera(s.points[:, None], s.rotation, s.position)
    focal = s.log_focal.exp()[:, None, None]
    depth = P[..., 2].clamp(min=MIN_DEPTH)
    image = focal[..., None] * P[..., :2] / depth[..., None]
    offset = image - e.positions
    root = (e.weight / (e.scale.square()[:, None] + offset.square().sum(-1))).sqrt()
    root_depth = e.depth_weight.sqrt()
    zero = torch.zeros_like(root)

    # Residuals (B, T, 3, N): u, v, log depth; their derivatives by P, (B, T, 3, N, 3), are rows
    # j for which those by (ω, τ) are (j × P, -j), and those by X are R j.
    residual = torch.stack(
        [root * offset[..., 0], root * offset[..., 1], root_depth * (depth.log() - e.log_depth)], 2
    )
    a, d = root * focal / depth, (P[..., 2] > MIN_DEPTH) / depth
    b, c = -root * d * image[..., 0], -root * d * image[..., 1]
    rows = torch.stack([a, zero, b, zero, a, c, zero, zero, root_depth * d], -1)
    rows = rows.unflatten(-1, (3, 3)).transpose(2, 3)
    by_camera = torch.cat([torch.linalg.cross(rows, P[:, :, None].expand_as(rows)), -rows], -1)
    by_point = (rows.flatten(2, 3) @ s.rotation.mT).view_as(rows)
    by_focal = torch.stack([root * image[..., 0], root * image[..., 1], zero], 2)

    A, r = by_camera.flatten(2, 3).mT, residual.flatten(2)
    U = A @ A.mT
    right = -(A @ r[..., None])[..., 0]
    U_focal = (A @ by_focal.flatten(2)[..., None])[..., 0]
    square_focal = by_focal.square().sum((1, 2, 3)) + e.focal_weight
    right_focal = -(by_focal * residual).sum((1, 2, 3))
    right_focal = right_focal - e.focal_weight * (s.log_focal - e.log_focal)
    V = (by_point[..., None] * by_point[..., None, :]).sum((1, 2))
    right_point = -(by_point * residual[..., None]).sum((1, 2))
    W_focal = (by_point * by_focal[..., None]).sum((1, 2))
    W = (by_camera.mT[..., None] * by_point[:, :, :, None]).sum(2)  # (B, T, 6, N, 3)

    return Normal(
        U,
        _add_relative(U, right, s, e),
        U_focal,
        square_focal,
        torch.cat([W.flatten(1, 2), W_focal[:, None]], 1),
        V,
        torch.cat([right.flatten(1), right_focal[:, None]], 1),
        right_point,
    )


class Reduced(NamedTuple):
    """Normal equations whose points are eliminated, for the cameras' 6 T + 1 unknowns alone."""

    system: Tensor  # (B, 6 T + 1, 6 T + 1)
    right: Tensor  # (B, 6 T + 1)
    points_inverse: Tensor  # (B, N, 3, 3) of the damped blocks of the points


def solve(normal: Normal, focal_free: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The damped step of the cameras (B, 6 T + 1) and of the points (B, N, 3).

    The first camera, and the focal length where it is not free, stay. The cameras or the points are
    eliminated, whichever are more.
    """
    n, own = normal, diagonal_of(normal)
    free = torch.ones_like(own)
    free[:, :6] = 0
    free[:, -1] = focal_free
    damp = damping[:, None] * own
    if n.points_right[0].numel() < own.shape[1]:
        return _without_cameras(n, damp, free, damping)
    reduced = eliminate(n, damping)
    reduced.system.diagonal(dim1=-2, dim2=-1).add_(damp)
    step = solve_cameras(reduced.system, reduced.right, free)
    return step, points_step(n, reduced.points_inverse, step)


def eliminate(normal: Normal, damping: Tensor) -> Reduced:
    """The Schur complement of the points, their blocks damped; the cameras' are not."""
    n, V_inverse = normal, invert_points(normal, damping)
    mixed = weighted(n, V_inverse)
    S = dense(n) - mixed.flatten(2) @ n.mixed.flatten(2).mT
    right = n.cameras_right - (mixed * n.points_right[:, None]).sum((2, 3))
    return Reduced(S, right, V_inverse)


def weighted(normal: Normal, points_inverse: Tensor) -> Tensor:
    """The mixed block (B, 6 T + 1, N, 3) times inverses (B, N, 3, 3) of the points' blocks."""
    return (normal.mixed[..., None] * points_inverse[:, None]).sum(-2)


def invert_points(normal: Normal, damping: Tensor) -> Tensor:
    """Inverses (B, N, 3, 3) of the damped blocks of the points."""
    return _inverse3(_damped_points(normal, damping))


def solve_cameras(system: Tensor, right: Tensor, free: Tensor) -> Tensor:
    """The step (B, n) of unknowns, 0 where these are not `free` (B, n), of 1 and 0; NaN where the
    system (B, n, n) is not positive definite. In float64: nothing but the damping keeps it from
    being nearly singular. Overwrites a system of that type.
    """
    free = free.double()
    S = system.double()
    S.mul_(free[:, :, None]).mul_(free[:, None])
    diagonal = S.diagonal(dim1=-2, dim2=-1)
    diagonal.add_(1 - free)
    # To a diagonal of 1, as the units of the unknowns differ.
    unit = diagonal.clamp(min=1e-30).rsqrt()
    S.mul_(unit[:, :, None]).mul_(unit[:, None])
    diagonal.add_(1e-9)
    # The factor takes the system's place, and cholesky_solve would copy it: it has gigabytes for a
    # long clip. A failure gives NaN: a step that is not taken.
    factor, info = S.mT, torch.empty(len(S), dtype=torch.int32, device=S.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    half = torch.linalg.solve_triangular(factor, (unit * free * right)[..., None], upper=False)
    step = torch.linalg.solve_triangular(factor.mT, half, upper=True)[..., 0] * unit
    return step.to(right.dtype)


def points_step(normal: Normal, points_inverse: Tensor, step: Tensor) -> Tensor:
    """The step of the points (B, N, 3) that goes with one of the cameras (B, 6 T + 1)."""
    back = normal.points_right - (normal.mixed * step[..., None, None]).sum(1)
    return (points_inverse * back[..., None, :]).sum(-1)


def dense(normal: Normal) -> Tensor:
    """The cameras' system (B, 6 T + 1, 6 T + 1)."""
    size = normal.cameras_right.shape[1]
    S = normal.mixed.new_zeros(len(normal.mixed), size, size)
    add_cameras(S, normal)
    return S


def add_cameras(system: Tensor, normal: Normal) -> None:
    """Add the cameras' own equations to a system (B, 6 T + 1, 6 T + 1), in place."""
    n, frames = normal, normal.cameras.shape[1]
    blocks = system[:, :-1, :-1].unflatten(1, (frames, 6)).unflatten(3, (frames, 6))
    blocks.diagonal(dim1=1, dim2=3).add_(n.cameras.permute(0, 2, 3, 1))
    for offset, beside in ((1, n.beside), (-1, n.beside.mT)):
        if frames > 1:
            blocks.diagonal(offset, dim1=1, dim2=3).add_(beside.permute(0, 2, 3, 1))
    system[:, :-1, -1] += n.by_focal.flatten(1)
    system[:, -1, :-1] += n.by_focal.flatten(1)
    system[:, -1, -1] += n.focal


def _without_cameras(
    normal: Normal, damp: Tensor, free: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """The same step, in time that grows as T does: cameras touch their neighbours alone.

    damp (B, 6 T + 1) is added to the cameras' diagonal, damping (B,) as for the points. In float64.
    """
    kind, n = normal.points.dtype, Normal(*(value.double() for value in normal))
    batch, frames = n.cameras.shape[:2]
    V = _damped_points(n, damping.double())
    mixed = (n.mixed[..., None] * _inverse3(V)[:, None]).sum(-2)
    # Of the diagonal that would be left without the points, a share makes up for rounding.
    left = diagonal_of(n) + damp - (mixed * n.mixed).sum((2, 3))
    free = free.double()
    lift = (damp + 1e-9 * left.clamp(min=1e-30)) * free + 1 - free
    loose, focal_free = free[:, :-1].view(batch, frames, 6, 1), free[:, -1:]
    cameras = loose * n.cameras * loose.mT
    cameras = cameras + torch.diag_embed(lift[:, :-1].view(batch, frames, 6))
    # The focal length goes with the points, as all touch it.
    by_focal = n.by_focal[..., None] * focal_free[..., None, None]
    by_point = n.mixed[:, :-1].view(batch, frames, 6, -1)
    right = n.cameras_right[:, :-1].view(batch, frames, 6, 1)
    sides = loose * torch.cat([by_focal, by_point, right], -1)
    solved = solve_chain(cameras, loose[:, :-1] * n.beside, sides).flatten(1, 2)

    S = V.new_zeros(batch, sides.shape[-1] - 1, sides.shape[-1] - 1)
    S[:, 0, 0] = focal_free[:, 0] * n.focal + lift[:, -1]
    S[:, 0, 1:] = S[:, 1:, 0] = focal_free * n.mixed[:, -1].flatten(1)
    blocks = S[:, 1:, 1:].unflatten(1, (-1, 3)).unflatten(3, (-1, 3))
    blocks.diagonal(dim1=1, dim2=3).copy_(V.permute(0, 2, 3, 1))
    right = torch.cat([focal_free * n.cameras_right[:, -1:], n.points_right.flatten(1)], 1)
    taken = sides[..., :-1].flatten(1, 2).mT @ solved
    S, right = S - taken[..., :-1], right - taken[..., -1]
    unit = S.diagonal(dim1=-2, dim2=-1).clamp(min=1e-30).rsqrt()
    factor, _ = torch.linalg.cholesky_ex(S * (unit[:, :, None] * unit[:, None]))
    found = torch.cholesky_solve((unit * right)[..., None], factor)[..., 0] * unit
    step = solved[..., -1] - (solved[..., :-1] @ found[..., None])[..., 0]
    step = torch.cat([step, found[:, :1]], 1)
    return step.to(kind), found[:, 1:].unflatten(1, (-1, 3)).to(kind)


def diagonal_of(normal: Normal) -> Tensor:
    """Of the cameras' system, (B, 6 T + 1)."""
    own = normal.cameras.diagonal(dim1=-2, dim2=-1).flatten(1)
    return torch.cat([own, normal.focal[:, None]], 1)


def _damped_points(normal: Normal, damping: Tensor) -> Tensor:
    diagonal = normal.points.diagonal(dim1=-2, dim2=-1)
    floor = 1e-6 * diagonal.mean(2, keepdim=True) + 1e-12  # for tracks never seen, or once
    return normal.points + torch.diag_embed(damping[:, None, None] * diagonal + floor)


def moved(scene: Scene, step: Tensor, shift: Tensor) -> Scene:
    """The scene after a step of the cameras (B, 6 T + 1) and points (B, N, 3)."""
    s = scene
    change = step[:, :-1].unflatten(1, (-1, 6))
    return Scene(
        s.rotation @ exponential(change[..., :3]),
        s.position + (s.rotation @ change[..., 3:, None])[..., 0],
        s.log_focal + step[:, -1],
        s.points + shift,
    )


def _relative(scene: Scene, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Turn and step from each camera to the next, less what is expected: (B, T - 1, 3) each."""
    turn, step = camera_steps(scene.rotation, scene.position)
    return logarithm(evidence.turn.mT @ turn), step - evidence.step


def _add_relative(own: Tensor, right: Tensor, scene: Scene, evidence: Evidence) -> Tensor:
    """Add the camera-to-camera terms to own (B, T, 6, 6) and right (B, T, 6).

    Returns those of each camera and the next (B, T - 1, 6, 6).
    """
    turn, step = _relative(scene, evidence)
    relative, ahead = camera_steps(scene.rotation, scene.position)
    eye = torch.eye(3, dtype=ahead.dtype, device=ahead.device).expand_as(relative)
    zero = torch.zeros_like(relative)
    # For small residuals d turn = ω' − relativeᵀ ω and d step = ahead × ω − τ + relative τ'.
    former = torch.cat(
        [torch.cat([-relative.mT, zero], -1), torch.cat([cross_matrix(ahead), -eye], -1)], -2
    )
    latter = torch.cat([torch.cat([eye, zero], -1), torch.cat([zero, relative], -1)], -2)
    weight = torch.stack([evidence.turn_weight, evidence.step_weight], -1)
    weight = weight.repeat_interleave(3, -1)
    residual = (weight * torch.cat([turn, step], -1))[..., None]
    for cameras, a in ((slice(None, -1), former), (slice(1, None), latter)):
        right[:, cameras] -= (a.mT @ residual)[..., 0]
        own[:, cameras] += a.mT @ (weight[..., None] * a)
    return former.mT @ (weight[..., None] * latter)


def choose(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition.view(-1, *[1] * (new.ndim - 1)), new, old)


def _inverse3(m: Tensor) -> Tensor:
    """Inverses of symmetric (..., 3, 3), by their adjugates."""
    a, b, c = m.unbind(-2)
    rows = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1
    )
    return rows / (a * rows[..., 0]).sum(-1)[..., None, None]
