"""Each track's most likely Cauchy scale, as `fasttracks.refine.evidence.fit_scale` has it."""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch


@triton.jit
def variance_of(
    square,
    weight,
    variance,
    b,
    n,
    T,
    N,
    iterations,
    LEAST: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
):
    """Squares of the scales of a clip's tracks n (1, TRACKS), from squared offsets and weights."""
    least = 0 * variance + LEAST * LEAST  # a constant alone would be rounded to float32
    for _ in range(iterations):
        total = tl.zeros((FRAMES, TRACKS), variance.dtype)
        count = tl.zeros((FRAMES, TRACKS), variance.dtype)
        for start in range(0, T, FRAMES):
            t = start + tl.arange(0, FRAMES)[:, None]
            token = (b * T + t) * N + n
            mask = (t < T) & (n < N)
            seen = tl.load(weight + token, mask=mask, other=0.0)
            r = tl.load(square + token, mask=mask, other=0.0)
            total += seen * variance * r / (variance + r)
            count += seen
        mean = tl.sum(total, 0) / tl.maximum(tl.sum(count, 0), 1e-9)  # 0 where nothing was seen
        variance = tl.maximum(2 * mean[None, :], least, propagate_nan=tl.PropagateNan.ALL)
    return variance


# Only constexprs are specialised: a new length compiles nothing.
@triton.jit(do_not_specialize=("T", "N", "iterations"))
def _fit_scale(
    square,
    weight,
    scale,
    out,
    T,
    N,
    iterations,
    LEAST: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_previous(OVERLAP)
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * TRACKS + tl.arange(0, TRACKS)[None, :]
    variance = tl.load(scale + b * N + n, mask=n < N, other=1.0)
    variance = variance_of(
        square, weight, variance * variance, b, n, T, N, iterations, LEAST, FRAMES, TRACKS
    )
    tl.store(out + b * N + n, tl.sqrt(variance), mask=n < N)


def fit_scale(
    square: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, iterations: int, least: float
) -> torch.Tensor:
    """Scales (B, N), no less than `least`, from squared offsets and weights (B, T, N).

    All contiguous and of one dtype, float32 or float64, as is `scale`, from which it starts.
    """
    B, T, N = square.shape
    out = torch.empty_like(scale)
    options = launch("fit_scale", B * T * N, square.device)
    with torch.cuda.device_of(square):
        _fit_scale[(B * triton.cdiv(N, options["TRACKS"]),)](
            square,
            weight,
            scale,
            out,
            T,
            N,
            iterations,
            LEAST=least,
            **options,
            **overlap(square.device),
        )
    return out
