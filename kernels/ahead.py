"""Compiling kernels before they are launched: side by side, and for GPUs that are not here."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from fasttracks.kernels import device

_lock = threading.Lock()


def compile_ahead(work: Callable[[], Any], on: torch.device) -> int:
    """Compile side by side what `work` launches and this process has not compiled, or else loaded.

    `work` runs with those launches left out, so what it makes is for nothing, and it must not wait
    for a GPU or keep anything. Most of a compiler's time is not Python's. Returns how many.
    """
    wanted: dict[str, tuple[Any, str]] = {}
    mine = threading.get_ident()

    def instead(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        if threading.get_ident() != mine:
            return False
        wanted[f"{fn.module}.{fn.name} {key}"] = fn.jit_function, compile["specialization_data"]
        return True

    def compile_one(job: tuple[Any, str]) -> None:
        kernel, specialised = job
        if on.type == "cuda":
            torch.cuda.set_device(on)  # of this thread
        kernel.preload(specialised)

    with _lock:
        before = knobs.runtime.jit_cache_hook
        knobs.runtime.jit_cache_hook = instead
        try:
            work()
        finally:
            knobs.runtime.jit_cache_hook = before
        if wanted:
            with ThreadPoolExecutor(min(len(wanted), 2 * (os.cpu_count() or 1))) as pool:
                list(pool.map(compile_one, wanted.values()))
    return len(wanted)


def pretend(architecture: int) -> None:
    """Take the CPU for a GPU of a compute capability such as 90, to compile for it.

    For a process that does nothing else, as kernels can't run in it any more.
    """
    device.pretend((architecture // 10, architecture % 10))
    driver.set_active(_Absent(architecture))


class _Absent:
    """As much of Triton's driver as compiling takes."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0
