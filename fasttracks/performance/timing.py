"""Times of calls: of the host, of the GPU by CUDA graphs, and end to end."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fasttracks.config import Config
from fasttracks.graphs import capture


def wall_times(call: Callable[[], Any], calls: int, device: torch.device) -> list[float]:
    """Seconds from each call until its result is there."""

    def finished() -> float:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(3):
        finished()
    marks = [finished() for _ in range(calls + 1)]
    return np.diff(marks).tolist()


def host_time(call: Callable[[], Any], calls: int = 200) -> float:
    """Median seconds that a call keeps the host; on CUDA, of an idle GPU."""
    marks = []
    for _ in range(calls):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        marks.append(time.perf_counter() - start)
    return float(np.median(marks))


def graph_seconds(call: Callable[[], Any]) -> float:
    """Median seconds that a call takes the GPU, from a CUDA graph of some of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(work: Callable[[], Any]) -> float:
        start.record()
        work()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)

    call()
    repeats = max(1, min(20, int(2e-3 / timed(call))))
    graph, _ = capture(lambda: [call() for _ in range(repeats)])
    timed(graph.replay)
    return sorted(timed(graph.replay) for _ in range(7))[3] / repeats


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return {f"p{q} ms": round(1e3 * float(np.percentile(seconds, q)), 4) for q in (50, 95, 99)}


def operations(config: Config, tracks: int, frames: int) -> float:
    """Floating-point operations of the trunk's matrix products, which are nearly all there are."""
    inner = config.heads * config.head_width
    linear = 2 * config.width * (4 * inner + 2 * config.mlp_width)
    scores = 4 * inner * (frames + tracks) / 2  # on average over both kinds of block
    return 2 * config.rounds * tracks * frames * (linear + scores)
