"""What surrounds TAPNext's matrix products, fused; `fasttracks.trackers.tapnext` has it in torch.

Their signatures are those of `network.Operations`. All sums are in float32; tensors that
`network.Network.step` passes are contiguous, and nothing is checked here.
"""
# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl

from fasttracks.kernels.common import gelu, overlap, wait_for_previous
from fasttracks.kernels.launches import launch


@triton.jit
def _gelu_tanh(x):
    """GELU by its tanh approximation: x · σ(√(8/π) (x + 0.044715 x³))."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit(do_not_specialize=("rows", "eps"))
def _add_norm(
    x,
    delta,
    bias,
    weight,
    shift,
    out,
    rows,
    eps: tl.float32,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ADD: tl.constexpr,
    LAYER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Add delta + bias to x (rows, C) float32, in place; out is its norm, a LayerNorm or RMS."""
    wait_for_previous(OVERLAP)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    channel = tl.arange(0, BLOCK_WIDTH)
    inside = channel < WIDTH
    offset = row.to(tl.int64) * WIDTH + channel[None, :]
    mask = (row < rows) & inside[None, :]
    y = tl.load(x + offset, mask=mask, other=0.0)
    if ADD:
        y += tl.load(delta + offset, mask=mask, other=0.0).to(tl.float32)
        y += tl.load(bias + channel, mask=inside, other=0.0)[None, :]
        tl.store(x + offset, y, mask=mask)
    w = tl.load(weight + channel, mask=inside, other=0.0)[None, :]
    if LAYER:
        y = tl.where(inside[None, :], y - tl.sum(y, 1, keep_dims=True) * (1.0 / WIDTH), 0.0)
    else:
        w += 1
    y *= tl.rsqrt(tl.sum(y * y, 1, keep_dims=True) * (1.0 / WIDTH) + eps) * w
    if LAYER:
        y += tl.load(shift + channel, mask=inside, other=0.0)[None, :]
    tl.store(out + offset, y.to(out.dtype.element_ty), mask=mask)


def add_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `network.add_norm`; `x` is changed in place and returned."""
    out = torch.empty_like(x, dtype=dtype)
    width = x.shape[-1]
    rows = x.numel() // width
    options = launch("tapnext_add_norm", rows, x.device)
    with torch.cuda.device_of(x):  # nothing for a CPU tensor, in the interpreter
        _add_norm[(triton.cdiv(rows, options["BLOCK_ROWS"]),)](
            x,
            delta if delta is not None else x,
            bias if bias is not None else weight,
            weight,
            shift if shift is not None else weight,
            out,
            rows,
            eps,
            WIDTH=width,
            BLOCK_WIDTH=triton.next_power_of_2(width),
            ADD=delta is not None,
            LAYER=shift is not None,
            **options,
            **overlap(x.device),
        )
    return x, out


@triton.jit(do_not_specialize=("rows",))
def _recur(
    branches,
    bias,
    taps_weight,
    taps_bias,
    gates_weight,
    gates_bias,
    rate,
    hidden,
    taps,
    frame,
    out,
    rows,
    WIDTH: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One block of channels of some tokens: convolution, gates, RG-LRU, and the branches' gate."""
    wait_for_previous(OVERLAP)
    groups: tl.constexpr = WIDTH // HEAD
    group = tl.program_id(0) % groups
    row = (tl.program_id(0) // groups * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]).to(tl.int64)
    mask = row < rows
    inner = tl.arange(0, HEAD)
    c = group * HEAD + inner

    # The window as one tensor (rows, 4, HEAD), whose sum is made once; as a sum of four tensors
    # the compiler makes it in each layout that it is needed in.
    k = tl.arange(0, 4)[None, :, None]
    rows3, c3, mask3 = row[:, :, None], c[None, None, :], mask[:, :, None]
    place = taps + (rows3 * 3 + k) * WIDTH + c3
    window = tl.load(place, mask=mask3 & (k < 3), other=0.0)
    new = branches + rows3 * (2 * WIDTH) + WIDTH + c3 + 0 * k
    new = tl.load(new, mask=mask3 & (k == 3), other=0.0).to(tl.float32) + tl.load(bias + WIDTH + c3)
    window = tl.where(k == 3, new.to(taps.dtype.element_ty), window)
    offset = row * WIDTH + c[None, :]
    h = tl.load(hidden + offset, mask=mask, other=0.0)
    gate = tl.load(branches + row * (2 * WIDTH) + c[None, :], mask=mask, other=0.0)
    tl.debug_barrier()  # all has been read that is now overwritten
    tl.store(place - WIDTH, window, mask=mask3 & (k > 0))
    mixed = tl.sum(window.to(tl.float32) * tl.load(taps_weight + k * WIDTH + c3), 1)
    mixed += tl.load(taps_bias + c)[None, :]

    operand = mixed.to(gates_weight.dtype.element_ty)
    square = group * HEAD * HEAD + inner[:, None] * HEAD + inner[None, :]
    opens = tl.dot(operand, tl.load(gates_weight + square), input_precision=PRECISION)
    opens = tl.sigmoid(opens + tl.load(gates_bias + c)[None, :])
    keeps = tl.load(gates_weight + WIDTH * HEAD + square)
    keeps = tl.dot(operand, keeps, input_precision=PRECISION)
    keeps = tl.sigmoid(keeps + tl.load(gates_bias + WIDTH + c)[None, :])

    log_a = -tl.load(rate + c)[None, :] * keeps
    # 1 - a², by its series where a is near 1.
    z = 2 * log_a
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6))))
    rest = tl.where(z > -0.25, -z * series, 1 - tl.exp(z))
    scale = tl.where(tl.load(frame) == 0, 1.0, tl.sqrt(rest))
    h = tl.exp(log_a) * h + scale * opens * mixed
    tl.store(hidden + offset, h, mask=mask)
    gate = _gelu_tanh(gate.to(tl.float32) + tl.load(bias + c)[None, :])
    tl.store(out + offset, (h * gate).to(out.dtype.element_ty), mask=mask)


def recur(
    branches: torch.Tensor,
    bias: torch.Tensor,
    taps_weight: torch.Tensor,
    taps_bias: torch.Tensor,
    gates_weight: torch.Tensor,
    gates_bias: torch.Tensor,
    rate: torch.Tensor,
    hidden: torch.Tensor,
    taps: torch.Tensor,
    frame: torch.Tensor,
) -> torch.Tensor:
    """See `network.recur`."""
    out = torch.empty_like(hidden, dtype=branches.dtype)
    width, head = hidden.shape[-1], gates_weight.shape[-1]
    rows = hidden.numel() // width
    options = launch("tapnext_recur", rows, hidden.device)
    grid = triton.cdiv(rows, options["BLOCK_ROWS"]) * (width // head)
    with torch.cuda.device_of(hidden):
        _recur[(grid,)](
            branches,
            bias,
            taps_weight,
            taps_bias,
            gates_weight,
            gates_bias,
            rate,
            hidden,
            taps,
            frame,
            out,
            rows,
            WIDTH=width,
            HEAD=head,
            PRECISION=_precision(gates_weight),
            **options,
            **overlap(hidden.device),
        )
    return out


@triton.jit
def _activate(
    x,
    bias,
    out,
    INNER: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A part of a row: GELU of x + bias, or of its first half times its second."""
    wait_for_previous(OVERLAP)
    blocks: tl.constexpr = (INNER + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = c < INNER
    width: tl.constexpr = 2 * INNER if GATED else INNER
    y = tl.load(x + row * width + c, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias + c, mask=mask, other=0.0)
    if GATED:
        value = tl.load(x + row * width + INNER + c, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(bias + INNER + c, mask=mask, other=0.0)
        y = _gelu_tanh(y) * value
    else:
        y = gelu(y)
    tl.store(out + row * INNER + c, y.to(out.dtype.element_ty), mask=mask)


def activate(x: torch.Tensor, bias: torch.Tensor, *, gated: bool) -> torch.Tensor:
    """See `network.activate`; if not gated `x` is overwritten and returned."""
    width = x.shape[-1]
    inner = width // 2 if gated else width
    out = x.new_empty(*x.shape[:-1], inner) if gated else x
    rows = x.numel() // width
    options = launch("tapnext_activate", rows, x.device)
    with torch.cuda.device_of(x):
        _activate[(rows * triton.cdiv(inner, options["BLOCK"]),)](
            x, bias, out, INNER=inner, GATED=gated, **options, **overlap(x.device)
        )
    return out


@triton.jit
def _hidden_norm(y, weight, bias, c, mean, scale):
    """Norm, given its statistics, and GELU of some columns `c` of a head's layer."""
    y = (y - mean) * scale * tl.load(weight + c)[None, :] + tl.load(bias + c)[None, :]
    return gelu(y)


@triton.jit
def _first_layer(
    x, row, rows, weight, bias, norm_weight, norm_bias, eps,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """GELU of the norm of a head's first linear layer, (BLOCK_ROWS, HIDDEN)."""
    c = tl.arange(0, HIDDEN)
    y = tl.zeros((BLOCK_ROWS, HIDDEN), tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        part = tl.load(x + row * WIDTH + k[None, :], mask=row < rows, other=0.0)
        w = tl.load(weight + c[None, :] * WIDTH + k[:, None])
        y = tl.dot(part, w, y, input_precision=PRECISION)
    y += tl.load(bias + c)[None, :]
    mean = tl.sum(y, 1, keep_dims=True) * (1.0 / HIDDEN)
    variance = tl.sum((y - mean) * (y - mean), 1, keep_dims=True) * (1.0 / HIDDEN)
    return _hidden_norm(y, norm_weight, norm_bias, c, mean, tl.rsqrt(variance + eps))


@triton.jit
def _second_layer(h, weight, bias, c, HIDDEN: tl.constexpr, PRECISION: tl.constexpr):
    """Some columns `c` of a head's second linear layer on h (BLOCK_ROWS, HIDDEN)."""
    k = tl.arange(0, HIDDEN)
    w = tl.load(weight + c[None, :] * HIDDEN + k[:, None])
    return tl.dot(h, w, input_precision=PRECISION) + tl.load(bias + c)[None, :]


@triton.jit
def _second_norm(
    h, weight, bias, eps,
    HIDDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Mean and scale of the norm after the second linear layer.

    The layer is computed once for this and again for what follows, so that no more than a part
    of it is ever there. Statistics of parts are merged as Chan, Golub and LeVeque do.
    """
    mean = tl.zeros((BLOCK_ROWS, 1), tl.float32)
    squares = tl.zeros((BLOCK_ROWS, 1), tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        y = _second_layer(h, weight, bias, start + tl.arange(0, BLOCK_K), HIDDEN, PRECISION)
        part = tl.sum(y, 1, keep_dims=True) * (1.0 / BLOCK_K)
        step = part - mean
        squares += tl.sum((y - part) * (y - part), 1, keep_dims=True)
        squares += step * step * (start * BLOCK_K / (start + BLOCK_K))
        mean += step * (BLOCK_K / (start + BLOCK_K))
    return mean, tl.rsqrt(squares * (1.0 / HIDDEN) + eps)


@triton.jit
def _soft_argmax(bins, SPACE: tl.constexpr, REACH: tl.constexpr):
    """Position (rows, 1) along an axis from logits (rows, SPACE), and their softmax."""
    bin = tl.arange(0, SPACE)[None, :]
    most = tl.max(bins, 1, keep_dims=True)
    best = tl.argmax(bins, 1, keep_dims=True)
    near = (bin - best >= -REACH) & (bin - best <= REACH)
    share = tl.where(near, tl.exp(0.5 * (bins - most)), 0.0)
    position = tl.sum(share * bin, 1, keep_dims=True) / tl.sum(share, 1, keep_dims=True) + 0.5
    chance = tl.exp(bins - most)
    return position, chance / tl.sum(chance, 1, keep_dims=True)


@triton.jit(do_not_specialize=("rows", "eps"))
def _heads(
    x,
    first,
    first_bias,
    first_norm,
    first_norm_bias,
    second,
    second_bias,
    second_norm,
    second_norm_bias,
    coordinates,
    coordinates_bias,
    visible,
    visible_bias,
    out,
    rows,
    eps: tl.float32,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    SPACE: tl.constexpr,
    REACH: tl.constexpr,
    RADIUS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Both heads on some tokens: y, x, visibility's logit and certainty."""
    wait_for_previous(OVERLAP)
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]).to(tl.int64)
    mask = row < rows
    dtype = coordinates.dtype.element_ty

    # The coordinate head comes first, the visibility head after it.
    h = _first_layer(
        x, row, rows, first, first_bias, first_norm, first_norm_bias, eps,
        WIDTH, HIDDEN, BLOCK_ROWS, BLOCK_K, PRECISION,
    ).to(dtype)  # fmt: skip
    mean, scale = _second_norm(h, second, second_bias, eps, HIDDEN, BLOCK_ROWS, BLOCK_K, PRECISION)
    bin = tl.arange(0, SPACE)
    bins_y = tl.zeros((BLOCK_ROWS, SPACE), tl.float32)
    bins_x = tl.zeros((BLOCK_ROWS, SPACE), tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        z = _second_layer(h, second, second_bias, c, HIDDEN, PRECISION)
        z = _hidden_norm(z, second_norm, second_norm_bias, c, mean, scale).to(dtype)
        w = tl.load(coordinates + bin[None, :] * HIDDEN + c[:, None])
        bins_y = tl.dot(z, w, bins_y, input_precision=PRECISION)
        w = tl.load(coordinates + (SPACE + bin[None, :]) * HIDDEN + c[:, None])
        bins_x = tl.dot(z, w, bins_x, input_precision=PRECISION)
    bins_y += tl.load(coordinates_bias + bin)[None, :]
    bins_x += tl.load(coordinates_bias + SPACE + bin)[None, :]
    y, chance_y = _soft_argmax(bins_y, SPACE, REACH)
    x_position, chance_x = _soft_argmax(bins_x, SPACE, REACH)
    place = out + row * 4
    tl.store(place, y, mask=mask)
    tl.store(place + 1, x_position, mask=mask)

    # The chance of being within the disc, row of bins by row of bins.
    near_x = bin[None, :] + 0.5 - x_position
    near_x *= near_x
    low = tl.floor(y - RADIUS - 0.5)
    certainty = tl.zeros((BLOCK_ROWS, 1), tl.float32)
    for k in range(2 * RADIUS + 1):
        near_y = low + k + 0.5 - y
        chord = tl.where(near_x <= RADIUS * RADIUS + 1e-8 - near_y * near_y, chance_x, 0.0)
        line = tl.where(bin[None, :] == low + k, chance_y, 0.0)
        certainty += tl.sum(line, 1, keep_dims=True) * tl.sum(chord, 1, keep_dims=True)
    tl.store(place + 3, certainty, mask=mask)

    first += HIDDEN * WIDTH
    first_bias += HIDDEN
    first_norm += HIDDEN
    first_norm_bias += HIDDEN
    second += HIDDEN * HIDDEN
    second_bias += HIDDEN
    second_norm += HIDDEN
    second_norm_bias += HIDDEN
    h = _first_layer(
        x, row, rows, first, first_bias, first_norm, first_norm_bias, eps,
        WIDTH, HIDDEN, BLOCK_ROWS, BLOCK_K, PRECISION,
    ).to(dtype)  # fmt: skip
    mean, scale = _second_norm(h, second, second_bias, eps, HIDDEN, BLOCK_ROWS, BLOCK_K, PRECISION)
    logit = tl.zeros((BLOCK_ROWS, 1), tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        z = _second_layer(h, second, second_bias, c, HIDDEN, PRECISION)
        z = _hidden_norm(z, second_norm, second_norm_bias, c, mean, scale)
        logit += tl.sum(z * tl.load(visible + c)[None, :], 1, keep_dims=True)
    tl.store(place + 2, logit + tl.load(visible_bias), mask=mask)


def heads(x: torch.Tensor, weights: Any) -> torch.Tensor:
    """See `network.heads`."""
    w = weights
    rows = x.numel() // x.shape[-1]
    out = x.new_empty(*x.shape[:-1], 4, dtype=torch.float32)
    layers = (w.first, w.first_norm, w.second, w.second_norm, w.coordinates, w.visible)
    options = launch("tapnext_heads", rows, x.device)
    with torch.cuda.device_of(x):
        _heads[(triton.cdiv(rows, options["BLOCK_ROWS"]),)](
            x,
            *(tensor for layer in layers for tensor in (layer.weight, layer.bias)),
            out,
            rows,
            1e-5,
            WIDTH=x.shape[-1],
            HIDDEN=w.visible.weight.numel(),
            SPACE=w.coordinates.bias.numel() // 2,
            REACH=w.reach,
            RADIUS=int(w.radius),
            PRECISION=_precision(w.first.weight),
            **options,
            **overlap(x.device),
        )
    return out


def _precision(weight: torch.Tensor) -> str:
    """How products of float32 are made; half precision has but one way."""
    return "ieee" if weight.dtype == torch.float32 else "tf32"
