"""The whole forward, tracks in and points, cameras and reprojection out: `pytest benchmarks`.

`--benchmark-json=FILE` keeps the figures, for `report.py`. Accuracy first: nothing of ours is timed
whose error against float64 is beyond `accuracy.LIMITS`; baselines are, with their errors.
`-k` picks columns and sizes. With
TRACKSTO4D=PATH the released code in that checkout is measured too.
"""

import os
from collections.abc import Callable
from typing import Any

import baselines
import pytest
import torch
from torch import Tensor

import fasttracks
from fasttracks.geometry import Prediction
from fasttracks.performance import accuracy, timing
from fasttracks.performance.sample import SIZES as ALL_SIZES
from fasttracks.performance.sample import sample_inputs

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BACKEND = "triton" if CUDA else "torch"
SIZES = ALL_SIZES if CUDA else ALL_SIZES[:2]
SECONDS = 3  # that the calls of a row may take; there are 1000 of them at most


def engine(precision: str) -> Callable[[Tensor], tuple[Callable[[Tensor], Prediction], dict]]:
    def make(inputs: Tensor) -> tuple[Callable[[Tensor], Prediction], dict[str, Any]]:
        network = fasttracks.load("base", device=DEVICE, precision=precision, backend=BACKEND)
        _, frames, tracks, _ = inputs.shape
        call = fasttracks.Engine(network, max_tracks=tracks, max_frames=frames)
        return call, {"backend": network.backend.name}

    return make


COLUMNS = {
    "engine fp16": engine("fp16"),
    "engine bf16": engine("bf16"),
    "engine fp32": engine("fp32"),
    "reference fp32": lambda inputs: baselines.eager_reference(inputs, tf32=False),
    "reference tf32": lambda inputs: baselines.eager_reference(inputs, tf32=True),
    "eager torch fp16": baselines.eager_torch,
    "strongest torch": baselines.strongest_torch,
}
if "TRACKSTO4D" in os.environ:
    COLUMNS["released code"] = baselines.released
if not CUDA:
    COLUMNS = {name: COLUMNS[name] for name in ("engine fp32", "engine bf16", "reference fp32")}


@pytest.fixture(scope="module")
def exact():
    return fasttracks.load("base", device=DEVICE, precision="fp32", backend="torch")


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_network(benchmark, exact, size, column):
    inputs = sample_inputs(*size, DEVICE)
    with torch.no_grad():
        truth = accuracy.truth(exact, inputs)
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_reserved()
        try:
            call, used = COLUMNS[column](inputs)
            prediction = call(inputs)
        except torch.cuda.OutOfMemoryError:
            pytest.skip("out of memory")
        found = accuracy.errors(prediction, truth)
        if "engine" in column:  # the gate is for what is ours; baselines are shown with their error
            accuracy.check(found, torch.bfloat16 if "bf16" in column else torch.float16)
        del truth, prediction

        def run():
            call(inputs)
            if CUDA:
                torch.cuda.synchronize()

        once = min(timing.wall_times(lambda: call(inputs), 3, inputs.device))
        calls = max(3, min(1000, int(SECONDS / once)))
        benchmark.pedantic(run, rounds=calls, warmup_rounds=min(calls, 20))
        median = benchmark.stats.stats.median
        flops = timing.operations(exact.config, *size)
        info = {
            "column": column,
            "tracks": size[0],
            "frames": size[1],
            **timing.percentiles(benchmark.stats.stats.sorted_data),
            "TFLOP/s": round(flops / median / 1e12, 1),
            **{f"error of {name}": float(f"{value:.3g}") for name, value in found.items()},
            **used,
        }
        if CUDA:
            info["memory GB"] = round((torch.cuda.max_memory_reserved() - before) / 1e9, 3)
            if "engine" in column:
                info["host µs"] = round(1e6 * timing.host_time(lambda: call(inputs)), 1)
                without = timing.host_time(lambda: call(inputs, copy=False))
                info["host µs, copy=False"] = round(1e6 * without, 1)
    benchmark.extra_info.update(info)
    torch._dynamo.reset()
