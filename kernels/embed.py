"""The embedding in one pass: Fourier features, norm, linear layer, norm, position code.

TracksTo4D, arXiv 2404.07097, section 3.1. All to float32; only the result is rounded.
"""
# mypy: allow-untyped-defs

import math
from functools import cache

import torch
import triton
import triton.language as tl

from fasttracks.kernels.common import EPS, overlap, wait_for_previous
from fasttracks.kernels.launches import launch

_QUARTER = tl.constexpr(math.pi / 2)
# By how much the network's π, which is float32's, is too large.
_PI_ERROR = tl.constexpr(3.1415927410125732 / math.pi - 1)


@triton.jit
def _sine(angle, error, shift):
    """sin(π/2 · (angle + error + shift)), accurate to float32 whatever the angle; shift is 0 or 1.

    Angles in quarter turns make the reduction exact; what they can't hold goes into `error`.
    """
    whole = tl.floor(angle + 0.5)
    part = (angle - whole) + error
    more = tl.floor(part + 0.5)
    whole += more
    r = (part - more) * _QUARTER  # within ±π/4, where these Taylor series end below 1e-8
    r2 = r * r
    sine = r + r * r2 * (-1 / 6 + r2 * (1 / 120 + r2 * (-1 / 5040 + r2 * (1 / 362880))))
    cosine = 1 + r2 * (-1 / 2 + r2 * (1 / 24 + r2 * (-1 / 720 + r2 * (1 / 40320))))
    quadrant = whole - 4 * tl.floor(0.25 * whole) + shift
    value = tl.where((quadrant == 1) | (quadrant == 3), cosine, sine)
    return tl.where((quadrant == 2) | (quadrant == 3), -value, value)


@triton.jit
def _features(tracks, token, in_tracks, feature, FEATURES: tl.constexpr):
    """Some features of some tokens: u, v, o; of each octave their sines and cosines; 1; then 0."""
    is_wave = (feature >= 3) & (feature < FEATURES - 1)
    octave = tl.where(is_wave, (feature - 3) // 6, 0)
    is_cosine = (feature - 3) // 3 % 2
    value = tl.load(
        tracks + token[:, None] * 3 + (feature % 3)[None, :],
        mask=in_tracks[:, None] & (feature < FEATURES - 1)[None, :],
        other=0.0,
    )
    angle = value * (2 << octave).to(tl.float32)[None, :]  # 2^octave π value, exactly
    wave = _sine(angle, angle * _PI_ERROR, is_cosine[None, :])
    value = tl.where(is_wave[None, :], wave, value)
    return tl.where((feature == FEATURES - 1)[None, :], 1.0, value)


# Only constexprs are specialised: a new length compiles nothing.
@triton.jit(do_not_specialize=("T", "N", "eps"))
def _embed(
    tracks,
    norm_in_weight,
    norm_in_bias,
    linear_weight,
    linear_bias,
    norm_out_weight,
    norm_out_bias,
    rates,
    tokens,
    T,
    N,
    eps: tl.float32,
    FEATURES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_TRACKS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    # A program has tracks of one frame, so that the position code is one row.
    block = tl.program_id(0)
    blocks_of_tracks = tl.cdiv(N, BLOCK_TRACKS)
    n = block % blocks_of_tracks * BLOCK_TRACKS + tl.arange(0, BLOCK_TRACKS)
    frame = block // blocks_of_tracks  # of all clips
    token = frame.to(tl.int64) * N + n
    in_tracks = n < N
    channel = tl.arange(0, BLOCK_WIDTH)
    in_width = channel < WIDTH
    wait_for_previous(OVERLAP)

    # The features are cheap to have twice: for their norm, and for the linear layer.
    mean = tl.zeros((BLOCK_TRACKS,), tl.float32)
    variance = tl.zeros((BLOCK_TRACKS,), tl.float32)
    for start in range(0, FEATURES, BLOCK_FEATURES):
        feature = start + tl.arange(0, BLOCK_FEATURES)
        x = _features(tracks, token, in_tracks, feature, FEATURES)
        mean += tl.sum(x, 1) / FEATURES
        variance += tl.sum(x * x, 1) / FEATURES
    scale = tl.rsqrt(variance - mean * mean + eps)

    y = tl.zeros((BLOCK_TRACKS, BLOCK_WIDTH), tl.float32)
    for start in range(0, FEATURES, BLOCK_FEATURES):
        feature = start + tl.arange(0, BLOCK_FEATURES)
        in_features = feature < FEATURES
        x = _features(tracks, token, in_tracks, feature, FEATURES)
        x = (x - mean[:, None]) * scale[:, None]
        x *= tl.load(norm_in_weight + feature, mask=in_features, other=0.0)[None, :]
        x += tl.load(norm_in_bias + feature, mask=in_features, other=0.0)[None, :]
        weight = tl.load(
            linear_weight + channel[None, :] * FEATURES + feature[:, None],
            mask=in_width[None, :] & in_features[:, None],
            other=0.0,
        )
        # Operands as sums of two float16 have 22 bits; the product of what is left is nothing.
        x_high, weight_high = x.to(tl.float16), weight.to(tl.float16)
        y = tl.dot((x - x_high).to(tl.float16), weight_high, y)
        y = tl.dot(x_high, (weight - weight_high).to(tl.float16), y)
        y = tl.dot(x_high, weight_high, y)
    y += tl.load(linear_bias + channel, mask=in_width, other=0.0)[None, :]

    y = tl.where(in_width[None, :], y - (tl.sum(y, 1) / WIDTH)[:, None], 0.0)
    y *= tl.rsqrt(tl.sum(y * y, 1) / WIDTH + eps)[:, None]
    y *= tl.load(norm_out_weight + channel, mask=in_width, other=0.0)[None, :]
    y += tl.load(norm_out_bias + channel, mask=in_width, other=0.0)[None, :]

    t = (frame % T).to(tl.float32)
    rate = tl.load(rates + channel, mask=in_width, other=0.0)
    rest = tl.load(rates + WIDTH + channel, mask=in_width, other=0.0)
    y += _sine(t * rate, t * rest, channel // (WIDTH // 2))[None, :]
    tl.store(
        tokens + token[:, None] * WIDTH + channel[None, :],
        y.to(tokens.dtype.element_ty),
        mask=in_tracks[:, None] & in_width[None, :],
    )


@cache
def _rates(width: int, device: torch.device) -> torch.Tensor:
    """Quarter turns a frame of each channel's position code (2, width), in two parts.

    The first has 10 bits, so that its product with a frame index is exact.
    """
    half = width // 2
    rate = 10000 ** (-torch.arange(half, dtype=torch.float64) / (half - 1)) * (2 / math.pi)
    mantissa, exponent = torch.frexp(torch.cat([rate, rate]))
    high = torch.ldexp((mantissa * 1024).round() / 1024, exponent)
    return torch.stack([high, torch.ldexp(mantissa, exponent) - high]).float().to(device)


def embed(
    tracks: torch.Tensor,
    norm_in: tuple[torch.Tensor, torch.Tensor],
    linear: tuple[torch.Tensor, torch.Tensor],
    norm_out: tuple[torch.Tensor, torch.Tensor],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Tokens of point tracks.

    All tensors are float32 on one device, the weights contiguous; nothing is checked here.

    Args:
        tracks: (B, T, N, 3): normalised image coordinates u, v and visibility, 1 or 0.
        norm_in: weight and bias (F,) of the norm over the F = 6 octaves + 4 features.
        linear: weight (C, F) and bias (C,).
        norm_out: weight and bias (C,).
        dtype: of the result, by default float32.

    Returns:
        (B, T, N, C), contiguous.
    """
    B, T, N, _ = tracks.shape
    width, features = linear[0].shape
    tokens = tracks.new_empty(B, T, N, width, dtype=dtype)
    options = launch("embed", B * T * N, tracks.device)
    with torch.cuda.device_of(tracks):  # nothing for a CPU tensor, in the interpreter
        _embed[(B * T * triton.cdiv(N, options["BLOCK_TRACKS"]),)](
            tracks.contiguous(),
            *norm_in,
            *linear,
            *norm_out,
            _rates(width, tracks.device),
            tokens,
            T,
            N,
            EPS.value,
            FEATURES=features,
            WIDTH=width,
            BLOCK_WIDTH=triton.next_power_of_2(width),
            **options,
            **overlap(tracks.device),
        )
    return tokens
