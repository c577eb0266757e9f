"""The kernels as operators of torch's dispatcher, `torch.ops.fasttracks`, for what is traced.

`torch.compile` and `torch.export` keep them as they are. Eager calls go without: a dispatch costs
more time than a launch. On other devices than CUDA their plain torch versions run. A program that
was exported with them needs this module imported before it is loaded.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from fasttracks.backends import TORCH, Backend, triton
from fasttracks.ops import Affine


def _backend(x: Tensor) -> Backend:
    runs = x.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return triton() if x.is_cuda and runs else TORCH


@custom_op("fasttracks::embed", mutates_args=())
def _embed(tracks: Tensor, weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return _backend(tracks).embed(tracks, *_pairs(weights), dtype)


@_embed.register_fake
def _(tracks: Tensor, weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return tracks.new_empty(*tracks.shape[:3], weights[2].shape[0], dtype=dtype)


@custom_op("fasttracks::attention", mutates_args=())
def _attention(x: Tensor, weights: Sequence[Tensor], heads: int, axis: int) -> Tensor:
    norm_weight, norm_bias, qkv, out = weights
    run = _backend(x).attention
    return run(x, (norm_weight, norm_bias), qkv, out, heads=heads, axis=axis).contiguous()


@_attention.register_fake
def _(x: Tensor, weights: Sequence[Tensor], heads: int, axis: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@custom_op("fasttracks::mlp", mutates_args=())
def _mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return _backend(x).mlp(x.contiguous(), *_pairs(weights))


@_mlp.register_fake
def _(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    dtype = weights[-1].dtype
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)


@custom_op("fasttracks::heads", mutates_args=())
def _heads(
    x: Tensor, weights: Sequence[Tensor], predicts_focal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    fields = _backend(x).heads(x, *_pairs(weights), predicts_focal=predicts_focal)
    a, b, c, d, e, f = (field.contiguous() for field in fields)
    return a, b, c, d, e, f


@_heads.register_fake
def _(
    x: Tensor, weights: Sequence[Tensor], predicts_focal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, N, _ = x.shape
    camera, points = weights[0], weights[2]
    K = points.shape[0] // 3
    shapes = ((B, T, 3, 3), (B, T, 3), (B, T), (B, T, K), (B, K, N, 3), (B, N))
    a, b, c, d, e, f = (camera.new_empty(shape) for shape in shapes)
    return a, b, c, d, e, f


@custom_op("fasttracks::compose_project", mutates_args=())
def _compose_project(
    basis: Tensor, coefficients: Tensor, rotation: Tensor, position: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    run = _backend(basis).compose_project
    a, b, c = (y.contiguous() for y in run(basis, coefficients, rotation, position, focal))
    return a, b, c


@_compose_project.register_fake
def _(
    basis: Tensor, coefficients: Tensor, rotation: Tensor, position: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, _, N, _ = basis.shape
    T = coefficients.shape[1]
    return basis.new_empty(B, T, N, 3), basis.new_empty(B, T, N, 3), basis.new_empty(B, T, N, 2)


def _pairs(weights: Sequence[Tensor]) -> list[Affine]:
    return list(zip(weights[::2], weights[1::2], strict=True))


def embed(
    tracks: Tensor,
    norm_in: Affine,
    linear: Affine,
    norm_out: Affine,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `ops.embed`."""
    return _embed(tracks, [*norm_in, *linear, *norm_out], dtype or tracks.dtype)


def attention(
    x: Tensor, norm: Affine, qkv: Tensor, out: Tensor, *, heads: int, axis: int
) -> Tensor:
    """As `ops.attention`."""
    return _attention(x, [*norm, qkv, out], heads, axis)


def mlp(x: Tensor, norm: Affine, up: Affine, down: Affine, norm_out: Affine) -> Tensor:
    """As `ops.mlp`."""
    return _mlp(x, [*norm, *up, *down, *norm_out])


def heads(
    x: Tensor, camera: Affine, points: Affine, *, predicts_focal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `ops.heads`."""
    return _heads(x, [*camera, *points], predicts_focal)


def compose_project(
    basis: Tensor, coefficients: Tensor, rotation: Tensor, position: Tensor, focal: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.compose_project`."""
    return _compose_project(basis, coefficients, rotation, position, focal)


OPERATORS = Backend("triton", embed, attention, mlp, heads, compose_project)
