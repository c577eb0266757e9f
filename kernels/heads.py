"""Both heads: means over tracks and frames, camera convolution, 6-D rotation, point layer.

TracksTo4D, arXiv 2404.07097, section 3.1; rotations after Zhou et al., CVPR 2019. Tokens are read
once. Sums are in float32 and in an order that depends on nothing but the shape.
"""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from fasttracks.kernels.camera_math import cross, store3
from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch

_PROGRAMS = 512  # that fill a GPU: fewer blocks of tracks than this split the frames


# Only constexprs are specialised: a new length compiles nothing.
@triton.jit(do_not_specialize=("T", "N", "frames_at_once"))
def _sum(
    tokens,
    sums_of_tracks,
    sums_of_frames,
    T,
    N,
    frames_at_once,
    WIDTH: tl.constexpr,
    BLOCK_FRAMES: tl.constexpr,
    BLOCK_TRACKS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Sums of a block of tracks in a part of the frames: over these frames, and in each of them.

    tokens (B, T, N, C), sums_of_tracks (B, parts, N, C), sums_of_frames (B, blocks, T, C).
    """
    wait_for_previous(OVERLAP)
    blocks_of_width = tl.cdiv(WIDTH, BLOCK_WIDTH)
    blocks = tl.cdiv(N, BLOCK_TRACKS)
    parts = tl.cdiv(T, frames_at_once)
    program = tl.program_id(0)
    channel = program % blocks_of_width * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)[None, None, :]
    program //= blocks_of_width
    block = program % blocks
    n = block * BLOCK_TRACKS + tl.arange(0, BLOCK_TRACKS)[None, :, None]
    program //= blocks
    part = program % parts
    b = (program // parts).to(tl.int64)  # and so are all the offsets

    in_width = channel < WIDTH
    in_tracks = (n < N) & in_width
    end = tl.minimum((part + 1) * frames_at_once, T)
    of_tracks = tl.zeros((1, BLOCK_TRACKS, BLOCK_WIDTH), tl.float32)
    for start in range(part * frames_at_once, end, BLOCK_FRAMES):
        t = start + tl.arange(0, BLOCK_FRAMES)[:, None, None]
        offset = ((b * T + t) * N + n) * WIDTH + channel
        x = tl.load(tokens + offset, mask=(t < end) & in_tracks, other=0.0).to(tl.float32)
        of_tracks += tl.sum(x, 0, keep_dims=True)
        offset = ((b * blocks + block) * T + t) * WIDTH + channel
        of_frames = tl.sum(x, 1, keep_dims=True)
        tl.store(sums_of_frames + offset, of_frames, mask=(t < end) & in_width)
    tl.store(
        sums_of_tracks + ((b * parts + part) * N + n) * WIDTH + channel, of_tracks, mask=in_tracks
    )


@triton.jit
def _mean(sums, row, step, parts, count, channel, WIDTH: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """Mean of `count` tokens, from the sums of their parts in rows `step` apart of (rows, C)."""
    total = tl.zeros_like(channel).to(tl.float32)
    for first in range(0, parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)[:, None]
        mask = (part < parts) & (channel < WIDTH)[None, :]
        rows = tl.load(sums + (row + part * step) * WIDTH + channel[None, :], mask=mask, other=0.0)
        total += tl.sum(rows, 0)
    return tl.div_rn(total, count.to(tl.float32))


@triton.jit(do_not_specialize=("T", "N", "parts"))
def _points(
    sums,
    weight,
    bias,
    basis,
    motion,
    T,
    N,
    parts,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Linear layer of a track's mean over frames; the last output is the motion level.

    sums (B, parts, N, C), weight (ROWS, C), basis (B, ROWS // 3, N, 3), motion (B, N).
    """
    track = tl.program_id(0).to(tl.int64)  # of all clips
    first = track // N * parts * N + track % N
    channel = tl.arange(0, BLOCK_WIDTH)
    row = tl.arange(0, BLOCK_ROWS)
    in_rows = row < ROWS
    wait_for_previous(OVERLAP)
    mean = _mean(sums, first, N, parts, T, channel, WIDTH, BLOCK_PARTS)
    w = tl.load(
        weight + row[:, None] * WIDTH + channel[None, :],
        mask=in_rows[:, None] & (channel < WIDTH)[None, :],
        other=0.0,
    )
    y = tl.sum(w * mean[None, :], 1) + tl.load(bias + row, mask=in_rows, other=0.0)
    level = tl.where(y > 0, y + 1, tl.exp(tl.minimum(y, 0.0))) + 1e-5  # ELU + 1 + 1e-5
    tl.store(motion + track + row - (ROWS - 1), level, mask=row == ROWS - 1)
    first = track // N * (ROWS // 3) * N + track % N
    tl.store(basis + (first + row // 3 * N) * 3 + row % 3, y, mask=row < ROWS - 1)


@triton.jit(do_not_specialize=("T", "N", "parts"))
def _taps(
    sums,
    weight,
    taps,
    T,
    N,
    parts,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK_KERNEL: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """What a frame's mean over tracks adds, by each tap of the convolution, to the frames around.

    sums (B, parts, T, C), weight (ROWS, C, KERNEL), taps (B, T, ROWS, KERNEL).
    """
    groups = tl.cdiv(ROWS, OUTPUTS)
    program = tl.program_id(0)
    first = program % groups * OUTPUTS
    frame = (program // groups).to(tl.int64)  # of all clips
    t = frame % T
    channel = tl.arange(0, BLOCK_WIDTH)
    tap = tl.arange(0, BLOCK_KERNEL)
    in_kernel = tap < KERNEL
    wait_for_previous(OVERLAP)
    mean = _mean(sums, frame // T * parts * T + t, T, parts, N, channel, WIDTH, BLOCK_PARTS)
    # Frames are indexed modulo T, even if that wraps more than once.
    target = frame - t + ((t + KERNEL // 2 - tap) % T + T) % T
    for row in range(first, tl.minimum(first + OUTPUTS, ROWS)):
        w = tl.load(
            weight + (row * WIDTH + channel[:, None]) * KERNEL + tap[None, :],
            mask=(channel < WIDTH)[:, None] & in_kernel[None, :],
            other=0.0,
        )
        y = tl.sum(w * mean[:, None], 0)
        tl.store(taps + (target * ROWS + row) * KERNEL + tap, y, mask=in_kernel)


@triton.jit
def _pick3(values, row, first):
    """Three values of a vector, from `first` on."""
    return (
        tl.sum(tl.where(row == first, values, 0.0)),
        tl.sum(tl.where(row == first + 1, values, 0.0)),
        tl.sum(tl.where(row == first + 2, values, 0.0)),
    )


@triton.jit
def _unit3(x, y, z):
    """A vector of length 1, as torch.nn.functional.normalize makes it."""
    length = tl.maximum(tl.sqrt_rn(x * x + y * y + z * z), 1e-12)
    return tl.div_rn(x, length), tl.div_rn(y, length), tl.div_rn(z, length)


@triton.jit
def _cameras(
    taps,
    bias,
    rotation,
    position,
    focal,
    coefficients,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK_KERNEL: tl.constexpr,
    PREDICTS_FOCAL: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A frame's camera from the sum of its taps."""
    frame = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK_ROWS)
    tap = tl.arange(0, BLOCK_KERNEL)
    in_rows = row < ROWS
    wait_for_previous(OVERLAP)
    y = tl.load(
        taps + (frame * ROWS + row[:, None]) * KERNEL + tap[None, :],
        mask=in_rows[:, None] & (tap < KERNEL)[None, :],
        other=0.0,
    )
    y = tl.sum(y, 1) + tl.load(bias + row, mask=in_rows, other=0.0)

    tl.store(position + frame * 3 + row, y, mask=row < 3)
    correction = 1 + 0.05 * y if PREDICTS_FOCAL else tl.full((BLOCK_ROWS,), 1.0, tl.float32)
    tl.store(focal + frame + row - 3, correction, mask=row == 3)
    BASES: tl.constexpr = ROWS - 9
    is_coefficient = (row >= 3) & (row < 3 + BASES)  # in place of the focal correction, a 1
    coefficient = tl.where(row == 3, 1.0, y)
    tl.store(coefficients + frame * BASES + row - 3, coefficient, mask=is_coefficient)

    x_x, x_y, x_z = _pick3(y, row, ROWS - 6)
    x_x, x_y, x_z = _unit3(x_x, x_y, x_z)
    y_x, y_y, y_z = _pick3(y, row, ROWS - 3)
    along = y_x * x_x + y_y * x_y + y_z * x_z
    y_x, y_y, y_z = _unit3(y_x - along * x_x, y_y - along * x_y, y_z - along * x_z)
    rotation += frame * 9
    store3(rotation, 1, x_x, x_y, x_z, None)
    store3(rotation + 3, 1, y_x, y_y, y_z, None)
    z_x, z_y, z_z = cross(x_x, x_y, x_z, y_x, y_y, y_z)
    store3(rotation + 6, 1, z_x, z_y, z_z, None)


def heads(
    x: torch.Tensor,
    camera: tuple[torch.Tensor, torch.Tensor],
    points: tuple[torch.Tensor, torch.Tensor],
    *,
    predicts_focal: bool,
) -> tuple[torch.Tensor, ...]:
    """Cameras, basis and motion of the last tokens.

    All tensors are on one device, the weights float32 and contiguous; nothing is checked here.

    Args:
        x: tokens (B, T, N, C), of any floating dtype.
        camera: weight (K + 9, C, kernel) and bias of the convolution along circular time: position,
            focal correction, coefficients 1..K-1, 6-D rotation.
        points: weight (3 K + 1, C) and bias of the point layer.
        predicts_focal: whether to use the focal correction.

    Returns:
        rotation (B, T, 3, 3), position (B, T, 3), focal (B, T), coefficients (B, T, K), basis
        (B, K, N, 3) and motion (B, N), float32 and contiguous.
    """
    x = x.contiguous()
    B, T, N, width = x.shape
    camera_rows, _, kernel = camera[0].shape
    point_rows, bases = points[0].shape[0], points[0].shape[0] // 3

    sum_, points_, taps_, cameras_ = (
        launch(f"heads_{kernel}", B * T * N, x.device)
        for kernel in ("sum", "points", "taps", "cameras")
    )
    blocks = triton.cdiv(N, sum_["BLOCK_TRACKS"])
    programs = B * blocks * triton.cdiv(width, sum_["BLOCK_WIDTH"])
    frames = triton.cdiv(T, triton.cdiv(_PROGRAMS, programs))
    frames = triton.cdiv(frames, sum_["BLOCK_FRAMES"]) * sum_["BLOCK_FRAMES"]
    parts = triton.cdiv(T, frames)

    def new(*shape: int) -> torch.Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    sums_of_tracks, sums_of_frames = new(B, parts, N, width), new(B, blocks, T, width)
    basis, motion = new(B, bases, N, 3), new(B, N)
    taps = new(B, T, camera_rows, kernel)
    rotation, position, focal = new(B, T, 3, 3), new(B, T, 3), new(B, T)
    coefficients = new(B, T, bases)
    power = triton.next_power_of_2
    channels = {"WIDTH": width, "BLOCK_WIDTH": power(width)}
    overlapping = overlap(x.device)
    conv = {"ROWS": camera_rows, "KERNEL": kernel, "BLOCK_KERNEL": power(kernel)}
    with torch.cuda.device_of(x):  # nothing for a CPU tensor, in the interpreter
        _sum[(programs * parts,)](
            *(x, sums_of_tracks, sums_of_frames, T, N, frames),
            WIDTH=width,
            **sum_,
            **overlapping,
        )
        _points[(B * N,)](
            sums_of_tracks,
            *points,
            basis,
            motion,
            T,
            N,
            parts,
            ROWS=point_rows,
            BLOCK_ROWS=power(point_rows),
            **channels,
            **points_,
            **overlapping,
        )
        _taps[(B * T * triton.cdiv(camera_rows, taps_["OUTPUTS"]),)](
            *(sums_of_frames, camera[0], taps, T, N, blocks),
            **channels,
            **conv,
            **taps_,
            **overlapping,
        )
        _cameras[(B * T,)](
            taps,
            camera[1],
            rotation,
            position,
            focal,
            coefficients,
            BLOCK_ROWS=power(camera_rows),
            PREDICTS_FOCAL=predicts_focal,
            **conv,
            **cameras_,
            **overlapping,
        )
    return rotation, position, focal, coefficients, basis, motion
