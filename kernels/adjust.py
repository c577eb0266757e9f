"""One Levenberg–Marquardt step of cameras and static points, as `fasttracks.refine.cameras` has it.

A camera point P = Rᵀ (X − t) changes by P × ω − τ + Rᵀ dX. With an observation's Hessian M and
gradient g by P, both 3 wide, its blocks are R M Rᵀ (points), C M Cᵀ (cameras) and C M Rᵀ (mixed),
where C = [−[P]×; −I]. Nothing is kept of an observation: each pass makes M and g anew.

In the dtype of their arguments, float32 or float64. B clips, T frames, N tracks; the unknowns of
the cameras are C = 6 T + 1, the focal length last.
"""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from fasttracks.geometry import MIN_DEPTH
from fasttracks.kernels.cholesky import factor

OPTIONS = {"enable_fp_fusion": True}
POINTS = {"FRAMES": 16, "TRACKS": 8, "num_warps": 4, **OPTIONS}
CAMERAS = {"TRACKS": 128, "num_warps": 4, **OPTIONS}
MOVE = {"COLUMNS": 128, "num_warps": 4, **OPTIONS}
ACCEPT = {"BLOCK": 256, "num_warps": 4, **OPTIONS}


@triton.jit
def _load3(pointer, stride, mask):
    """Three values, `stride` elements apart."""
    return (
        tl.load(pointer, mask=mask, other=0.0),
        tl.load(pointer + stride, mask=mask, other=0.0),
        tl.load(pointer + 2 * stride, mask=mask, other=0.0),
    )


@triton.jit
def _load9(pointer, mask):
    """A matrix, row by row."""
    a, b, c = _load3(pointer, 1, mask)
    d, e, f = _load3(pointer + 3, 1, mask)
    g, h, i = _load3(pointer + 6, 1, mask)
    return a, b, c, d, e, f, g, h, i


@triton.jit
def _apply(r0, r1, r2, r3, r4, r5, r6, r7, r8, x, y, z):
    """R v."""
    return r0 * x + r1 * y + r2 * z, r3 * x + r4 * y + r5 * z, r6 * x + r7 * y + r8 * z


@triton.jit
def _apply_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x, y, z):
    """Rᵀ v."""
    return r0 * x + r3 * y + r6 * z, r1 * x + r4 * y + r7 * z, r2 * x + r5 * y + r8 * z


@triton.jit
def _cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@triton.jit
def _image(px, py, pz, focal, MIN_DEPTH: tl.constexpr):
    """Depth as projection takes it, and the projection."""
    depth = tl.maximum(pz, 0.0 * pz + MIN_DEPTH)  # MIN_DEPTH alone would be rounded to float32
    return depth, focal * px / depth, focal * py / depth


@triton.jit
def _observe(
    px, py, pz, focal, u, v, weight, scale, log_depth, depth_weight, MIN_DEPTH: tl.constexpr
):
    """M (xx = yy, xz, yz, zz), g, and of the focal length its product with P, itself and g."""
    depth, image_u, image_v = _image(px, py, pz, focal, MIN_DEPTH)
    off_u, off_v = image_u - u, image_v - v
    w = weight / (scale * scale + off_u * off_u + off_v * off_v)
    a = focal / depth
    d = tl.where(pz > MIN_DEPTH, 1.0 / depth, 0.0)
    b, c = -d * image_u, -d * image_v
    wa = w * a
    off = tl.log(depth) - log_depth
    m_zz = w * (b * b + c * c) + depth_weight * d * d
    g_z = w * (b * off_u + c * off_v) + depth_weight * d * off
    h_z = w * (b * image_u + c * image_v)
    of_focal = w * (image_u * image_u + image_v * image_v)
    g_focal = w * (image_u * off_u + image_v * off_v)
    return (
        (wa * a, wa * b, wa * c, m_zz),
        (wa * off_u, wa * off_v, g_z),
        (wa * image_u, wa * image_v, h_z),
        of_focal,
        g_focal,
    )


@triton.jit
def _mixed(r0, r1, r2, r3, r4, r5, r6, r7, r8, m):
    """M Rᵀ, column by column: column k is M times R's row k."""
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


@triton.jit
def _store3(pointer, stride, x, y, z, mask):
    tl.store(pointer, x, mask=mask)
    tl.store(pointer + stride, y, mask=mask)
    tl.store(pointer + 2 * stride, z, mask=mask)


@triton.jit(do_not_specialize=("T", "N"))
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
):
    """The points' Hessians V = L Lᵀ, damped, and what couples points and cameras, W L⁻ᵀ.

    factors (B, 6, N): L, row by row; mixed (B, C + 1, 3, N), the points' right-hand side L⁻¹ b in
    its last row. Rows of what is held are zero. A program for a block of tracks.
    """
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    x, y, z = _load3(points + (b * N + n) * 3, 1, in_tracks)
    sigma = tl.load(scale + b * N + n, mask=in_tracks, other=1.0)
    focal = tl.exp(tl.load(log_focal + b))
    free = tl.load(focal_free + b)
    damp = tl.load(damping + b)

    zero = tl.zeros((FRAMES, TRACKS), x.dtype)
    v00, v10, v11, v20, v21, v22 = zero, zero, zero, zero, zero, zero
    b0, b1, b2, f0, f1, f2 = zero, zero, zero, zero, zero, zero
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = _load9(rotation + frame * 9, t < T)
        tx, ty, tz = _load3(position + frame * 3, 1, t < T)
        px, py, pz = _apply_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x - tx, y - ty, z - tz)
        mask = (t < T) & in_tracks
        token = frame * N + n
        m, g, h, _, _ = _observe(
            px,
            py,
            pz,
            focal,
            tl.load(positions + token * 2, mask=mask, other=0.0),
            tl.load(positions + token * 2 + 1, mask=mask, other=0.0),
            tl.load(weight + token, mask=mask, other=0.0),
            sigma,
            tl.load(log_depth + token, mask=mask, other=0.0),
            tl.load(depth_weight + token, mask=mask, other=0.0),
            MIN_DEPTH,
        )
        c0, c1, c2 = _mixed(r0, r1, r2, r3, r4, r5, r6, r7, r8, m)
        v00 += r0 * c0[0] + r1 * c0[1] + r2 * c0[2]
        v10 += r3 * c0[0] + r4 * c0[1] + r5 * c0[2]
        v20 += r6 * c0[0] + r7 * c0[1] + r8 * c0[2]
        v11 += r3 * c1[0] + r4 * c1[1] + r5 * c1[2]
        v21 += r6 * c1[0] + r7 * c1[1] + r8 * c1[2]
        v22 += r6 * c2[0] + r7 * c2[1] + r8 * c2[2]
        gx, gy, gz = _apply(r0, r1, r2, r3, r4, r5, r6, r7, r8, g[0], g[1], g[2])
        b0 -= gx
        b1 -= gy
        b2 -= gz
        hx, hy, hz = _apply(r0, r1, r2, r3, r4, r5, r6, r7, r8, h[0], h[1], h[2])
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
    _store3(factors, N, l00, l10, l11, in_tracks)
    _store3(factors + 3 * N, N, l20, l21, l22, in_tracks)

    mixed += b * (6 * T + 2) * 3 * N + n
    f0, f1, f2 = tl.sum(f0, 0)[None, :], tl.sum(f1, 0)[None, :], tl.sum(f2, 0)[None, :]
    y0, y1, y2 = _whiten(l00, l10, l11, l20, l21, l22, f0 * free, f1 * free, f2 * free)
    _store3(mixed + 6 * T * 3 * N, N, y0, y1, y2, in_tracks)
    b0, b1, b2 = tl.sum(b0, 0)[None, :], tl.sum(b1, 0)[None, :], tl.sum(b2, 0)[None, :]
    y0, y1, y2 = _whiten(l00, l10, l11, l20, l21, l22, b0, b1, b2)
    _store3(mixed + (6 * T + 1) * 3 * N, N, y0, y1, y2, in_tracks)
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = _load9(rotation + frame * 9, t < T)
        tx, ty, tz = _load3(position + frame * 3, 1, t < T)
        px, py, pz = _apply_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x - tx, y - ty, z - tz)
        mask = (t < T) & in_tracks
        token = frame * N + n
        m, g, h, _, _ = _observe(
            px,
            py,
            pz,
            focal,
            tl.load(positions + token * 2, mask=mask, other=0.0),
            tl.load(positions + token * 2 + 1, mask=mask, other=0.0),
            tl.load(weight + token, mask=mask & (t > 0), other=0.0),  # the first camera is held
            sigma,
            tl.load(log_depth + token, mask=mask, other=0.0),
            tl.load(depth_weight + token, mask=mask & (t > 0), other=0.0),
            MIN_DEPTH,
        )
        c0, c1, c2 = _mixed(r0, r1, r2, r3, r4, r5, r6, r7, r8, m)
        place = mixed + t.to(tl.int64) * 6 * 3 * N
        # −G below, −[P]× G above, G's columns c0, c1, c2.
        y0, y1, y2 = _whiten(l00, l10, l11, l20, l21, l22, -c0[0], -c1[0], -c2[0])
        _store3(place + 9 * N, N, y0, y1, y2, mask)
        z0, z1, z2 = _whiten(l00, l10, l11, l20, l21, l22, -c0[1], -c1[1], -c2[1])
        _store3(place + 12 * N, N, z0, z1, z2, mask)
        w0, w1, w2 = _whiten(l00, l10, l11, l20, l21, l22, -c0[2], -c1[2], -c2[2])
        _store3(place + 15 * N, N, w0, w1, w2, mask)
        _store3(place, N, py * w0 - pz * z0, py * w1 - pz * z1, py * w2 - pz * z2, mask)
        _store3(place + 3 * N, N, pz * y0 - px * w0, pz * y1 - px * w1, pz * y2 - px * w2, mask)
        _store3(place + 6 * N, N, px * z0 - py * y0, px * z1 - py * y1, px * z2 - py * y2, mask)


@triton.jit
def _logarithm(r0, r1, r2, r3, r4, r5, r6, r7, r8):
    """The rotation vector of R, by less than half a turn; `geometry.logarithm`."""
    x, y, z = (r7 - r5) * 0.5, (r2 - r6) * 0.5, (r3 - r1) * 0.5
    sin = tl.sqrt(x * x + y * y + z * z + 1e-16)
    cos = (r0 + r4 + r8 - 1) * 0.5
    # The angle's arc tangent: half-angle formulas down to a 32nd of it, then the series.
    tangent = sin / (tl.sqrt(sin * sin + cos * cos) + cos + 1e-30)
    for _ in tl.static_range(4):
        tangent = tangent / (1 + tl.sqrt(1 + tangent * tangent))
    square = -tangent * tangent
    series = square * 0.0 + 1 / 15
    for i in tl.static_range(7):
        series = series * square + 1 / (13 - 2 * i)
    share = 32 * tangent * series / sin
    return x * share, y * share, z * share


@triton.jit
def _exponential(x, y, z):
    """The rotation by a vector; `geometry.exponential`."""
    angle = tl.sqrt(x * x + y * y + z * z + 1e-16)
    x, y, z = x / angle, y / angle, z / angle
    sin, cos = tl.sin(angle), 1 - tl.cos(angle)
    return (
        1 - cos * (y * y + z * z),
        cos * x * y - sin * z,
        cos * x * z + sin * y,
        cos * x * y + sin * z,
        1 - cos * (x * x + z * z),
        cos * y * z - sin * x,
        cos * x * z - sin * y,
        cos * y * z + sin * x,
        1 - cos * (x * x + y * y),
    )


@triton.jit
def _product_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b0, b1, b2, b3, b4, b5, b6, b7, b8):
    """Aᵀ B."""
    c0, c3, c6 = _apply_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b0, b3, b6)
    c1, c4, c7 = _apply_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b1, b4, b7)
    c2, c5, c8 = _apply_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b2, b5, b8)
    return c0, c1, c2, c3, c4, c5, c6, c7, c8


@triton.jit
def _pair(rotation, position, turn, step, t, before, mask):
    """From camera t to the next: turn, step, and what these differ by from what is expected.

    `before`, of all cameras (T) and of all pairs (T - 1) of the clips before this.
    """
    frame = before[0] + t
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = _load9(rotation + frame * 9, mask)
    n0, n1, n2, n3, n4, n5, n6, n7, n8 = _load9(rotation + frame * 9 + 9, mask)
    d0, d1, d2, d3, d4, d5, d6, d7, d8 = _product_back(
        r0, r1, r2, r3, r4, r5, r6, r7, r8, n0, n1, n2, n3, n4, n5, n6, n7, n8
    )
    x, y, z = _load3(position + frame * 3, 1, mask)
    nx, ny, nz = _load3(position + frame * 3 + 3, 1, mask)
    ax, ay, az = _apply_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, nx - x, ny - y, nz - z)
    pair = before[1] + t
    e0, e1, e2, e3, e4, e5, e6, e7, e8 = _load9(turn + pair * 9, mask)
    l0, l1, l2, l3, l4, l5, l6, l7, l8 = _product_back(
        e0, e1, e2, e3, e4, e5, e6, e7, e8, d0, d1, d2, d3, d4, d5, d6, d7, d8
    )
    wx, wy, wz = _logarithm(l0, l1, l2, l3, l4, l5, l6, l7, l8)
    sx, sy, sz = _load3(step + pair * 3, 1, mask)
    return (
        (d0, d1, d2, d3, d4, d5, d6, d7, d8),
        (ax, ay, az),
        (wx, wy, wz),
        (ax - sx, ay - sy, az - sz),
    )


@triton.jit
def _put(row, c0, c1, c2, c3, c4, c5):
    """Six values of a row of the system."""
    tl.store(row, c0)
    tl.store(row + 1, c1)
    tl.store(row + 2, c2)
    tl.store(row + 3, c3)
    tl.store(row + 4, c4)
    tl.store(row + 5, c5)


@triton.jit(do_not_specialize=("T", "N"))
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
):
    """The cameras' own part of the system, damped, a program a camera.

    system (B, C + 1, C + 1), the right-hand side in its last row, zero where nothing is written;
    parts (B, T, 2): of the focal length's diagonal and right-hand side, to be summed. What is held
    gets a diagonal of 1.
    """
    b = (tl.program_id(0) // T).to(tl.int64)
    t = tl.program_id(0) % T
    frame = b * T + t
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = _load9(rotation + frame * 9, t < T)
    tx, ty, tz = _load3(position + frame * 3, 1, t < T)
    log_f = tl.load(log_focal + b)
    focal = tl.exp(log_f)
    free = tl.load(focal_free + b)
    damp = 1 + tl.load(damping + b)

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
        x, y, z = _load3(points + (b * N + n) * 3, 1, mask)
        px, py, pz = _apply_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x - tx, y - ty, z - tz)
        token = frame * N + n
        m, g, h, ff, gf = _observe(
            px,
            py,
            pz,
            focal,
            tl.load(positions + token * 2, mask=mask, other=0.0),
            tl.load(positions + token * 2 + 1, mask=mask, other=0.0),
            tl.load(weight + token, mask=mask, other=0.0),
            tl.load(scale + b * N + n, mask=mask, other=1.0),
            tl.load(log_depth + token, mask=mask, other=0.0),
            tl.load(depth_weight + token, mask=mask, other=0.0),
            MIN_DEPTH,
        )
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
        cx, cy, cz = _cross(px, py, pz, g[0], g[1], g[2])
        b0 += cx
        b1 += cy
        b2 += cz
        b3 += g[0]
        b4 += g[1]
        b5 += g[2]
        cx, cy, cz = _cross(px, py, pz, h[0], h[1], h[2])
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
        d, a, w, s = _pair(rotation, position, turn, step, 0, before, t > 0)
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
        cx, cy, cz = _apply_back(d0, d1, d2, d3, d4, d5, d6, d7, d8, s[0], s[1], s[2])
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
                    cx, cy, cz = _cross(vx, vy, vz, a[0], a[1], a[2])
                    _store3(to + i * down, right, -by_turn * vx, -by_turn * vy, -by_turn * vz, t > 0)
                    below = to + (3 + i) * down
                    _store3(below, right, by_step * cx, by_step * cy, by_step * cz, t > 0)
                    below += 3 * right
                    _store3(below, right, -by_step * vx, -by_step * vy, -by_step * vz, t > 0)
        if t < T - 1:
            # From this camera to the next.
            here = frame, frame - b
            d, a, w, s = _pair(rotation, position, turn, step, 0, here, t > 0)
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
            cx, cy, cz = _apply(d0, d1, d2, d3, d4, d5, d6, d7, d8, w[0], w[1], w[2])
            ex, ey, ez = _cross(ax, ay, az, s[0], s[1], s[2])
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
    factors, rotation, position, log_focal, steps, to_rotation, to_position, to_focal, T,
    COLUMNS: tl.constexpr,
):
    """The cameras' step x = L⁻ᵀ y from what `cholesky.factor` gives, and where it leads.

    steps (B, C + 1): minus the step, then 1. A program a camera, and one for the focal length.
    """
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
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = _load9(rotation + frame * 9, t < T)
        e0, e1, e2, e3, e4, e5, e6, e7, e8 = _exponential(wx, wy, wz)
        to_rotation += frame * 9
        m0, m1, m2 = _apply(r0, r1, r2, r3, r4, r5, r6, r7, r8, e0, e3, e6)
        _store3(to_rotation, 3, m0, m1, m2, t < T)
        m0, m1, m2 = _apply(r0, r1, r2, r3, r4, r5, r6, r7, r8, e1, e4, e7)
        _store3(to_rotation + 1, 3, m0, m1, m2, t < T)
        m0, m1, m2 = _apply(r0, r1, r2, r3, r4, r5, r6, r7, r8, e2, e5, e8)
        _store3(to_rotation + 2, 3, m0, m1, m2, t < T)
        mx, my, mz = _apply(r0, r1, r2, r3, r4, r5, r6, r7, r8, sx, sy, sz)
        tx, ty, tz = _load3(position + frame * 3, 1, t < T)
        _store3(to_position + frame * 3, 1, tx + mx, ty + my, tz + mz, t < T)


@triton.jit
def _log1p(x):
    """log(1 + x) as accurate for small x ≥ 0."""
    one_more = 1 + x
    rest = one_more - 1
    return tl.where(rest == 0, x, tl.log(one_more) * (x / tl.where(rest == 0, 1.0, rest)))


@triton.jit(do_not_specialize=("T", "N", "C"))
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
    MOVE: tl.constexpr,
    MIN_DEPTH: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
):
    """The points' step after the cameras', dX = L⁻ᵀ (y − (W L⁻ᵀ)ᵀ x), and the cost (B, blocks).

    A program for a block of tracks; the first adds what belongs to the cameras.
    """
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    n = block * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    x, y, z = _load3(points + (b * N + n) * 3, 1, in_tracks)
    if MOVE:
        mixed += b * (C + 1) * 3 * N + n
        sum_x = tl.zeros((FRAMES, TRACKS), x.dtype)
        sum_y, sum_z = sum_x, sum_x
        for start in range(0, C + 1, FRAMES):
            row = start + tl.arange(0, FRAMES)[:, None]
            s = tl.load(steps + b * (C + 1) + row, mask=row <= C, other=0.0)
            place = mixed + row.to(tl.int64) * 3 * N
            w0, w1, w2 = _load3(place, N, (row <= C) & in_tracks)
            sum_x += s * w0
            sum_y += s * w1
            sum_z += s * w2
        factors += b * 6 * N + n
        l00, l10, l11 = _load3(factors, N, in_tracks)
        l20, l21, l22 = _load3(factors + 3 * N, N, in_tracks)
        dz = tl.sum(sum_z, 0)[None, :] / l22
        dy = (tl.sum(sum_y, 0)[None, :] - l21 * dz) / l11
        dx = (tl.sum(sum_x, 0)[None, :] - l10 * dy - l20 * dz) / l00
        x += dx
        y += dy
        z += dz
        _store3(to_points + (b * N + n) * 3, 1, x, y, z, in_tracks)

    log_f = tl.load(log_focal + b)
    focal = tl.exp(log_f)
    sigma = tl.load(scale + b * N + n, mask=in_tracks, other=1.0)
    total = tl.zeros((FRAMES, TRACKS), x.dtype)
    apart = tl.zeros((FRAMES, 1), x.dtype)  # of camera from camera
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        r0, r1, r2, r3, r4, r5, r6, r7, r8 = _load9(rotation + frame * 9, t < T)
        tx, ty, tz = _load3(position + frame * 3, 1, t < T)
        px, py, pz = _apply_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x - tx, y - ty, z - tz)
        mask = (t < T) & in_tracks
        token = frame * N + n
        depth, u, v = _image(px, py, pz, focal, MIN_DEPTH)
        u -= tl.load(positions + token * 2, mask=mask, other=0.0)
        v -= tl.load(positions + token * 2 + 1, mask=mask, other=0.0)
        off = tl.log(depth) - tl.load(log_depth + token, mask=mask, other=0.0)
        seen = tl.load(weight + token, mask=mask, other=0.0)
        total += seen * _log1p((u * u + v * v) / (sigma * sigma))
        total += tl.load(depth_weight + token, mask=mask, other=0.0) * off * off
        if block == 0:
            pairs = t < T - 1
            before = b * T, b * (T - 1)
            _, _, w, s = _pair(rotation, position, turn, step, t, before, pairs)
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


@triton.jit(do_not_specialize=("T", "N", "blocks"))
def _accept(
    parts,
    cost,
    damping,
    gain,
    from_rotation,
    from_position,
    from_focal,
    from_points,
    rotation,
    position,
    log_focal,
    points,
    to_cost,
    to_damping,
    T,
    N,
    blocks,
    BLOCK: tl.constexpr,
):
    """Take the step, copying it, where it lowers the cost; a program for each part of a clip."""
    programs = tl.cdiv(3 * N, BLOCK)
    b = (tl.program_id(0) // programs).to(tl.int64)
    program = tl.program_id(0) % programs
    index = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, blocks, BLOCK):
        part = start + index
        total += tl.load(parts + b * blocks + part, mask=part < blocks, other=0.0)
    after = tl.sum(total, 0)
    before = tl.load(cost + b)
    better = after < before  # False for NaN
    place = program * BLOCK + index
    taken = place < tl.where(better, 3 * N, 0)
    value = tl.load(from_points + b * 3 * N + place, mask=taken, other=0.0)
    tl.store(points + b * 3 * N + place, value, mask=taken)
    if program == 0:
        damp = tl.load(damping + b)
        damp = tl.where(better, damp / 5, damp * 4)
        # Clamped.
        damp = tl.where(damp < 1e-7, 1e-7 + 0 * damp, tl.where(damp > 1e6, 1e6 + 0 * damp, damp))
        tl.store(to_damping + b, damp)
        tl.store(to_cost + b, tl.where(better, after, before))
        tl.store(gain + b, tl.where(better, 1 - after / before, 0.0))
        if better:
            tl.store(log_focal + b, tl.load(from_focal + b))
            for start in range(0, 9 * T, BLOCK):
                mask = start + index < 9 * T
                at = b * 9 * T + start + index
                tl.store(rotation + at, tl.load(from_rotation + at, mask=mask), mask=mask)
            for start in range(0, 3 * T, BLOCK):
                mask = start + index < 3 * T
                at = b * 3 * T + start + index
                tl.store(position + at, tl.load(from_position + at, mask=mask), mask=mask)


def adjust(scene, evidence, damping: torch.Tensor, iterations: int):
    """What `cameras.adjust` does, its tensors on CUDA: the scene, the damping and the last gain.

    Every field is contiguous and of one dtype.
    """
    s = [value.clone() for value in scene]
    trial = [torch.empty_like(value) for value in scene]
    rotation, position, log_focal, points = s
    B, T = position.shape[:2]
    N = points.shape[1]
    C = 6 * T + 1
    e = evidence
    tracks = (e.positions, e.weight, e.scale, e.log_depth, e.depth_weight)
    pairs = (e.turn, e.step, e.turn_weight, e.step_weight, e.log_focal, e.focal_weight)
    blocks = triton.cdiv(N, POINTS["TRACKS"])
    factors = points.new_empty(B, 6, N)
    mixed = points.new_empty(B, C + 1, 3 * N)
    own = points.new_zeros(B, C + 1, C + 1)
    steps = points.new_empty(B, C + 1)
    focal_parts = points.new_empty(B, T, 2)
    parts = points.new_empty(B, blocks, dtype=torch.float64)
    costs = points.new_empty(iterations + 1, B, dtype=torch.float64)
    dampings = damping.new_empty(iterations + 1, B)
    dampings[0] = damping
    gain = torch.zeros_like(costs[0])

    def cost(of: list[torch.Tensor], to: torch.Tensor, move: bool) -> None:
        _cost[(B * blocks,)](
            *of[:3],
            points,
            *tracks,
            *pairs,
            factors,
            mixed,
            steps,
            to,
            parts,
            T,
            N,
            C,
            MOVE=move,
            MIN_DEPTH=MIN_DEPTH,
            **POINTS,
        )

    with torch.cuda.device_of(points):
        cost(s, points, False)
        torch.sum(parts, 1, out=costs[0])
        for i in range(iterations):
            _points[(B * blocks,)](
                *s,
                *tracks,
                e.focal_free,
                dampings[i],
                factors,
                mixed,
                T,
                N,
                MIN_DEPTH=MIN_DEPTH,
                **POINTS,
            )
            _cameras[(B * T,)](
                *s,
                *tracks,
                *pairs,
                e.focal_free,
                dampings[i],
                own,
                focal_parts,
                T,
                N,
                MIN_DEPTH=MIN_DEPTH,
                **CAMERAS,
            )
            torch.sum(focal_parts, 1, out=own[:, C - 1 :, C - 1])
            system = torch.baddbmm(own, mixed, mixed.mT, alpha=-1)
            _move_cameras[(B * (T + 1),)](
                factor(system), *s[:3], steps, *trial[:3], T, **MOVE
            )
            cost(trial, trial[3], True)
            _accept[(B * triton.cdiv(3 * N, ACCEPT["BLOCK"]),)](
                parts,
                costs[i],
                dampings[i],
                gain,
                *trial,
                *s,
                costs[i + 1],
                dampings[i + 1],
                T,
                N,
                blocks,
                **ACCEPT,
            )
    return s, dampings[-1], gain.to(damping.dtype)
