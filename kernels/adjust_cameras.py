"""The cameras' part of a Levenberg–Marquardt step; see `adjust`."""
# mypy: allow-untyped-defs
# ruff: noqa: PLR0915

import triton
import triton.language as tl

from fasttracks.kernels.camera_math import (
    camera_pair,
    cross,
    exponential,
    load3,
    load9,
    observe,
    rotate,
    rotate_back,
    store3,
)
from fasttracks.kernels.common import wait_for_previous


@triton.jit
def _put(row, c0, c1, c2, c3, c4, c5):
    """Six values of a row of the system."""
    tl.store(row, c0)
    tl.store(row + 1, c1)
    tl.store(row + 2, c2)
    tl.store(row + 3, c3)
    tl.store(row + 4, c4)
    tl.store(row + 5, c5)


@triton.jit(do_not_specialize=("T", "N"), do_not_specialize_on_alignment=("damping",))
def _cameras(
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
    focal_free,
    damping,
    system,
    parts,
    T,
    N,
    MIN_DEPTH: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The cameras' own part of the system, damped, a program a camera.

    system (B, C + 1, C + 1), the right-hand side in its last row, zero where nothing is written;
    parts (B, T, 2): of the focal length's diagonal and right-hand side, to be summed. What is held
    gets a diagonal of 1.
    """
    wait_for_previous(OVERLAP)
    b = (tl.program_id(0) // T).to(tl.int64)
    t = tl.program_id(0) % T
    frame = b * T + t
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = load9(rotation + frame * 9, t < T)
    tx, ty, tz = load3(position + frame * 3, 1, t < T)
    log_f = tl.load(log_focal + b)
    focal = tl.exp(log_f)
    free = tl.load(focal_free + b)
    damp = 1 + tl.load(damping + b)
    tracks = positions, weight, log_depth, depth_weight

    zero = tl.zeros((TRACKS,), r0.dtype)
    u00, u10, u11, u20, u21, u22 = zero, zero, zero, zero, zero, zero
    u30, u31, u32, u40, u41, u42 = zero, zero, zero, zero, zero, zero
    u50, u51, u52, u33, u53, u54, u55 = zero, zero, zero, zero, zero, zero, zero
    b0, b1, b2, b3, b4, b5 = zero, zero, zero, zero, zero, zero
    f0, f1, f2, f3, f4, f5 = zero, zero, zero, zero, zero, zero
    of_focal, right_focal = zero, zero
    for start in range(0, N, TRACKS):
        n = start + tl.arange(0, TRACKS)
        mask = n < N
        x, y, z = load3(points + (b * N + n) * 3, 1, mask)
        p = rotate_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x - tx, y - ty, z - tz)
        px, py, pz = p
        token = frame * N + n
        sigma = tl.load(scale + b * N + n, mask=mask, other=1.0)
        m, g, h, ff, gf = observe(p, focal, sigma, tracks, token, mask, mask, MIN_DEPTH)
        of_focal += ff
        right_focal -= gf
        xx, xz, yz, zz = m[0], m[1], m[2], m[3]
        # [P]× M, then its product with [P]×ᵀ, row by row.
        n0, n1, n2 = py * xz, py * yz - pz * xx, py * zz - pz * yz
        n3, n4, n5 = pz * xx - px * xz, -px * yz, pz * xz - px * zz
        n6, n7, n8 = -py * xx, px * xx, px * yz - py * xz
        u00 += py * n2 - pz * n1
        u10 += py * n5 - pz * n4
        u11 += pz * n3 - px * n5
        u20 += py * n8 - pz * n7
        u21 += pz * n6 - px * n8
        u22 += px * n7 - py * n6
        u30 += n0
        u31 += n3
        u32 += n6
        u40 += n1
        u41 += n4
        u42 += n7
        u50 += n2
        u51 += n5
        u52 += n8
        u33 += xx
        u53 += xz
        u54 += yz
        u55 += zz
        cx, cy, cz = cross(px, py, pz, g[0], g[1], g[2])
        b0 += cx
        b1 += cy
        b2 += cz
        b3 += g[0]
        b4 += g[1]
        b5 += g[2]
        cx, cy, cz = cross(px, py, pz, h[0], h[1], h[2])
        f0 -= cx
        f1 -= cy
        f2 -= cz
        f3 -= h[0]
        f4 -= h[1]
        f5 -= h[2]
    s_ff, s_gf = tl.sum(of_focal, 0) * damp, tl.sum(right_focal, 0)
    held = 0.0 * s_ff
    if t == 0:
        prior = tl.load(focal_weight + b)
        s_ff += prior * damp
        s_gf -= prior * (log_f - tl.load(expected_focal + b))
        held += 1 - free
    tl.store(parts + frame * 2, s_ff * free + held)
    tl.store(parts + frame * 2 + 1, s_gf * free)

    C = 6 * T + 1
    system += b * (C + 1) * (C + 1)
    row = system + 6 * t.to(tl.int64) * (C + 1) + 6 * t
    if t == 0:
        for i in tl.static_range(6):
            tl.store(row + i * (C + 1) + i, 1.0)
    else:
        s00, s10, s11, s20, s21, s22 = (
            tl.sum(u00, 0),
            tl.sum(u10, 0),
            tl.sum(u11, 0),
            tl.sum(u20, 0),
            tl.sum(u21, 0),
            tl.sum(u22, 0),
        )
        s30, s31, s32 = tl.sum(u30, 0), tl.sum(u31, 0), tl.sum(u32, 0)
        s40, s41, s42 = tl.sum(u40, 0), tl.sum(u41, 0), tl.sum(u42, 0)
        s50, s51, s52 = tl.sum(u50, 0), tl.sum(u51, 0), tl.sum(u52, 0)
        s33, s53, s54, s55 = tl.sum(u33, 0), tl.sum(u53, 0), tl.sum(u54, 0), tl.sum(u55, 0)
        s44 = s33
        q0, q1, q2 = tl.sum(b0, 0), tl.sum(b1, 0), tl.sum(b2, 0)
        q3, q4, q5 = tl.sum(b3, 0), tl.sum(b4, 0), tl.sum(b5, 0)

        # From the camera before to this one.
        before = frame - 1, frame - b - 1
        d, a, w, s = camera_pair(rotation, position, turn, step, 0, before, t > 0)
        by_turn = tl.load(turn_weight + before[1])
        by_step = tl.load(step_weight + before[1])
        s00 += by_turn
        s11 += by_turn
        s22 += by_turn
        s33 += by_step
        s44 += by_step
        s55 += by_step
        q0 -= by_turn * w[0]
        q1 -= by_turn * w[1]
        q2 -= by_turn * w[2]
        d0, d1, d2, d3, d4, d5, d6, d7, d8 = d
        cx, cy, cz = rotate_back(d0, d1, d2, d3, d4, d5, d6, d7, d8, s[0], s[1], s[2])
        q3 -= by_step * cx
        q4 -= by_step * cy
        q5 -= by_step * cz
        if t > 1:
            # −wt Δᵀ above, ws Δᵀ [a]× and −ws Δᵀ below, for the turn Δ and the step a; mirrored.
            for across in tl.static_range(2):
                to = row - 6
                down = C + 1
                right = C * 0 + 1
                if across == 1:
                    to = row - 6 * (C + 1)
                    down, right = right, down
                for i in tl.static_range(3):
                    vx, vy, vz = d[i], d[3 + i], d[6 + i]
                    cx, cy, cz = cross(vx, vy, vz, a[0], a[1], a[2])
                    store3(to + i * down, right, -by_turn * vx, -by_turn * vy, -by_turn * vz, t > 0)
                    below = to + (3 + i) * down
                    store3(below, right, by_step * cx, by_step * cy, by_step * cz, t > 0)
                    below += 3 * right
                    store3(below, right, -by_step * vx, -by_step * vy, -by_step * vz, t > 0)
        if t < T - 1:
            # From this camera to the next.
            here = frame, frame - b
            d, a, w, s = camera_pair(rotation, position, turn, step, 0, here, t > 0)
            by_turn = tl.load(turn_weight + here[1])
            by_step = tl.load(step_weight + here[1])
            ax, ay, az = a
            s00 += by_turn + by_step * (ay * ay + az * az)
            s11 += by_turn + by_step * (ax * ax + az * az)
            s22 += by_turn + by_step * (ax * ax + ay * ay)
            s10 -= by_step * ax * ay
            s20 -= by_step * ax * az
            s21 -= by_step * ay * az
            s31 += by_step * az
            s32 -= by_step * ay
            s40 -= by_step * az
            s42 += by_step * ax
            s50 += by_step * ay
            s51 -= by_step * ax
            s33 += by_step
            s44 += by_step
            s55 += by_step
            d0, d1, d2, d3, d4, d5, d6, d7, d8 = d
            cx, cy, cz = rotate(d0, d1, d2, d3, d4, d5, d6, d7, d8, w[0], w[1], w[2])
            ex, ey, ez = cross(ax, ay, az, s[0], s[1], s[2])
            q0 += by_turn * cx + by_step * ex
            q1 += by_turn * cy + by_step * ey
            q2 += by_turn * cz + by_step * ez
            q3 += by_step * s[0]
            q4 += by_step * s[1]
            q5 += by_step * s[2]

        _put(row, s00 * damp, s10, s20, s30, s40, s50)
        _put(row + (C + 1), s10, s11 * damp, s21, s31, s41, s51)
        _put(row + 2 * (C + 1), s20, s21, s22 * damp, s32, s42, s52)
        _put(row + 3 * (C + 1), s30, s31, s32, s33 * damp, 0.0, s53)
        _put(row + 4 * (C + 1), s40, s41, s42, 0.0, s44 * damp, s54)
        _put(row + 5 * (C + 1), s50, s51, s52, s53, s54, s55 * damp)
        last = system + C.to(tl.int64) * (C + 1) + 6 * t
        _put(last, q0, q1, q2, q3, q4, q5)
        l0, l1, l2 = tl.sum(f0, 0) * free, tl.sum(f1, 0) * free, tl.sum(f2, 0) * free
        l3, l4, l5 = tl.sum(f3, 0) * free, tl.sum(f4, 0) * free, tl.sum(f5, 0) * free
        _put(last - (C + 1), l0, l1, l2, l3, l4, l5)
        column = system + 6 * t.to(tl.int64) * (C + 1) + C - 1
        tl.store(column, l0)
        tl.store(column + (C + 1), l1)
        tl.store(column + 2 * (C + 1), l2)
        tl.store(column + 3 * (C + 1), l3)
        tl.store(column + 4 * (C + 1), l4)
        tl.store(column + 5 * (C + 1), l5)


@triton.jit(do_not_specialize=("T",))
def _move_cameras(
    factors,
    rotation,
    position,
    log_focal,
    steps,
    to_rotation,
    to_position,
    to_focal,
    T,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The cameras' step x = L⁻ᵀ y from what `cholesky.factor` gives, and where it leads.

    steps (B, C + 1): minus the step, then 1. A program a camera, and one for the focal length.
    """
    wait_for_previous(OVERLAP)
    b = (tl.program_id(0) // (T + 1)).to(tl.int64)
    t = tl.program_id(0) % (T + 1)
    C = 6 * T + 1
    factors += b * (C + 1) * C
    unknown = tl.arange(0, 8)[:, None]
    unknown = 6 * t + tl.where(unknown < 6, unknown, C)
    total = tl.zeros((8, COLUMNS), tl.float64)
    for start in range(6 * t, C, COLUMNS):
        c = start + tl.arange(0, COLUMNS)[None, :]
        y = tl.load(factors + c, mask=c < C, other=0.0)
        mask = (c >= unknown) & (c < C) & (unknown < C)
        total += y * tl.load(factors + (1 + unknown) * C + c, mask=mask, other=0.0)
    x = tl.sum(total, 1)
    index = tl.arange(0, 8)
    dtype = steps.dtype.element_ty
    steps += b * (C + 1) + 6 * t
    if t == T:
        change = tl.sum(tl.where(index == 0, x, 0.0), 0).to(dtype)
        tl.store(steps, -change)
        tl.store(steps + 1, 1.0)
        tl.store(to_focal + b, tl.load(log_focal + b) + change)
    else:
        tl.store(steps + index, -x.to(dtype), mask=index < 6)
        wx = tl.sum(tl.where(index == 0, x, 0.0), 0).to(dtype)
        wy = tl.sum(tl.where(index == 1, x, 0.0), 0).to(dtype)
        wz = tl.sum(tl.where(index == 2, x, 0.0), 0).to(dtype)
        sx = tl.sum(tl.where(index == 3, x, 0.0), 0).to(dtype)
        sy = tl.sum(tl.where(index == 4, x, 0.0), 0).to(dtype)
        sz = tl.sum(tl.where(index == 5, x, 0.0), 0).to(dtype)
        frame = b * T + t
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = load9(rotation + frame * 9, t < T)
        e0, e1, e2, e3, e4, e5, e6, e7, e8 = exponential(wx, wy, wz)
        to_rotation += frame * 9
        m0, m1, m2 = rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, e0, e3, e6)
        store3(to_rotation, 3, m0, m1, m2, t < T)
        m0, m1, m2 = rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, e1, e4, e7)
        store3(to_rotation + 1, 3, m0, m1, m2, t < T)
        m0, m1, m2 = rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, e2, e5, e8)
        store3(to_rotation + 2, 3, m0, m1, m2, t < T)
        mx, my, mz = rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, sx, sy, sz)
        tx, ty, tz = load3(position + frame * 3, 1, t < T)
        store3(to_position + frame * 3, 1, tx + mx, ty + my, tz + mz, t < T)
