"""What the device in use can do."""

import functools

import torch

_pretended: tuple[int, int] | None = None


def pretend(capability: tuple[int, int] | None) -> None:
    """Take the CPU for a GPU of this compute capability, to compile for it (see `ahead`)."""
    global _pretended  # noqa: PLW0603
    _pretended = capability


def capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability; (0, 0) for a CPU, where kernels run in Triton's interpreter."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)
    return _pretended or (0, 0)


@functools.cache
def is_hopper(device: torch.device) -> bool:
    """Whether kernels made for sm_90, which later GPUs don't run, can run."""
    return capability(device) == (9, 0)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side, at one a multiprocessor."""
    if device.type == "cpu":
        return 1 if _pretended is None else 132
    return torch.cuda.get_device_properties(device).multi_processor_count
