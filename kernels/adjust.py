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
from fasttracks.kernels import adjust_cameras, adjust_points
from fasttracks.kernels.cholesky import factor
from fasttracks.kernels.common import overlap, wait_for_previous
from fasttracks.kernels.launches import launch


# Of one value a clip, a row is aligned or not: no reason to compile twice.
@triton.jit(
    do_not_specialize=("T", "N", "blocks"),
    do_not_specialize_on_alignment=("cost", "damping", "to_cost", "to_damping"),
)
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
    OVERLAP: tl.constexpr,
):
    """Take the step, copying it, where it lowers the cost; a program for each part of a clip."""
    wait_for_previous(OVERLAP)
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
    points = s[3]
    B, N, _ = points.shape
    T = scene[1].shape[1]
    C = 6 * T + 1
    e = evidence
    tracks = (e.positions, e.weight, e.scale, e.log_depth, e.depth_weight)
    pairs = (e.turn, e.step, e.turn_weight, e.step_weight, e.log_focal, e.focal_weight)
    by_points, by_cameras, move_cameras, accept = (
        launch(f"adjust_{kernel}", B * T * N, points.device)
        for kernel in ("points", "cameras", "move", "accept")
    )
    blocks = triton.cdiv(N, by_points["TRACKS"])
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
    overlapping = overlap(points.device)

    def cost(of: list[torch.Tensor], to: torch.Tensor, move: bool) -> None:
        adjust_points._cost[(B * blocks,)](
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
            int(move),
            MIN_DEPTH=MIN_DEPTH,
            **by_points,
            **overlapping,
        )

    with torch.cuda.device_of(points):
        cost(s, points, False)
        torch.sum(parts, 1, out=costs[0])
        for i in range(iterations):
            adjust_points._points[(B * blocks,)](
                *s,
                *tracks,
                e.focal_free,
                dampings[i],
                factors,
                mixed,
                T,
                N,
                MIN_DEPTH=MIN_DEPTH,
                **by_points,
                **overlapping,
            )
            adjust_cameras._cameras[(B * T,)](
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
                **by_cameras,
                **overlapping,
            )
            torch.sum(focal_parts, 1, out=own[:, C - 1 :, C - 1])
            system = torch.baddbmm(own, mixed, mixed.mT, alpha=-1)
            adjust_cameras._move_cameras[(B * (T + 1),)](
                factor(system),
                *s[:3],
                steps,
                *trial[:3],
                T,
                **move_cameras,
                **overlapping,
            )
            cost(trial, trial[3], True)
            _accept[(B * triton.cdiv(3 * N, accept["BLOCK"]),)](
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
                **accept,
                **overlapping,
            )
    return s, dampings[-1], gain.to(damping.dtype)
