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


def inverse_factor(system: Tensor) -> Tensor:
    """L⁻ᵀ, upper triangular, of systems L Lᵀ (..., n, n); float64 in and out."""
    if has_kernels(system.device):
        from fasttracks.kernels import cholesky

        return cholesky.inverse_factor(system.flatten(0, -3)).view(system.shape)
    factor, _ = torch.linalg.cholesky_ex(system)
    eye = torch.eye(system.shape[-1], dtype=system.dtype, device=system.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).mT
