"""The launches of attention.py in plain Triton, for any GPU from sm_80 on.

Softmax is online (FlashAttention-2, arXiv 2307.08691).
"""
# mypy: allow-untyped-defs

import math

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fasttracks.kernels.common import EPS, overlap, wait_for_previous
from fasttracks.kernels.device import multiprocessors
from fasttracks.kernels.launches import launch

TIME = 1  # the axis of (B, T, N, C) over which a track is a sequence, as in fasttracks.ops
LONGEST = 64  # sequence of which attend_project's one tile holds whole ones


@triton.jit(do_not_specialize=["rows", "splits"])
def _norm_project(
    x,
    gamma,
    beta,
    weight,
    out,
    rows,
    splits,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Weight · LN(x). A program norms BLOCK_M rows for one split of the columns."""
    first_row = tl.program_id(0) // splits * BLOCK_M
    columns = tl.cdiv(COLUMNS, BLOCK_N) // splits * BLOCK_N
    first_column = tl.program_id(0) % splits * columns

    row = first_row + tl.arange(0, BLOCK_M)
    inside = (row < rows)[:, None]
    x += row.to(tl.int64)[:, None] * WIDTH
    wait_for_previous(OVERLAP)
    # Part by part: a whole row in float32 needs too many registers.
    mean = tl.zeros([BLOCK_M], tl.float32)
    for k in tl.static_range(0, WIDTH, BLOCK_K):
        y = tl.load(x + k + tl.arange(0, BLOCK_K), mask=inside, other=0.0)
        mean += tl.sum(y.to(tl.float32), 1)
    mean = mean[:, None] / WIDTH
    square = tl.zeros([BLOCK_M], tl.float32)
    for k in tl.static_range(0, WIDTH, BLOCK_K):
        y = tl.load(x + k + tl.arange(0, BLOCK_K), mask=inside, other=0.0)
        y = y.to(tl.float32) - mean
        square += tl.sum(y * y, 1)
    scale = tl.rsqrt(square / WIDTH + EPS)[:, None]
    channel = tl.arange(0, WIDTH)
    y = tl.load(x + channel, mask=inside, other=0.0)
    y = (y.to(tl.float32) - mean) * scale * tl.load(gamma + channel).to(tl.float32)
    y = (y + tl.load(beta + channel).to(tl.float32)).to(out.dtype)

    for column in tl.range(first_column, first_column + columns, BLOCK_N):
        z = tl.dot(y, weight.load([column, 0]).T)
        out.store([first_row, column], z.to(out.dtype))


@triton.jit
def _softmax_step(s, v, m, total, acc, scale):
    """Online softmax: add the values v (keys, HEAD) under the scores s (queries, keys)."""
    new = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - new[:, None])
    alpha = tl.exp2(m - new)
    total = total * alpha + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
    return new, total, acc


@triton.jit(do_not_specialize=["length", "sequences", "scale"])
def _attend(
    queries,
    keys,
    out,
    length,
    sequences,
    scale,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The heads' softmax(QKᵀ·scale) V of any length, a program for BLOCK_M queries of one head.

    Tensors are as `view` shows them. `queries` and `keys` are the same memory in blocks of
    BLOCK_M and BLOCK_N; log2(e) is in `scale`.
    """
    blocks = tl.cdiv(length, BLOCK_M)
    start = tl.program_id(0) % blocks * BLOCK_M
    program = tl.program_id(0) // blocks
    sequence = program // HEADS
    outer = sequence // sequences
    inner = sequence % sequences
    head = program % HEADS * HEAD
    k_column = (3 * inner + 1) * (HEADS * HEAD) + head
    v_column = (3 * inner + 2) * (HEADS * HEAD) + head

    wait_for_previous(OVERLAP)
    q = queries.load([outer, start, 3 * inner * (HEADS * HEAD) + head]).reshape(BLOCK_M, HEAD)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD], tl.float32)
    whole = length // BLOCK_N * BLOCK_N
    for j in tl.range(0, whole, BLOCK_N):
        k = keys.load([outer, j, k_column]).reshape(BLOCK_N, HEAD)
        v = keys.load([outer, j, v_column]).reshape(BLOCK_N, HEAD)
        m, total, acc = _softmax_step(tl.dot(q, k.T), v, m, total, acc, scale)
    if whole < length:
        k = keys.load([outer, whole, k_column]).reshape(BLOCK_N, HEAD)
        v = keys.load([outer, whole, v_column]).reshape(BLOCK_N, HEAD)
        s = tl.dot(q, k.T)
        s = tl.where(whole + tl.arange(0, BLOCK_N) < length, s, float("-inf"))
        m, total, acc = _softmax_step(s, v, m, total, acc, scale)
    y = (acc / total[:, None]).to(q.dtype).reshape(1, BLOCK_M, HEAD)
    out.store([outer, start, inner * (HEADS * HEAD) + head], y)


@triton.jit(
    do_not_specialize=["length", "sequences", "pack", "scale"]
    + [f"{tensor}_{step}" for tensor in ("qkv", "x") for step in ("outer", "sequence", "token")]
)
def _attend_project(
    qkv,
    x,
    weight,
    out,
    length,
    sequences,
    pack,
    scale,
    qkv_outer: tl.int64,
    qkv_sequence: tl.int64,
    qkv_token: tl.int64,
    x_outer: tl.int64,
    x_sequence: tl.int64,
    x_token: tl.int64,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Sum of x and weight · softmax(QKᵀ·scale) V, a program for `pack` sequences in one tile.

    Strides are in tokens; `out` has those of x.
    """
    groups = tl.cdiv(sequences, pack)
    outer = (tl.program_id(0) // groups).to(tl.int64)
    row = tl.arange(0, BLOCK)
    step = row // pack
    which = row % pack
    sequence = tl.program_id(0) % groups * pack + which
    inside = ((step < length) & (sequence < sequences))[:, None]
    seen = (step < length)[None, :] & (which[:, None] == which[None, :])

    token = outer * qkv_outer + sequence * qkv_sequence + step * qkv_token
    qkv += token[:, None] * (3 * HEADS * HEAD) + tl.arange(0, HEAD)
    acc = tl.zeros([BLOCK, WIDTH], tl.float32)
    wait_for_previous(OVERLAP)
    for head in tl.range(HEADS):
        q = tl.load(qkv + head * HEAD, mask=inside, other=0.0)
        k = tl.load(qkv + (HEADS + head) * HEAD, mask=inside, other=0.0)
        v = tl.load(qkv + (2 * HEADS + head) * HEAD, mask=inside, other=0.0)
        w = weight.load([0, head * HEAD])
        s = tl.where(seen, tl.dot(q, k.T), float("-inf"))
        p = tl.exp2((s - tl.max(s, 1)[:, None]) * scale)
        y = tl.dot(p.to(v.dtype), v) / tl.sum(p, 1)[:, None]
        acc = tl.dot(y.to(v.dtype), w.T, acc)

    token = outer * x_outer + sequence * x_sequence + step * x_token
    offset = token[:, None] * WIDTH + tl.arange(0, WIDTH)
    y = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) + acc
    tl.store(out + offset, y.to(weight.dtype), mask=inside)


@triton.jit
def _project(
    x,
    weight,
    residual,
    out,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Sum of residual and weight · x, a program for BLOCK_M rows and BLOCK_N columns."""
    blocks = tl.cdiv(WIDTH, BLOCK_N)
    row = tl.program_id(0) // blocks * BLOCK_M
    column = tl.program_id(0) % blocks * BLOCK_N
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    wait_for_previous(OVERLAP)
    for k in tl.range(0, INNER, BLOCK_K):
        acc = tl.dot(x.load([row, k]), weight.load([column, k]).T, acc)
    acc += residual.load([row, column]).to(tl.float32)
    out.store([row, column], acc.to(out.dtype))


def norm_project(x, norm, weight, out, heads):
    """Fill out (rows, 3 · heads · d) with weight · LN(x (rows, C))."""
    rows, width = x.shape
    columns = out.shape[1]
    options = launch("norm_project", rows, x.device)
    options = {**options, "BLOCK_K": min(options["BLOCK_K"], width)}
    block_m, block_n = options["BLOCK_M"], options["BLOCK_N"]
    blocks = triton.cdiv(rows, block_m)
    splits = splits_of(blocks, triton.cdiv(columns, block_n), multiprocessors(x.device))
    _norm_project[(blocks * splits,)](
        x,
        *norm,
        _describe(weight, [block_n, width]),
        _describe(out, [block_m, block_n]),
        rows,
        splits,
        WIDTH=width,
        COLUMNS=columns,
        **options,
        **overlap(x.device),
    )


def splits_of(blocks: int, tiles: int, processors: int) -> int:
    """Over how many programs to split the `tiles` column tiles of each block of rows.

    Of the least time, when processors take a program each and a program costs its tiles (of 64
    columns, 0.5 µs each on an H100) and 18 more for its start, norm and end.
    """
    return min(
        (n for n in range(1, tiles + 1) if tiles % n == 0),
        key=lambda n: -(-blocks * n // processors) * (18 + tiles // n),
    )


def attend(projected, mixed, heads, axis):
    """Fill `mixed` (B, T, N, heads · d), contiguous or some tracks, with softmax(QKᵀ/√d) V."""
    head = mixed.shape[3] // heads
    length = mixed.shape[axis]
    options = launch("attend", mixed.numel() // mixed.shape[3], mixed.device)
    queries, keys, out = (
        TensorDescriptor(tensor, *view(tensor, axis), [1, block, head])
        for tensor, block in (
            (projected, options["BLOCK_M"]),
            (projected, options["BLOCK_N"]),
            (mixed, options["BLOCK_M"]),
        )
    )
    programs = mixed.numel() // (length * head) * triton.cdiv(length, options["BLOCK_M"])
    _attend[(programs,)](
        queries,
        keys,
        out,
        length,
        mixed.shape[2] if axis == TIME else 1,
        softmax_scale(head),
        HEADS=heads,
        HEAD=head,
        **options,
        **overlap(projected.device),
    )


def attend_project(projected, x, out, y, heads, axis):
    """Fill y, of the strides of x, with x + out · softmax(QKᵀ/√d) V of at most LONGEST tokens."""
    width, inner = out.shape
    head = inner // heads
    length, sequences = x.shape[axis], x.shape[3 - axis]
    pack = LONGEST // length
    programs = x.shape[0] * triton.cdiv(sequences, pack)
    options = launch("attend_project", x.numel() // width, x.device)
    order = (0, 3 - axis, axis)
    _attend_project[(programs,)](
        projected,
        x,
        _describe(out, [width, head]),
        y,
        length,
        sequences,
        pack,
        softmax_scale(head),
        *(projected.stride(dim) // (3 * inner) for dim in order),
        *(x.stride(dim) // width for dim in order),
        WIDTH=width,
        HEADS=heads,
        HEAD=head,
        BLOCK=LONGEST,
        **options,
        **overlap(x.device),
    )


def project(x, residual, out, weight):
    """Fill out (rows, C) with residual + weight · x (rows, inner)."""
    rows, inner = x.shape
    width = weight.shape[0]
    options = launch("project", rows, x.device)
    block_m, block_n, block_k = (options[f"BLOCK_{side}"] for side in "MNK")
    _project[(triton.cdiv(rows, block_m) * triton.cdiv(width, block_n),)](
        _describe(x, [block_m, block_k]),
        _describe(weight, [block_n, block_k]),
        _describe(residual, [block_m, block_n]),
        _describe(out, [block_m, block_n]),
        INNER=inner,
        WIDTH=width,
        **options,
        **overlap(x.device),
    )


def _describe(matrix, block):
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), block)


def view(x, axis):
    """Shape and strides of (B, T, N, C) such that the second of three axes is the sequence."""
    B, T, N, C = x.shape
    if axis == TIME:
        return [B, T, N * C], [x.stride(0), x.stride(1), 1]
    return [B * T, N, C], [x.stride(1), x.stride(2), 1]


def softmax_scale(head: int) -> float:
    return math.log2(math.e) / math.sqrt(head)
