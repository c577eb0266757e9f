"""Two of attention.py's kernels for Hopper (sm_90), in Gluon, from Triton 3.6 on.

They copy tiles with the tensor memory accelerator and overlap matrix products with the rest of the
work as FlashAttention-3 does (arXiv 2407.08608).
"""
# mypy: allow-untyped-defs, disable-error-code=assignment
# ruff: noqa: PLR0915, RUF005 - a kernel is one function, and Gluon has no starred expressions

import triton
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

from fasttracks.kernels.attention_triton import (
    TIME,
    softmax_scale,
    splits_of,
    view,
)
from fasttracks.kernels.common import EPS, overlap, wait_for_previous
from fasttracks.kernels.device import multiprocessors
from fasttracks.kernels.gluon_names import copy_in, copy_out
from fasttracks.kernels.launches import launch

ROWS = gl.constexpr(64)  # of a group of four warps
GROUPS = gl.constexpr(2)


@gluon.jit
def _barriers(n: gl.constexpr, count: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [n, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(n):
        mbarrier.init(barriers.index(i), count=count)
    return barriers


@gluon.jit
def _fetch(tensor, place, buffer, full, wanted=True):
    mbarrier.expect(full, tensor.block_type.nbytes, pred=wanted)
    copy_in(tensor, place, full, buffer, pred=wanted)


@gluon.jit
def _norm(x, gamma, beta, layout: gl.constexpr, BLOCK_K: gl.constexpr):
    """LN(x) of the rows of a tile, as a tuple of BLOCK_K channels each in the layout."""
    WIDTH: gl.constexpr = x.shape[1]
    channel = gl.arange(0, BLOCK_K, layout=gl.SliceLayout(0, layout))
    parts = ()
    mean = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, layout))
    for k in gl.static_range(0, WIDTH, BLOCK_K):
        parts = parts + (x.slice(k, BLOCK_K, 1).load(layout),)
        mean += gl.sum(parts[k // BLOCK_K].to(gl.float32), 1)
    mean = mean / WIDTH
    square = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, layout))
    for i in gl.static_range(WIDTH // BLOCK_K):
        y = parts[i].to(gl.float32) - mean[:, None]
        square += gl.sum(y * y, 1)
    scale = gl.rsqrt(square / WIDTH + EPS)
    normed = ()
    for i in gl.static_range(WIDTH // BLOCK_K):
        y = (parts[i].to(gl.float32) - mean[:, None]) * scale[:, None]
        y = y * gl.load(gamma + i * BLOCK_K + channel).to(gl.float32)[None, :]
        y += gl.load(beta + i * BLOCK_K + channel).to(gl.float32)[None, :]
        normed = normed + (y.to(x.dtype),)
    return normed


@gluon.jit
def _project_load(x, weight, shared, place, OVERLAP: gl.constexpr):
    x_tile, x_full, w, w_full, w_free = shared
    first_row, first_column, tiles = place
    STAGES: gl.constexpr = w.shape[0]
    HEAD: gl.constexpr = w.shape[1]
    ahead = gl.minimum(tiles, STAGES)
    for i in range(ahead):
        _fetch(weight, [first_column + i * HEAD, 0], w.index(i), w_full.index(i))
    wait_for_previous(OVERLAP)
    for group in gl.static_range(GROUPS):
        rows = [first_row + group * ROWS, 0]
        _fetch(x, rows, x_tile.index(group), x_full.index(group))
    for i in range(ahead, tiles):
        stage = i % STAGES
        mbarrier.wait(w_free.index(stage), (i // STAGES & 1) ^ 1)
        _fetch(weight, [first_column + i * HEAD, 0], w.index(stage), w_full.index(stage))


@gluon.jit
def _project_rows(
    gamma,
    beta,
    out,
    y,
    shared,
    place,
    GROUP: gl.constexpr,
    BLOCK_K: gl.constexpr,
):
    x_tile, x_full, w, w_full, w_free = shared
    first_row, first_column, tiles = place
    STAGES: gl.constexpr = w.shape[0]
    HEAD: gl.constexpr = w.shape[1]
    WIDTH: gl.constexpr = w.shape[2]
    product: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, product, 2)
    mbarrier.wait(x_full.index(GROUP), 0)
    normed = _norm(x_tile.index(GROUP), gamma, beta, left, BLOCK_K)
    for i in range(tiles):
        stage = i % STAGES
        mbarrier.wait(w_full.index(stage), i // STAGES & 1)
        z = gl.zeros([ROWS, HEAD], gl.float32, product)
        for k in gl.static_range(WIDTH // BLOCK_K):
            part = w.index(stage).slice(k * BLOCK_K, BLOCK_K, 1).permute([1, 0])
            z = warpgroup_mma(normed[k], part, z, use_acc=k > 0, is_async=True)
        z = warpgroup_mma_wait(0, deps=[z])
        mbarrier.arrive(w_free.index(stage))
        # Two buffers to store from: the one of the step before the last is free again.
        buffer = y.index(2 * GROUP + i % 2)
        tma.store_wait(1)
        buffer.store(z.to(y.dtype))
        fence_async_shared()
        copy_out(out, [first_row + GROUP * ROWS, first_column + i * HEAD], buffer)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["splits"])
def _norm_project(
    x,
    gamma,
    beta,
    weight,
    out,
    splits,
    HEADS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
    OVERLAP: gl.constexpr,
):
    """Weight · LN(x). A program norms GROUPS · ROWS rows for one split of the columns.

    One warp copies, and GROUPS groups of four warps compute, so that norms and stores of one hide
    behind the products of the other.
    """
    first_row = gl.program_id(0) // splits * (GROUPS * ROWS)
    tiles = 3 * HEADS // splits
    first_column = gl.program_id(0) % splits * tiles * weight.block_shape[0]
    x_tile = gl.allocate_shared_memory(x.dtype, [GROUPS] + x.block_shape, x.layout)
    w = gl.allocate_shared_memory(weight.dtype, [STAGES] + weight.block_shape, weight.layout)
    y = gl.allocate_shared_memory(out.dtype, [2 * GROUPS] + out.block_shape, out.layout)
    shared = (x_tile, _barriers(GROUPS, 1), w, _barriers(STAGES, 1), _barriers(STAGES, GROUPS))
    place = (first_row, first_column, tiles)
    gl.warp_specialize(
        [
            (_project_rows, (gamma, beta, out, y, shared, place, 0, BLOCK_K)),
            (_project_rows, (gamma, beta, out, y, shared, place, 1, BLOCK_K)),
            (_project_load, (x, weight, shared, place, OVERLAP)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@gluon.jit
def _own_sums(p):
    """Sums over each thread's own columns; the threads' sums are summed at the end."""
    return gl.sum(p.reshape([p.shape[0], p.shape[1] // 8, 8]), 1)


@gluon.jit(do_not_specialize=["length", "sequences", "scale"])
def _attend(
    queries,
    keys,
    out,
    length,
    sequences,
    scale,
    HEADS: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    num_warps: gl.constexpr,
):
    """As attention_triton._attend, but keys come last tile first: only the first needs a mask."""
    BLOCK_M: gl.constexpr = queries.block_shape[1]
    BLOCK_N: gl.constexpr = keys.block_shape[1]
    HEAD: gl.constexpr = keys.block_shape[2]
    INNER: gl.constexpr = HEADS * HEAD
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_N, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, HEAD, 16])
    row: gl.constexpr = gl.SliceLayout(1, sums)
    left: gl.constexpr = gl.DotOperandLayout(0, sums, 2)

    blocks = gl.cdiv(length, BLOCK_M)
    start = gl.program_id(0) % blocks * BLOCK_M
    program = gl.program_id(0) // blocks
    head = program % HEADS * HEAD
    outer = program // HEADS // sequences
    inner = program // HEADS % sequences
    q_column = 3 * inner * INNER + head
    k_column = q_column + INNER
    v_column = k_column + INNER
    tiles = gl.cdiv(length, BLOCK_N)
    last = (tiles - 1) * BLOCK_N

    q = gl.allocate_shared_memory(keys.dtype, queries.block_shape, queries.layout)
    k = gl.allocate_shared_memory(keys.dtype, [STAGES] + keys.block_shape, keys.layout)
    v = gl.allocate_shared_memory(keys.dtype, [STAGES] + keys.block_shape, keys.layout)
    q_full = _barriers(1, 1)
    k_full = _barriers(STAGES, 1)
    v_full = _barriers(STAGES, 1)
    wait_for_previous(OVERLAP)
    _fetch(queries, [outer, start, q_column], q, q_full.index(0))
    for i in gl.static_range(STAGES):
        place = last - i * BLOCK_N
        _fetch(keys, [outer, place, k_column], k.index(i), k_full.index(i), i < tiles)
        _fetch(keys, [outer, place, v_column], v.index(i), v_full.index(i), i < tiles)

    q_tile = q.reshape([BLOCK_M, HEAD])
    zero = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, scores)
    mbarrier.wait(q_full.index(0), 0)
    mbarrier.wait(k_full.index(0), 0)
    k_tile = k.index(0).reshape([BLOCK_N, HEAD]).permute([1, 0])
    s = warpgroup_mma(q_tile, k_tile, zero, use_acc=False)
    place = last - STAGES * BLOCK_N
    _fetch(keys, [outer, place, k_column], k.index(0), k_full.index(0), tiles > STAGES)
    key = last + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, scores))
    s = gl.where((key < length)[None, :], s, float("-inf"))
    m = gl.max(s, 1) * scale
    p = gl.exp2(s * scale - m[:, None])
    total = _own_sums(p)
    weights = gl.convert_layout(p.to(keys.dtype), left)
    acc = gl.zeros([BLOCK_M, HEAD], gl.float32, sums)
    for i in range(1, tiles):
        # The scores of this tile and the weighted sum of the tile before run together, and the
        # softmax of the former beside the latter.
        stage = i % STAGES
        before = (i - 1) % STAGES
        mbarrier.wait(k_full.index(stage), i // STAGES & 1)
        k_tile = k.index(stage).reshape([BLOCK_N, HEAD]).permute([1, 0])
        s = warpgroup_mma(q_tile, k_tile, zero, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), (i - 1) // STAGES & 1)
        v_tile = v.index(before).reshape([BLOCK_N, HEAD])
        acc = warpgroup_mma(weights, v_tile, acc, is_async=True)
        s = warpgroup_mma_wait(1, deps=[s])
        new = gl.maximum(m, gl.max(s, 1) * scale)
        p = gl.exp2(s * scale - new[:, None])
        alpha = gl.exp2(m - new)
        m = new
        total = total * gl.convert_layout(alpha, gl.SliceLayout(1, total.type.layout))[:, None]
        total += _own_sums(p)
        acc = warpgroup_mma_wait(0, deps=[acc])
        place = last - (i + STAGES) * BLOCK_N
        wanted = i + STAGES < tiles
        _fetch(keys, [outer, place, k_column], k.index(stage), k_full.index(stage), wanted)
        place += BLOCK_N
        wanted = i + STAGES <= tiles
        _fetch(keys, [outer, place, v_column], v.index(before), v_full.index(before), wanted)
        acc = acc * gl.convert_layout(alpha, row)[:, None]
        weights = gl.convert_layout(p.to(keys.dtype), left)

    stage = (tiles - 1) % STAGES
    mbarrier.wait(v_full.index(stage), (tiles - 1) // STAGES & 1)
    acc = warpgroup_mma(weights, v.index(stage).reshape([BLOCK_N, HEAD]), acc)
    acc = acc / gl.convert_layout(gl.sum(total, 1), row)[:, None]
    q_tile.store(acc.to(keys.dtype))
    fence_async_shared()
    copy_out(out, [outer, start, inner * INNER + head], q)
    tma.store_wait(0)


def _describe(tensor, shape, strides, block):
    # Of a type its width alone matters to the layout.
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    return TensorDescriptor(tensor, shape, strides, block, layout)


def norm_project(x, norm, weight, out, heads):
    """As attention_triton.norm_project."""
    rows, width = x.shape
    columns = out.shape[1]
    blocks = triton.cdiv(rows, GROUPS.value * ROWS.value)
    splits = splits_of(blocks, 3 * heads, multiprocessors(x.device))
    head = columns // (3 * heads)
    _norm_project[(blocks * splits,)](
        _describe(x, [rows, width], [width, 1], [ROWS.value, width]),
        *norm,
        _describe(weight, [columns, width], [width, 1], [head, width]),
        _describe(out, [rows, columns], [columns, 1], [ROWS.value, head]),
        splits,
        HEADS=heads,
        **launch("hopper_norm_project", rows, x.device),
        **overlap(x.device),
    )


def attend(projected, mixed, heads, axis):
    """As attention_triton.attend."""
    head = mixed.shape[3] // heads
    length = mixed.shape[axis]
    options = dict(launch("hopper_attend", mixed.numel() // mixed.shape[3], mixed.device))
    block_m, block_n = options.pop("BLOCK_M"), options.pop("BLOCK_N")
    _attend[(mixed.numel() // (length * head) * triton.cdiv(length, block_m),)](
        _describe(projected, *view(projected, axis), [1, block_m, head]),
        _describe(projected, *view(projected, axis), [1, block_n, head]),
        _describe(mixed, *view(mixed, axis), [1, block_m, head]),
        length,
        mixed.shape[2] if axis == TIME else 1,
        softmax_scale(head),
        HEADS=heads,
        **options,
        **overlap(projected.device),
    )
