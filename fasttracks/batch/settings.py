"""What is to be done with each clip, and a fingerprint of it."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property

import fasttracks
from fasttracks.batch.inputs import state
from fasttracks.long.assemble import TOGETHER


@dataclass(frozen=True)
class Settings:
    """Options, called as those of the command line are; plain values, for they go to processes."""

    output: str
    unfinished: str  # a folder in it, for what is being written
    model: str  # a path
    precision: str = "auto"
    refine: str = "bundle"
    focal: float | None = None
    tracker: str = "klt"
    checkpoint: str | None = None
    grid: int | None = None
    mask: str | None = None
    start: float = 0.0
    frames: int = TOGETHER
    every: int = 1
    max_size: int = 1024
    export: tuple[str, ...] = ()

    def fingerprint(self, path: str) -> str:
        """Of what a clip's result depends on: options, weights, version, the input's size and time.

        What it was made with is not among them, as a GPU's result is as good as a CPU's.
        """
        known = json.dumps([self._common, *state(path)])
        return hashlib.sha256(known.encode()).hexdigest()[:32]

    @cached_property
    def _common(self) -> str:
        known = asdict(self)
        del known["output"], known["unfinished"]
        for name in ("model", "checkpoint", "mask"):
            file = known[name]
            if file is not None and os.path.isfile(file):
                with open(file, "rb") as opened:
                    known[name] = _digest(opened.read())
        return _digest(json.dumps([fasttracks.__version__, known], sort_keys=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
