"""Vectors and matrices that are tuples of three or nine tensors, in registers."""
# mypy: allow-untyped-defs
# ruff: noqa: RUF005

import triton
import triton.language as tl

from fasttracks.kernels.camera_math import cross, product_back, rotate


@triton.jit
def _add4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def _add10(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, b0, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    a, b, c, d = _add4(a0, a1, a2, a3, b0, b1, b2, b3)
    return a, b, c, d, a4 + b4, a5 + b5, a6 + b6, a7 + b7, a8 + b8, a9 + b9


@triton.jit
def where(condition, a, b):
    """`tl.where`, element by element."""
    out = (tl.where(condition, a[0], b[0]),)
    for i in tl.static_range(1, len(a)):
        out = out + (tl.where(condition, a[i], b[i]),)
    return out


@triton.jit
def mix(a, a_share, b, b_share):
    """Sums by shares."""
    out = (a_share * a[0] + b_share * b[0],)
    for i in tl.static_range(1, len(a)):
        out = out + (a_share * a[i] + b_share * b[i],)
    return out


@triton.jit
def times(scale, values):
    out = (scale * values[0],)
    for i in tl.static_range(1, len(values)):
        out = out + (scale * values[i],)
    return out


@triton.jit
def double(values):
    out = (values[0].to(tl.float64),)
    for i in tl.static_range(1, len(values)):
        out = out + (values[i].to(tl.float64),)
    return out


@triton.jit
def square(values):
    out = values[0] * values[0]
    for i in tl.static_range(1, len(values)):
        out += values[i] * values[i]
    return out


@triton.jit
def store(pointer, values, mask):
    for i in tl.static_range(len(values)):
        tl.store(pointer + i, values[i], mask=mask)


@triton.jit
def weighted_sums(weight, values):
    """Weighted sums of a vector's or a matrix's elements, after that of the weights."""
    out = (weight,)
    for i in tl.static_range(len(values)):
        out = out + (weight * values[i],)
    return tl.reduce(out, 0, _add10 if len(values) == 9 else _add4)


@triton.jit
def product(a, b):
    """A B."""
    c0, c3, c6 = rotate(*a, b[0], b[3], b[6])
    c1, c4, c7 = rotate(*a, b[1], b[4], b[7])
    c2, c5, c8 = rotate(*a, b[2], b[5], b[8])
    return c0, c1, c2, c3, c4, c5, c6, c7, c8


@triton.jit
def transposed(r):
    return r[0], r[3], r[6], r[1], r[4], r[7], r[2], r[5], r[8]


@triton.jit
def _unit(x, y, z):
    length = tl.sqrt(x * x + y * y + z * z)
    length = tl.maximum(length, length * 0 + 1e-12)
    return x / length, y / length, z / length


@triton.jit
def nearest_rotation(r, POLAR: tl.constexpr):
    """`long.join.nearest_rotation`."""
    for _ in range(POLAR):
        r = mix(r, 1.5, product(r, product_back(*r, *r)), -0.5)
    x = _unit(r[0], r[1], r[2])
    along = r[3] * x[0] + r[4] * x[1] + r[5] * x[2]
    y = _unit(r[3] - along * x[0], r[4] - along * x[1], r[5] - along * x[2])
    z = cross(*x, *y)
    return x[0], x[1], x[2], y[0], y[1], y[2], z[0], z[1], z[2]


@triton.jit
def moved(scale, rotation, shift, place):
    """Of a place X: scale · R X + shift."""
    return mix(rotate(*rotation, *place), scale, shift, 1)
