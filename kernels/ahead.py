"""Compiling kernels before they are launched: side by side, and for GPUs that are not here."""

import copy
import functools
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from heapq import heappop, heappush
from types import ModuleType
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler.compiler import make_backend
from triton.runtime.cache import triton_key
from triton.runtime.driver import driver
from triton.runtime.jit import JITCallable

from fasttracks.kernels import device
from fasttracks.kernels.common import is_empty

# Kernels that take the compiler longest, which therefore go first.
_LONG = ("_mlp", "_count", "_points", "_fit", "_prepare")


class _Turns:
    """A lock that goes to whom of those that wait has the lowest rank."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []  # a heap of ranks
        self._taken = False

    @contextmanager
    def turn(self, rank: int) -> Iterator[None]:
        with self._changed:
            heappush(self._waiting, rank)
            self._changed.wait_for(lambda: not self._taken and self._waiting[0] == rank)
            heappop(self._waiting)
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


_turns = _Turns()


class _InTurn:
    """Mixed into Triton's sources: what is Python's work is done for one kernel after the other.

    Side by side all would take as long, and the compiler proper would have nothing to do meanwhile.
    """

    name: str

    def make_ir(self, *arguments: Any, **keywords: Any) -> Any:
        rank = _LONG.index(self.name) if self.name in _LONG else len(_LONG)
        with _turns.turn(rank):
            return super().make_ir(*arguments, **keywords)  # type: ignore[misc]


_lock = threading.Lock()
_at_it: int | None = None  # the thread that has the lock


@functools.cache
def begin() -> tuple[threading.Thread, threading.Thread]:
    """Start what all compilation waits for: Triton's driver, and the hash of Triton's own 400 MB.

    The hash is a part of all keys of Triton's cache, and threads that need it at once would each
    compute it. Beside other work both cost no time. Returns the threads, to be joined.
    """

    def wake() -> None:
        with suppress(Exception):  # which the first launch raises again
            make_backend(driver.active.get_current_target()).hash()  # asks ptxas for its version

    threads = tuple(threading.Thread(target=run, daemon=True) for run in (wake, triton_key))
    for thread in threads:
        thread.start()
    return threads[0], threads[1]


def compile_ahead(work: Callable[[], Any], on: torch.device) -> int:
    """Compile side by side what `work` launches and this process has not compiled, or else loaded.

    `work` runs meanwhile, with those launches left out, so what it makes is for nothing, and it
    must not wait for a GPU or keep anything. Most of a compiler's time is not Python's. Returns how
    many; within another call's `work` 0, as its kernels are that call's.
    """
    global _at_it  # noqa: PLW0603
    mine = threading.get_ident()
    if _at_it == mine:
        return 0
    wake, identify = begin()
    jobs: dict[str, Future[None]] = {}
    ready: list[tuple[dict[str, Any], str, Any]] = []

    def instead(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        if threading.get_ident() != mine:
            return False
        name = f"{fn.module}.{fn.name} {key}"
        if name not in jobs:
            kernel = fn.jit_function
            _find_key(kernel)
            known = kernel.device_caches[driver.active.get_current_device()][0]
            job = _apart(kernel), compile["specialization_data"], known, key
            jobs[name] = pool.submit(compile_one, *job)
        return True

    def compile_one(kernel: Any, specialised: str, known: dict[str, Any], key: str) -> None:
        if on.type == "cuda":
            torch.cuda.set_device(on)  # of this thread
        identify.join()
        compiled = kernel.preload(specialised)
        if on.type == "cuda" and not is_empty(compiled.asm.get("ptx", "")):
            _ = compiled.run  # which loads it
        else:
            # C code that calls the kernel, which some versions of Triton build for each.
            driver.active.launcher_cls(compiled.src, compiled.metadata)
        ready.append((known, key, compiled))

    wake.join()
    with _lock:
        before = knobs.runtime.jit_cache_hook
        knobs.runtime.jit_cache_hook = instead
        _at_it = mine
        try:
            with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
                work()
        finally:
            _at_it = None
            knobs.runtime.jit_cache_hook = before
            for known, key, compiled in ready:
                known[key] = compiled
    for job in jobs.values():
        job.result()
    return len(jobs)


def _apart(kernel: Any) -> Any:
    """A kernel's twin, to compile while launches of the kernel itself still find nothing."""
    twin = copy.copy(kernel)
    binder = twin.create_binder()
    twin.device_caches = defaultdict(lambda: binder)
    twin.ASTSource = type("Source", (_InTurn, twin.ASTSource), {})
    return twin


def _find_key(kernel: Any) -> None:
    """Have Triton find the key of a kernel's code, after those of all functions that it calls.

    Triton 3.6 leaves constants of such a function out of the kernel's key unless the function's own
    is known: by itself, what was compiled before, or a race, decides whether a kernel is found.
    """
    if kernel.hash is not None:
        return
    names = kernel.fn.__code__.co_names
    used = [kernel.__globals__.get(name) for name in names]
    used += [getattr(m, name, None) for m in used if isinstance(m, ModuleType) for name in names]
    for value in used:
        if isinstance(value, JITCallable) and value is not kernel:
            _find_key(value)
    _ = kernel.cache_key


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
