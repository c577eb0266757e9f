"""Rotations, composition and projection, in the dtype of their arguments.

Cameras follow OpenCV: x right, y down, z forward. B clips, T frames, N tracks, K bases.
Equations are those of TracksTo4D, arXiv 2404.07097, section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

MIN_DEPTH = 0.01  # projection divides by no less


class Prediction(NamedTuple):
    """What the network says of B clips, in its own world frame and scale.

    A fresh camera sits near (0, 0, -15) and looks along +z.
    """

    rotation: Tensor  # (B, T, 3, 3) camera to world
    position: Tensor  # (B, T, 3) camera centres
    focal: Tensor  # (B, T) factor on the focal length that was assumed; 1 if not predicted
    coefficients: Tensor  # (B, T, K), the first exactly 1
    basis: Tensor  # (B, K, N, 3), the first is the static scene
    motion: Tensor  # (B, N) γ > 0, large where a point moves on its own
    points: Tensor  # (B, T, N, 3) in the world
    points_camera: Tensor  # (B, T, N, 3) in each frame's camera
    projection: Tensor  # (B, T, N, 2) normalised image coordinates


def rotation_from_6d(vector: Tensor) -> Tensor:
    """(..., 6) to rotations (..., 3, 3) whose rows are the orthonormalised pair and its cross.

    Zhou et al., "On the Continuity of Rotation Representations", CVPR 2019.
    """
    a, b = vector[..., :3], vector[..., 3:]
    x = normalize(a, dim=-1)
    y = normalize(b - (b * x).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-2)


def exponential(vector: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in radians to rotations (..., 3, 3): Rodrigues' formula."""
    angle = vector.square().sum(-1, keepdim=True).add(1e-16).sqrt()
    axis = vector / angle
    sin, cos = angle.sin()[..., None], angle.cos()[..., None]
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    # A sum of products, not a matrix product, which may round to TF32.
    square = (
        axis[..., :, None] * axis[..., None, :] - axis.square().sum(-1)[..., None, None] * identity
    )
    return identity + sin * cross_matrix(axis) + (1 - cos) * square


def logarithm(rotation: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by less than half a turn to rotation vectors (..., 3) in radians."""
    r = rotation
    axis = _twice_axis(r) / 2
    sin = axis.square().sum(-1, keepdim=True).add(1e-16).sqrt()
    cos = (r.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2
    return axis * (torch.atan2(sin, cos) / sin)


def rotation_angle(rotation: Tensor) -> Tensor:
    """Angles (...) in radians, 0 to π, of rotations (..., 3, 3)."""
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    # atan2 keeps its accuracy at small angles, where arccos loses it.
    return torch.atan2(_twice_axis(rotation).norm(dim=-1), trace - 1)


def _twice_axis(r: Tensor) -> Tensor:
    """Axes of rotations, as long as twice the sine of the angle."""
    return torch.stack([r[..., i, j] - r[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], -1)


def camera_steps(rotation: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """From each camera (B, T, 3, 3), (B, T, 3) to the next, as that camera sees it.

    Returns:
        turns (B, T - 1, 3, 3) and steps (B, T - 1, 3).
    """
    back = rotation[:, :-1].mT
    return back @ rotation[:, 1:], (back @ position.diff(dim=1)[..., None])[..., 0]


def cross_matrix(vector: Tensor) -> Tensor:
    """[v]× for v (..., 3): [v]× w = v × w."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def compose(basis: Tensor, coefficients: Tensor) -> Tensor:
    """World points (B, T, N, 3): basis clouds (B, K, N, 3) weighted by (B, T, K)."""
    return torch.einsum("btk,bknc->btnc", coefficients, basis)


def to_camera(points: Tensor, rotation: Tensor, position: Tensor) -> Tensor:
    """World points (B, T, N, 3) in cameras (B, T, 3, 3), (B, T, 3): Rᵀ(X − t)."""
    return (points - position.unsqueeze(-2)) @ rotation


def project(points_camera: Tensor, focal: Tensor) -> Tensor:
    """Camera points (B, T, N, 3) to normalised image coordinates (B, T, N, 2)."""
    depth = points_camera[..., 2:].clamp(min=MIN_DEPTH)
    return focal[..., None, None] * points_camera[..., :2] / depth
