"""Rotations and projection of vectors that are three tensors each, in registers."""
# mypy: allow-untyped-defs

import triton
import triton.language as tl


@triton.jit
def load3(pointer, stride, mask):
    """Three values, `stride` elements apart."""
    return (
        tl.load(pointer, mask=mask, other=0.0),
        tl.load(pointer + stride, mask=mask, other=0.0),
        tl.load(pointer + 2 * stride, mask=mask, other=0.0),
    )


@triton.jit
def load9(pointer, mask):
    """A matrix, row by row."""
    a, b, c = load3(pointer, 1, mask)
    d, e, f = load3(pointer + 3, 1, mask)
    g, h, i = load3(pointer + 6, 1, mask)
    return a, b, c, d, e, f, g, h, i


@triton.jit
def store3(pointer, stride, x, y, z, mask):
    tl.store(pointer, x, mask=mask)
    tl.store(pointer + stride, y, mask=mask)
    tl.store(pointer + 2 * stride, z, mask=mask)


@triton.jit
def rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, x, y, z):
    """R v."""
    return r0 * x + r1 * y + r2 * z, r3 * x + r4 * y + r5 * z, r6 * x + r7 * y + r8 * z


@triton.jit
def rotate_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x, y, z):
    """Rᵀ v."""
    return r0 * x + r3 * y + r6 * z, r1 * x + r4 * y + r7 * z, r2 * x + r5 * y + r8 * z


@triton.jit
def cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@triton.jit
def product_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b0, b1, b2, b3, b4, b5, b6, b7, b8):
    """Aᵀ B."""
    c0, c3, c6 = rotate_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b0, b3, b6)
    c1, c4, c7 = rotate_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b1, b4, b7)
    c2, c5, c8 = rotate_back(a0, a1, a2, a3, a4, a5, a6, a7, a8, b2, b5, b8)
    return c0, c1, c2, c3, c4, c5, c6, c7, c8


@triton.jit
def exponential(x, y, z):
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
def logarithm(r0, r1, r2, r3, r4, r5, r6, r7, r8):
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
def project_point(px, py, pz, focal, MIN_DEPTH: tl.constexpr):
    """Depth as projection takes it, and the projection."""
    depth = tl.maximum(pz, 0.0 * pz + MIN_DEPTH)  # MIN_DEPTH alone would be rounded to float32
    return depth, focal * px / depth, focal * py / depth


@triton.jit
def in_camera(rotation, position, frame, mask, x, y, z):
    """A camera's R, and a world point in it, Rᵀ (X − t)."""
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = load9(rotation + frame * 9, mask)
    tx, ty, tz = load3(position + frame * 3, 1, mask)
    p = rotate_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, x - tx, y - ty, z - tz)
    return (r0, r1, r2, r3, r4, r5, r6, r7, r8), p


@triton.jit
def observe(p, focal, scale, tracks, token, mask, counted, MIN_DEPTH: tl.constexpr):
    """M (xx = yy, xz, yz, zz), g, and of the focal length its product with P, itself and g.

    Of the camera point `p` and its observation `token`, from pointers to all: positions, weights,
    logarithms of depths and their weights. Where not `counted`, weights are zero.
    """
    px, py, pz = p
    positions, weights, log_depths, depth_weights = tracks
    depth, image_u, image_v = project_point(px, py, pz, focal, MIN_DEPTH)
    off_u = image_u - tl.load(positions + token * 2, mask=mask, other=0.0)
    off_v = image_v - tl.load(positions + token * 2 + 1, mask=mask, other=0.0)
    weight = tl.load(weights + token, mask=counted, other=0.0)
    depth_weight = tl.load(depth_weights + token, mask=counted, other=0.0)
    w = weight / (scale * scale + off_u * off_u + off_v * off_v)
    a = focal / depth
    d = tl.where(pz > MIN_DEPTH, 1.0 / depth, 0.0)
    b, c = -d * image_u, -d * image_v
    wa = w * a
    off = tl.log(depth) - tl.load(log_depths + token, mask=mask, other=0.0)
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
def turned(r, c0, c1, c2):
    """R C, which is symmetric, from C's columns: xx, yx, yy, zx, zy, zz."""
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = r
    return (
        r0 * c0[0] + r1 * c0[1] + r2 * c0[2],
        r3 * c0[0] + r4 * c0[1] + r5 * c0[2],
        r3 * c1[0] + r4 * c1[1] + r5 * c1[2],
        r6 * c0[0] + r7 * c0[1] + r8 * c0[2],
        r6 * c1[0] + r7 * c1[1] + r8 * c1[2],
        r6 * c2[0] + r7 * c2[1] + r8 * c2[2],
    )


@triton.jit
def log1p(x):
    """log(1 + x) as accurate for small x ≥ 0."""
    one_more = 1 + x
    rest = one_more - 1
    return tl.where(rest == 0, x, tl.log(one_more) * (x / tl.where(rest == 0, 1.0, rest)))


@triton.jit
def misfit(p, focal, scale, tracks, token, mask, MIN_DEPTH: tl.constexpr):
    """What the camera point `p` costs by its observation `token`: its offset, and its depth.

    `tracks` as `observe` has it.
    """
    positions, weights, log_depths, depth_weights = tracks
    depth, u, v = project_point(p[0], p[1], p[2], focal, MIN_DEPTH)
    u -= tl.load(positions + token * 2, mask=mask, other=0.0)
    v -= tl.load(positions + token * 2 + 1, mask=mask, other=0.0)
    off = tl.log(depth) - tl.load(log_depths + token, mask=mask, other=0.0)
    seen = tl.load(weights + token, mask=mask, other=0.0)
    expected = tl.load(depth_weights + token, mask=mask, other=0.0)
    return seen * log1p((u * u + v * v) / (scale * scale)), expected * off * off


@triton.jit
def camera_pair(rotation, position, turn, step, t, before, mask):
    """From camera t to the next: turn, step, and what these differ by from what is expected.

    `before`, of all cameras (T) and of all pairs (T - 1) of the clips before this.
    """
    frame = before[0] + t
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = load9(rotation + frame * 9, mask)
    n0, n1, n2, n3, n4, n5, n6, n7, n8 = load9(rotation + frame * 9 + 9, mask)
    d0, d1, d2, d3, d4, d5, d6, d7, d8 = product_back(
        r0, r1, r2, r3, r4, r5, r6, r7, r8, n0, n1, n2, n3, n4, n5, n6, n7, n8
    )
    x, y, z = load3(position + frame * 3, 1, mask)
    nx, ny, nz = load3(position + frame * 3 + 3, 1, mask)
    ax, ay, az = rotate_back(r0, r1, r2, r3, r4, r5, r6, r7, r8, nx - x, ny - y, nz - z)
    pair = before[1] + t
    e0, e1, e2, e3, e4, e5, e6, e7, e8 = load9(turn + pair * 9, mask)
    l0, l1, l2, l3, l4, l5, l6, l7, l8 = product_back(
        e0, e1, e2, e3, e4, e5, e6, e7, e8, d0, d1, d2, d3, d4, d5, d6, d7, d8
    )
    wx, wy, wz = logarithm(l0, l1, l2, l3, l4, l5, l6, l7, l8)
    sx, sy, sz = load3(step + pair * 3, 1, mask)
    return (
        (d0, d1, d2, d3, d4, d5, d6, d7, d8),
        (ax, ay, az),
        (wx, wy, wz),
        (ax - sx, ay - sy, az - sz),
    )
