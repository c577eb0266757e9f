"""The network's forward on a GPU that isn't there: its own code runs, tensors have no memory.

Triton compiles and "launches" each kernel with the arguments that it would get; what a launch
does is the driver's that is active, here `Recorder`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch.utils._pytree import tree_map_only
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from fasttracks import backends, network
from fasttracks.config import Config
from fasttracks.kernels import common, device, embed, launches

DEVICE = torch.device("cuda", 0)
APART = 1 << 37  # bytes between the addresses of two allocations
FIRST = 1 << 44  # the lowest address, beyond any number that is none

_kept: dict[int, tuple[Any, int]] = {}  # storages, so that none takes another's place
_copied: list[Callable[[torch.Tensor, torch.Tensor], None]] = []


class CudaTensor(torch.Tensor):
    """A tensor of torch's device "meta" that says it is on a GPU and has an address."""

    is_cuda = True

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The GPU that isn't there."""
        return DEVICE

    def data_ptr(self) -> int:
        """An address of its own for every allocation, never used again."""
        storage = self.untyped_storage()
        _, base = _kept.setdefault(storage._cdata, (storage, FIRST + len(_kept) * APART))
        return base + self.storage_offset() * self.element_size()

    def contiguous(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """As of any tensor; says so where it copies."""
        if self.is_contiguous():
            return self
        result = fake(*self.shape, dtype=self.dtype)
        for listener in _copied:
            listener(self, result)
        return result

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        """As of any tensor of device "meta"."""
        with torch._C.DisableTorchFunctionSubclass():
            given = tree_map_only(
                CudaTensor, lambda x: x.as_subclass(torch.Tensor), (arguments, keywords or {})
            )
            result = function(*given[0], **given[1])
            return tree_map_only(torch.Tensor, lambda x: x.as_subclass(CudaTensor), result)


def fake(*shape: int, dtype: torch.dtype = torch.float32) -> CudaTensor:
    """A contiguous tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta").as_subclass(CudaTensor)


def network_of(config: Config) -> network.TracksTo4D:
    """A network in float16 as `fasttracks.load` makes it, without memory."""
    with torch.device("meta"):
        model = network.TracksTo4D(config, backend="torch")
    last = model.blocks[-1].norm
    for module in model.modules():
        for name, value in module._parameters.items():
            in_blocks = any(module is inner for inner in model.blocks.modules())
            half = in_blocks and module is not last
            dtype = torch.float16 if half else torch.float32
            if value is not None:
                module._parameters[name] = fake(*value.shape, dtype=dtype)  # type: ignore[assignment]
    model.backend = backends.triton()
    return model.eval()


class Recorder:
    """A driver for Triton that compiles and calls back at each launch.

    The function gets the compiled source and its metadata, the grid, and all arguments in order.
    """

    def __init__(self, capability: int, launched: Callable[..., None]) -> None:
        self.capability, self.launched = capability, launched
        properties = {"max_shared_mem": 1 << 20, "multiprocessor_count": 1, "warpSize": 32}
        self.cubins: dict[str, bytes] = {}  # by the hash in the kernel's metadata
        self.utils = SimpleNamespace(
            load_binary=self._load,
            unload_module=lambda _: None,
            get_device_properties=lambda _: properties,
        )
        self.get_current_stream = lambda _: 0
        self.get_current_device = lambda: 0

    def get_current_target(self) -> GPUTarget:
        """What kernels are compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def _load(self, name: str, cubin: bytes, *_: Any) -> tuple[int, ...]:
        self.cubins[self._hash] = cubin
        return 1, 1, 0, 0, 1024  # module, function, registers, spills, most threads

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What Triton calls to launch a kernel, whose binary it then loads."""
        self._hash = metadata.hash

        def launch(*arguments: Any) -> None:
            self.launched(source, metadata, arguments[:3], arguments[9:])

        return launch


@contextmanager
def pretend(
    active: Any,
    capability: int,
    processors: int,
    *,
    copied: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    launched: Callable[[str, float], None] | None = None,
) -> Iterator[None]:
    """Have a GPU of such a compute capability (90 for 9.0) with so many multiprocessors.

    `active` is Triton's driver; `copied` is called with source and target where a tensor is made
    contiguous, `launched` with each launch that is looked up, by name and largest number of tokens.
    """
    backends.triton()  # imports the kernels
    can: dict[str, Callable[..., Any]] = {
        "capability": lambda _: divmod(capability, 10),
        "is_hopper": lambda _: capability == 90,
        "multiprocessors": lambda _: processors,
    }
    replaced = (device.capability, device.is_hopper, device.multiprocessors, launches.launch)
    modules = [m for name, m in sys.modules.items() if name.startswith("fasttracks.kernels.")]
    rates = fake(2, Config().width)

    def launch(kernel: str, tokens: int, _: torch.device) -> Any:
        most, options = next(row for row in launches.table(DEVICE)[kernel] if tokens <= row[0])
        if launched:
            launched(kernel, most)
        return options

    can["launch"] = launch
    patches = [
        *(
            patch.object(module, name, value)
            for module in modules
            for name, value in can.items()
            if getattr(module, name, None) in replaced
        ),
        patch.object(embed, "_rates", lambda *_: rates),
        patch.object(launches, "_in_use", {}),
        patch.object(launches, "_warn", lambda _: None),
        patch.object(launches, "tuned_file", lambda _: Path(os.devnull)),
        patch.object(torch.cuda, "device_of", lambda _: nullcontext()),
        patch.object(torch.cuda, "get_device_name", lambda _: ""),
        patch.object(network, "_compiled", {(DEVICE, torch.float16)}),
    ]
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        _forget(modules)
        before = driver._active
        driver.set_active(active)
        if copied:
            _copied.append(copied)
        try:
            with torch.no_grad():
                yield
        finally:
            _copied.clear()
            _forget(modules)
            driver._active = before


def _forget(modules: list[Any]) -> None:
    """What was compiled or asked of a device."""
    common.overlap.cache_clear()
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, triton.JITFunction):
                value.device_caches.clear()
