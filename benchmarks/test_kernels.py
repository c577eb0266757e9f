"""Each fused operation on its own, against plain torch in the same precision.

First the error budget: against float64, a kernel errs at most twice as much as eager torch.
Times are those of a CUDA graph of many calls, so that nothing is measured but the GPU.
"""

import pytest
import torch

import fasttracks
from fasttracks import ops
from fasttracks.backends import choose
from fasttracks.graphs import capture
from fasttracks.performance.sample import sample_inputs
from fasttracks.performance.tuning import arguments, within_budget

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

SIZES = ((100, 50), (256, 50), (675, 21), (1000, 50), (4096, 50))
OPERATIONS = ("embed", "attention over time", "attention over tracks", "mlp", "heads",
              "compose_project")  # fmt: skip
REPEATS = 20


def operations(network, name, size):
    """Floating-point operations, and bytes of tokens that have to be read and written."""
    tracks, frames = size
    config = network.config
    tokens, inner = tracks * frames, config.heads * config.head_width
    along = frames if name == "attention over time" else tracks
    flops = {
        "embed": 2 * config.features * config.width,
        "mlp": 4 * config.width * config.mlp_width,
        "heads": 0,
        "compose_project": 6 * config.bases + 30,
    }.get(name, 8 * config.width * inner + 4 * inner * along)
    bytes_ = {"embed": 12 + 2 * config.width, "heads": 2 * config.width, "compose_project": 32}
    return flops * tokens, bytes_.get(name, 4 * config.width) * tokens


@pytest.fixture(scope="module")
def network():
    return fasttracks.load("base", device="cuda", precision="fp16", backend="triton")


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_kernel(benchmark, network, size, name, backend):
    field = name.split()[0]
    call = getattr(choose(backend, network.config), field)
    plain = getattr(ops, field)
    info = {"operation": name, "backend": backend, "tracks": size[0], "frames": size[1]}
    with torch.no_grad():
        small = arguments(network, name, sample_inputs(min(size[0], 256), size[1], "cuda"))
        info["error"] = float(f"{within_budget(call, plain, small):.3g}")
        del small

        positional, keywords = arguments(network, name, sample_inputs(*size, "cuda"))
        graph, _ = capture(lambda: [call(*positional, **keywords) for _ in range(REPEATS)])

        def run():
            graph.replay()
            torch.cuda.synchronize()

        benchmark.pedantic(run, rounds=20, warmup_rounds=2)
    seconds = benchmark.stats.stats.median / REPEATS
    flops, bytes_ = operations(network, name, size)
    info |= {
        "µs": round(1e6 * seconds, 2),
        "TFLOP/s": round(flops / seconds / 1e12, 1),
        "GB/s": round(bytes_ / seconds / 1e9),
    }
    benchmark.extra_info.update(info)
