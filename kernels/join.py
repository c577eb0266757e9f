"""A stream's window prepared, and what the network says of it joined to the world.

This is what `fasttracks.stream.world` has in torch, in three launches instead of some hundred, in
float64: at a window's size a launch takes longer than its work.
"""
# mypy: allow-untyped-defs
# ruff: noqa: PLR0915

from typing import Any

import torch
import triton
import triton.language as tl

from fasttracks.kernels.adjust_fit import ray_spread
from fasttracks.kernels.camera_math import load3, load9, rotate, store3
from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch
from fasttracks.kernels.tuples import (
    double,
    mix,
    moved,
    nearest_rotation,
    product,
    square,
    store,
    times,
    transposed,
    weighted_sums,
    where,
)

_ABOUT = 7  # numbers of a track that `_weigh` leaves; the last is `_join`'s own


@triton.jit
def _max(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=("T", "N"))
def _show(
    window,
    flags,
    tracks,
    T,
    N,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """`inputs.hold` of a window's tracks, by their sources; a program for a block of them."""
    wait_for_previous(OVERLAP)
    n = tl.program_id(0) * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    source = tl.load(flags + 2 * N + n, mask=in_tracks, other=0.0).to(tl.int32)
    first = tl.zeros((1, TRACKS), tl.int32) + T
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        seen = tl.load(window + 3 * (t * N + source) + 2, mask=(t < T) & in_tracks, other=0.0) > 0
        first = tl.minimum(first, tl.min(tl.where(seen, t, T), 0, keep_dims=True))
    last = tl.zeros((1, TRACKS), tl.int32) - 1
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        mask = (t < T) & in_tracks
        visible = tl.load(window + 3 * (t * N + source) + 2, mask=mask, other=0.0)
        latest = tl.associative_scan(tl.where(visible > 0, t, -1), 0, _max)
        latest = tl.maximum(latest, last)
        last = tl.max(latest, 0, keep_dims=True)
        at = tl.where(latest < 0, first, latest)
        known = mask & (first < T)
        u = tl.load(window + 3 * (at * N + source), mask=known, other=0.0)
        v = tl.load(window + 3 * (at * N + source) + 1, mask=known, other=0.0)
        store3(tracks + 3 * (t * N + n), 1, u, v, visible, mask)


@triton.jit
def _level(motion, N, QUANTILE: tl.constexpr, POINTS: tl.constexpr):
    """A low quantile of γ (N,), between the two values that are next to it."""
    rank = (N - 1).to(tl.float64) * QUANTILE
    k = rank.to(tl.int32)
    lower, upper = rank * 0, rank * 0
    value, before = lower - float("inf"), k * 0
    for _ in range(k + 2):
        least, count = rank * 0 + float("inf"), k * 0
        for start in range(0, N, POINTS):
            n = start + tl.arange(0, POINTS)
            gamma = tl.load(motion + n, mask=n < N, other=float("inf")).to(tl.float64)
            least = tl.minimum(least, tl.min(tl.where(gamma > value, gamma, float("inf"))))
        for start in range(0, N, POINTS):
            n = start + tl.arange(0, POINTS)
            gamma = tl.load(motion + n, mask=n < N, other=0.0).to(tl.float64)
            count += tl.sum(((gamma <= least) & (n < N)).to(tl.int32))
        value = least
        lower = tl.where((before <= k) & (count > k), value, lower)
        upper = tl.where((before <= k + 1) & (count > k + 1), value, upper)
        before = count
    return tl.where(k + 1 < N, lower + (rank - k) * (upper - lower), lower)


@triton.jit(do_not_specialize=("T", "N", "hop"))
def _weigh(
    tracks,
    flags,
    motion,
    position,
    static,
    old_position,
    frame_weight,
    old_points,
    point_weight,
    about,
    T,
    N,
    hop,
    QUANTILE: tl.constexpr,
    NOISE: tl.constexpr,
    STILL: tl.constexpr,
    POWER: tl.constexpr,
    LEAST: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    POINTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """What each track says of the similarity; a program for a block of them, over all frames."""
    wait_for_previous(OVERLAP)
    n = tl.program_id(0) * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    own = tl.load(flags + n, mask=in_tracks, other=0.0)
    x, y, z = load3(static + 3 * n, 1, in_tracks)
    x, y, z = x.to(tl.float64), y.to(tl.float64), z.to(tl.float64)
    there_x, there_y, there_z = load3(old_points + 3 * n, 1, in_tracks)
    zero = tl.zeros((FRAMES, TRACKS), tl.float64)
    count, ray_x, ray_y, ray_z = zero, zero, zero, zero
    shared, ratio, distance = zero, zero, zero
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        mask = (t < T) & in_tracks
        seen = (tl.load(tracks + 3 * (t * N + n) + 2, mask=mask, other=0.0) * own).to(tl.float64)
        camera_x, camera_y, camera_z = load3(position + 3 * t, 1, t < T)
        dx, dy, dz = x - camera_x.to(tl.float64), y - camera_y, z - camera_z
        here = tl.sqrt(dx * dx + dy * dy + dz * dz)
        count += seen
        ray = seen / tl.where(mask, here, 1.0)
        ray_x += ray * dx
        ray_y += ray * dy
        ray_z += ray * dz
        before = tl.minimum(t + hop, T - 1)
        known = (t < T - hop) & (tl.load(frame_weight + before) > 0)
        camera_x, camera_y, camera_z = load3(old_position + 3 * before, 1, t < T)
        dx, dy, dz = there_x - camera_x, there_y - camera_y, there_z - camera_z
        there = tl.sqrt(dx * dx + dy * dy + dz * dz)
        there = tl.maximum(there, there * 0 + 1e-6)
        here = tl.maximum(here, here * 0 + 1e-6)
        both = tl.where(known & mask, seen, 0.0)
        shared += both
        ratio += tl.where(known & mask, both * tl.log(there / here), 0.0)
        distance += tl.where(known & mask, both * there, 0.0)

    level = _level(motion, N, QUANTILE, POINTS)
    level = tl.minimum(tl.maximum(level, level * 0 + NOISE), level * 0 + 10 * NOISE)
    gamma = tl.load(motion + n, mask=in_tracks, other=1.0).to(tl.float64)
    moves = gamma / (STILL * level)
    mobility = tl.where(moves < 1, moves * 0 + 1, tl.where(moves > 10, moves * 0 + 10, moves))
    still = mobility * 0 + 1
    for _ in tl.static_range(POWER):
        still = still / mobility
    frames = tl.sum(count, 0, keep_dims=True)
    spread = ray_spread(
        frames,
        tl.sum(ray_x, 0, keep_dims=True),
        tl.sum(ray_y, 0, keep_dims=True),
        tl.sum(ray_z, 0, keep_dims=True),
    )
    far = spread / (spread + LEAST)
    sure = still * far * far + still * 1e-6

    fresh = tl.load(flags + N + n, mask=in_tracks, other=1.0).to(tl.float64)
    weight = tl.load(point_weight + n, mask=in_tracks, other=0.0) * (1 - fresh)
    trust = sure * weight / (1 + weight)
    total = trust * tl.sum(shared, 0, keep_dims=True)
    least = tl.maximum(total, total * 0 + 1e-12)
    about += n
    tl.store(about, mobility, mask=in_tracks)
    tl.store(about + N, sure, mask=in_tracks)
    tl.store(about + 2 * N, total, mask=in_tracks)
    tl.store(about + 3 * N, trust * tl.sum(ratio, 0, keep_dims=True) / least, mask=in_tracks)
    off = trust * tl.sum(distance, 0, keep_dims=True) / least
    off = tl.maximum(off, off * 0 + 1e-6)
    tl.store(about + 4 * N, off, mask=in_tracks)
    tl.store(about + 5 * N, total / off, mask=in_tracks)


@triton.jit
def _weighted_median(values, weight, half, N, BLOCK: tl.constexpr):
    """Of values (N,) by weight (N,): the least that with all below it has half of the weight."""
    lowest = half * 0 + float("inf")
    for first in range(0, N, BLOCK):
        i = first + tl.arange(0, BLOCK)
        value = tl.load(values + i, mask=i < N, other=float("inf"))
        below = tl.zeros((BLOCK, BLOCK), tl.float64)
        for start in range(0, N, BLOCK):
            j = start + tl.arange(0, BLOCK)
            other = tl.load(values + j, mask=j < N, other=float("inf"))
            share = tl.load(weight + j, mask=j < N, other=0.0)
            below += tl.where(other[None, :] <= value[:, None], share[None, :], 0.0)
        enough = (tl.sum(below, 1) >= half) & (i < N)
        lowest = tl.minimum(lowest, tl.min(tl.where(enough, value, float("inf"))))
    return tl.where(half > 0, lowest, 0.0)


@triton.jit
def _off(world_points, static, scale, turn, n, N):
    """How far points are from where they were, but for the shift."""
    there = load3(world_points + 3 * n, 1, n < N)
    return mix(there, 1, rotate(*turn, *double(load3(static + 3 * n, 1, n < N))), -scale)


@triton.jit(do_not_specialize=("T", "N", "hop"))
def _join(
    rotation,
    position,
    static,
    newest,
    about,
    flags,
    world_rotation,
    world_position,
    frame_weight,
    world_points,
    point_weight,
    log_scale,
    started,
    out,
    T,
    N,
    hop,
    LEAST_SHARED: tl.constexpr,
    LEAST_SURE: tl.constexpr,
    ROUNDS: tl.constexpr,
    POLAR: tl.constexpr,
    MEMORY: tl.constexpr,
    FRAMES: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program: the similarity, the new state in place of the old, and what is seen of it.

    out: `world.Seen`, flat float32.
    """
    wait_for_previous(OVERLAP)
    begun = tl.load(started) > 0
    t = tl.arange(0, FRAMES)
    inside, leaves = t < T, t < hop
    store(out + 12 * t, load9(world_rotation + 9 * t, leaves), leaves)
    store(out + 12 * t + 9, load3(world_position + 3 * t, 1, leaves), leaves)
    before = tl.minimum(t + hop, T - 1)
    weight = tl.load(frame_weight + before, mask=t < T - hop, other=0.0)
    old_rotation = load9(world_rotation + 9 * before, inside)
    old_position = load3(world_position + 3 * before, 1, inside)
    old_scale = tl.load(log_scale)
    rotation = double(load9(rotation + 9 * t, inside))
    position = double(load3(position + 3 * t, 1, inside))

    # A robust chordal mean of the rotations from here to there.
    turns = product(old_rotation, transposed(rotation))
    pull = weight
    nil = old_scale * 0
    turn = (nil, nil, nil, nil, nil, nil, nil, nil, nil)
    for _ in range(ROUNDS):
        sums = weighted_sums(pull, turns)
        share = 1 / tl.maximum(sums[0], sums[0] * 0 + 1e-12)
        turn = times(share, sums[1:])
        pull = weight / (tl.sqrt(square(mix(turns, 1, turn, -1))) + 1e-4)
    turn = nearest_rotation(turn, POLAR)

    count, total, firmness = hop * 0, nil, nil
    for start in range(0, N, POINTS):
        n = start + tl.arange(0, POINTS)
        by_point = tl.load(about + 2 * N + n, mask=n < N, other=0.0)
        count += tl.sum((by_point > T.to(tl.float64) * LEAST_SURE).to(tl.int32))
        total += tl.sum(by_point)
        firmness += tl.sum(tl.load(about + 5 * N + n, mask=n < N, other=0.0))
    found = _weighted_median(about + 3 * N, about + 5 * N, firmness / 2, N, BLOCK)
    found = tl.where(count >= LEAST_SHARED, found, old_scale)
    scale = tl.exp(found)

    # The geometric median of what camera centres and points are off by then.
    of_cameras = mix(old_position, 1, rotate(*turn, *position), -scale)
    by_camera = weight / tl.maximum(tl.sum(weight), old_scale * 0 + 1e-12)
    firmness = tl.maximum(firmness, firmness * 0 + 1e-12)
    x, y, z = nil, nil, nil
    for iteration in range(ROUNDS + 1):
        pull = by_camera / (tl.sqrt(square(mix(of_cameras, 1, (x, y, z), -1))) + 1e-6)
        w, a, b, c = weighted_sums(tl.where(iteration == 0, by_camera, pull), of_cameras)
        for start in range(0, N, POINTS):
            n = start + tl.arange(0, POINTS)
            off = _off(world_points, static, scale, turn, n, N)
            firm = tl.load(about + 5 * N + n, mask=n < N, other=0.0) / firmness
            near = firm / (tl.sqrt(square(mix(off, 1, (x, y, z), -1))) + 1e-6)
            dw, da, db, dc = weighted_sums(tl.where(iteration == 0, firm, near), off)
            w, a, b, c = w + dw, a + da, b + db, c + dc
        w = tl.maximum(w, w * 0 + 1e-12)
        x, y, z = a / w, b / w, c / w
    shift = (x, y, z)
    for start in range(0, N, POINTS):
        n = start + tl.arange(0, POINTS)
        off = mix(_off(world_points, static, scale, turn, n, N), 1, shift, -1)
        far = tl.sqrt(square(off)) / tl.load(about + 4 * N + n, mask=n < N, other=1.0)
        tl.store(about + 6 * N + n, far, mask=n < N)
    tl.debug_barrier()  # what was just stored is there, and all has read the old state
    residual = _weighted_median(about + 6 * N, about + 2 * N, total / 2, N, BLOCK)

    scale = tl.where(begun, scale, scale * 0 + 1)
    shift = where(begun, shift, (scale * 0, scale * 0, scale * 0))
    zero, one = scale * 0, scale * 0 + 1
    turn = where(begun, turn, (one, zero, zero, zero, one, zero, zero, zero, one))

    # Windows see their middle best.
    rotation, position = product(turn, rotation), moved(scale, turn, shift, position)
    gain = tl.minimum(t + 1, T - t).to(tl.float64) / T
    share = gain / (weight + gain)
    blended = nearest_rotation(mix(old_rotation, 1 - share, rotation, share), POLAR)
    rotation = where(weight > 0, blended, rotation)
    position = where(weight > 0, mix(old_position, 1 - share, position, share), position)
    store(world_rotation + 9 * t, rotation, inside)
    store(world_position + 3 * t, position, inside)
    tl.store(frame_weight + t, weight + gain, mask=inside)
    out += 12 * hop
    store(out + 12 * t, rotation, inside)
    store(out + 12 * t + 9, position, inside)

    out += 12 * T
    for start in range(0, N, POINTS):
        n = start + tl.arange(0, POINTS)
        mask = n < N
        more = tl.load(about + N + n, mask=mask, other=0.0)
        more *= tl.load(flags + n, mask=mask, other=0.0)
        fresh = tl.load(flags + N + n, mask=mask, other=1.0).to(tl.float64)
        had = tl.load(point_weight + n, mask=mask, other=0.0) * (1 - fresh)
        there = load3(world_points + 3 * n, 1, mask)
        points = moved(scale, turn, shift, double(load3(static + 3 * n, 1, mask)))
        part = more / tl.maximum(had + more, more * 0 + 1e-12)
        points = where(had > 0, mix(there, 1 - part, points, part), points)
        store(world_points + 3 * n, points, mask)
        tl.store(point_weight + n, tl.minimum(had + more, more * 0 + MEMORY), mask=mask)
        points = moved(scale, turn, shift, double(load3(newest + 3 * n, 1, mask)))
        store(out + 3 * n, points, mask)
        tl.store(out + 3 * N + n, tl.load(about + n, mask=mask, other=0.0), mask=mask)
    out += 4 * N
    tl.store(out, tl.exp(found - old_scale))
    tl.store(out + 1, count.to(tl.float32))
    tl.store(out + 2, residual)
    tl.store(log_scale, tl.where(begun, found, 0.0))
    tl.store(started, one)


def show(window: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
    """The network's inputs (1, T, N, 3) of a window (T, N, 3), held where nothing was seen.

    flags: (3, N), as `world.World` stages them; the last are the slots that are shown.
    """
    T, N, _ = window.shape
    tracks = window.new_empty(1, T, N, 3)
    options = launch("world_show", T * N, window.device)
    with torch.cuda.device_of(window):
        _show[(triton.cdiv(N, options["TRACKS"]),)](
            window, flags, tracks, T, N, **options, **overlap(window.device)
        )
    return tracks


def join(
    prediction: Any,
    tracks: torch.Tensor,
    flags: torch.Tensor,
    state: Any,
    out: torch.Tensor,
    hop: int,
    weighing: dict[str, float],
    joining: dict[str, float],
) -> None:
    """Bring a window to the world, whose state is changed in place.

    Args:
        prediction: `geometry.Prediction` of one clip.
        tracks: (1, T, N, 3), `show`'s.
        flags: `show`'s.
        state: `world.State`, float64.
        out: flat float32, becomes what `world.Seen` names.
        hop: frames since the last window.
        weighing: the constants of `_weigh`.
        joining: those of `_join`.
    """
    p, s = prediction, state
    T, N = tracks.shape[1:3]
    device = tracks.device
    about = s.points.new_empty(_ABOUT, N)
    position, static = p.position[0].contiguous(), p.basis[0, 0].contiguous()
    options = launch("world_weigh", T * N, device)
    with torch.cuda.device_of(tracks):
        _weigh[(triton.cdiv(N, options["TRACKS"]),)](
            *(tracks, flags, p.motion[0].contiguous(), position, static),
            *(s.position, s.frame_weight, s.points, s.point_weight, about),
            *(T, N, hop),
            **weighing,
            **options,
            **overlap(device),
        )
        _join[(1,)](
            *(p.rotation[0].contiguous(), position, static, p.points[0, -1].contiguous(), about),
            *(flags, *s, out, T, N, hop),
            **joining,
            FRAMES=triton.next_power_of_2(T),
            **launch("world_join", T * N, device),
            **overlap(device),
        )
