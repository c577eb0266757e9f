"""Basis composition, camera transform and projection in one pass (TracksTo4D, arXiv 2404.07097).

World point X(t, n) = Σ_k c_k(t) B_k(n), camera point P = Rᵀ (X − position), projection
focal · P_xy / max(P_z, MIN_DEPTH).
"""
# mypy: allow-untyped-defs

import torch
import triton
import triton.language as tl

from fasttracks.geometry import MIN_DEPTH
from fasttracks.kernels.camera_math import load3, store3
from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch


# Only constexprs are specialised: a new length, stride or alignment compiles nothing.
@triton.jit(do_not_specialize=range(14))
def _compose_project(
    basis,
    coefficients,
    rotation,
    position,
    focal,
    points,
    points_camera,
    projection,
    T,
    N,
    stride_b: tl.int64,
    stride_k: tl.int64,
    stride_n: tl.int64,
    stride_xyz: tl.int64,
    K: tl.constexpr,
    MIN_DEPTH: tl.constexpr,
    BLOCK_FRAMES: tl.constexpr,
    BLOCK_TRACKS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    wait_for_previous(OVERLAP)
    # All on grid axis 0, tracks fastest, so that neighbours write neighbouring memory.
    block = tl.program_id(0)
    blocks_of_tracks = tl.cdiv(N, BLOCK_TRACKS)
    n = block % blocks_of_tracks * BLOCK_TRACKS + tl.arange(0, BLOCK_TRACKS)[None, :]
    block //= blocks_of_tracks
    blocks_of_frames = tl.cdiv(T, BLOCK_FRAMES)
    t = block % blocks_of_frames * BLOCK_FRAMES + tl.arange(0, BLOCK_FRAMES)[:, None]
    b = (block // blocks_of_frames).to(tl.int64)

    in_tracks = n < N
    in_frames = t < T
    mask = in_frames & in_tracks
    frame = b * T + t  # int64, as are all the offsets made from it
    token = frame * N + n

    basis += b * stride_b + n * stride_n
    coefficients += frame * K
    x = tl.zeros((BLOCK_FRAMES, BLOCK_TRACKS), tl.float32)
    y = tl.zeros((BLOCK_FRAMES, BLOCK_TRACKS), tl.float32)
    z = tl.zeros((BLOCK_FRAMES, BLOCK_TRACKS), tl.float32)
    for k in tl.static_range(K):
        c = tl.load(coefficients + k, mask=in_frames, other=0.0)
        basis_x, basis_y, basis_z = load3(basis + k * stride_k, stride_xyz, in_tracks)
        x += c * basis_x
        y += c * basis_y
        z += c * basis_z
    store3(points + token * 3, 1, x, y, z, mask)

    t_x, t_y, t_z = load3(position + frame * 3, 1, in_frames)
    x -= t_x
    y -= t_y
    z -= t_z
    # A column of R (row-major, camera → world) is a row of Rᵀ.
    r_x, r_y, r_z = load3(rotation + frame * 9, 3, in_frames)
    camera_x = r_x * x + r_y * y + r_z * z
    r_x, r_y, r_z = load3(rotation + frame * 9 + 1, 3, in_frames)
    camera_y = r_x * x + r_y * y + r_z * z
    r_x, r_y, r_z = load3(rotation + frame * 9 + 2, 3, in_frames)
    camera_z = r_x * x + r_y * y + r_z * z
    store3(points_camera + token * 3, 1, camera_x, camera_y, camera_z, mask)

    scale = tl.load(focal + frame, mask=in_frames, other=0.0)
    depth = tl.maximum(camera_z, MIN_DEPTH, propagate_nan=tl.PropagateNan.ALL)
    scale = tl.div_rn(scale, depth)
    tl.store(projection + token * 2, scale * camera_x, mask=mask)
    tl.store(projection + token * 2 + 1, scale * camera_y, mask=mask)


def compose_project(
    basis: torch.Tensor,
    coefficients: torch.Tensor,
    rotation: torch.Tensor,
    position: torch.Tensor,
    focal: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points in the world and in each camera, and their projections.

    All tensors are float32 on one device; nothing is checked here. `basis` may be any view: it is
    read by its strides.

    Args:
        basis: (B, K, N, 3).
        coefficients: (B, T, K), used as given: the first is not replaced by 1.
        rotation: (B, T, 3, 3), camera → world.
        position: (B, T, 3), camera centres in the world.
        focal: (B, T), in units of the input's focal length.

    Returns:
        points (B, T, N, 3), points_camera (B, T, N, 3) and projection (B, T, N, 2) in normalised
        image coordinates; contiguous.
    """
    B, K, N, _ = basis.shape
    T = coefficients.shape[1]
    points = basis.new_empty(B, T, N, 3)
    points_camera = basis.new_empty(B, T, N, 3)
    projection = basis.new_empty(B, T, N, 2)
    # A thread holds one track's points in BLOCK_FRAMES frames, so registers don't grow with K.
    options = launch("compose_project", B * T * N, basis.device)
    blocks_of_frames = triton.cdiv(T, options["BLOCK_FRAMES"])
    blocks_of_tracks = triton.cdiv(N, options["BLOCK_TRACKS"])
    with torch.cuda.device_of(basis):  # nothing for a CPU tensor, in the interpreter
        _compose_project[(B * blocks_of_frames * blocks_of_tracks,)](
            basis,
            coefficients.contiguous(),
            rotation.contiguous(),
            position.contiguous(),
            focal.contiguous(),
            points,
            points_camera,
            projection,
            T,
            N,
            *basis.stride(),
            K=K,
            MIN_DEPTH=MIN_DEPTH,
            **options,
            **overlap(basis.device),
        )
    return points, points_camera, projection
