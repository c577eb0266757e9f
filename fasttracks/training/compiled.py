"""The network's operations as they train fastest: compiled once, whatever the shape of clips.

What works on tokens one by one is compiled for any number of them; softmax attention is torch's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttracks import ops
from fasttracks.backends import TORCH
from fasttracks.ops import TIME, TRACK, Affine

_encode = torch.compile(ops.encode, dynamic=True)
_project = torch.compile(ops.project, dynamic=True)
_mlp = torch.compile(ops.mlp, dynamic=True)


@torch.compile(dynamic=True)
def _add_product(x: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    return x + F.linear(h, weight)


def embed(
    tracks: Tensor,
    norm_in: Affine,
    linear: Affine,
    norm_out: Affine,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `ops.embed`."""
    tokens = tracks.flatten(0, 2).clone()  # a view would be compiled for what it is a view of
    x = _encode(tokens, norm_in, linear, norm_out)
    return ops.add_position_code(x.view(*tracks.shape[:3], -1), dtype)


def attention(
    x: Tensor, norm: Affine, qkv: Tensor, out: Tensor, *, heads: int, axis: int
) -> Tensor:
    """As `ops.attention`."""
    sequences = x.transpose(TIME, TRACK) if axis == TIME else x
    length = sequences.shape[2]
    tokens = sequences.reshape(-1, x.shape[-1])
    h = ops.mix(_project(tokens, norm, qkv).unflatten(0, (-1, length)), heads)
    y = _add_product(tokens, h.flatten(0, 1), out).view(sequences.shape)
    return y.transpose(TIME, TRACK) if axis == TIME else y


def mlp(x: Tensor, *weights: Any) -> Tensor:
    """As `ops.mlp`."""
    by_track = not x.is_contiguous()  # as attention over time leaves it
    rows = x.transpose(TIME, TRACK) if by_track else x
    y = _mlp(rows.reshape(-1, x.shape[-1]), *weights).view(rows.shape)
    return y.transpose(TIME, TRACK) if by_track else y


COMPILED = TORCH._replace(name="compiled", embed=embed, attention=attention, mlp=mlp)
