"""LN + QKV and softmax(QKᵀ)V of attention.py for Hopper (sm_90), in Gluon, from Triton 3.6 on.

A program is one warp that copies tiles into shared memory and two groups of four warps that use
them, each for its own rows, so that norms, exponentials and stores of the one hide behind the
matrix products of the other, and behind its own (FlashAttention-3, arXiv 2407.08608).
"""
# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

_copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # before 3.9
_copy_out = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

GROUPS = gl.constexpr(2)  # of four warps that compute


def describe(tensor, shape, strides, block):
    """What the kernels need to copy blocks of a float16 or bfloat16 tensor."""
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    return TensorDescriptor(tensor, shape, strides, block, layout)


@gluon.jit
def _barriers(n: gl.constexpr, count: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [n, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(n):
        mbarrier.init(barriers.index(i), count=count)
    return barriers


@gluon.jit
def _fetch(tensor, place, buffer, full):
    mbarrier.expect(full, tensor.block_type.nbytes)
    _copy_in(tensor, place, full, buffer)


@gluon.jit
def _norm(x, gamma, beta, row, inside, WIDTH: gl.constexpr, BLOCK_K: gl.constexpr, EPS: gl.constexpr):
    """LN(x) of some rows, as a tuple of BLOCK_K channels each: fewer registers than all at once."""
    rows: gl.constexpr = row.type.layout
    channel = gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, rows.parent))
    x += row[:, None] * WIDTH + channel[None, :]
    parts = ()
    for k in gl.static_range(0, WIDTH, BLOCK_K):
        parts = parts + (gl.load(x + k, mask=inside[:, None], other=0.0),)
    mean = gl.zeros([row.shape[0]], gl.float32, rows)
    for i in gl.static_range(WIDTH // BLOCK_K):
        mean += gl.sum(parts[i].to(gl.float32), 1)
    mean = mean / WIDTH
    square = gl.zeros([row.shape[0]], gl.float32, rows)
    for i in gl.static_range(WIDTH // BLOCK_K):
        y = parts[i].to(gl.float32) - mean[:, None]
        square += gl.sum(y * y, 1)
    scale = gl.rsqrt(square / WIDTH + EPS)
    normed = ()
    for i in gl.static_range(WIDTH // BLOCK_K):
        y = (parts[i].to(gl.float32) - mean[:, None]) * scale[:, None]
        y = y * gl.load(gamma + i * BLOCK_K + channel).to(gl.float32)[None, :]
        y += gl.load(beta + i * BLOCK_K + channel).to(gl.float32)[None, :]
        normed = normed + (y.to(x.dtype.element_ty),)
    return normed


@gluon.jit
def _project_load(weight, weights, columns: gl.constexpr):
    w, full, free, first_column = weights
    STAGES: gl.constexpr = w.shape[0]
    for i in range(columns // w.shape[1]):
        stage = i % STAGES
        mbarrier.wait(free.index(stage), (i // STAGES & 1) ^ 1)
        _fetch(weight, [first_column + i * w.shape[1], 0], w.index(stage), full.index(stage))


@gluon.jit
def _project_rows(
    source, weights, out, y, first_row,
    columns: gl.constexpr, GROUP: gl.constexpr, BLOCK_K: gl.constexpr, EPS: gl.constexpr,
):
    x, gamma, beta, rows, tracks, stride_frame = source
    w, full, free, first_column = weights
    STAGES: gl.constexpr = w.shape[0]
    BLOCK_N: gl.constexpr = w.shape[1]
    WIDTH: gl.constexpr = w.shape[2]
    BLOCK_M: gl.constexpr = y.shape[1]
    product: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, product, 2)

    first_row += GROUP * BLOCK_M
    row = first_row + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, left))
    token = (row // tracks) * stride_frame + row % tracks
    normed = _norm(x, gamma, beta, token, row < rows, WIDTH, BLOCK_K, EPS)
    for i in range(columns // BLOCK_N):
        stage = i % STAGES
        mbarrier.wait(full.index(stage), i // STAGES & 1)
        z = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, product)
        for k in gl.static_range(WIDTH // BLOCK_K):
            part = w.index(stage).slice(k * BLOCK_K, BLOCK_K, 1).permute([1, 0])
            z = warpgroup_mma(normed[k], part, z, use_acc=k > 0, is_async=True)
        z = warpgroup_mma_wait(0, deps=[z])
        mbarrier.arrive(free.index(stage))
        # Two buffers to store from: the one of the step before the last is free again.
        buffer = y.index(2 * GROUP + i % 2)
        tma.store_wait(1)
        buffer.store(z.to(y.dtype))
        fence_async_shared()
        _copy_out(out, [first_row, first_column + i * BLOCK_N], buffer)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["rows", "tracks", "stride_frame"])
def norm_project(
    x, gamma, beta, weight, out, rows, tracks, stride_frame: gl.int64,
    EPS: gl.constexpr, SPLITS: gl.constexpr, COLUMNS: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):
    """out = weight · LN(x): GROUPS blocks of rows, COLUMNS / SPLITS columns in a program."""
    first_row = gl.program_id(0) // SPLITS * (GROUPS * out.block_shape[0])
    columns: gl.constexpr = COLUMNS // SPLITS
    first_column = gl.program_id(0) % SPLITS * columns
    w = gl.allocate_shared_memory(weight.dtype, [STAGES] + weight.block_shape, weight.layout)
    y = gl.allocate_shared_memory(out.dtype, [2 * GROUPS] + out.block_shape, out.layout)
    full = _barriers(STAGES, 1)
    free = _barriers(STAGES, GROUPS)
    source = (x, gamma, beta, rows, tracks, stride_frame)
    weights = (w, full, free, first_column)
    gl.warp_specialize(
        [
            (_project_rows, (source, weights, out, y, first_row, columns, 0, BLOCK_K, EPS)),
            (_project_rows, (source, weights, out, y, first_row, columns, 1, BLOCK_K, EPS)),
            (_project_load, (weight, weights, columns)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@gluon.jit
def _unit(index, length, sequences, rows: gl.constexpr, HEADS: gl.constexpr):
    """Of the index-th piece of work: outer and inner part of its sequence, head and first query."""
    blocks = gl.cdiv(length, rows)
    start = index % blocks * rows
    index = index // blocks
    sequence = index // HEADS
    return sequence // sequences, sequence % sequences, index % HEADS, start


@gluon.jit
def _attend_load(queries, keys, shared, work, HEADS: gl.constexpr):
    q, k, v, q_full, q_free, k_full, k_free, v_full, v_free = shared
    units, length, sequences = work
    GROUPS: gl.constexpr = q.shape[0]
    BLOCK_M: gl.constexpr = q.shape[2]
    STAGES: gl.constexpr = k.shape[0]
    BLOCK_N: gl.constexpr = k.shape[2]
    INNER: gl.constexpr = HEADS * k.shape[3]
    tiles = gl.cdiv(length, BLOCK_N)
    turn = 0
    step = 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        outer, inner, head, start = _unit(unit, length, sequences, GROUPS * BLOCK_M, HEADS)
        column = inner * (3 * INNER) + head * k.shape[3]
        for group in gl.static_range(GROUPS):
            mbarrier.wait(q_free.index(group), (turn & 1) ^ 1)
            place = [outer, start + group * BLOCK_M, column]
            _fetch(queries, place, q.index(group), q_full.index(group))
        turn += 1
        for i in range(tiles):
            stage = step % STAGES
            used = (step // STAGES & 1) ^ 1
            row = (tiles - 1 - i) * BLOCK_N
            mbarrier.wait(k_free.index(stage), used)
            _fetch(keys, [outer, row, column + INNER], k.index(stage), k_full.index(stage))
            mbarrier.wait(v_free.index(stage), used)
            _fetch(keys, [outer, row, column + 2 * INNER], v.index(stage), v_full.index(stage))
            step += 1


@gluon.jit
def _row_sums(p):
    """Sums over each thread's own columns, whose sum over threads waits until the end."""
    return gl.sum(p.reshape([p.shape[0], p.shape[1] // 8, 8]), 1)


@gluon.jit
def _attend_rows(out, y, shared, work, scale, GROUP: gl.constexpr, HEADS: gl.constexpr):
    q, k, v, q_full, q_free, k_full, k_free, v_full, v_free = shared
    units, length, sequences = work
    GROUPS: gl.constexpr = q.shape[0]
    BLOCK_M: gl.constexpr = q.shape[2]
    STAGES: gl.constexpr = k.shape[0]
    BLOCK_N: gl.constexpr = k.shape[2]
    HEAD: gl.constexpr = k.shape[3]
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD, 16])
    row: gl.constexpr = gl.SliceLayout(1, sums)
    left: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    q_tile = q.index(GROUP).reshape([BLOCK_M, HEAD])
    zero = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, scores)
    tiles = gl.cdiv(length, BLOCK_N)
    # Keys come last tile first, so that only a unit's first step needs a mask.
    key = (tiles - 1) * BLOCK_N + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, scores))
    turn = 0
    step = 0
    for unit in range(gl.program_id(0), units, gl.num_programs(0)):
        stage = step % STAGES
        phase = step // STAGES & 1
        mbarrier.wait(q_full.index(GROUP), turn & 1)
        mbarrier.wait(k_full.index(stage), phase)
        k_tile = k.index(stage).reshape([BLOCK_N, HEAD]).permute([1, 0])
        s = warpgroup_mma(q_tile, k_tile, zero, use_acc=False)
        mbarrier.arrive(k_free.index(stage))
        s = gl.where((key < length)[None, :], s, float("-inf"))
        m = gl.max(s, 1) * scale
        p = gl.exp2(s * scale - m[:, None])
        total = _row_sums(p)
        weights = gl.convert_layout(p.to(q.dtype), left)
        acc = gl.zeros([BLOCK_M, HEAD], gl.float32, sums)
        for _ in range(1, tiles):
            # The next scores and this step's weighted sum run together, and the softmax of the
            # former beside the latter.
            step += 1
            next_stage = step % STAGES
            next_phase = step // STAGES & 1
            mbarrier.wait(k_full.index(next_stage), next_phase)
            k_tile = k.index(next_stage).reshape([BLOCK_N, HEAD]).permute([1, 0])
            s = warpgroup_mma(q_tile, k_tile, zero, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(stage), phase)
            v_tile = v.index(stage).reshape([BLOCK_N, HEAD])
            acc = warpgroup_mma(weights, v_tile, acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=[s])
            mbarrier.arrive(k_free.index(next_stage))
            new = gl.maximum(m, gl.max(s, 1) * scale)
            p = gl.exp2(s * scale - new[:, None])
            alpha = gl.exp2(m - new)
            m = new
            total = total * gl.convert_layout(alpha, gl.SliceLayout(1, total.type.layout))[:, None]
            total += _row_sums(p)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(v_free.index(stage))
            acc = acc * gl.convert_layout(alpha, row)[:, None]
            weights = gl.convert_layout(p.to(q.dtype), left)
            stage = next_stage
            phase = next_phase
        mbarrier.arrive(q_free.index(GROUP))
        mbarrier.wait(v_full.index(stage), phase)
        acc = warpgroup_mma(weights, v.index(stage).reshape([BLOCK_N, HEAD]), acc)
        mbarrier.arrive(v_free.index(stage))
        step += 1
        turn += 1

        acc = acc / gl.convert_layout(gl.sum(total, 1), row)[:, None]
        tma.store_wait(0)
        y.index(GROUP).reshape([BLOCK_M, HEAD]).store(acc.to(y.dtype))
        fence_async_shared()
        outer, inner, head, start = _unit(unit, length, sequences, GROUPS * BLOCK_M, HEADS)
        column = (inner * HEADS + head) * HEAD
        _copy_out(out, [outer, start + GROUP * BLOCK_M, column], y.index(GROUP))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["units", "length", "sequences", "scale"])
def attend(
    queries, keys, out, units, length, sequences, scale,
    HEADS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):
    """softmax(QKᵀ·scale) V of any length: GROUPS blocks of one head's queries are a unit of work."""
    q = gl.allocate_shared_memory(keys.dtype, [GROUPS] + queries.block_shape, queries.layout)
    y = gl.allocate_shared_memory(keys.dtype, [GROUPS] + out.block_shape, out.layout)
    k = gl.allocate_shared_memory(keys.dtype, [STAGES] + keys.block_shape, keys.layout)
    v = gl.allocate_shared_memory(keys.dtype, [STAGES] + keys.block_shape, keys.layout)
    q_full = _barriers(GROUPS, 1)
    q_free = _barriers(GROUPS, 1)
    k_full = _barriers(STAGES, 1)
    k_free = _barriers(STAGES, GROUPS)
    v_full = _barriers(STAGES, 1)
    v_free = _barriers(STAGES, GROUPS)
    shared = (q, k, v, q_full, q_free, k_full, k_free, v_full, v_free)
    work = (units, length, sequences)
    gl.warp_specialize(
        [
            (_attend_rows, (out, y, shared, work, scale, 0, HEADS)),
            (_attend_rows, (out, y, shared, work, scale, 1, HEADS)),
            (_attend_load, (queries, keys, shared, work, HEADS)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )
