"""Attention of one block in two or three launches: x + out · softmax(QKᵀ/√d) V.

TracksTo4D (arXiv 2404.07097) alternates attention over the frames of each track and over the
tracks of each frame. Tokens (B, T, N, C) are addressed by stride, so both are the same kernels and
nothing is transposed in memory.
"""

from collections.abc import Callable

import torch
import triton

from fasttracks.kernels import attention_triton as triton_kernels
from fasttracks.kernels.attention_triton import LONGEST, TIME
from fasttracks.kernels.common import GLUON
from fasttracks.kernels.device import is_hopper

if GLUON:
    from fasttracks.kernels import attention_hopper

# Tokens whose queries, keys and values are in memory at a time: at most 0.4 GB of them.
TOKENS_AT_ONCE = 1 << 16


def attention(
    x: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor],
    qkv: torch.Tensor,
    out: torch.Tensor,
    *,
    heads: int,
    axis: int,
) -> torch.Tensor:
    """Attention of a block: x + out · softmax(QKᵀ/√d) V with (Q, K, V) = qkv · LN(x).

    All tensors are float16, or bfloat16, on one device; nothing is checked here.

    Args:
        x: (B, T, N, C) tokens.
        norm: weight and bias of the layer norm, (C,) each, contiguous like those below.
        qkv: (3 · heads · d, C).
        out: (C, heads · d).
        heads: how many; C and the head width d are powers of two from 16 on.
        axis: 1 attends over the T frames of each track, 2 over the N tracks of each frame.

    Returns:
        A new contiguous tensor like x.
    """
    norm_project, attend = _kernels_for(x, out, heads)
    shape = x.shape
    if not x.numel():
        return torch.empty_like(x)
    x = x.contiguous()
    if axis != TIME:  # to which the frames of all clips are alike
        x = x.view(1, -1, *shape[2:])
    y = torch.empty_like(x)
    one_tile = shape[axis] <= LONGEST
    mixed = x if one_tile else x.new_empty(*x.shape[:3], out.shape[1])
    rows = 3 - axis
    at_once = max(1, TOKENS_AT_ONCE * x.shape[rows] * x.shape[3] // x.numel())
    at_once = triton.cdiv(x.shape[rows], triton.cdiv(x.shape[rows], at_once))  # parts alike
    with torch.cuda.device_of(x):  # nothing for a CPU tensor, in the interpreter
        parts = (tensor.split(at_once, rows) for tensor in (x, mixed, y))
        for x_part, mixed_part, y_part in zip(*parts, strict=True):
            projected = x.new_empty(*x_part.shape[:3], qkv.shape[0])
            norm_project(
                x_part.contiguous().flatten(0, 2), norm, qkv, projected.flatten(0, 2), heads
            )
            if one_tile:
                triton_kernels.attend_project(projected, x_part, out, y_part, heads, axis)
            else:
                attend(projected, mixed_part, heads, axis)
            del projected  # before the next part's
        if not one_tile:
            triton_kernels.project(mixed.flatten(0, 2), x.flatten(0, 2), y.flatten(0, 2), out)
    return y.view(shape)


def _kernels_for(x: torch.Tensor, out: torch.Tensor, heads: int) -> tuple[Callable, Callable]:
    """The fastest LN + QKV and attention; those for Hopper are made for the published width."""
    if is_hopper(x.device) and GLUON and out.shape == (256, 64 * heads):
        return attention_hopper.norm_project, attention_hopper.attend
    return triton_kernels.norm_project, triton_kernels.attend
