"""The paper's unsupervised losses (arXiv 2404.07097, section 3.3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import Prediction, compose, project, to_camera


class Losses(NamedTuple):
    """One value a clip, each (B,); distances in normalised image coordinates."""

    total: Tensor
    static: Tensor  # -log likelihood of the static scene's reprojection, Cauchy of width γ
    reprojection: Tensor  # mean distance of the moving scene's projection
    negative_depth: Tensor  # summed depth of points behind their camera
    sparsity: Tensor  # mean |B_k|, k ≥ 1, over γ: points that move little should not move


def unsupervised(prediction: Prediction, tracks: Tensor) -> Losses:
    """Losses of a prediction on the tracks (B, T, N, 3) of u, v, o it was made from.

    Only observed positions count; a clip without any has zero reprojection terms. The
    moving scene trains neither the cameras nor the static points: both learn from the
    static scene alone.
    """
    p = prediction
    positions, observed = tracks[..., :2], tracks[..., 2]
    count = observed.sum((1, 2)).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return (values * observed).sum((1, 2)) / count

    def distance(projection: Tensor) -> Tensor:
        return torch.linalg.vector_norm(projection - positions, dim=-1)

    static_scene = p.basis[:, 0].unsqueeze(1)
    r = distance(project(to_camera(static_scene, p.rotation, p.position), p.focal))
    gamma = p.motion.unsqueeze(1)
    static = mean(torch.log(gamma + r**2 / gamma))

    basis = torch.cat([p.basis[:, :1].detach(), p.basis[:, 1:]], 1)
    points = compose(basis, p.coefficients)
    points_camera = to_camera(points, p.rotation.detach(), p.position.detach())
    reprojection = mean(distance(project(points_camera, p.focal.detach())))
    negative_depth = ((-points_camera[..., 2]).clamp(min=0) * observed).sum((1, 2))

    sparsity = (p.basis[:, 1:].abs() / p.motion.detach()[:, None, :, None]).mean((1, 2, 3))
    total = static + 50 * reprojection + negative_depth + 0.001 * sparsity
    return Losses(total, static, reprojection, negative_depth, sparsity)
