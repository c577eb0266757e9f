"""What training and fine-tuning share: the paper's losses, a forward pass for gradients, the rate.

Losses are those of TracksTo4D (arXiv 2404.07097, section 3.3).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fasttracks.backends import TORCH, Backend
from fasttracks.geometry import MIN_DEPTH, Prediction, compose, project, to_camera
from fasttracks.network import TracksTo4D
from fasttracks.ops import TIME, TRACK

_FLASH, _CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
_EFFICIENT, _MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
# In order of preference along each axis: the fastest on an H100, forward and backward together.
_ATTENTION = {
    TIME: [_EFFICIENT, _CUDNN, _FLASH, _MATH],
    TRACK: [_CUDNN, _FLASH, _EFFICIENT, _MATH],
}


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


def depth_change(prediction: Prediction, tracks: Tensor, depth: Tensor) -> Tensor:
    """Mean |log z - log z₀| (B,) of predicted depths z from given z₀ (B, T, N), where observed."""
    observed = tracks[..., 2]
    z = prediction.points_camera[..., 2].clamp(min=MIN_DEPTH)
    change = (z.log() - depth.clamp(min=MIN_DEPTH).log()).abs()
    return (change * observed).sum((1, 2)) / observed.sum((1, 2)).clamp(min=1)


def forward(network: TracksTo4D, tracks: Tensor, run: Backend = TORCH) -> Prediction:
    """The network with its blocks in bfloat16 where there is CUDA; all else in float32."""
    x = network.embedding(tracks, run=run)
    with torch.autocast("cuda", torch.bfloat16, enabled=tracks.is_cuda):
        for block in network.blocks:
            axis: Any = block.axis
            with sdpa_kernel(_ATTENTION[axis], set_priority=True):
                x = block(x, run)
    return network.read(x.float())


def learning_rate_share(step: int, warm_up: int, done: float) -> float:
    """Share of the learning rate at a step: linear warm-up, a cosine to zero as `done` goes 0 to 1.

    Adam's first steps are as long as any, whatever the gradient.
    """
    return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, done))))
