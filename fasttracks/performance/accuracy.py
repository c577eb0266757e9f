"""Errors of a prediction against the float64 reference, and how large they may be.

Nothing is timed before its accuracy is in order.
"""

import torch
from torch import Tensor

from fasttracks.errors import InputError
from fasttracks.geometry import Prediction, rotation_angle
from fasttracks.network import TracksTo4D
from fasttracks.performance.sample import FOCAL
from fasttracks.reference import forward as reference

LIMITS = {"points": 2e-3, "rotation °": 0.05, "reprojection px": 0.25}
_SCORES = 1 << 30  # of one layer's attention, that the reference may keep


def truth(network: TracksTo4D, inputs: Tensor) -> Prediction:
    """The reference's answer in float64, or in float32 where attention scores would fill the GPU.

    `network` is in float32; that differs from float64 by 1e-6, which no bound here notices.
    """
    _, frames, tracks, _ = inputs.shape
    if frames * tracks * max(frames, tracks) * network.config.heads > _SCORES:
        return network(inputs)
    weights = {name: p.double() for name, p in network.state_dict().items()}
    return reference(weights, network.config, inputs.double())


def errors(prediction: Prediction, exact: Prediction) -> dict[str, float]:
    """Relative error of world points, the largest of rotations, and p99 of reprojection."""
    p, q = (Prediction(*(t.double() for t in both)) for both in (prediction, exact))
    angle = torch.rad2deg(rotation_angle(p.rotation.mT @ q.rotation))
    moved = FOCAL * (p.projection - q.projection).norm(dim=-1)
    rank = max(1, round(0.99 * moved.numel()))
    return {
        "points": ((p.points - q.points).norm() / q.points.norm()).item(),
        "rotation °": angle.max().item(),
        "reprojection px": moved.flatten().kthvalue(rank).values.item(),
    }


def check(found: dict[str, float], dtype: torch.dtype = torch.float16) -> None:
    """The gate: InputError if an error is beyond its limit, or is no number.

    bfloat16, whose rounding is 8 times coarser, is allowed 16 times as much: plain torch's own
    reprojection differs by up to 1.6 px.
    """
    allowance = 16 if dtype == torch.bfloat16 else 1
    limits = {name: allowance * most for name, most in LIMITS.items()}
    bad = [f"{k} {found[k]:.2g} > {most:g}" for k, most in limits.items() if not found[k] <= most]
    if bad:
        raise InputError(f"accuracy against float64: {', '.join(bad)}; not timed")
