"""Positive definite systems: LAPACK's on the CPU; on CUDA kernels, which a graph can capture."""

from functools import cache

import torch
from torch import Tensor

from fasttracks.backends import missing


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether refinement runs by Triton kernels, replayed as a CUDA graph, on a device."""
    return missing(device) is None


def solve(system: Tensor, right: Tensor) -> Tensor:
    """Solutions (..., n, m) of systems (..., n, n); NaN where these aren't positive definite."""
    if not has_kernels(system.device):
        factor, _ = torch.linalg.cholesky_ex(system)
        return torch.cholesky_solve(right, factor)
    half = inverse_factor(system)
    return half @ (half.mT @ right)


def solve_chain(own: Tensor, beside: Tensor, right: Tensor) -> Tensor:
    """Solutions (B, T, n, m) of systems whose blocks touch their neighbours alone.

    By cyclic reduction: every second block is eliminated, until one is left. Takes T · n² (n + m).

    Args:
        own: (B, T, n, n) blocks on the diagonal.
        beside: (B, T - 1, n, n) blocks from each to the next, its rows those of the former.
        right: (B, T, n, m).
    """
    count, size = own.shape[1:3]
    if count == 1:
        return solve(own, right)
    odd, two = count // 2, (count - 1) // 2  # blocks that go, and those with two neighbours
    before, latter = beside[:, ::2], beside[:, 1::2]
    after = latter.mT
    if two < odd:
        latter = torch.cat([latter, latter.new_zeros(len(own), 1, size, size)], 1)
    sides = torch.cat([latter, before.mT, right[:, 1::2]], -1)
    solved = solve(own[:, 1::2], sides)
    by_latter, by_former, alone = solved.tensor_split((size, 2 * size), -1)
    whole = torch.cat([own[:, ::2], right[:, ::2]], -1)
    taken = before @ solved
    whole[:, :odd] -= taken[..., size:]
    beyond = -taken[:, :two, :, :size]
    taken = after @ solved[:, :two]
    whole[:, 1 : two + 1, :, :size] -= taken[..., :size]
    whole[:, 1 : two + 1, :, size:] -= taken[..., 2 * size :]
    even = solve_chain(whole[..., :size], beyond, whole[..., size:])
    alone -= by_former @ even[:, :odd]
    alone[:, :two] -= by_latter[:, :two] @ even[:, 1 : two + 1]
    found = even.new_empty(len(even), count, *even.shape[2:])
    found[:, ::2], found[:, 1::2] = even, alone
    return found


def inverse_factor(system: Tensor) -> Tensor:
    """L⁻ᵀ, upper triangular, of systems L Lᵀ (..., n, n); float64 in and out."""
    if has_kernels(system.device):
        from fasttracks.kernels import cholesky

        return cholesky.inverse_factor(system.flatten(0, -3)).view(system.shape)
    factor, _ = torch.linalg.cholesky_ex(system)
    eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).mT
