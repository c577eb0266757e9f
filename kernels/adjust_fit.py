"""How a scene fits its evidence, as `fasttracks.refine.evidence.fit_of` has it."""
# mypy: allow-untyped-defs
# ruff: noqa: PLR0915

import math

import torch
import triton
import triton.language as tl

from fasttracks.geometry import MIN_DEPTH
from fasttracks.kernels.camera_math import camera_pair, in_camera, load3, log1p, project_point
from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.fit_scale import variance_of
from fasttracks.kernels.launches import launch

_DEGREES = tl.constexpr(180 / math.pi)


@triton.jit
def ray_spread(frames, x, y, z):
    """`parallax.ray_spread` of a point seen in some frames: of the sums of its rays."""
    # The square of a mean ray falls short of 1 by the rays' mean square distance from it.
    short = 1 - (x * x + y * y + z * z) / tl.maximum(frames * frames, 1.0)
    spread = tl.sqrt(tl.maximum(short, 0.0, propagate_nan=tl.PropagateNan.ALL))
    return tl.where(frames > 1, spread, 0.0)


@triton.jit(do_not_specialize=("T", "N", "iterations"))
def _fit(
    rotation,
    position,
    log_focal,
    points,
    positions,
    weight,
    log_depth,
    depth_weight,
    turn,
    step,
    turn_weight,
    visibility,
    scale,
    to_scale,
    misfit,
    firmness,
    spread,
    square,
    change,
    T,
    N,
    iterations,
    LEAST: tl.constexpr,
    DEPTH: tl.constexpr,
    MIN_DEPTH: tl.constexpr,
    FRAMES: tl.constexpr,
    TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program for a block of tracks; a clip's first adds what belongs to the cameras."""
    wait_for_previous(OVERLAP)
    blocks = tl.cdiv(N, TRACKS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    n = block * TRACKS + tl.arange(0, TRACKS)[None, :]
    in_tracks = n < N
    x, y, z = load3(points + (b * N + n) * 3, 1, in_tracks)
    focal = tl.exp(tl.load(log_focal + b))
    zero = tl.zeros((FRAMES, TRACKS), x.dtype)
    far, held, count, ray_x, ray_y, ray_z = zero, zero, zero, zero, zero, zero
    turned = tl.zeros((FRAMES, 1), x.dtype)
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        frame = b * T + t
        mask = (t < T) & in_tracks
        token = frame * N + n
        _r, p = in_camera(rotation, position, frame, t < T, x, y, z)
        depth, u, v = project_point(p[0], p[1], p[2], focal, MIN_DEPTH)
        u -= tl.load(positions + token * 2, mask=mask, other=0.0)
        v -= tl.load(positions + token * 2 + 1, mask=mask, other=0.0)
        tl.store(square + token, u * u + v * v, mask=mask)
        expected = tl.load(depth_weight + token, mask=mask, other=0.0)
        far += expected * (tl.log(depth) - tl.load(log_depth + token, mask=mask, other=0.0))
        held += expected
        seen = tl.load(visibility + token, mask=mask, other=0.0)
        count += seen
        camera_x, camera_y, camera_z = load3(position + frame * 3, 1, t < T)
        dx, dy, dz = x - camera_x, y - camera_y, z - camera_z
        seen /= tl.where(mask, tl.sqrt(dx * dx + dy * dy + dz * dz), 1.0)
        ray_x += seen * dx
        ray_y += seen * dy
        ray_z += seen * dz
        if block == 0:
            pairs = t < T - 1
            before = b * T, b * (T - 1)
            _, _, w, _ = camera_pair(rotation, position, turn, step, t, before, pairs)
            by_turn = tl.load(turn_weight + before[1] + t, mask=pairs, other=0.0)
            turned += by_turn * (w[0] * w[0] + w[1] * w[1] + w[2] * w[2])
    if block == 0:
        tl.store(change + b, tl.sum(tl.sum(turned, 1), 0) / tl.maximum(T - 1, 1))
    track = b * N + n
    off = tl.sum(far, 0) / tl.maximum(tl.sum(held, 0), 1e-9) / DEPTH
    loose = 1 + off * tl.maximum(off, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(firmness + track, (1 / (loose * loose))[None, :], mask=in_tracks)
    frames = tl.sum(count, 0)
    wide = ray_spread(frames, tl.sum(ray_x, 0), tl.sum(ray_y, 0), tl.sum(ray_z, 0))
    tl.store(spread + track, wide[None, :] * _DEGREES, mask=in_tracks)

    tl.debug_barrier()  # squares are read as they were written
    variance = tl.load(scale + track, mask=in_tracks, other=1.0)
    variance = variance_of(
        square, weight, variance * variance, b, n, T, N, iterations, LEAST, FRAMES, TRACKS
    )
    tl.store(to_scale + track, tl.sqrt(variance), mask=in_tracks)
    wider = 0.5 * tl.log(variance / (LEAST * LEAST))
    total = zero
    for start in range(0, T, FRAMES):
        t = start + tl.arange(0, FRAMES)[:, None]
        mask = (t < T) & in_tracks
        token = (b * T + t) * N + n
        seen = tl.load(weight + token, mask=mask, other=0.0)
        total += seen * (wider + log1p(tl.load(square + token, mask=mask, other=0.0) / variance))
    tl.store(misfit + track, tl.sum(total, 0)[None, :], mask=in_tracks)


def fit(
    scene, evidence, visibility, scale, iterations: int, least: float, depth: float
) -> tuple[torch.Tensor, ...]:
    """The fields of `evidence.Fit`, in the dtype of the arguments.

    Scales are at least `least`; depth: deviation of the log depths that are expected.
    """
    e = evidence
    B, T, N = e.weight.shape
    per_track = scale.new_empty(4, B, N)
    square, change = torch.empty_like(e.weight), scale.new_empty(B)
    inputs = (e.positions, e.weight, e.log_depth, e.depth_weight, e.turn, e.step, e.turn_weight)
    options = launch("fit_scale", B * T * N, scale.device)
    with torch.cuda.device_of(scale):
        _fit[(B * triton.cdiv(N, options["TRACKS"]),)](
            *(value.contiguous() for value in (*scene, *inputs, visibility, scale)),
            *per_track,
            square,
            change,
            T,
            N,
            iterations,
            LEAST=least,
            DEPTH=depth,
            MIN_DEPTH=MIN_DEPTH,
            **options,
            **overlap(scale.device),
        )
    return *per_track, square, change
