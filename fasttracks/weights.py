"""Weights files: safetensors with the network's `Config` in the header.

Also the conversion of released TracksTo4D checkpoints, whose layout `released` gives.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from fasttracks.backends import choose
from fasttracks.checkpoint import read_checkpoint
from fasttracks.config import Config
from fasttracks.errors import InputError
from fasttracks.files import as_path, existing_file, replacing
from fasttracks.network import TracksTo4D
from fasttracks.released import from_released, released_name, released_shape

_DATA = Path(__file__).parent / "data"
SHIPPED = {"base": _DATA / "base.safetensors"}

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_FLOATS = (*PRECISIONS.values(), torch.float64)
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_LARGEST_HEADER = 2**22  # bytes; those of our files are of some 20 thousand

_PathLike = str | os.PathLike[str]


def load(
    model: _PathLike = "base",
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    backend: str = "auto",
) -> TracksTo4D:
    """A network ready for inference, from a shipped name or a path to .safetensors.

    Args:
        model: "base", or a file that `fasttracks convert` or `save` wrote.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        precision: of the transformer blocks: "fp32", "fp16", "bf16", or "auto": float16 on
            CUDA, bfloat16 on CPUs with AMX, float32 elsewhere. Embedding, last norm, heads and
            geometry stay in float32; with bfloat16 on a CPU, the residual stream too.
        backend: "triton" (our kernels, on a CUDA GPU that they run on), "torch", or "auto", as
            `backends.choose` takes it.

    Raises:
        InputError: no such name, file or device; a damaged file; weights that don't fit; a
            backend that can't run.
    """
    named = str(device) != "auto"
    device = resolve_device(device)
    if device.type == "cuda":  # torch's first steps there take a while
        Thread(target=_reach, args=(device,), daemon=True).start()
    dtype = resolve_precision(precision, device)
    if precision == "auto" and device.type == "cpu" and _has_amx():
        dtype = torch.bfloat16
    path = find(model)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        if "config" not in metadata:
            raise InputError(
                f"model: {path} has no fasttracks config in its header; released checkpoints "
                "are converted with 'fasttracks convert'"
            )
        config = Config.from_json(metadata["config"])
        chosen = choose(backend, config, device if named else None)
        with torch.device("meta"):  # neither memory nor random numbers for what is replaced
            network = TracksTo4D(config, backend=chosen.name)
        shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        tensors = _read(path, file, shapes)
    # Rounded to half precision, the last tokens, which are of their norm's dtype, and its weights
    # would be most of the error. bfloat16 has three bits less: on a CPU all tokens stay in float32,
    # as all norms are, and so does the layer that the last ones come from.
    last = f"blocks.{len(network.blocks) - 1}."
    rounds_more = dtype == torch.bfloat16 and device.type == "cpu"
    precise = ("norm.", last + "down.") if rounds_more else (last + "norm.",)
    for name, tensor in tensors.items():
        half = name.startswith("blocks.") and not any(part in name for part in precise)
        tensors[name] = tensor.to(dtype if half else torch.float32)
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False).to(device)


def save(
    network: TracksTo4D,
    path: _PathLike,
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network's weights; `metadata` goes into the header beside the config."""
    _write(path, network.state_dict(), network.config, dtype, metadata or {})


def convert(
    source: _PathLike,
    target: _PathLike,
    *,
    predicts_focal: bool = False,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Turn a released TracksTo4D checkpoint into a weights file that `load` reads.

    Args:
        source: the released .pt (its `model_state_dict` is used), unpickled as weights
            only; or a .safetensors with the same keys.
        target: the .safetensors to write.
        predicts_focal: whether the checkpoint was trained to correct the focal length; the
            layout doesn't tell.
        dtype: of the weights written.
        metadata: goes into the header beside the config.

    Raises:
        InputError: an unreadable file, one that holds code, or keys that are missing, left
            over or misshapen: all are named.
    """
    source = as_path(source, "checkpoint")
    config = Config(predicts_focal=predicts_focal)
    with torch.device("meta"):
        ours = TracksTo4D(config, backend="torch").state_dict()
    layout = {released_name(name): name for name in ours}
    shapes = {old: released_shape(name, tuple(ours[name].shape)) for old, name in layout.items()}
    if source.suffix == ".safetensors":
        with _opened(source) as file:
            tensors = _read(source, file, shapes)
    else:
        tensors = read_checkpoint(source)
        _check_layout(source, {name: tuple(t.shape) for name, t in tensors.items()}, shapes)
        _check_values(source, tensors)
    state = {name: from_released(name, tensors[old], config) for old, name in layout.items()}
    _write(target, state, config, dtype, metadata or {})


def describe(path: _PathLike) -> dict[str, Any]:
    """Sizes and header of a weights file or shipped name, without building the network."""
    path = find(path)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        names = file.keys()
        slices = [file.get_slice(name) for name in names]
    if "config" in metadata:
        Config.from_json(metadata["config"])
    return {
        "file": str(path),
        "parameters": sum(math.prod(s.get_shape()) for s in slices),
        "dtype": ", ".join(sorted({_DTYPES.get(s.get_dtype(), s.get_dtype()) for s in slices})),
        **{k: json.loads(v) if k == "config" else v for k, v in sorted(metadata.items())},
    }


def find(model: _PathLike) -> Path:
    """The file that a shipped name or a path stands for; it need not exist."""
    path = as_path(model, "model")
    return SHIPPED.get(str(path), path)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that "auto", "cpu", "cuda:1", ... stand for; InputError if it isn't there."""
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        resolved = None
    if resolved is None or resolved.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:1', found {device!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device: {device!r} is not there, torch sees {torch.cuda.device_count()} CUDA "
            "devices; use 'cpu' or 'auto'"
        )
    return resolved


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The transformer blocks' dtype for "auto", "fp32", "fp16" or "bf16" on a device."""
    if isinstance(precision, str) and precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InputError(
            f"precision: expected 'auto', {', '.join(map(repr, PRECISIONS))}, found {precision!r}"
        )
    return PRECISIONS[precision]


def _reach(device: torch.device) -> None:
    with suppress(RuntimeError):  # which the first tensor to be kept there raises again
        torch.zeros(1, device=device)


def _has_amx() -> bool:
    """Whether the CPU has units for products of bfloat16 matrices, eight times as fast as float32.

    Those with instructions for bfloat16 alone gain too little for what is rounded.
    """
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def _write(
    path: _PathLike,
    state: Mapping[str, Tensor],
    config: Config,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    state = {name: t.detach().to("cpu", dtype).contiguous() for name, t in state.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(serialize(state, {**metadata, "config": config.to_json()}))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; InputError if it isn't one, or its header is beyond any use."""
    if not path.exists():
        raise InputError(
            f"model: no file {path}, nor a shipped model of that name ({', '.join(SHIPPED)})"
        )
    existing_file(path, "model", "a weights file")
    with open(path, "rb") as start:
        header = int.from_bytes(start.read(8), "little")
    try:
        if header > _LARGEST_HEADER:
            raise SafetensorError(f"header of {header} bytes")
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"model: {path} is not a whole safetensors file ({error})") from None


def _read(path: Path, file: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file, once their names and shapes are known to fit."""
    names = file.keys()
    found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    _check_layout(path, found, shapes)
    tensors = {name: file.get_tensor(name) for name in shapes}
    _check_values(path, tensors)
    return tensors


def _check_layout(
    path: Path, found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"missing {name}" for name in shapes if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in shapes]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in shapes.items()
        if name in found and found[name] != shape
    ]
    _complain(path, problems)


def _check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Their shapes are known to fit, so that no tensor is larger than it may be."""
    _complain(
        path,
        [
            f"{name} is not of finite floating-point numbers"
            for name, tensor in tensors.items()
            if tensor.dtype not in _FLOATS or not _all_finite(tensor)
        ],
    )


def _all_finite(tensor: Tensor) -> bool:
    """As `isfinite().all()`, by one thread: torch's many take long to start on a large machine."""
    if tensor.dtype == torch.bfloat16:  # the upper half of a float32
        exponent = tensor.view(torch.int16).numpy() & 0x7F80
        return bool((exponent != 0x7F80).all())
    return bool(np.isfinite(tensor.numpy()).all())


def _complain(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise InputError(f"model: {path} doesn't fit the network: {'; '.join(problems)}")
