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
    before, after = beside[:, ::2], beside[:, 1::2].mT
    latter = torch.cat([after.mT, after.new_zeros(len(own), odd - two, size, size)], 1)
    sides = torch.cat([before.mT, latter, right[:, 1::2]], -1)
    by_former, by_latter, alone = solve(own[:, 1::2], sides).tensor_split((size, 2 * size), -1)
    own, right = own[:, ::2].clone(), right[:, ::2].clone()
    own[:, :odd] -= before @ by_former
    own[:, 1 : two + 1] -= after @ by_latter[:, :two]
    right[:, :odd] -= before @ alone
    right[:, 1 : two + 1] -= after @ alone[:, :two]
    even = solve_chain(own, -(before @ by_latter)[:, :two], right)
    alone = alone - by_former @ even[:, :odd]
    alone[:, :two] -= by_latter[:, :two] @ even[:, 1 : two + 1]
    whole = even.new_empty(len(even), count, *even.shape[2:])
    whole[:, ::2], whole[:, 1::2] = even, alone
    return whole


def inverse_factor(system: Tensor) -> Tensor:
    """L⁻ᵀ, upper triangular, of systems L Lᵀ (..., n, n); float64 in and out."""
    if has_kernels(system.device):
        from fasttracks.kernels import cholesky

        return cholesky.inverse_factor(system.flatten(0, -3)).view(system.shape)
    factor, _ = torch.linalg.cholesky_ex(system)
    eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).mT
