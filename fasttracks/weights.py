"""Weights files: safetensors with the network's `Config` in the header.

Also the conversion of released TracksTo4D checkpoints, whose keys `_released_name` gives.
"""

import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from fasttracks import ops
from fasttracks.config import Config
from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.network import TracksTo4D

_DATA = Path(__file__).parent / "data"
SHIPPED = {name: _DATA / f"{name}.safetensors" for name in ("base", "large")}

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

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
        model: "base"; "large", twice as deep; or a file that `fasttracks convert` or `save` wrote.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        precision: of the transformer blocks: "fp32", "fp16", "bf16", or "auto": float16 on
            CUDA, float32 elsewhere. Embedding, last norm, heads and geometry stay in float32.
        backend: "triton" (our kernels, on a CUDA GPU that they run on), "torch", or "auto", as
            `ops.choose` takes it.

    Raises:
        InputError: no such name, file or device; a damaged file; weights that don't fit; a
            backend that can't run.
    """
    named = device != "auto"
    device = resolve_device(device)
    dtype = resolve_precision(precision, device)
    path = find(model)
    tensors, metadata = _read_safetensors(path)
    if "config" not in metadata:
        raise InputError(
            f"model: {path} has no fasttracks config in its header; released checkpoints "
            "are converted with 'fasttracks convert'"
        )
    config = Config.from_json(metadata["config"])
    chosen = ops.choose(backend, config, device if named else None)
    with torch.device("meta"):  # neither memory nor random numbers for what is replaced
        network = TracksTo4D(config, backend=chosen.name)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    _check_layout(path, tensors, shapes)
    # Rounded to half precision, the last tokens, which are of this norm's dtype, and its weights
    # would be most of the error.
    precise = f"blocks.{len(network.blocks) - 1}.norm."
    for name, tensor in tensors.items():
        half = name.startswith("blocks.") and not name.startswith(precise)
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
    source = Path(source)
    tensors = (
        _read_safetensors(source)[0]
        if source.suffix == ".safetensors"
        else _read_checkpoint(source)
    )
    config = Config(predicts_focal=predicts_focal)
    with torch.device("meta"):
        ours = TracksTo4D(config, backend="torch").state_dict()
    layout = {_released_name(name): name for name in ours}
    shapes = {old: _released_shape(name, tuple(ours[name].shape)) for old, name in layout.items()}
    _check_layout(source, tensors, shapes)
    state = {name: _from_released(name, tensors[old], config) for old, name in layout.items()}
    _write(target, state, config, dtype, metadata or {})


def released_layout(network: TracksTo4D) -> dict[str, Tensor]:
    """A network's weights as the released code loads them; `convert` is the way back.

    What that code computes and never reads is 0.
    """
    return {
        _released_name(name): _to_released(name, tensor, network.config)
        for name, tensor in network.state_dict().items()
    }


def describe(path: _PathLike) -> dict[str, Any]:
    """Sizes and header of a weights file or shipped name, without building the network."""
    path = find(path)
    tensors, metadata = _read_safetensors(path)
    if "config" in metadata:
        Config.from_json(metadata["config"])
    return {
        "file": str(path),
        "parameters": sum(t.numel() for t in tensors.values()),
        "dtype": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
        **{k: json.loads(v) if k == "config" else v for k, v in sorted(metadata.items())},
    }


def find(model: _PathLike) -> Path:
    """The file that a shipped name or a path stands for; it need not exist."""
    return SHIPPED.get(os.fspath(model), Path(model))


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that "auto", "cpu", "cuda:1", ... stand for; InputError if it isn't there."""
    if device == "auto":
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
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if str(precision) not in PRECISIONS:
        raise InputError(
            f"precision: expected 'auto', {', '.join(map(repr, PRECISIONS))}, found {precision!r}"
        )
    return PRECISIONS[precision]


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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            names: Callable[[], list[str]] = file.keys
            return {name: file.get_tensor(name) for name in names()}, file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"model: {path} is not a whole safetensors file ({error})") from None


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; what matters is said below
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"checkpoint: {path} is not a torch file of tensors and plain values; anything else "
            "could run code when read and is refused"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"checkpoint: {path} is not a whole torch file ({first})") from None
    # A bare state dict, or one saved from DataParallel, is as good.
    state = checkpoint.get("model_state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(map(_is_plain, state.values())):
        raise InputError(
            f"checkpoint: {path} has no 'model_state_dict' of tensors, as a released TracksTo4D "
            "checkpoint does"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"model: {path} is a directory; expected a weights file")
    if not path.is_file():
        raise InputError(
            f"model: no file {path}, nor a shipped model of that name ({', '.join(SHIPPED)})"
        )


def _check_layout(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    problems = [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in shapes]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems += [
        f"{name} is not of finite floating-point numbers"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all()
    ]
    if problems:
        raise InputError(f"model: {path} doesn't fit the network: {'; '.join(problems)}")


_RELEASED = {  # our module names, in the released network's words
    "embedding.norm_in": "to_patch_embedding.0",
    "embedding.linear": "to_patch_embedding.1",
    "embedding.norm_out": "to_patch_embedding.2",
    "attention_norm": "layers.0.0.norm",
    "qkv": "layers.0.0.to_qkv",
    "out": "layers.0.0.to_out",
    "mlp_norm": "layers.0.1.net.0",
    "up": "layers.0.1.net.1",
    "down": "layers.0.1.net.3",
    "norm": "norm",
    "camera": "conv_final",
    "points": "fc1",
}


def _released_name(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if not module.startswith("blocks."):
        trunk = "" if module in ("camera", "points") else "transformer_my."
        return f"{trunk}{_RELEASED[module]}.{kind}"
    _, index, layer = module.split(".")
    axis = ("transformer_frames", "transformer_points")[int(index) % 2]
    return f"transformer_my.{axis}.{int(index) // 2}.{_RELEASED[layer]}.{kind}"


def _released_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    # The released camera head also computes the first coefficient, always replaced by 1,
    # and two channels that nothing reads.
    return (shape[0] + 3, *shape[1:]) if name.startswith("camera.") else shape


def _from_released(name: str, tensor: Tensor, config: Config) -> Tensor:
    if name.startswith("camera."):
        return torch.cat([tensor[:4], tensor[5 : config.bases + 10]])
    # x, y, z of all bases to x, y, z basis by basis
    return _regrouped(tensor, 3) if name.startswith("points.") else tensor


def _to_released(name: str, tensor: Tensor, config: Config) -> Tensor:
    if name.startswith("camera."):
        whole = tensor.new_zeros(_released_shape(name, tuple(tensor.shape)))
        whole[:4], whole[5 : config.bases + 10] = tensor[:4], tensor[4:]
        return whole
    return _regrouped(tensor, config.bases) if name.startswith("points.") else tensor


def _regrouped(tensor: Tensor, groups: int) -> Tensor:
    """Rows of so many groups, member by member; the last row, of γ, stays the last."""
    basis = tensor[:-1].unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)
    return torch.cat([basis, tensor[-1:]])
