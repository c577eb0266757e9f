"""`fasttracks tune`: find this GPU's fastest kernel launches, and say what they gain."""

import argparse
import functools
import sys
from pathlib import Path

import torch

from fasttracks.cli.console import say
from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.performance.sample import sample_inputs
from fasttracks.performance.timing import graph_seconds
from fasttracks.performance.tuning import SIZES, find_launches
from fasttracks.weights import load


def tune(options: argparse.Namespace) -> None:
    """The command: tune, write, and say what it gained."""
    from fasttracks.kernels import launches

    if not torch.cuda.is_available():
        raise InputError("tune: torch sees no CUDA GPU here, and kernels are for those alone")
    network = load(
        options.model, device=options.device, precision=options.precision, backend="triton"
    )
    device = network.points.weight.device
    if next(network.blocks.parameters()).dtype == torch.float32:
        raise InputError("--precision: expected fp16 or bf16, whose kernels are to be tuned")
    path = Path(options.output) if options.output else launches.tuned_file(device)
    with torch.cuda.device(device):
        before = launches.table(device)
        with replacing(path) as temporary:
            found = find_launches(network, progress=sys.stderr.isatty())
            launches.save(temporary, found)
        say(f"{torch.cuda.get_device_name(device)}, whole forward:")
        for tracks, frames in SIZES:
            inputs = sample_inputs(tracks, frames, device)
            times = []
            for table in before, before | found:
                with launches.using(device, table), torch.no_grad():
                    times.append(1e3 * graph_seconds(functools.partial(network, inputs)))
            say(f"{tracks:>8} × {frames:<4} {times[0]:8.3f} → {times[1]:.3f} ms")
    say(f"wrote {path}")
    if options.output:
        say(f"it is used where FASTTRACKS_LAUNCHES={path} is set")
