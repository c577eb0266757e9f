"""MLP of a block with its norms and its residual (TracksTo4D, arXiv 2404.07097), fused.

y = norm_out(x + down · gelu(up · norm(x))), and the hidden layer never leaves the chip. This module
has the launcher and a kernel for any GPU; `mlp_hopper` has the one for Hopper.

Where there are few tokens, several programs share the hidden units of a tile, and `_finish` adds up
what they found, always in the same order. Partial sums are in the tokens' dtype, to which torch
would round the product.
"""
# mypy: allow-untyped-defs

import functools
from types import ModuleType

import torch
import triton
import triton.language as tl

from fasttracks.kernels.common import GLUON, gelu, layer_norm, overlap, wait_for_previous
from fasttracks.kernels.device import is_hopper, multiprocessors
from fasttracks.kernels.launches import launch

if GLUON:
    from fasttracks.kernels import mlp_hopper

Affine = tuple[torch.Tensor, torch.Tensor]

# Time in µs, by which to choose the number of splits, fitted on an H100: of 128 hidden units of a
# tile, by kernel; of a tile besides; of starting to add up partial sums; of a row of those.
COST = {"portable": 3.0, "hopper": 3.4, "tile": 5.0, "finish": 4.0, "row": 0.15e-3}


@triton.jit(do_not_specialize=["rows", "splits", "apart"])
def _mlp(
    x,
    y,
    partial,
    norm_weight,
    norm_bias,
    up_weight,
    up_bias,
    down_weight,
    down_bias,
    out_weight,
    out_bias,
    rows,
    splits,
    apart,
    C: tl.constexpr,
    H: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    item = tl.program_id(0)
    split = item % splits
    r = item // splits * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK_C)
    in_rows = r < rows
    in_c = c < C
    mask = in_rows[:, None] & in_c[None, :]
    offsets = r.to(tl.int64)[:, None] * C + c[None, :]

    wait_for_previous(OVERLAP)
    h = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    h = layer_norm(h, norm_weight, norm_bias, c, C).to(dtype)

    STEPS: tl.constexpr = (H + STEP - 1) // STEP
    first = split * STEPS // splits
    last = (split + 1) * STEPS // splits
    acc = tl.zeros((BLOCK_ROWS, BLOCK_C), tl.float32)
    for step in range(first, last):
        k = step * STEP + tl.arange(0, STEP)
        in_k = k < H
        w = tl.load(
            up_weight + k[None, :] * C + c[:, None], mask=in_k[None, :] & in_c[:, None], other=0.0
        )
        bias = tl.load(up_bias + k, mask=in_k, other=0.0).to(tl.float32)
        hidden = gelu(tl.dot(h, w) + bias[None, :]).to(dtype)
        w = tl.load(
            down_weight + c[None, :] * H + k[:, None], mask=in_k[:, None] & in_c[None, :], other=0.0
        )
        acc = tl.dot(hidden, w, acc)

    if splits == 1:
        bias = tl.load(down_bias + c, mask=in_c, other=0.0).to(tl.float32)
        acc += tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        tl.store(y + offsets, layer_norm(acc, out_weight, out_bias, c, C), mask=mask)
    else:
        tl.store(partial + split.to(tl.int64) * apart * C + offsets, acc.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["rows", "splits", "apart"])
def _finish(
    x,
    y,
    partial,
    down_bias,
    out_weight,
    out_bias,
    rows,
    splits,
    apart,
    C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Add up the partial sums of `_mlp`, always in the same order; residual and norm."""
    r = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    c = tl.arange(0, BLOCK_C)
    mask = (r < rows)[:, None] & (c < C)[None, :]
    offsets = r.to(tl.int64)[:, None] * C + c[None, :]
    h = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    h += tl.load(down_bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    wait_for_previous(OVERLAP)  # `x` was there before `_mlp` began
    for _ in range(splits):
        h += tl.load(partial + offsets, mask=mask, other=0.0).to(tl.float32)
        partial += apart.to(tl.int64) * C
    h = layer_norm(h, out_weight, out_bias, c, C)
    tl.store(y + offsets, h, mask=mask)


@functools.lru_cache(maxsize=1024)
def _splits(rows: int, tiles: int, steps: int, time: float, processors: int) -> int:
    """How many programs had best share the hidden units of a tile, a step of which takes `time`."""

    def cost(splits: int) -> float:
        waves = triton.cdiv(tiles * splits, processors)
        work = waves * (time * triton.cdiv(steps, splits) + COST["tile"])
        return work + (splits > 1) * (COST["finish"] + COST["row"] * rows * splits)

    return min(range(1, steps + 1), key=cost)


def _hopper(x: torch.Tensor, hidden: int) -> ModuleType | None:
    """The module with the kernel for Hopper, where that can do it."""
    if not is_hopper(x.device) or not GLUON:
        return None
    fits = x.shape[-1] == mlp_hopper.C.value and hidden % mlp_hopper.STEP.value == 0
    return mlp_hopper if fits else None


def mlp(x: torch.Tensor, norm: Affine, up: Affine, down: Affine, norm_out: Affine) -> torch.Tensor:
    """norm_out(x + down · gelu(up · norm(x))), accumulated and normalised in float32.

    All tensors are float16 or all are bfloat16, but norm_out may be float32, on one device,
    contiguous and, as torch allocates them, aligned; nothing is checked here. C may be from 16 to
    256, best a power of two, and H anything. The same input gives the same bits every time.

    Args:
        x: (..., C) tokens.
        norm: weight and bias (C,) of the LayerNorm before.
        up: weight (H, C) and bias (H,).
        down: weight (C, H) and bias (C,).
        norm_out: weight and bias (C,) of the closing LayerNorm.

    Returns:
        (..., C), in the dtype of norm_out.
    """
    H, C = up[0].shape
    rows = x.numel() // C
    y = torch.empty_like(x, dtype=norm_out[0].dtype)
    if not rows:
        return y
    hopper = _hopper(x, H)
    if hopper:
        options = launch("hopper_mlp", rows, x.device)
        tile, step = 2 * hopper.ROWS.value, hopper.STEP.value
    else:
        options = launch("mlp", rows, x.device)
        tile, step = options["BLOCK_ROWS"], options["STEP"]
    time = COST["hopper" if hopper else "portable"] * step / 128
    tiles, steps = triton.cdiv(rows, tile), triton.cdiv(H, step)
    processors = multiprocessors(x.device)
    splits = _splits(rows, tiles, steps, time, processors)
    apart = tiles * tile  # rows from one split's partial sums to the next's
    partial = x.new_empty(splits * apart, C) if splits > 1 else x.view(rows, C)
    block = triton.next_power_of_2(C)
    with torch.cuda.device_of(x):  # nothing for a CPU tensor, in the interpreter
        if hopper:
            x2, y2 = x.view(rows, C), y.view(rows, C)
            hopper.launch(x2, y2, partial, norm, up, down, norm_out, splits, processors, options)
        else:
            _mlp[(tiles * splits,)](
                *(x, y, partial, *norm, *up, *down, *norm_out, rows, splits, apart),
                C=C,
                H=H,
                BLOCK_C=block,
                **options,
                **overlap(x.device),
            )
        if splits > 1:
            options = launch("mlp_finish", rows, x.device)
            _finish[(triton.cdiv(rows, options["BLOCK_ROWS"]),)](
                *(x, y, partial, down[1], *norm_out, rows, splits, apart),
                C=C,
                BLOCK_C=block,
                **options,
                **overlap(x.device),
            )
    return y
