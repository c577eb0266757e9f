"""What this machine runs: `python -m fasttracks.env`, to be pasted into a bug report.

Works where parts of the installation are broken: each line stands on its own.
"""

import importlib
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "fasttracks4d", "torch", "triton", "numpy", "safetensors", "av",
    "opencv-python-headless", "matplotlib", "tqdm",
)  # fmt: skip


def report() -> str:
    """The report, one `name: value` a line."""
    lines = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cpu cores": str(os.cpu_count()),
        **{name: _version(name) for name in PACKAGES},
        "import fasttracks": _try(lambda: str(importlib.import_module("fasttracks").__file__)),
        "cuda": _try(_cuda),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _try(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception as error:
        return f"fails: {type(error).__name__}: {error}"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none seen by torch"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}, {', '.join(names)}"


if __name__ == "__main__":
    print(report())
