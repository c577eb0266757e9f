"""Which tiles, warps and stages kernels are launched with: data, measured per GPU.

`launches.json` has, by kernel, what fits any GPU from sm_80 on (99 KB of shared memory), and what
is faster by compute capability: that of sm_90 was measured on an H100 and serves the H200, which
differs in memory alone. What `fasttracks tune` wrote for a GPU goes before both.
"""

import functools
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fasttracks.kernels.device import capability

Options = dict[str, Any]
# By kernel, launches in order of size: the most tokens that each is for (the last: any), and it.
Table = dict[str, list[tuple[float, Options]]]

_SHIPPED = Path(__file__).with_name("launches.json")
_ALWAYS = {"enable_fp_fusion": True}  # the default is about to change (Triton 3.10)
_MOST = {"num_warps": 32, "num_stages": 16, "STAGES": 16}  # of options; of others 1024
_in_use: dict[torch.device, Table] = {}


def launch(kernel: str, tokens: int, device: torch.device) -> Options:
    """Options to launch a kernel with, for a clip or batch of so many tokens."""
    for most, options in table(device)[kernel]:
        if tokens <= most:
            return options
    raise AssertionError(f"{kernel}: no launch for {tokens} tokens")


def table(device: torch.device) -> Table:
    """The launches that a device uses, chosen once."""
    found = _in_use.get(device)
    if found is None:
        found = _in_use[device] = _choose(device)
    return found


@contextmanager
def using(device: torch.device, other: Table) -> Iterator[None]:
    """Use other launches meanwhile, in all threads."""
    before = table(device)
    _in_use[device] = other
    try:
        yield
    finally:
        _in_use[device] = before


def tuned_file(device: torch.device) -> Path:
    """Where the launches tuned for a device are: $FASTTRACKS_LAUNCHES, or in the user's cache."""
    if named := os.environ.get("FASTTRACKS_LAUNCHES"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device).lower())
    return cache / "fasttracks" / f"launches-{name}.json"


def save(path: Path, found: Table) -> None:
    """Write a table as `fasttracks tune` does."""
    rows = {
        kernel: [
            [
                None if most == float("inf") else most,
                {k: v for k, v in options.items() if k not in _ALWAYS},
            ]
            for most, options in launches
        ]
        for kernel, launches in found.items()
    }
    text = ",\n".join(f"  {json.dumps(kernel)}: {json.dumps(row)}" for kernel, row in rows.items())
    path.write_text(f"{{\n{text}\n}}\n")


def shipped() -> dict[str, Table]:
    """The tables of the package: "default", and more of "sm_90" and the like."""
    return {family: _read(rows) for family, rows in json.loads(_SHIPPED.read_text()).items()}


def _choose(device: torch.device) -> Table:
    families = shipped()
    found = families["default"]
    family = families.get("sm_{}{}".format(*capability(device)))
    found = found | (family or {})
    if device.type != "cuda":  # the interpreter, or a GPU that is not here
        return found
    path = tuned_file(device)
    if path.is_file():
        try:
            return found | _fitting(_read(json.loads(path.read_text())), found)
        except (ValueError, TypeError, AttributeError, KeyError):
            _warn(f"{path} is not for this version of fasttracks: not used; renew it")
    elif family is None:
        _warn(f"no launches were measured for {torch.cuda.get_device_name(device)}: safe ones")
    return found


def _read(rows: Any) -> Table:
    return {
        kernel: [
            (float("inf") if most is None else most, {**options, **_ALWAYS})
            for most, options in launches
        ]
        for kernel, launches in rows.items()
    }


def _fitting(tuned: Table, shipped: Table) -> Table:
    """A table that was read, if its kernels and their options are those that there are."""
    for kernel, launches in tuned.items():
        names = set(shipped[kernel][0][1]) | {"num_warps", "num_stages"}
        mosts = [most for most, _ in launches]
        if mosts != sorted(mosts) or mosts[-1:] != [float("inf")]:
            raise ValueError(kernel)
        for most, options in launches:
            if not set(shipped[kernel][0][1]) <= set(options) <= names:
                raise ValueError(kernel)
            if not most > 0 or not all(_sane(name, value) for name, value in options.items()):
                raise ValueError(kernel)
    return tuned


def _sane(name: str, value: Any) -> bool:
    """Whether a kernel can have this value of an option, or has it whatever is asked for."""
    return name in _ALWAYS or (type(value) is int and 1 <= value <= _MOST.get(name, 1024))


@functools.cache  # once
def _warn(what: str) -> None:
    warnings.warn(f"{what} ('fasttracks tune' measures this GPU)", stacklevel=2)
