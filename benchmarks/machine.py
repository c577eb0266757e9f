"""What a figure was measured on, to be kept beside it."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def describe(device: str) -> dict[str, Any]:
    """Device, versions and commit."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "-s") else ""),
    }


def _git(*arguments: str) -> str:
    out = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return out.stdout.strip() or ("" if arguments[0] == "status" else "unknown")
