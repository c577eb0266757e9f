"""Attention of one block in two or three launches: x + out · softmax(QKᵀ/√d) V.

TracksTo4D (arXiv 2404.07097) alternates attention over the frames of each track and over the
tracks of each frame. Tokens (B, T, N, C) are addressed by stride, so both are the same kernels and
nothing is transposed in memory. Softmax is online (FlashAttention-2, arXiv 2307.08691).
"""
# mypy: allow-untyped-defs

import functools
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

TIME = 1  # the axis of (B, T, N, C) over which a track is a sequence, as in fasttracks.ops
EPS = 1e-5
# Tokens whose queries, keys and values are in memory at a time: 0.8 GB of them.
TOKENS_AT_ONCE = 1 << 17

# Launches that fit any GPU from sm_80 on (99 KB of shared memory).
NORM_PROJECT = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 2}
ATTEND = {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}
ATTEND_PROJECT = {"BLOCK": 64, "num_warps": 8, "num_stages": 1}
for launch in NORM_PROJECT, ATTEND, ATTEND_PROJECT:
    launch["enable_fp_fusion"] = True  # the default is about to change (Triton 3.10)


@triton.jit(do_not_specialize=["rows", "tracks", "stride_frame", "splits"])
def _norm_project(
    x,
    gamma,
    beta,
    weight,
    out,
    rows,
    tracks,
    stride_frame: tl.int64,
    splits,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = weight · LN(x). A program norms BLOCK_M rows for one split of the columns.

    Row r is track r % tracks of frame r // tracks; frames of x are stride_frame tokens apart.
    """
    first_row = tl.program_id(0) // splits * BLOCK_M
    columns = tl.cdiv(COLUMNS, BLOCK_N) // splits * BLOCK_N
    first_column = tl.program_id(0) % splits * columns

    row = first_row + tl.arange(0, BLOCK_M)
    token = (row // tracks) * stride_frame + row % tracks
    inside = (row < rows)[:, None]
    x += token[:, None] * WIDTH
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
):
    """out = softmax(QKᵀ·scale) V of any length, a program for BLOCK_M queries of one head.

    Arguments as `_views` makes them. `queries` and `keys` are the same memory in blocks of
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
):
    """out = x + weight · softmax(QKᵀ·scale) V, a program for `pack` sequences that fit a tile.

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


def attention(
    x: torch.Tensor,
    norm: tuple[torch.Tensor, torch.Tensor],
    qkv: torch.Tensor,
    out: torch.Tensor,
    *,
    heads: int,
    axis: int,
) -> torch.Tensor:
    """x + out · softmax(QKᵀ/√d) V with (Q, K, V) = qkv · LN(x), along one axis of x.

    All tensors are contiguous and float16, or bfloat16, on one device; nothing is checked here.

    Args:
        x: (B, T, N, C) tokens.
        norm: weight and bias of the layer norm, (C,) each.
        qkv: (3 · heads · d, C).
        out: (C, heads · d).
        heads: how many; C and the head width d are powers of two from 16 on.
        axis: 1 attends over the T frames of each track, 2 over the N tracks of each frame.

    Returns:
        A new contiguous tensor like x.
    """
    # To attention over tracks, the frames of all clips are alike.
    tokens = x if axis == TIME else x.reshape(1, -1, *x.shape[2:])
    rows, length = 3 - axis, x.shape[axis]
    y = torch.empty_like(tokens)
    if not x.numel():
        return y.view(x.shape)
    fits = length <= ATTEND_PROJECT["BLOCK"]
    mixed = tokens if fits else x.new_empty(*tokens.shape[:3], out.shape[1])
    at_once = max(1, TOKENS_AT_ONCE * tokens.shape[rows] * x.shape[3] // x.numel())
    with torch.cuda.device_of(x):  # nothing for a CPU tensor, in the interpreter
        parts = (tensor.split(at_once, rows) for tensor in (tokens, mixed, y))
        for part, mixed_part, y_part in zip(*parts, strict=True):
            projected = _project(part, norm, qkv)
            if fits:
                _mix_project(projected, part, out, y_part, heads, axis)
            else:
                _mix(projected, mixed_part, heads, axis)
    if not fits:
        torch.addmm(x.view(-1, x.shape[3]), mixed.flatten(0, 2), out.mT, out=y.flatten(0, 2))
    return y.view(x.shape)


def _project(x, norm, qkv):
    """Queries, keys and values (B, T, N, 3 · heads · d) of tokens, contiguous or some tracks."""
    columns, width = qkv.shape
    projected = x.new_empty(*x.shape[:3], columns)
    rows = x.numel() // width
    launch = {**NORM_PROJECT, "BLOCK_K": min(NORM_PROJECT["BLOCK_K"], width)}
    block_m, block_n = launch["BLOCK_M"], launch["BLOCK_N"]
    blocks = triton.cdiv(rows, block_m)
    splits = _splits(blocks, triton.cdiv(columns, block_n), _processors(x.device))
    _norm_project[(blocks * splits,)](
        x,
        *norm,
        TensorDescriptor(qkv, [columns, width], [width, 1], [block_n, width]),
        TensorDescriptor(projected, [rows, columns], [columns, 1], [block_m, block_n]),
        rows,
        x.shape[2],
        x.stride(1) // width,
        splits,
        EPS=EPS,
        WIDTH=width,
        COLUMNS=columns,
        **launch,
    )
    return projected


def _splits(blocks: int, tiles: int, processors: int) -> int:
    """Over how many programs to split the `tiles` column tiles of each block of rows.

    Of the least time, when processors take a program each and norming costs as much as 9 tiles.
    """
    return min(
        (n for n in range(1, tiles + 1) if tiles % n == 0),
        key=lambda n: -(-blocks * n // processors) * (9 + tiles // n),
    )


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _mix(projected, mixed, heads, axis):
    """Fill `mixed` (B, T, N, heads · d), contiguous or some tracks, with softmax(QKᵀ/√d) V."""
    head = mixed.shape[3] // heads
    length = mixed.shape[axis]
    queries, keys, out = (
        TensorDescriptor(tensor, *_view(tensor, axis), [1, block, head])
        for tensor, block in (
            (projected, ATTEND["BLOCK_M"]),
            (projected, ATTEND["BLOCK_N"]),
            (mixed, ATTEND["BLOCK_M"]),
        )
    )
    programs = mixed.numel() // (length * head) * triton.cdiv(length, ATTEND["BLOCK_M"])
    _attend[(programs,)](
        queries,
        keys,
        out,
        length,
        mixed.shape[2] if axis == TIME else 1,
        _scale(head),
        HEADS=heads,
        HEAD=head,
        **ATTEND,
    )


def _mix_project(projected, x, out, y, heads, axis):
    """Fill y, like x, with x + out · softmax(QKᵀ/√d) V where a sequence fits a tile."""
    width, inner = out.shape
    head = inner // heads
    length, sequences = x.shape[axis], x.shape[3 - axis]
    pack = ATTEND_PROJECT["BLOCK"] // length
    order = (0, 3 - axis, axis)
    _attend_project[(x.shape[0] * triton.cdiv(sequences, pack),)](
        projected,
        x,
        TensorDescriptor(out, [width, inner], [inner, 1], [width, head]),
        y,
        length,
        sequences,
        pack,
        _scale(head),
        *(projected.stride(dim) // (3 * inner) for dim in order),
        *(x.stride(dim) // width for dim in order),
        WIDTH=width,
        HEADS=heads,
        HEAD=head,
        **ATTEND_PROJECT,
    )


def _view(x, axis):
    """Shape and strides of (B, T, N, C) such that the second of three axes is the sequence."""
    B, T, N, C = x.shape
    if axis == TIME:
        return [B, T, N * C], [x.stride(0), x.stride(1), 1]
    return [B * T, N, C], [x.stride(1), x.stride(2), 1]


def _scale(head: int) -> float:
    return math.log2(math.e) / math.sqrt(head)
