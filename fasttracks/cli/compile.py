"""`fasttracks compile`: fill Triton's cache, so that first calls compile nothing."""

import argparse
import time

import torch

from fasttracks.cli.console import say
from fasttracks.errors import InputError
from fasttracks.weights import PRECISIONS, load


def compile(options: argparse.Namespace) -> None:
    """The command: for the GPU that is here, or for others."""
    from fasttracks.kernels.ahead import pretending

    if options.precision not in ("auto", *PRECISIONS):
        raise InputError(
            f"--precision: expected auto, fp32, fp16 or bf16, found {options.precision}"
        )
    precision = "fp16" if options.precision == "auto" else options.precision
    if not options.arch:
        if not torch.cuda.is_available():
            raise InputError("--arch: expected sm_90 or the like, as torch sees no CUDA GPU here")
        _compile_one(options.model, torch.device("cuda"), precision, torch.cuda.get_device_name())
        return
    for name in options.arch:
        number = name.removeprefix("sm_")
        if not number.isdecimal() or not 80 <= int(number) <= 999:
            raise InputError(f"--arch: expected sm_80 or above, such as sm_90, found {name!r}")
        with pretending(int(number)):
            _compile_one(options.model, torch.device("cpu"), precision, name)


def _compile_one(model: str, device: torch.device, precision: str, name: str) -> None:
    from triton import knobs

    from fasttracks.performance.compiling import compile_all

    start = time.perf_counter()
    network = load(model, device=device, precision=precision, backend="torch")
    count = compile_all(network)
    seconds = time.perf_counter() - start
    say(f"{name}: {count} kernels in {seconds:.0f} s, in {knobs.cache.dir}")
