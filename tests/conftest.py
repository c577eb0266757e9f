"""Kernels run natively where there is CUDA, else in Triton's interpreter on the CPU."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton when it decorates a kernel


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where Triton kernels run in this process."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda")
    for module, least in (triton, (3, 7)), (np, (2, 4)):
        if tuple(int(part) for part in module.__version__.split(".")[:2]) < least:
            pytest.skip(f"the interpreter needs {module.__name__} ≥ {least[0]}.{least[1]}")
    return torch.device("cpu")
