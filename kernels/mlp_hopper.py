"""The MLP of a block for Hopper, as `mlp` describes it: TMA, wgmma, specialised warps.

Two warpgroups of 64 rows each work on a tile of 128, which is what accumulators fit into the
registers, and share the weights, which one more warp keeps coming. Each computes 128 hidden units,
applies GELU to them in registers and multiplies on from there; the second product starts on the
first hidden units while GELU works on the rest, and the warpgroups fill each other's gaps.
"""
# mypy: allow-untyped-defs

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fasttracks.kernels.common import gelu, layer_norm, overlap, wait_for_previous
from fasttracks.kernels.gluon_names import barrier, copy_in, copy_out, reinterpret

C = gl.constexpr(256)  # channels
ROWS = gl.constexpr(64)  # of a warpgroup; a tile has twice as many
STEP = gl.constexpr(128)  # hidden units at a time
STAGES = gl.constexpr(5)  # tiles of weights, 32 KiB each, that are read or on their way


@gluon.jit
def _range(item, splits, H: gl.constexpr):
    """The tile of rows, the split and its steps along the hidden units of a work item."""
    STEPS: gl.constexpr = H // STEP
    split = item % splits
    return item // splits, split, split * STEPS // splits, (split + 1) * STEPS // splits


@gluon.jit
def _fill(ring, count, weight, i, j):
    """Copy a tile of `weight` to the ring as its number `count`, once there is room."""
    tiles, full, empty = ring
    slot = count % STAGES
    shape: gl.constexpr = weight.block_type.shape
    layout: gl.constexpr = weight.layout
    mbarrier.wait(empty.index(slot), (count // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(slot), weight.block_type.nbytes)
    copy_in(weight, [i, j], full.index(slot), reinterpret(tiles.index(slot), shape, layout))


@gluon.jit
def _produce(x, up, down, ring, tokens, again, free, items, splits, H: gl.constexpr):
    """Load the weights of every step, and a tile's tokens once more for the residual."""
    count = 0
    phase = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, _, first, last = _range(item, splits, H)
        for step in range(first, last):
            _fill(ring, count, up, step * STEP, 0)
            _fill(ring, count + 1, up, step * STEP, C // 2)
            _fill(ring, count + 2, down, 0, step * STEP)
            _fill(ring, count + 3, down, 0, step * STEP + STEP // 2)
            count += 4
        if splits == 1:
            for half in gl.static_range(2):
                mbarrier.wait(free.index(half), phase)
                mbarrier.expect(again.index(half), x.block_type.nbytes)
                copy_in(x, [(tile * 2 + half) * ROWS, 0], again.index(half), tokens.index(half))
            phase ^= 1


@gluon.jit
def _multiply(a, ring, count, acc, use_acc, N: gl.constexpr):
    """Start acc + a · tileᵀ with the ring's tile number `count`, of N rows, once it is there."""
    tiles, full, _ = ring
    slot = count % STAGES
    shape: gl.constexpr = [N, tiles.shape[1] * tiles.shape[2] // N]
    layout: gl.constexpr = tiles.layout
    mbarrier.wait(full.index(slot), count // STAGES & 1)
    tile = reinterpret(tiles.index(slot), shape, layout).permute((1, 0))
    return hopper.warpgroup_mma(a, tile, acc, use_acc=use_acc, is_async=True)


@gluon.jit
def _release(ring, count):
    """Let go of the ring's tile number `count` and the next, which this warpgroup has read."""
    _, _, empty = ring
    mbarrier.arrive(empty.index(count % STAGES))
    mbarrier.arrive(empty.index((count + 1) % STAGES))


@gluon.jit
def _step(acc, tokens, up_bias, ring, count, OUT: gl.constexpr):
    """`acc` plus what STEP hidden units add, whose weights are the ring's next four tiles."""
    HIDDEN: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, STEP, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    bias = gl.load(up_bias + gl.arange(0, STEP, layout=gl.SliceLayout(0, HIDDEN)))
    h = gl.zeros((ROWS, STEP), gl.float32, HIDDEN)
    h = _multiply(tokens.slice(0, C // 2, dim=1), ring, count, h, False, STEP)
    h = _multiply(tokens.slice(C // 2, C // 2, dim=1), ring, count + 1, h, True, STEP)
    h = hopper.warpgroup_mma_wait(0, [h])
    _release(ring, count)
    h = gelu(h + bias.to(gl.float32)[None, :]).to(tokens.dtype)
    # A thread keeps its values: what it has of the accumulator is what it needs of the operand.
    left, right = gl.split(gl.permute(gl.reshape(h, (ROWS, 2, STEP // 2)), (0, 2, 1)))
    left = gl.convert_layout(left, OPERAND)
    right = gl.convert_layout(right, OPERAND)
    acc = _multiply(left, ring, count + 2, acc, True, C)
    acc = _multiply(right, ring, count + 3, acc, True, C)
    acc, left, right = hopper.warpgroup_mma_wait(0, [acc, left, right])
    _release(ring, count + 2)
    return acc


@gluon.jit
def _compute(
    x, y, partial, norm, up_bias, down_bias, norm_out, ring, tokens, again, free, rows, items,
    splits, H: gl.constexpr, HALF: gl.constexpr, WIDE: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """One half of every tile."""
    dtype: gl.constexpr = x.dtype.element_ty
    IN: gl.constexpr = gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C, 16])
    tokens = tokens.index(HALF)
    again = again.index(HALF)
    free = free.index(HALF)
    c_in = gl.arange(0, C, layout=gl.SliceLayout(0, IN))
    c = gl.arange(0, C, layout=gl.SliceLayout(0, OUT))
    count = 0
    phase = 0
    wait_for_previous(OVERLAP)  # weights may be on their way before
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, split, first, last = _range(item, splits, H)
        row = (tile * 2 + HALF) * ROWS
        r_in = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, IN))
        offsets = r_in.to(gl.int64)[:, None] * C + c_in[None, :]
        t = gl.load(x + offsets, mask=(r_in < rows)[:, None], other=0.0).to(gl.float32)
        t = layer_norm(t, norm[0], norm[1], c_in, C).to(dtype)
        tma.store_wait(0)  # of the tile before this, from the same memory
        barrier()
        tokens.store(t)
        hopper.fence_async_shared()

        acc = gl.zeros((ROWS, C), gl.float32, OUT)
        for step in range(first, last):
            acc = _step(acc, tokens, up_bias + step * STEP, ring, count, OUT)
            count += 4

        if splits == 1:
            mbarrier.arrive(free)
            bias = gl.load(down_bias + c).to(gl.float32)
            acc += bias[None, :]
            mbarrier.wait(again, phase)
            phase ^= 1
            acc += tokens.load(OUT).to(gl.float32)
            acc = layer_norm(acc, norm_out[0], norm_out[1], c, C)
            if WIDE:  # than what is in shared memory
                r_out = row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, OUT))
                places = y + (r_out.to(gl.int64)[:, None] * C + c[None, :])
                gl.store(places, acc, mask=(r_out < rows)[:, None])
            else:
                tokens.store(acc.to(dtype))
                hopper.fence_async_shared()
                copy_out(y, [row, 0], tokens)
        else:
            barrier()
            tokens.store(acc.to(dtype))
            hopper.fence_async_shared()
            copy_out(partial, [split * (items // splits) * (2 * ROWS) + row, 0], tokens)
    tma.store_wait(0)


# Of what isn't a constexpr, only alignment and dtype are specialised on.
@gluon.jit(do_not_specialize=["rows", "items", "splits"])
def _mlp(
    x, x_tiles, y, partial_tiles, norm_weight, norm_bias, up_tiles, up_bias, down_tiles,
    down_bias, out_weight, out_bias, rows, items, splits, H: gl.constexpr, WIDE: gl.constexpr,
    OVERLAP: gl.constexpr,
):  # fmt: skip
    """`y` is tiles of the tokens' dtype or, with WIDE, where float32 begins."""
    dtype: gl.constexpr = x.dtype.element_ty
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    tokens = gl.allocate_shared_memory(dtype, [2, ROWS, C], x_tiles.layout)
    tiles = gl.allocate_shared_memory(dtype, [STAGES, STEP, C // 2], up_tiles.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    again = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    free = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(again.index(i), count=1)
        mbarrier.init(free.index(i), count=1)
    hopper.fence_async_shared()
    ring = (tiles, full, empty)
    norm = (norm_weight, norm_bias)
    norm_out = (out_weight, out_bias)
    gl.warp_specialize(
        [
            (_compute, (x, y, partial_tiles, norm, up_bias, down_bias, norm_out, ring, tokens,
                        again, free, rows, items, splits, H, 0, WIDE, OVERLAP)),
            (_compute, (x, y, partial_tiles, norm, up_bias, down_bias, norm_out, ring, tokens,
                        again, free, rows, items, splits, H, 1, WIDE, OVERLAP)),
            (_produce, (x_tiles, up_tiles, down_tiles, ring, tokens, again, free, items, splits,
                        H)),
        ],
        [4, 1],  # warps, and registers per thread, of all but the first
        [240, 24],
    )  # fmt: skip


def launch(x, y, partial, norm, up, down, norm_out, splits: int, programs: int, options) -> None:
    """Write `mlp` of x (rows, 256) to `y` or, where `splits` > 1, partial sums to `partial`.

    `y` is of x's dtype or float32.
    """
    rows, width = x.shape
    items = -(-rows // (2 * ROWS.value)) * splits
    wide = y.dtype != x.dtype
    dtype = gl.float16 if x.dtype == torch.float16 else gl.bfloat16
    layout = gl.NVMMASharedLayout.get_default_for([ROWS.value, width], dtype)

    def tiles(tensor, *shape):
        return TensorDescriptor.from_tensor(tensor, list(shape), layout)

    _mlp[(min(items, programs),)](
        x,
        tiles(x, ROWS.value, width),
        y if wide else tiles(y, ROWS.value, width),
        tiles(partial, ROWS.value, width),
        *norm,
        tiles(up[0], STEP.value, width // 2),
        up[1],
        tiles(down[0], width, STEP.value // 2),
        down[1],
        *norm_out,
        rows,
        items,
        splits,
        H=len(up[0]),
        WIDE=wide,
        **options,
        **overlap(x.device),
    )
