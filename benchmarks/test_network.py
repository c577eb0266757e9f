"""The network's forward against the reference: `pytest benchmarks`.

`--benchmark-json=benchmarks/results/network-DEVICE.json` keeps the figures.

Accuracy first: nothing is timed that strays from the reference in float64. Sizes are
(frames, tracks); on a CPU only the small ones, unless FASTTRACKS_BENCHMARK_ALL is set.
"""

import os

import pytest
import torch

import fasttracks
from fasttracks import reference

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SIZES = [(20, 100), (50, 100), (50, 256), (21, 675), (50, 1000)]
if not CUDA and "FASTTRACKS_BENCHMARK_ALL" not in os.environ:
    SIZES = SIZES[:2]


def clip(frames: int, tracks: int) -> torch.Tensor:
    """Network input (1, T, N, 3) on the device."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(1, frames, tracks, 2, generator=generator) - 0.5
    return torch.cat([positions, torch.ones(1, frames, tracks, 1)], -1).to(DEVICE)


def synchronised(work):
    """`work`, ended when the device has."""

    def run():
        with torch.no_grad():
            work()
        if CUDA:
            torch.cuda.synchronize()

    return run


@pytest.fixture(scope="module")
def oracle():
    return fasttracks.load("base", device=DEVICE, precision="fp32").double()


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[1]}x{s[0]}")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"] if CUDA else ["fp32", "bf16"])
def test_network(benchmark, oracle, size, precision):
    frames, tracks = size
    network = fasttracks.load("base", device=DEVICE, precision=precision)
    part = clip(frames, min(tracks, 256))  # the oracle keeps all attention scores
    with torch.no_grad():
        truth = reference.forward(oracle.state_dict(), oracle.config, part.double()).points
        error = ((network(part).points - truth).norm() / truth.norm()).item()
    assert error < {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}[precision]
    benchmark.extra_info["relative error of points"] = error

    inputs = clip(frames, tracks)
    benchmark.pedantic(
        synchronised(lambda: network(inputs)),
        rounds=50 if CUDA else 3,
        warmup_rounds=3 if CUDA else 1,
    )


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[1]}x{s[0]}")
def test_reference(benchmark, size):
    network = fasttracks.load("base", device=DEVICE, precision="fp32")
    weights, inputs = network.state_dict(), clip(*size)
    benchmark.pedantic(
        synchronised(lambda: reference.forward(weights, network.config, inputs)),
        rounds=20 if CUDA else 3,
        warmup_rounds=3 if CUDA else 1,
    )
