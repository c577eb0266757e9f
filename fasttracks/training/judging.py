"""How good a network is on batches of clips with truth."""

import torch
from torch import Tensor

from fasttracks.evaluation.metrics import Estimate, flat_guess, metrics
from fasttracks.learning import forward
from fasttracks.network import TracksTo4D
from fasttracks.training.sources import Batch


def judge(network: TracksTo4D, batches: list[Batch]) -> dict[str, float]:
    """Mean of each metric over the clips of batches with truth."""
    found = judge_each(network, batches)
    return {name: round(values.nanmean().item(), 4) for name, values in found.items()}


@torch.no_grad()
def judge_each(network: TracksTo4D, batches: list[Batch]) -> dict[str, Tensor]:
    """Each metric, one value a clip, and AbsRel of the flat guess."""
    found: dict[str, list[Tensor]] = {}
    for inputs, truth in batches:
        assert truth is not None
        p = forward(network, inputs)
        estimate = Estimate(p.points_camera, p.rotation, p.position, p.projection)
        values = {**metrics(estimate, truth), "flat": flat_guess(truth)["absrel"]}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}
