"""Cholesky's factorisation as bundle adjustment needs it: for small latency, not for throughput.

S = L Lᵀ is found 16 columns a launch. Below S hang the right-hand side and the identity, which the
same elimination turns into y = L⁻¹ b and L⁻ᵀ, so that x = L⁻ᵀ y is a product of a matrix and a
vector, without the long chain of a back substitution.
"""
# mypy: allow-untyped-defs
# ruff: noqa: PLR0915

import torch
import triton
import triton.language as tl

from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch

TILE = 16  # rows and columns


@triton.jit
def _column(tile, here):
    """The column that `here` is true for, exactly: a sum of bits, all others 0."""
    bits = tl.where(here, tile.to(tl.int64, bitcast=True), 0)
    return tl.xor_sum(bits, axis=1).to(tl.float64, bitcast=True)


@triton.jit
def _load(matrix, rows, columns, stride, mask, FIRST: tl.constexpr):
    """A tile of S; at first sight with a slightly larger diagonal."""
    tile = tl.load(matrix + rows * stride + columns, mask=mask, other=0.0)
    if FIRST:
        tile += tl.where(rows == columns, 1e-9 * tile + 1e-30, 0.0)
    return tile


@triton.jit
def _below(system, below, rows, columns, mask, n, fresh, FIRST: tl.constexpr):
    """A tile of what hangs below S: as it is, or, met for the first time, as it begins."""
    tile = tl.load(
        below + rows * n + columns, mask=mask & (rows < tl.where(fresh, 0, n + 1)), other=0.0
    )
    tile += tl.where(mask & (rows == tl.where(fresh, columns + 1, -1)), 1.0, 0.0)
    if FIRST:
        right = system + n * (n + 1) + columns + 0 * rows
        tile += tl.load(right, mask=mask & (rows == 0), other=0.0)
    return tile


@triton.jit(do_not_specialize=("n", "panel"))
def _panel(
    system,
    work,
    below,
    done,
    n,
    panel,
    FIRST: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Eliminate one tile's width of columns.

    system (B, n + 1, n + 1): S, and the right-hand side in its last row; work (B, n, n): what is
    left of S; below (B, n + 1, n): of the right-hand side and the identity, whose finished columns
    go to `done`. A program for each tile of these.
    """
    left = tl.cdiv(n, TILE) - panel - 1
    in_triangle = left * (left + 1) // 2
    tiles_below = tl.minimum(panel + 2, tl.cdiv(n + 1, TILE))
    programs = in_triangle + tiles_below * (left + 1)
    b = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    system += b * (n + 1) * (n + 1)
    work += b * n * n
    below += b * (n + 1) * n
    done += b * (n + 1) * n

    i, j = program * 0, program * 0
    if program >= in_triangle:
        i, j = (program - in_triangle) % tiles_below, (program - in_triangle) // tiles_below
    else:
        while (i + 1) * (i + 2) // 2 <= program:
            i += 1
        j = 1 + program - i * (i + 1) // 2
        i += panel + 1
    fresh = (i == panel + 1) | (panel == 0)

    source = system if FIRST else work
    stride = n + 1 if FIRST else n
    begin = panel * TILE
    own, across = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    rows, others = i * TILE + own, begin + j * TILE + own
    middle, columns = begin + across, begin + j * TILE + across
    in_s = rows < tl.where(program < in_triangle, n, 0)
    hanging = rows < tl.where(program < in_triangle, 0, n + 1)
    later = tl.where(j > 0, n, 0)
    # A warp has a thread for each row of the diagonal's tile, and of the identity, which becomes
    # L⁻ᵀ. It is loaded lying, so that the layout is such. Beyond S the diagonal is 1.
    standing, lying = tl.arange(0, 2 * TILE)[:, None], across
    inside = (standing < TILE) & (begin + standing < n) & (begin + lying < n)
    ones = (standing % TILE == lying) & ((standing >= TILE) | (begin + lying >= n))

    wait_for_previous(OVERLAP)
    # All loads come first: they arrive while the diagonal's tile is worked on.
    pivot = _load(source, begin + lying, begin + standing, stride, inside, FIRST)
    tile = _load(source, rows, middle, stride, in_s & (middle < n), False)
    tile += _below(system, below, rows, middle, hanging & (middle < n), n, fresh, FIRST)
    other = _load(source, others, middle, stride, (others < later) & (middle < n), False)
    rest = _load(source, rows, columns, stride, in_s & (columns < later), FIRST)
    rest += _below(system, below, rows, columns, hanging & (columns < later), n, fresh, FIRST)

    pivot += tl.where(ones, 1.0, 0.0)
    for c in tl.static_range(TILE):
        here, right = lying == c, lying > c
        column = _column(pivot, here)
        # NaN where S is not positive definite.
        column *= tl.rsqrt(tl.gather(column, tl.full((2 * TILE,), c, tl.int32), 0))
        down, row = column[:, None], tl.gather(column, tl.arange(0, TILE), 0)[None, :]
        pivot = tl.where(right, pivot - down * row, tl.where(here, down, pivot))
    _top, half = tl.split(tl.permute(tl.reshape(pivot, (2, TILE, TILE)), (1, 2, 0)))

    tile = tl.dot(tile, half, out_dtype=tl.float64)
    if j == 0:
        tl.store(done + rows * n + middle, tile, mask=hanging & (middle < n))
    else:
        other = tl.dot(other, half, out_dtype=tl.float64)
        rest -= tl.dot(tile, tl.trans(other), out_dtype=tl.float64)
        tl.store(work + rows * n + columns, rest, mask=in_s & (columns < n))
        tl.store(below + rows * n + columns, rest, mask=hanging & (columns < n))


def factor(system: torch.Tensor) -> torch.Tensor:
    """Factors of S for the systems [[S, ·], [bᵀ, ·]], (B, n + 1, n + 1), S symmetric.

    Returns (B, n + 1, n) in float64: y = L⁻¹ b in the first row, L⁻ᵀ in the others, in whose lower
    triangle is nothing in particular. Where S is not positive definite both are NaN from there on.
    S's diagonal is made larger by a share of 1e-9.
    """
    system = system.double()  # one compilation for both dtypes
    B, n = system.shape[0], system.shape[1] - 1
    work = system.new_empty(B, n, n)
    below, done = (system.new_empty(B, n + 1, n) for _ in range(2))
    tiles = triton.cdiv(n, TILE)
    options = {**launch("cholesky", B * n, system.device), **overlap(system.device), "TILE": TILE}
    with torch.cuda.device_of(system):
        for panel in range(tiles):
            left = tiles - panel - 1
            tiles_below = min(panel + 2, triton.cdiv(n + 1, TILE))
            programs = B * (left * (left + 1) // 2 + tiles_below * (left + 1))
            _panel[(programs,)](system, work, below, done, n, panel, FIRST=panel == 0, **options)
    return done


def inverse_factor(system: torch.Tensor) -> torch.Tensor:
    """L⁻ᵀ (B, n, n) in float64 of positive definite S = L Lᵀ (B, n, n); S⁻¹ is L⁻ᵀ L⁻¹."""
    return factor(torch.nn.functional.pad(system, (0, 1, 0, 1)))[:, 1:].triu()
