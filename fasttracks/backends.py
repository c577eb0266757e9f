"""Which implementation runs the network's operations: plain torch or the Triton kernels."""

import warnings
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasttracks import ops
from fasttracks.config import Config
from fasttracks.errors import InputError
from fasttracks.kernels.device import capability


class Backend(NamedTuple):
    """One way to run the operations, each with the signature of that in `ops`."""

    name: str
    embed: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    mlp: Callable[..., Tensor]
    heads: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]]
    compose_project: Callable[..., tuple[Tensor, Tensor, Tensor]]


TORCH = Backend("torch", ops.embed, ops.attention, ops.mlp, ops.heads, ops.compose_project)


def choose(name: str, config: Config, device: torch.device | None = None) -> Backend:
    """The backend that "auto", "triton" or "torch" stands for on a device, by default CUDA's.

    "auto" is Triton's kernels on a CUDA GPU from compute capability 8.0 on, else plain torch; it
    warns, once, where there is a GPU but no Triton, or one that is too old. Networks of unusual
    sizes are plain torch's as well.

    Raises:
        InputError: an unknown name, or "triton" where it can't run.
    """
    if name not in ("auto", "triton", "torch"):
        raise InputError(f"backend: expected 'auto', 'triton' or 'torch', found {name!r}")
    if name == "torch":
        return TORCH
    lacking = missing(device)
    usual = all(n >= 16 and n & (n - 1) == 0 for n in (config.width, config.head_width))
    if lacking is None and usual:
        return triton()
    if name == "triton":
        why = lacking or "width and head_width are not powers of two from 16 on"
        raise InputError(f"backend: 'triton' can't run, as {why}; use 'torch' or 'auto'")
    if lacking and torch.cuda.is_available() and (device is None or device.type == "cuda"):
        _fall_back(lacking)
    return TORCH


def missing(device: torch.device | None) -> str | None:
    """What Triton lacks on a device, if anything."""
    if device is not None and device.type == "cpu" and capability(device) >= (8, 0):
        return None  # it stands for a GPU that is compiled for
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if device is not None and device.type != "cuda":
        return f"it runs on CUDA only, not on {device.type}"
    can = torch.cuda.get_device_capability(device)
    if can < (8, 0):
        return "the GPU's compute capability {}.{} is below 8.0".format(*can)
    return None if find_spec("triton") else "Triton is not installed"


@cache
def triton() -> Backend:
    """The Triton kernels, which are imported at the first call.

    An operation that has a kernel of which the compiler leaves nothing is plain torch's from then
    on, after a warning; `__wrapped__` of each is the operation that raises `EmptyKernel` instead.
    """
    from triton import knobs

    from fasttracks.kernels import ahead

    if torch.cuda.is_available():
        ahead.begin()  # beside the imports to come, and the loading of weights
    from fasttracks.kernels import attention, common, compose_project, embed, heads, mlp

    knobs.runtime.kernel_load_start_hook.add(common.refuse_empty)
    kernels: dict[str, Callable[..., Any]] = {
        "embed": embed.embed,
        "attention": attention.attention,
        "mlp": mlp.mlp,
        "heads": heads.heads,
        "compose_project": compose_project.compose_project,
    }
    return Backend(
        "triton", **{n: _unless_empty(n, f, common.EmptyKernel) for n, f in kernels.items()}
    )


def _unless_empty(
    name: str, kernel: Callable[..., Any], error: type[Exception]
) -> Callable[..., Any]:
    plain = getattr(TORCH, name)
    run = kernel

    @wraps(kernel)
    def operation(*arguments: Any, **keywords: Any) -> Any:
        nonlocal run
        try:
            return run(*arguments, **keywords)
        except error as problem:
            run = plain
            _fall_back(f"{problem}, for {name}")
            return run(*arguments, **keywords)

    return operation


@cache  # once a reason
def _fall_back(missing: str) -> None:
    warnings.warn(f"backend: plain torch, as {missing}", stacklevel=4)
