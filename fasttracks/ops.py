"""The network's fused operations in plain torch, for any device and dtype.

`backends` chooses between these and the Triton kernels, which have the same signatures.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttracks import geometry

TIME, TRACK = 1, 2  # axes of (B, T, N, C) that attention may run along

Affine = tuple[Tensor, Tensor]  # weight and bias of a linear layer or a layer norm

_PI = 3.1415927410125732  # rounded to float32, in every precision


def affine(layer: Any) -> Affine:
    """Weight and bias of a module."""
    return layer.weight, layer.bias


def embed(
    tracks: Tensor,
    norm_in: Affine,
    linear: Affine,
    norm_out: Affine,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Tokens (B, T, N, C) from u, v, o (B, T, N, 3): features, linear layer, position code.

    Works in the dtype of `tracks`, float32 or wider: the sines' arguments reach 6434 u.
    `dtype` is that of the result, by default the same.
    """
    return add_position_code(encode(tracks, norm_in, linear, norm_out), dtype)


def encode(tracks: Tensor, norm_in: Affine, linear: Affine, norm_out: Affine) -> Tensor:
    """`embed` without the position code, of (..., 3)."""
    octaves = (norm_in[0].shape[0] - 4) // 6
    scale = (_PI * 2.0 ** torch.arange(octaves, device=tracks.device)).to(tracks.dtype)
    angle = tracks[..., None, :] * scale[:, None]
    waves = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
    x = torch.cat([tracks, waves, torch.ones_like(tracks[..., :1])], -1)
    return _layer_norm(F.linear(_layer_norm(x, norm_in), *linear), norm_out)


def add_position_code(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Tokens (B, T, N, C) plus sines and cosines of their frame; the result in `dtype`, or x's."""
    frames, half = x.shape[TIME], x.shape[-1] // 2
    frame = torch.arange(frames, dtype=torch.float64, device=x.device)
    rate = 10000 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / (half - 1))
    angle = frame[:, None] * rate
    code = torch.cat([angle.sin(), angle.cos()], -1).to(x.dtype)
    return (x + code[:, None]).to(dtype or x.dtype)


def attention(
    x: Tensor, norm: Affine, qkv: Tensor, out: Tensor, *, heads: int, axis: int
) -> Tensor:
    """Attention along TIME or TRACK of (B, T, N, C): x + out · attention(qkv · norm(x))."""
    sequences = x.transpose(TIME, TRACK) if axis == TIME else x
    h = project(sequences, norm, qkv)
    h = F.linear(mix(h.flatten(0, 1), heads), out).view(sequences.shape)
    return x + (h.transpose(TIME, TRACK) if axis == TIME else h)


def project(x: Tensor, norm: Affine, qkv: Tensor) -> Tensor:
    """Queries, keys and values (..., 3 · heads · d) of tokens (..., C): qkv · norm(x)."""
    return F.linear(_layer_norm(x, norm).to(qkv.dtype), qkv)


def mix(qkv: Tensor, heads: int) -> Tensor:
    """softmax(QKᵀ/√d) V of sequences (S, L, 3 · heads · d): (S, L, heads · d)."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unflatten(-1, (3, heads, -1)).unbind(2))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def mlp(x: Tensor, norm: Affine, up: Affine, down: Affine, norm_out: Affine) -> Tensor:
    """MLP over the channels of (B, T, N, C): norm_out(x + down · gelu(up · norm(x))).

    The result is in the dtype of norm_out's weights.
    """
    h = F.gelu(F.linear(_layer_norm(x, norm).to(up[0].dtype), *up))
    h = F.linear(h.to(down[0].dtype), *down)
    return _layer_norm(x.to(norm_out[0].dtype) + h, norm_out)


def heads(
    x: Tensor, camera: Affine, points: Affine, *, predicts_focal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The last tokens (B, T, N, C) to the first six fields of a `geometry.Prediction`.

    Works in the weights' dtype. Cameras: mean over tracks, then `camera`, a convolution
    (K + 9, C, kernel) along circular time; frames are indexed modulo T, so that any T will
    do. Its channels are position, focal correction, coefficients 1..K-1 and 6-D rotation.
    Basis and motion: mean over frames, then the linear layer `points` (3 K + 1, C).
    """
    weight, bias = camera
    frames, kernel = x.shape[TIME], weight.shape[-1]
    reach = kernel // 2
    around = torch.arange(-reach, frames + kernel - 1 - reach, device=x.device) % frames
    windows = x.mean(TRACK, dtype=weight.dtype)[:, around].unfold(1, kernel, 1)
    # A product rather than conv1d, whose float32 is TF32 on CUDA by default.
    channels = F.linear(windows.flatten(2), weight.flatten(1), bias)
    position, focal, coefficients, rotation = channels.split((3, 1, len(bias) - 10, 6), -1)
    one = torch.ones_like(focal)
    focal = (1 + 0.05 * focal if predicts_focal else one)[..., 0]
    coefficients = torch.cat([one, coefficients], -1)

    out = F.linear(x.mean(TIME, dtype=weight.dtype), *points)
    basis = out[..., :-1].unflatten(-1, (-1, 3)).transpose(1, 2)
    motion = F.elu(out[..., -1]) + 1 + 1e-5
    return geometry.rotation_from_6d(rotation), position, focal, coefficients, basis, motion


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
