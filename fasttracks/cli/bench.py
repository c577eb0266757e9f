"""`fasttracks bench`: is this machine's forward accurate, and how fast is it?"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from fasttracks.cli.console import say
from fasttracks.engine import Engine
from fasttracks.errors import InputError
from fasttracks.performance.accuracy import check, errors, truth
from fasttracks.performance.sample import SIZES, sample_inputs
from fasttracks.performance.timing import host_time, operations, percentiles, wall_times
from fasttracks.weights import load


def bench(options: argparse.Namespace) -> None:
    """The command: a line for each size."""
    network = load(
        options.model,
        device=options.device,
        precision=options.precision,
        backend=options.backend,
    )
    exact = load(options.model, device=options.device, precision="fp32", backend="torch")
    device = network.points.weight.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    block: Any = network.blocks[0]
    dtype = block.qkv.weight.dtype
    say(f"{name}, {str(dtype).removeprefix('torch.')}, backend {network.backend.name}")
    say(f"{'tracks × frames':>15} {'points':>8} {'rotation °':>10} {'reproj. px':>10} "
        f"{'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'host µs':>8} {'TFLOP/s':>8}")  # fmt: skip
    sizes = SIZES if device.type == "cuda" else SIZES[:2]
    for tracks, frames in [_size(text) for text in options.sizes] or sizes:
        inputs = sample_inputs(tracks, frames, device)
        engine = Engine(network, max_tracks=tracks, max_frames=frames)
        on_gpu = device.type == "cuda"
        found = errors(engine(inputs), truth(exact, inputs))
        check(found, dtype)
        call = partial(engine, inputs)
        # Calls on a GPU are too quick to be waited for, and for a bar to leave their times alone.
        with _progress(f"{tracks} × {frames}", options.calls, hidden=on_gpu) as bar:
            timed = call if on_gpu else _counted(call, bar)
            times = percentiles(wall_times(timed, options.calls, device))
        host = f"{1e6 * host_time(call):8.0f}" if on_gpu else ""
        speed = operations(network.config, tracks, frames) / times["p50 ms"] / 1e9
        say(
            f"{tracks:>8} × {frames:<4} {found['points']:8.1e} {found['rotation °']:10.4f} "
            f"{found['reprojection px']:10.3f} "
            + " ".join(f"{ms:9.3f}" for ms in times.values())
            + f" {host:>8} {speed:8.1f}"
        )


def _progress(name: str, calls: int, *, hidden: bool) -> Any:
    """A bar on a terminal over the calls that one size takes: four before those that count."""
    hidden |= not sys.stderr.isatty()
    return tqdm(total=calls + 4, desc=name, unit="call", leave=False, disable=hidden)


def _counted(call: Callable[[], Any], bar: Any) -> Callable[[], Any]:
    def counted() -> Any:
        result = call()
        bar.update()
        return result

    return counted


def _size(text: str) -> tuple[int, int]:
    tracks, _, frames = text.partition("x")
    if not (tracks.isdecimal() and frames.isdecimal() and int(tracks) and int(frames)):
        raise InputError(f"SIZE: expected TRACKSxFRAMES such as 256x50, found {text!r}")
    return int(tracks), int(frames)
