"""`fasttracks bench`: is this machine's forward accurate, and how fast is it?"""

import argparse

import torch

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
    dtype = next(network.blocks.parameters()).dtype
    say(f"{name}, {str(dtype).removeprefix('torch.')}, backend {network.backend.name}")
    say(f"{'tracks × frames':>15} {'points':>8} {'rotation °':>10} {'reproj. px':>10} "
        f"{'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'host µs':>8} {'TFLOP/s':>8}")  # fmt: skip
    sizes = SIZES if device.type == "cuda" else SIZES[:2]
    for tracks, frames in [_size(text) for text in options.sizes] or sizes:
        inputs = sample_inputs(tracks, frames, device)
        engine = Engine(network, max_tracks=tracks, max_frames=frames)
        found = errors(engine(inputs), truth(exact, inputs))
        check(found, dtype)
        times = percentiles(wall_times(lambda: engine(inputs), options.calls, device))  # noqa: B023
        host = f"{1e6 * host_time(lambda: engine(inputs)):8.0f}" if device.type == "cuda" else ""  # noqa: B023
        speed = operations(network.config, tracks, frames) / times["p50 ms"] / 1e9
        say(
            f"{tracks:>8} × {frames:<4} {found['points']:8.1e} {found['rotation °']:10.4f} "
            f"{found['reprojection px']:10.3f} "
            + " ".join(f"{ms:9.3f}" for ms in times.values())
            + f" {host:>8} {speed:8.1f}"
        )


def _size(text: str) -> tuple[int, int]:
    tracks, _, frames = text.partition("x")
    if not (tracks.isdecimal() and frames.isdecimal() and int(tracks) and int(frames)):
        raise InputError(f"SIZE: expected TRACKSxFRAMES such as 256x50, found {text!r}")
    return int(tracks), int(frames)
