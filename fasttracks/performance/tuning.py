"""The kernel launches that are fastest on this machine's GPU.

Every kernel is tried with a short list of launches at five sizes, after its operation's error was
found to be within twice that of eager torch. Times are those of CUDA graphs.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fasttracks import ops
from fasttracks.network import TracksTo4D
from fasttracks.performance.sample import sample_inputs
from fasttracks.performance.timing import graph_seconds

SIZES = ((100, 20), (100, 50), (256, 50), (1000, 50), (4096, 50))
GAIN = 0.02  # by which a launch has to be faster to be worth a compilation of its own

Options = dict[str, Any]
Call = Callable[[], Any]


def _grid(**values: Sequence[int]) -> list[Options]:
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


def _blocks(sides: str, *rows: tuple[int, ...]) -> list[Options]:
    """Launches by the blocks of some sides, then warps and stages."""
    names = (*(f"BLOCK_{side}" for side in sides), "num_warps", "num_stages")
    return [dict(zip(names, row, strict=True)) for row in rows]


# By operation and kernel, what to try beside the launch in use.
CANDIDATES: dict[str, dict[str, list[Options]]] = {
    "embed": {"embed": _grid(BLOCK_TRACKS=(32, 64), num_warps=(4, 8))},
    "attention over time": {
        "norm_project": _blocks("MN", (64, 64, 4, 2), (128, 64, 8, 1), (64, 128, 4, 1)),
        "hopper_norm_project": _grid(STAGES=(3,)),
        "attend_project": _grid(num_warps=(4, 8), num_stages=(1, 2, 3)),
    },
    "attention over tracks": {
        "attend": _blocks("MN", (64, 64, 4, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 32, 4, 2)),
        "hopper_attend": [{"BLOCK_N": 64, "STAGES": 2}, {"BLOCK_N": 64, "STAGES": 4}],
        "project": _blocks(
            "MNK",
            (64, 128, 64, 4, 3),
            (64, 128, 64, 4, 4),
            (128, 128, 64, 8, 3),
            (64, 256, 64, 8, 3),
            (128, 256, 64, 8, 4),
        ),
    },
    "mlp": {
        "mlp": [
            {"BLOCK_ROWS": rows, "STEP": step, "num_warps": warps}
            for rows, step, warps in ((64, 32, 4), (64, 64, 8), (128, 32, 8), (128, 64, 8))
        ],
        "mlp_finish": _grid(BLOCK_ROWS=(2, 4, 8)),
    },
    "heads": {
        "heads_sum": _grid(BLOCK_FRAMES=(4, 8), BLOCK_TRACKS=(32, 64)),
        "heads_points": _grid(num_warps=(2, 4, 8)),
        "heads_taps": _grid(OUTPUTS=(1, 3, 7), num_warps=(4,)),
    },
    "compose_project": {"compose_project": _grid(BLOCK_FRAMES=(4, 8), num_warps=(1,))},
}


def find_launches(
    network: TracksTo4D,
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    candidates: dict[str, dict[str, list[Options]]] | None = None,
    seconds: Callable[[Call], float] | None = None,
    progress: bool = False,
) -> dict[str, list[tuple[float, Options]]]:
    """The fastest launches of the kernels that a network runs on its device.

    Args:
        network: on its device, in half precision, with the Triton backend.
        sizes: (tracks, frames), by tokens; by default `SIZES`.
        candidates: by operation and kernel, options that replace some of those in use; by default
            `CANDIDATES`.
        seconds: what a call takes; by default `graph_seconds`.
        progress: whether to show a progress bar.
    """
    from tqdm import tqdm

    from fasttracks.kernels import launches

    sizes, candidates, timed = sizes or SIZES, candidates or CANDIDATES, seconds or graph_seconds
    device = network.points.weight.device
    before = launches.table(device)
    tokens = [tracks * frames for tracks, frames in sizes]
    found = {}
    total = sum(len(tried) for kernels in candidates.values() for tried in kernels.values())
    with torch.no_grad(), tqdm(total=total, disable=not progress, leave=False) as bar:
        for operation, kernels in candidates.items():
            name = operation.split()[0]
            kernel_call, plain = getattr(network.backend, name).__wrapped__, getattr(ops, name)
            given = [arguments(network, operation, sample_inputs(*size, device)) for size in sizes]
            calls = [functools.partial(kernel_call, *a, **keywords) for a, keywords in given]
            with launches.using(device, recorded := _Recorded(before)):
                for call in calls:
                    call()
            for kernel, tried in kernels.items():
                bar.set_description(kernel)
                if kernel not in recorded.seen:  # this GPU has another
                    bar.update(len(tried))
                    continue
                used = [launches.launch(kernel, n, device) for n in tokens]
                rows = [[(old, timed(call)) for old, call in zip(used, calls, strict=True)]]
                for change in tried:
                    bar.update()
                    new = {**used[-1], **change}
                    if new in used and used[0] == used[-1]:
                        continue
                    try:
                        with launches.using(device, {**before, kernel: [(math.inf, new)]}):
                            within_budget(kernel_call, plain, given[0])
                            rows.append([(new, timed(call)) for call in calls])
                    except Exception:  # it doesn't compile, doesn't fit the GPU, or isn't accurate
                        continue
                found[kernel] = _choose(rows, tokens)
    return found


def _choose(
    rows: list[list[tuple[Options, float]]], tokens: list[int]
) -> list[tuple[float, Options]]:
    """Launches by size, from (options, seconds) at each size; the first row is what is in use."""
    first = rows[0]

    def relative(row: list[tuple[Options, float]]) -> float:
        return sum(math.log(t / t0) for (_, t), (_, t0) in zip(row, first, strict=True))

    overall = min(rows, key=relative)  # of those alike, the first
    if relative(overall) > len(tokens) * math.log(1 - GAIN):
        overall = first
    launches: list[tuple[float, Options]] = []
    for i, (options, time) in enumerate(overall):
        fastest, least = min((row[i] for row in rows), key=lambda entry: entry[1])
        best = fastest if least < (1 - GAIN) * time else options
        most = math.inf if i + 1 == len(tokens) else round(math.sqrt(tokens[i] * tokens[i + 1]))
        if launches and launches[-1][1] == best:
            launches.pop()
        launches.append((most, best))
    return launches


def arguments(
    network: TracksTo4D, operation: str, inputs: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that an operation gets in a network, with random tokens."""
    config = network.config
    block: Any = network.blocks[operation == "attention over tracks"]
    embedding: Any = network.embedding
    dtype = block.qkv.weight.dtype
    if operation == "embed":
        norms = map(ops.affine, (embedding.norm_in, embedding.linear, embedding.norm_out))
        return (inputs, *norms, dtype), {}
    generator = torch.Generator(inputs.device).manual_seed(0)
    size = (*inputs.shape[:3], config.width)
    x = torch.randn(size, device=inputs.device, generator=generator).to(dtype)
    if operation.startswith("attention"):
        positional = (x, ops.affine(block.attention_norm), block.qkv.weight, block.out.weight)
        return positional, {"heads": config.heads, "axis": block.axis}
    if operation == "mlp":
        return (x, *map(ops.affine, (block.mlp_norm, block.up, block.down, block.norm))), {}
    read = (x, ops.affine(network.camera), ops.affine(network.points))
    if operation == "heads":
        return read, {"predicts_focal": config.predicts_focal}
    rotation, position, focal, coefficients, basis, _ = ops.heads(
        *read, predicts_focal=config.predicts_focal
    )
    return (basis, coefficients, rotation, position, focal), {}


def within_budget(call: Callable[..., Any], plain: Callable[..., Any], given: Any) -> float:
    """The largest error of an operation's results against float64, relative to their largest value.

    Raises:
        ArithmeticError: it is more than twice that of plain torch, plus rounding.
    """
    positional, keywords = given
    exact = _tensors(plain(*map(_doubled, positional), **keywords))
    errors = [
        [((y - z).abs().max() / z.abs().max()).item() for y, z in zip(found, exact, strict=True)]
        for found in (_tensors(f(*positional, **keywords)) for f in (call, plain))
    ]
    for ours, eager in zip(*errors, strict=True):
        if not ours <= 2 * eager + 1e-6:
            raise ArithmeticError(f"error {ours:.2g}, where eager torch has {eager:.2g}")
    return max(errors[0])


class _Recorded(dict[str, Any]):
    """A table that keeps which kernels were looked up."""

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__(table)
        self.seen: set[str] = set()

    def __getitem__(self, kernel: str) -> Any:
        self.seen.add(kernel)
        return super().__getitem__(kernel)


def _doubled(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64
    return value.double() if isinstance(value, Tensor) else tuple(map(_doubled, value))


def _tensors(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value
