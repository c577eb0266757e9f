"""The network's fused operations, one public function each.

Callers hand over tokens (B, T, N, C) as they lie in memory and say along which axis to
work; how an operation gets there is its backend's business. Plain torch is the only one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttracks import geometry

TIME, TRACK = 1, 2  # axes of (B, T, N, C) that attention may run along

Affine = tuple[Tensor, Tensor]  # weight and bias of a linear layer or a layer norm


def embed(tracks: Tensor, norm_in: Affine, linear: Affine, norm_out: Affine) -> Tensor:
    """Tokens (B, T, N, C) from u, v, o (B, T, N, 3): features, linear layer, position code.

    Works in the dtype of `tracks`, float32 or wider: the sines' arguments reach 6434 u.
    """
    width = linear[0].shape[0]
    octaves = (norm_in[0].shape[0] - 4) // 6
    pi = torch.tensor(math.pi, dtype=torch.float32, device=tracks.device)
    scale = (pi * 2.0 ** torch.arange(octaves, device=tracks.device)).to(tracks.dtype)
    angle = tracks[..., None, :] * scale[:, None]
    waves = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
    x = torch.cat([tracks, waves, torch.ones_like(tracks[..., :1])], -1)
    x = _layer_norm(F.linear(_layer_norm(x, norm_in), *linear), norm_out)

    half = width // 2
    frame = torch.arange(tracks.shape[TIME], dtype=torch.float64, device=tracks.device)
    rate = 10000 ** (-torch.arange(half, dtype=torch.float64, device=tracks.device) / (half - 1))
    angle = frame[:, None] * rate
    return x + torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)[:, None]


def attention(
    x: Tensor, norm: Affine, qkv: Tensor, out: Tensor, *, heads: int, axis: int
) -> Tensor:
    """Attention along TIME or TRACK of (B, T, N, C): x + out · attention(qkv · norm(x))."""
    sequences = x.transpose(TIME, TRACK) if axis == TIME else x
    batch, rows, length = sequences.shape[:3]
    h = F.linear(_layer_norm(sequences, norm), qkv)
    q, k, v = h.view(batch * rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    h = F.linear(h.reshape(batch, rows, length, -1), out)
    return x + (h.transpose(TIME, TRACK) if axis == TIME else h)


def mlp(x: Tensor, norm: Affine, up: Affine, down: Affine, norm_out: Affine) -> Tensor:
    """MLP over the channels of (B, T, N, C): norm_out(x + down · gelu(up · norm(x)))."""
    h = F.gelu(F.linear(_layer_norm(x, norm), *up))
    return _layer_norm(x + F.linear(h, *down), norm_out)


def camera_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of (B, T, N, C) over tracks, convolved along circular time to (B, T, outputs).

    weight (outputs, C, kernel). Frames are indexed modulo T, so that any T will do.
    """
    frames, kernel = x.shape[TIME], weight.shape[-1]
    reach = kernel // 2
    around = torch.arange(-reach, frames + kernel - 1 - reach, device=x.device) % frames
    windows = x.mean(TRACK, dtype=weight.dtype)[:, around].unfold(1, kernel, 1)
    # A product rather than conv1d, whose float32 is TF32 on CUDA by default.
    return F.linear(windows.flatten(2), weight.flatten(1), bias)


def point_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of (B, T, N, C) over frames, then a linear layer to (B, N, outputs)."""
    return F.linear(x.mean(TIME, dtype=weight.dtype), weight, bias)


def compose_project(
    basis: Tensor, coefficients: Tensor, rotation: Tensor, position: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """World points, camera points (B, T, N, 3) and their projection (B, T, N, 2).

    basis (B, K, N, 3), coefficients (B, T, K), rotation (B, T, 3, 3) camera to world,
    position (B, T, 3), focal (B, T).
    """
    points = geometry.compose(basis, coefficients)
    points_camera = geometry.to_camera(points, rotation, position)
    return points, points_camera, geometry.project(points_camera, focal)


def _layer_norm(x: Tensor, affine: Affine) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *affine)
