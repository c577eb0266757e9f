"""More blocks for weights that are good already."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fasttracks.errors import InputError
from fasttracks.network import TracksTo4D
from fasttracks.performance.sample import sample_inputs


@torch.no_grad()
def deepened(network: TracksTo4D, rounds: int) -> TracksTo4D:
    """A copy with so many rounds of blocks that says nearly what the network says.

    New rounds stand before those they are copies of, spread over all but the first, whose tokens
    are the embedding's and no closing norm's. Their attention and MLP add nothing yet, and their
    closing norms leave tokens as long as they are. InputError for fewer rounds than there are.
    """
    old = network.config.rounds
    if rounds < old:
        raise InputError(f"rounds: expected at least the {old} of the weights, found {rounds}")
    new = rounds - old
    copied = [math.ceil((i + 1) * (old - 1) / new) for i in range(new)]
    order = [(i, fresh) for i in range(old) for fresh in [True] * copied.count(i) + [False]]
    lengths = _spreads(network)

    state = {n: t for n, t in network.state_dict().items() if not n.startswith("blocks.")}
    for place, (source, fresh) in enumerate(order):
        for axis in (0, 1):
            block = network.blocks[2 * source + axis].state_dict()
            if fresh:
                for name in ("out.weight", "down.weight", "down.bias"):
                    block[name] = torch.zeros_like(block[name])
                block["norm.weight"] = torch.full_like(block["norm.weight"], lengths[source])
                block["norm.bias"] = torch.zeros_like(block["norm.bias"])
            state |= {f"blocks.{2 * place + axis}.{name}": t for name, t in block.items()}
    grown = TracksTo4D(replace(network.config, rounds=rounds), backend=network.backend.name)
    grown.load_state_dict(state)
    return grown.to(network.points.weight.device)


def _spreads(network: TracksTo4D) -> list[float]:
    """How much the tokens that enter each round vary over channels, for a real clip."""
    found: list[float] = []

    def measure(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].std(-1, correction=0).mean().item())

    hooks = [block.register_forward_pre_hook(measure) for block in network.blocks[::2]]
    network(sample_inputs(200, 40, network.points.weight.device))
    for hook in hooks:
        hook.remove()
    return found
