"""`fasttracks compile`: fill Triton's cache, so that first calls compile nothing."""

import argparse
import time
from importlib.util import find_spec

import torch

from fasttracks.cli.console import say
from fasttracks.errors import InputError
from fasttracks.weights import PRECISIONS, load


def compile(options: argparse.Namespace) -> None:
    """The command: for the GPU that is here, or for one that is not."""
    if options.precision not in ("auto", *PRECISIONS):
        raise InputError(
            f"--precision: expected auto, fp32, fp16 or bf16, found {options.precision}"
        )
    if not (find_spec("triton") and (options.arch or torch.cuda.is_available())):
        raise InputError("--arch: expected sm_90 or the like, and Triton, as no CUDA GPU is here")
    name, device = options.arch, "cpu"
    if name is None:
        name, device = torch.cuda.get_device_name(), "cuda"
    else:
        number = name.removeprefix("sm_")
        if not number.isdecimal() or not 80 <= int(number) <= 999:
            raise InputError(f"--arch: expected sm_80 or above, such as sm_90, found {name!r}")
        from fasttracks.kernels.ahead import pretend

        pretend(int(number))
    from triton import knobs

    from fasttracks.performance.compiling import compile_all

    start = time.perf_counter()
    network = load(options.model, device=device, precision="fp32", backend="torch")
    count = compile_all(network, PRECISIONS.get(options.precision, torch.float16))
    seconds = time.perf_counter() - start
    say(f"{name}: {count} kernels in {seconds:.0f} s, in {knobs.cache.dir}")
