"""The points' part of a Levenberg–Marquardt step, and the cost; see `adjust`."""
# mypy: allow-untyped-defs
# ruff: noqa: PLR0915

import triton
import triton.language as tl

from fasttracks.kernels.camera_math import (
    camera_pair,
    in_camera,
    load3,
    misfit,
    observe,
    rotate,
    store3,
    turned,
)
from fasttracks.kernels.common import wait_for_previous


@triton.jit
def _mixed(r, m):
    """M Rᵀ, column by column: column k is M times R's row k."""
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = r
    xx, xz, yz, zz = m[0], m[1], m[2], m[3]
    return (
        (xx * r0 + xz * r2, xx * r1 + yz * r2, xz * r0 + yz * r1 + zz * r2),
        (xx * r3 + xz * r5, xx * r4 + yz * r5, xz * r3 + yz * r4 + zz * r5),
        (xx * r6 + xz * r8, xx * r7 + yz * r8, xz * r6 + yz * r7 + zz * r8),
    )


@triton.jit
def _whiten(l00, l10, l11, l20, l21, l22, x, y, z):
    """L⁻¹ v."""
    x = x / l00
    y = (y - l10 * x) / l11
    return x, y, (z - l20 * x - l21 * y) / l22


@triton.jit(do_not_specialize=("T", "N"), do_not_specialize_on_alignment=("damping",))
def _points(
    rotation,
    position,
    log_focal,
    points,
    positions,
    weight,
    scale,
    log_depth,
    depth_weight,
    focal_free,
    damping,
    factors,
    mixed,
    T,
    N,
    MIN_DEPTH: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The points' Hessians V = L Lᵀ, damped, and what couples points and cameras, W L⁻ᵀ.

    factors (B, 6, N): L, row by row; mixed (B, C + 1, 3, N), the points' right-hand side L⁻¹ b in
    its last row. Rows of what is held are zero. A program for a block of tracks.
    """
    wait_for_previous(OVERLAP)
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    x, y, z = load3(points + (b * N + n) * 3, 1, in_tracks)
    sigma = tl.load(scale + b * N + n, mask=in_tracks, other=1.0)
    focal = tl.exp(tl.load(log_focal + b))
    free = tl.load(focal_free + b)
    damp = tl.load(damping + b)
    tracks = positions, weight, log_depth, depth_weight

    zero = tl.zeros((FRAMES, TRACKS), x.dtype)
    v00, v10, v11, v20, v21, v22 = zero, zero, zero, zero, zero, zero
    b0, b1, b2, f0, f1, f2 = zero, zero, zero, zero, zero, zero
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        r, p = in_camera(rotation, position, frame, t < T, x, y, z)
        mask = (t < T) & in_tracks
        token = frame * N + n
        m, g, h, _, _ = observe(p, focal, sigma, tracks, token, mask, mask, MIN_DEPTH)
        c0, c1, c2 = _mixed(r, m)
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = r
        h00, h10, h11, h20, h21, h22 = turned(r, c0, c1, c2)
        v00 += h00
        v10 += h10
        v20 += h20
        v11 += h11
        v21 += h21
        v22 += h22
        gx, gy, gz = rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, g[0], g[1], g[2])
        b0 -= gx
        b1 -= gy
        b2 -= gz
        hx, hy, hz = rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, h[0], h[1], h[2])
        f0 += hx
        f1 += hy
        f2 += hz

    v00, v10, v11 = tl.sum(v00, 0)[None, :], tl.sum(v10, 0)[None, :], tl.sum(v11, 0)[None, :]
    v20, v21, v22 = tl.sum(v20, 0)[None, :], tl.sum(v21, 0)[None, :], tl.sum(v22, 0)[None, :]
    floor = 1e-6 / 3 * (v00 + v11 + v22) + 1e-12
    l00 = tl.sqrt(v00 * (1 + damp) + floor)
    l10, l20 = v10 / l00, v20 / l00
    l11 = tl.sqrt(tl.maximum(v11 * (1 + damp) + floor - l10 * l10, floor))
    l21 = (v21 - l20 * l10) / l11
    l22 = tl.sqrt(tl.maximum(v22 * (1 + damp) + floor - l20 * l20 - l21 * l21, floor))
    factors += b * 6 * N + n
    store3(factors, N, l00, l10, l11, in_tracks)
    store3(factors + 3 * N, N, l20, l21, l22, in_tracks)

    mixed += b * (6 * T + 2) * 3 * N + n
    f0, f1, f2 = tl.sum(f0, 0)[None, :], tl.sum(f1, 0)[None, :], tl.sum(f2, 0)[None, :]
    y0, y1, y2 = _whiten(l00, l10, l11, l20, l21, l22, f0 * free, f1 * free, f2 * free)
    store3(mixed + 6 * T * 3 * N, N, y0, y1, y2, in_tracks)
    b0, b1, b2 = tl.sum(b0, 0)[None, :], tl.sum(b1, 0)[None, :], tl.sum(b2, 0)[None, :]
    y0, y1, y2 = _whiten(l00, l10, l11, l20, l21, l22, b0, b1, b2)
    store3(mixed + (6 * T + 1) * 3 * N, N, y0, y1, y2, in_tracks)
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        r, p = in_camera(rotation, position, frame, t < T, x, y, z)
        mask = (t < T) & in_tracks
        token = frame * N + n
        counted = mask & (t > 0)  # the first camera is held
        m, _, _, _, _ = observe(p, focal, sigma, tracks, token, mask, counted, MIN_DEPTH)
        px, py, pz = p
        c0, c1, c2 = _mixed(r, m)
        place = mixed + t.to(tl.int64) * 6 * 3 * N
        # −G below, −[P]× G above, G's columns c0, c1, c2.
        u0, u1, u2 = _whiten(l00, l10, l11, l20, l21, l22, -c0[0], -c1[0], -c2[0])
        store3(place + 9 * N, N, u0, u1, u2, mask)
        v0, v1, v2 = _whiten(l00, l10, l11, l20, l21, l22, -c0[1], -c1[1], -c2[1])
        store3(place + 12 * N, N, v0, v1, v2, mask)
        w0, w1, w2 = _whiten(l00, l10, l11, l20, l21, l22, -c0[2], -c1[2], -c2[2])
        store3(place + 15 * N, N, w0, w1, w2, mask)
        store3(place, N, py * w0 - pz * v0, py * w1 - pz * v1, py * w2 - pz * v2, mask)
        store3(place + 3 * N, N, pz * u0 - px * w0, pz * u1 - px * w1, pz * u2 - px * w2, mask)
        store3(place + 6 * N, N, px * v0 - py * u0, px * v1 - py * u1, px * v2 - py * u2, mask)


@triton.jit(do_not_specialize=("T", "N", "C", "move"))
def _cost(
    rotation,
    position,
    log_focal,
    points,
    positions,
    weight,
    scale,
    log_depth,
    depth_weight,
    turn,
    step,
    turn_weight,
    step_weight,
    expected_focal,
    focal_weight,
    factors,
    mixed,
    steps,
    to_points,
    parts,
    T,
    N,
    C,
    move,
    MIN_DEPTH: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The points' step after the cameras', dX = L⁻ᵀ (y − (W L⁻ᵀ)ᵀ x), and the cost (B, blocks).

    A program for a block of tracks; the first adds what belongs to the cameras.
    """
    wait_for_previous(OVERLAP)
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    n = block * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    x, y, z = load3(points + (b * N + n) * 3, 1, in_tracks)
    if move:
        sum_x = tl.zeros((FRAMES, TRACKS), x.dtype)
        sum_y, sum_z = sum_x, sum_x
        for start in range(0, C + 1, FRAMES):
            row = start + tl.arange(0, FRAMES)[:, None]
            s = tl.load(steps + b * (C + 1) + row, mask=row <= C, other=0.0)
            place = mixed + (b * (C + 1) + row) * 3 * N + n
            w0, w1, w2 = load3(place, N, (row <= C) & in_tracks)
            sum_x += s * w0
            sum_y += s * w1
            sum_z += s * w2
        lower = factors + b * 6 * N + n
        l00, l10, l11 = load3(lower, N, in_tracks)
        l20, l21, l22 = load3(lower + 3 * N, N, in_tracks)
        dz = tl.sum(sum_z, 0)[None, :] / l22
        dy = (tl.sum(sum_y, 0)[None, :] - l21 * dz) / l11
        dx = (tl.sum(sum_x, 0)[None, :] - l10 * dy - l20 * dz) / l00
        x += dx
        y += dy
        z += dz
        store3(to_points + (b * N + n) * 3, 1, x, y, z, in_tracks)

    log_f = tl.load(log_focal + b)
    focal = tl.exp(log_f)
    sigma = tl.load(scale + b * N + n, mask=in_tracks, other=1.0)
    tracks = positions, weight, log_depth, depth_weight
    total = tl.zeros((FRAMES, TRACKS), x.dtype)
    apart = tl.zeros((FRAMES, 1), x.dtype)  # of camera from camera
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        _r, p = in_camera(rotation, position, frame, t < T, x, y, z)
        mask = (t < T) & in_tracks
        token = frame * N + n
        by_offset, by_depth = misfit(p, focal, sigma, tracks, token, mask, MIN_DEPTH)
        total += by_offset
        total += by_depth
        if block == 0:
            pairs = t < T - 1
            before = b * T, b * (T - 1)
            _, _, w, s = camera_pair(rotation, position, turn, step, t, before, pairs)
            pair = before[1] + t
            by_turn = tl.load(turn_weight + pair, mask=pairs, other=0.0)
            by_step = tl.load(step_weight + pair, mask=pairs, other=0.0)
            apart += by_turn * (w[0] * w[0] + w[1] * w[1] + w[2] * w[2])
            apart += by_step * (s[0] * s[0] + s[1] * s[1] + s[2] * s[2])
    result = tl.sum(tl.sum(tl.where(in_tracks, total, 0.0), 1), 0).to(tl.float64)
    if block == 0:
        off = log_f - tl.load(expected_focal + b)
        result += tl.sum(tl.sum(apart, 1), 0) + tl.load(focal_weight + b) * off * off
    tl.store(parts + tl.program_id(0), result)
