"""Compiling kernels before they are launched: side by side, and for GPUs that are not here."""

import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime.driver import driver

from fasttracks.kernels import device

_lock = threading.Lock()
_at_it: int | None = None  # the thread that has the lock


def compile_ahead(work: Callable[[], Any], on: torch.device) -> int:
    """Compile side by side what `work` launches and this process has not compiled, or else loaded.

    `work` runs with those launches left out, so what it makes is for nothing, and it must not wait
    for a GPU or keep anything. Most of a compiler's time is not Python's. Returns how many; within
    another call's `work` 0, as its kernels are that call's.
    """
    global _at_it  # noqa: PLW0603
    wanted: dict[str, tuple[Any, str]] = {}
    mine = threading.get_ident()
    if _at_it == mine:
        return 0

    def instead(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        if threading.get_ident() != mine:
            return False
        wanted[f"{fn.module}.{fn.name} {key}"] = fn.jit_function, compile["specialization_data"]
        return True

    def compile_one(job: tuple[Any, str]) -> None:
        kernel, specialised = job
        if on.type == "cuda":
            torch.cuda.set_device(on)  # of this thread
        compiled = kernel.preload(specialised)
        # C code that calls the kernel, which some versions of Triton build for each, in a second.
        driver.active.launcher_cls(compiled.src, compiled.metadata)

    with _lock:
        _at_it = mine
        before = knobs.runtime.jit_cache_hook
        knobs.runtime.jit_cache_hook = instead
        try:
            work()
        finally:
            knobs.runtime.jit_cache_hook = before
            _at_it = None
        if wanted:
            with ThreadPoolExecutor(min(len(wanted), 2 * (os.cpu_count() or 1))) as pool:
                list(pool.map(compile_one, wanted.values()))
    return len(wanted)


def pretend(architecture: int) -> None:
    """Take the CPU for a GPU of a compute capability such as 90, to compile for it.

    For a process that does nothing else, as kernels can't run in it any more.
    """
    device.pretend((architecture // 10, architecture % 10))
    # It can't load the C code of launches here, and says so of each that it built before.
    logging.getLogger("triton.runtime.build").setLevel(logging.ERROR)
    driver.set_active(_Absent(architecture))


class _Absent:
    """As much of Triton's driver as compiling takes."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> None:
        """Have Triton's C code in its cache, built but perhaps not loaded."""
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory()
                self._stand_in(self._folder.name)
                with suppress(ImportError):
                    nvidia.CudaUtils()
        if hasattr(nvidia, "make_launcher"):  # one for each kernel, up to Triton 3.6
            with suppress(ImportError):
                nvidia.CudaLauncher(source, metadata)

    @staticmethod
    def _stand_in(folder: str) -> None:
        """An empty library to link with, where NVIDIA's driver is not installed."""
        try:
            nvidia.libcuda_dirs()
        except (AssertionError, OSError, subprocess.CalledProcessError):
            compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
            if compiler is not None:  # else Triton says that it needs one
                name = "libcuda.so.1"
                link = ["-shared", f"-Wl,-soname,{name}", "-o", os.path.join(folder, name)]
                subprocess.run([compiler, *link, "-x", "c", os.devnull], check=True)
                os.symlink(name, os.path.join(folder, "libcuda.so"))  # its name to Triton 3.5
            knobs.nvidia.libcuda_path = folder
