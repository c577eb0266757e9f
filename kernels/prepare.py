"""What the network sees of tracks in pixels, and what tells whether they can be such.

One pass completes positions, holds them where they were not seen, and normalises them (in float64,
as on the CPU); it leaves counts by block of tracks. A second adds these up, one program a clip,
which nothing has to wait for before the network runs. `fasttracks.plausible` reads the counts.
"""
# mypy: allow-untyped-defs
# ruff: noqa: PLR0124, PLR0915, PLR1714

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fasttracks.checks import FARTHEST
from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch

BINS = 256  # of hashes of positions, to find one that comes again and again
SAMPLES = 64  # of distances from frame to frame, and from track to track
PARTS = 16  # numbers that a block of tracks leaves, and a clip gets


@triton.jit
def _max(a, b):
    return tl.maximum(a, b)


@triton.jit
def _is_nan(x, y):
    return (x != x) | (y != y)


@triton.jit
def _hash(x, y):
    """Of a position, by its bits; 0 and -0 are the same."""
    x = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)
    y = tl.where(y == 0, 0.0, y).to(tl.uint32, bitcast=True)
    mixed = x ^ (y << 13) ^ (y >> 19)
    mixed ^= mixed >> 16
    mixed ^= mixed << 7
    mixed ^= mixed >> 11
    return ((mixed & 0xFFFF) ^ (mixed >> 20)).to(tl.int32)


@triton.jit
def _outside(x, y, width, height):
    """As `plausible` has it: beyond the image's border by more than a tenth of its side."""
    return (
        (x < -0.5 - 0.1 * width)
        | (x > width - 0.5 + 0.1 * width)
        | (y < -0.5 - 0.1 * height)
        | (y > height - 0.5 + 0.1 * height)
    )


# Only constexprs are specialised: a new length compiles nothing.
@triton.jit(do_not_specialize=("T", "N", "pitch"))
def _prepare(
    positions,
    visible,
    cameras,
    about,
    inputs,
    tracks,
    seen_at,
    parts,
    bins,
    links,
    T,
    N,
    pitch,
    FARTHEST: tl.constexpr,
    SCORES: tl.constexpr,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program for a block of tracks, over all frames of a clip.

    bins (B, BINS) and links (B, T + 1), zero before; links become the differences from frame to
    frame of how many tracks lead there from earlier ones.
    """
    wait_for_previous(OVERLAP)
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    seen_at += b * pitch
    width, height = tl.load(about + 4 * b), tl.load(about + 4 * b + 1)

    first_known = tl.zeros((1, TRACKS), tl.int32) + T
    first_seen = first_known
    last_seen = first_known - T - 1
    zero = tl.zeros((FRAMES, TRACKS), tl.float64)
    far, wrong, seen_count, outside, turned = zero, zero, zero, zero, zero
    sum_x, sum_y = zero, zero
    low_x = zero + float("inf")
    low_y, high_x, high_y = low_x, -low_x, -low_x
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        mask = (t < T) & in_tracks
        token = (b * T + t) * N + n
        x = tl.load(positions + 2 * token, mask=mask, other=0.0)
        y = tl.load(positions + 2 * token + 1, mask=mask, other=0.0)
        far += ((tl.abs(x) > FARTHEST) | (tl.abs(y) > FARTHEST)).to(tl.float64)
        known = mask & (_is_nan(x, y) == 0)
        value = tl.load(visible + token, mask=mask, other=0)
        if SCORES:
            wrong += (((value >= 0) & (value <= 1)) == 0).to(tl.float64)
            seen = known & (value > 0.5)
        else:
            seen = known & (value != 0)
        tl.store(seen_at + t * N + n, seen.to(tl.uint8), mask=mask)
        first_known = tl.minimum(first_known, tl.min(tl.where(known, t, T), 0, keep_dims=True))
        first_seen = tl.minimum(first_seen, tl.min(tl.where(seen, t, T), 0, keep_dims=True))
        last_seen = tl.maximum(last_seen, tl.max(tl.where(seen, t, -1), 0, keep_dims=True))

        x, y = x.to(tl.float32), y.to(tl.float32)
        corner = seen & (x <= 0) & (y <= 0)
        tl.atomic_add(bins + b * BINS + _hash(x, y) % BINS, 1, mask=corner, sem="relaxed")
        x, y = tl.where(seen, x.to(tl.float64), 0.0), tl.where(seen, y.to(tl.float64), 0.0)
        seen_count += seen.to(tl.float64)
        sum_x += x
        sum_y += y
        outside += (seen & _outside(x, y, width, height)).to(tl.float64)
        turned += (seen & _outside(x, y, height, width)).to(tl.float64)
        low_x = tl.minimum(low_x, tl.where(seen, x, float("inf")))
        low_y = tl.minimum(low_y, tl.where(seen, y, float("inf")))
        high_x = tl.maximum(high_x, tl.where(seen, x, -float("inf")))
        high_y = tl.maximum(high_y, tl.where(seen, y, -float("inf")))
    ever = (first_seen < T) & in_tracks
    to = links + b * (T + 1)
    tl.atomic_add(to + first_seen + 1, 1, mask=ever, sem="relaxed")
    tl.atomic_add(to + last_seen + 1, -1, mask=ever, sem="relaxed")
    parts += tl.program_id(0).to(tl.int64) * PARTS
    tl.store(parts, tl.sum(far))
    tl.store(parts + 1, tl.sum(wrong))
    tl.store(parts + 2, tl.sum(seen_count))
    tl.store(parts + 3, tl.sum(outside))
    tl.store(parts + 4, tl.sum(turned))
    tl.store(parts + 5, tl.sum(((first_known == T) & in_tracks).to(tl.float64)))
    tl.store(parts + 6, tl.sum(sum_x))
    tl.store(parts + 7, tl.sum(sum_y))
    tl.store(parts + 8, tl.min(low_x))
    tl.store(parts + 9, tl.min(low_y))
    tl.store(parts + 10, tl.min(first_seen).to(tl.float64))
    tl.store(parts + 11, tl.max(high_x))
    tl.store(parts + 12, tl.max(high_y))
    tl.store(parts + 13, tl.max(last_seen).to(tl.float64))

    latest_known = tl.zeros((1, TRACKS), tl.int32) - 1
    latest_seen = latest_known
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        mask = (t < T) & in_tracks
        token = (b * T + t) * N + n
        x = tl.load(positions + 2 * token, mask=mask, other=0.0)
        y = tl.load(positions + 2 * token + 1, mask=mask, other=0.0)
        known = mask & (_is_nan(x, y) == 0)
        value = tl.load(visible + token, mask=mask, other=0)
        seen = known & (value > 0.5 if SCORES else value != 0)
        latest = tl.maximum(tl.associative_scan(tl.where(known, t, -1), 0, _max), latest_known)
        latest_known = tl.max(latest, 0, keep_dims=True)
        source = tl.where(latest < 0, tl.where(first_known < T, first_known, 0), latest)
        at = (b * T + source) * N + n
        x = tl.load(positions + 2 * at, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(positions + 2 * at + 1, mask=mask, other=0.0).to(tl.float32)
        tl.store(tracks + 2 * token, x, mask=mask)
        tl.store(tracks + 2 * token + 1, y, mask=mask)

        latest = tl.maximum(tl.associative_scan(tl.where(seen, t, -1), 0, _max), latest_seen)
        latest_seen = tl.max(latest, 0, keep_dims=True)
        source = tl.where(latest < 0, tl.where(first_seen < T, first_seen, 0), latest)
        at = (b * T + source) * N + n
        x = tl.load(positions + 2 * at, mask=mask, other=0.0).to(tl.float32).to(tl.float64)
        y = tl.load(positions + 2 * at + 1, mask=mask, other=0.0).to(tl.float32).to(tl.float64)
        camera = cameras + (b * T + source) * 9
        skew, middle_x = tl.load(camera + 1, mask=mask), tl.load(camera + 2, mask=mask)
        v = (y - tl.load(camera + 5, mask=mask)) / tl.load(camera + 4, mask=mask, other=1.0)
        u = (x - middle_x - skew * v) / tl.load(camera, mask=mask, other=1.0)
        tl.store(inputs + 3 * token, tl.where(ever, u, 0.0).to(tl.float32), mask=mask)
        tl.store(inputs + 3 * token + 1, tl.where(ever, v, 0.0).to(tl.float32), mask=mask)
        tl.store(inputs + 3 * token + 2, seen.to(tl.float32), mask=mask)


@triton.jit
def _distances(tracks, sample, count, across, step, N, SAMPLES: tl.constexpr):
    """Some of `count` distances between positions `step` apart; infinite beyond them, 0 for NaN."""
    spread = (sample.to(tl.uint32) * 2654435769).to(tl.uint64) * count.to(tl.uint64) >> 32
    pair = tl.where(count > SAMPLES, spread.to(tl.int64), sample.to(tl.int64))
    at = tracks + 2 * (pair // across * N + pair % across)
    mask = sample < count
    x = tl.load(at + 2 * step, mask=mask, other=0.0) - tl.load(at, mask=mask, other=0.0)
    y = tl.load(at + 2 * step + 1, mask=mask, other=0.0) - tl.load(at + 1, mask=mask, other=0.0)
    distance = tl.sqrt(x * x + y * y)
    return tl.where(mask, tl.where(distance == distance, distance, 0.0), float("inf"))


@triton.jit
def _median_distance(tracks, count, across, step, N, SAMPLES: tl.constexpr):
    """About the median distance of `count` pairs of positions `step` apart, by a sample of them.

    tracks (T, N, 2); pairs are counted row by row of `across`.
    """
    i, j = tl.arange(0, SAMPLES)[:, None], tl.arange(0, SAMPLES)[None, :]
    own = _distances(tracks, i, count, across, step, N, SAMPLES)
    other = _distances(tracks, j, count, across, step, N, SAMPLES)
    rank = tl.sum(((other < own) | ((other == own) & (j < i))).to(tl.int32), 1)[:, None]
    return tl.sum(tl.where(rank == (tl.minimum(count, SAMPLES) - 1) // 2, own, 0.0))


@triton.jit(do_not_specialize=("T", "N", "blocks"))
def _count(
    parts,
    bins,
    links,
    cameras,
    tracks,
    counts,
    T,
    N,
    blocks,
    BINS: tl.constexpr,
    PARTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Add up what `_prepare` left of a clip; what was never known of positions becomes the mean."""
    wait_for_previous(OVERLAP)
    b = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    sums = tl.zeros((PARTS,), tl.float64)
    lows, highs = sums + float("inf"), sums - float("inf")
    for start in range(0, blocks, ROWS):
        block = start + tl.arange(0, ROWS)[:, None]
        at = parts + (b * blocks + block) * PARTS + part[None, :]
        rows = tl.load(at, mask=block < blocks, other=0.0)
        sums += tl.sum(rows, 0)
        lows = tl.minimum(lows, tl.min(tl.where(block < blocks, rows, float("inf")), 0))
        highs = tl.maximum(highs, tl.max(tl.where(block < blocks, rows, -float("inf")), 0))
    begin = tl.sum(tl.where(part == 10, lows, 0.0)).to(tl.int32)
    end = tl.sum(tl.where(part == 13, highs, 0.0)).to(tl.int32)
    counts += b * PARTS
    tl.store(counts + part, sums, mask=part < 6)
    tl.store(counts + part - 2, lows, mask=(part == 8) | (part == 9))
    tl.store(counts + part - 3, highs, mask=(part == 11) | (part == 12))

    index = tl.arange(0, BINS)
    linked = tl.where(begin < end, N, 0)
    faults, before = begin * 0, begin * 0
    shortest, longest = tl.min(lows) * 0 + float("inf"), tl.min(lows) * 0
    for start in range(0, T, BINS):
        t = start + index
        inside = t < T
        change = tl.load(links + b * (T + 1) + t, mask=inside, other=0)
        shared = before + tl.cumsum(change, 0)
        before += tl.sum(change)
        linked = tl.minimum(linked, tl.min(tl.where((t > begin) & (t <= end), shared, N)))
        camera = cameras + (b * T + t) * 9
        sound = inside
        for i in tl.static_range(9):
            entry = tl.load(camera + i, mask=inside, other=0.0)
            sound = sound & (tl.abs(entry) <= 1e9)  # False for NaN
            if i == 0 or i == 4:
                sound = sound & (entry >= 1e-6)
            if i == 3 or i == 6 or i == 7:
                sound = sound & (entry == 0)
            if i == 8:
                sound = sound & (entry == 1)
            if i == 0:
                shortest = tl.minimum(shortest, tl.min(tl.where(inside, entry, float("inf"))))
                longest = tl.maximum(longest, tl.max(tl.where(inside, entry, 0.0)))
        faults += tl.sum((inside & (sound == 0)).to(tl.int32))
    repeated = tl.max(tl.load(bins + b * BINS + index))
    tl.store(counts + 10, repeated.to(tl.float64))
    tl.store(counts + 11, linked.to(tl.float64))
    tl.store(counts + 12, faults.to(tl.float64))
    tl.store(counts + 13, shortest)
    tl.store(counts + 14, longest)

    long = T.to(tl.int64)
    tracks += b * long * N * 2
    by_frame = _median_distance(tracks, (long - 1) * N, N, N, N, SAMPLES)
    by_track = _median_distance(tracks, long * (N - 1), tl.maximum(N - 1, 1), 1, N, SAMPLES)
    tl.store(counts + 15, (by_frame / by_track).to(tl.float64))

    if tl.sum(tl.where(part == 5, sums, 0.0)) > 0:
        seen = tl.sum(tl.where(part == 2, sums, 0.0))
        mean_x = (tl.sum(tl.where(part == 6, sums, 0.0)) / seen).to(tl.float32)
        mean_y = (tl.sum(tl.where(part == 7, sums, 0.0)) / seen).to(tl.float32)
        tl.debug_barrier()
        for first in range(0, long * N * 2, BINS):
            at = first + index
            value = tl.load(tracks + at, mask=at < long * N * 2, other=0.0)
            mean = tl.where(at % 2 == 0, mean_x, mean_y)
            tl.store(tracks + at, mean, mask=value != value)


class Prepared(NamedTuple):
    """What `prepare` gives."""

    inputs: torch.Tensor  # (B, T, N, 3) float32: u, v and visibility, as the network takes them
    tracks: torch.Tensor  # (B, T, N, 2) float32 pixels, complete once `count` has run
    seen: torch.Tensor  # (B, at least T N) uint8, the clips' visibility
    left: tuple[torch.Tensor, ...]  # for `count`


def prepare(
    positions: torch.Tensor, visible: torch.Tensor, cameras: torch.Tensor, about: torch.Tensor
) -> Prepared:
    """What `Tracks` and its `inputs` do, for B clips at once.

    All tensors are contiguous and on one device; nothing is checked here.

    Args:
        positions: (B, T, N, 2) pixels, float32 or float64; NaN where unknown.
        visible: (B, T, N) uint8, or float64 scores that are seen above 0.5.
        cameras: (B, T, 3, 3) float64 intrinsics.
        about: (B, 4) float64, of which the first two are the image's width and height.
    """
    B, T, N, _ = positions.shape
    device = positions.device
    options = launch("prepare", B * T * N, device)
    blocks = triton.cdiv(N, options["TRACKS"])

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    inputs, tracks = new(B, T, N, 3), new(B, T, N, 2)
    # Clips lie so that they can be taken for float32, to be moved with the rest of an answer.
    seen = new(B, triton.cdiv(T * N, 4) * 4, dtype=torch.uint8)
    parts = new(B, blocks, PARTS, dtype=torch.float64)
    zeros = torch.zeros(B * (BINS + T + 1), dtype=torch.int32, device=device)
    bins, links = zeros[: B * BINS], zeros[B * BINS :]
    with torch.cuda.device_of(positions):  # nothing for a CPU tensor, in the interpreter
        _prepare[(B * blocks,)](
            *(positions, visible, cameras, about),
            *(inputs, tracks, seen, parts, bins, links),
            *(T, N, seen.shape[1]),
            FARTHEST=FARTHEST,
            SCORES=visible.dtype != torch.uint8,
            BINS=BINS,
            PARTS=PARTS,
            **options,
            **overlap(device),
        )
    return Prepared(inputs, tracks, seen, (parts, bins, links, cameras))


def count(prepared: Prepared) -> torch.Tensor:
    """Counts (B, 16) float64 of each clip, which `plausible.Counts` names; completes `tracks`."""
    B, T, N, _ = prepared.tracks.shape
    parts, device = prepared.left[0], prepared.tracks.device
    counts = torch.empty(B, PARTS, dtype=torch.float64, device=device)
    with torch.cuda.device_of(counts):
        _count[(B,)](
            *(*prepared.left, prepared.tracks, counts),
            T,
            N,
            parts.shape[1],
            BINS=BINS,
            PARTS=PARTS,
            SAMPLES=SAMPLES,
            **launch("count", B * T * N, device),
            **overlap(device),
        )
    return counts
