"""Low-rank motion before known cameras: cost and derivatives, as `fasttracks.refine.motion` has it.

B clips, T frames, N tracks, K bases; every tensor contiguous, of one dtype.
"""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from fasttracks.geometry import MIN_DEPTH
from fasttracks.kernels.adjust_points import _mixed
from fasttracks.kernels.camera_math import (
    in_camera,
    load3,
    misfit,
    observe,
    rotate,
    store3,
    turned,
)
from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch


@triton.jit(do_not_specialize=("T", "N", "K"))
def _by_point(
    coefficients,
    basis,
    rotation,
    position,
    focal,
    positions,
    weight,
    scale,
    log_depth,
    depth_weight,
    hessian,
    gradient,
    T,
    N,
    K,
    MIN_DEPTH: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Hessians (B, T, N, 3, 3) and gradients (B, T, N, 3) by world points, a program a tile."""
    wait_for_previous(OVERLAP)
    columns = tl.cdiv(N, TRACKS)
    rows = tl.cdiv(T, FRAMES)
    b = (tl.program_id(0) // (rows * columns)).to(tl.int64)
    tile = tl.program_id(0) % (rows * columns)
    n = tile % columns * TRACKS + tl.arange(0, TRACKS)[None, :]
    t = tile // columns * FRAMES + tl.arange(0, FRAMES)[:, None]
    in_tracks = n < N
    frame = b * T + t
    x, y, z = load3(basis + (b * K * N + n) * 3, 1, in_tracks)  # the first coefficient is 1
    zero = tl.zeros((FRAMES, TRACKS), x.dtype)
    x, y, z = x + zero, y + zero, z + zero
    for k in range(1, K):
        c = tl.load(coefficients + frame * K + k, mask=t < T, other=0.0)
        bx, by, bz = load3(basis + ((b * K + k) * N + n) * 3, 1, in_tracks)
        x += c * bx
        y += c * by
        z += c * bz
    r, p = in_camera(rotation, position, frame, t < T, x, y, z)
    f = tl.load(focal + frame, mask=t < T, other=1.0)
    sigma = tl.load(scale + b * N + n, mask=in_tracks, other=1.0)
    mask = (t < T) & in_tracks
    token = frame * N + n
    tracks = positions, weight, log_depth, depth_weight
    m, g, _, _, _ = observe(p, f, sigma, tracks, token, mask, mask, MIN_DEPTH)
    r0, r1, r2, r3, r4, r5, r6, r7, r8 = r
    c0, c1, c2 = _mixed(r, m)
    xx, xy, yy, xz, yz, zz = turned(r, c0, c1, c2)
    store3(hessian + token * 9, 1, xx, xy, xz, mask)
    store3(hessian + token * 9 + 3, 1, xy, yy, yz, mask)
    store3(hessian + token * 9 + 6, 1, xz, yz, zz, mask)
    gx, gy, gz = rotate(r0, r1, r2, r3, r4, r5, r6, r7, r8, g[0], g[1], g[2])
    store3(gradient + token * 3, 1, gx, gy, gz, mask)


@triton.jit(do_not_specialize=("T", "N", "K"))
def _cost(
    coefficients,
    basis,
    rotation,
    position,
    focal,
    positions,
    weight,
    scale,
    log_depth,
    depth_weight,
    reach,
    smooth,
    out,
    T,
    N,
    K,
    MIN_DEPTH: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The cost (B, N), a program for a block of tracks."""
    wait_for_previous(OVERLAP)
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    sigma = tl.load(scale + b * N + n, mask=in_tracks, other=1.0)
    stiff = tl.load(smooth + b * N + n, mask=in_tracks, other=0.0)
    x0, y0, z0 = load3(basis + (b * K * N + n) * 3, 1, in_tracks)
    total = tl.zeros((FRAMES, TRACKS), x0.dtype)
    zero = total
    tracks = positions, weight, log_depth, depth_weight
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        bends = t < T - 2
        x, y, z = x0 + zero, y0 + zero, z0 + zero
        ax, ay, az = zero, zero, zero  # acceleration
        for k in range(1, K):
            place = coefficients + frame * K + k
            c = tl.load(place, mask=t < T, other=0.0)
            after = tl.load(place + K, mask=bends, other=0.0)
            a = tl.where(bends, c - 2 * after + tl.load(place + 2 * K, mask=bends, other=0.0), 0.0)
            bx, by, bz = load3(basis + ((b * K + k) * N + n) * 3, 1, in_tracks)
            x += c * bx
            y += c * by
            z += c * bz
            ax += a * bx
            ay += a * by
            az += a * bz
        _r, p = in_camera(rotation, position, frame, t < T, x, y, z)
        f = tl.load(focal + frame, mask=t < T, other=1.0)
        mask = (t < T) & in_tracks
        token = frame * N + n
        by_offset, by_depth = misfit(p, f, sigma, tracks, token, mask, MIN_DEPTH)
        total += by_offset
        total += by_depth
        total += stiff * (ax * ax + ay * ay + az * az)
    own = tl.zeros((1, TRACKS), x0.dtype)
    for k in range(1, K):
        bx, by, bz = load3(basis + ((b * K + k) * N + n) * 3, 1, in_tracks)
        own += bx * bx + by * by + bz * bz
    far = tl.load(reach + b * N + n, mask=in_tracks, other=1.0)
    result = tl.sum(total, 0)[None, :] + own / (far * far)
    tl.store(out + b * N + n, result, mask=in_tracks)


def by_point(motion, sight) -> tuple[torch.Tensor, torch.Tensor]:
    """What `refine.motion._by_point` does, its tensors on CUDA."""
    B, T, N = sight.weight.shape
    hessian = sight.weight.new_empty(B, T, N, 3, 3)
    gradient = sight.weight.new_empty(B, T, N, 3)
    options = launch("adjust_motion", B * T * N, sight.weight.device)
    tiles = triton.cdiv(T, options["FRAMES"]) * triton.cdiv(N, options["TRACKS"])
    _run(_by_point, B * tiles, options, motion, sight[:8], (hessian, gradient))
    return hessian, gradient


def cost(motion, sight) -> torch.Tensor:
    """What `refine.motion.cost` does, its tensors on CUDA."""
    B, T, N = sight.weight.shape
    out = torch.empty_like(sight.scale)
    options = launch("adjust_motion", B * T * N, sight.weight.device)
    _run(_cost, B * triton.cdiv(N, options["TRACKS"]), options, motion, sight, (out,))
    return out


def _run(kernel, programs: int, options, motion, inputs, outputs) -> None:
    _, T, K = motion.coefficients.shape
    N = motion.basis.shape[2]
    with torch.cuda.device_of(motion.basis):
        kernel[(programs,)](
            *(value.contiguous() for value in (*motion, *inputs)),
            *outputs,
            T,
            N,
            K,
            MIN_DEPTH=MIN_DEPTH,
            **options,
            **overlap(motion.basis.device),
        )
