"""Where TAPNext's weights are to be had."""

import os
from pathlib import Path

from fasttracks.errors import InputError
from fasttracks.files import as_path

LICENCE = "Apache-2.0"
URL = "https://storage.googleapis.com/dm-tapnet/tapnextpp/tapnextpp_ckpt.pt"
HOW = f"curl -LO {URL} (2.5 GB, {LICENCE}), then: fasttracks convert tapnextpp_ckpt.pt"


def found(checkpoint: str | os.PathLike[str] | None) -> Path:
    """A checkpoint's path, or InputError that says how to get one."""
    if checkpoint is None:
        raise InputError(f"checkpoint: tapnext needs its weights; {HOW}")
    path = as_path(checkpoint, "checkpoint")
    if not path.is_file():
        raise InputError(f"checkpoint: no file {path}; {HOW}")
    return path
