"""TAPNext's checkpoints, and the small weights file that they are converted to.

A released PyTorch checkpoint has the network's 401 tensors under the names of `_layout`, one of
which is a table that `network.encode` computes, beside an optimiser's state. The released .npz
files have the names of the JAX code.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from fasttracks.checkpoint import read_plain
from fasttracks.errors import InputError
from fasttracks.files import replacing
from fasttracks.trackers.tapnext.checkpoint import HOW, LICENCE, found
from fasttracks.trackers.tapnext.network import HEAD, HIDDEN, PATCH, SPACE, TAPS, Network

_KIND, _SIZE = "tapnext", "size"  # in the header
_PathLike = str | os.PathLike[str]
_Shape = tuple[int, ...]
_Read = Callable[[str], Tensor]  # a released tensor by its name


def recognises(path: _PathLike) -> bool:
    """Whether a file is a released TAPNext checkpoint, whole or not, by the names in it."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return any(name.startswith("backbone/") for name in archive.namelist())
        return any("ssm_block" in name for name in _state_dict(path))
    except Exception:  # whatever a damaged file makes zipfile and torch raise
        return False


def convert(source: _PathLike, target: _PathLike, *, dtype: torch.dtype = torch.float16) -> int:
    """Turn a released checkpoint into a weights file that `load` reads.

    Args:
        source: .pt or .ckpt, unpickled as weights only, or .npz.
        target: the .safetensors to write.
        dtype: of the large matrices; the rest is float32.

    Returns:
        256 or 512, the side of the frames that the weights are for. The checkpoints don't tell;
        it is 512 where the file's name says so, as the released one's does.

    Raises:
        InputError: a file that can't be read, or tensors that are missing, misshapen, or not
            finite.
    """
    source = Path(source)
    size = 512 if "512" in source.stem else 256
    if source.suffix == ".npz":
        try:
            with zipfile.ZipFile(source) as archive:
                state = _converted(source, *_of_npz(archive), dtype)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"checkpoint: {source} is not a whole .npz file ({error})") from None
    else:
        tensors = _state_dict(source)
        shapes = {name: tuple(t.shape) for name, t in tensors.items() if _is_plain(t)}
        state = _converted(source, shapes, tensors.__getitem__, dtype)
    with replacing(target) as temporary:
        header = {"kind": _KIND, _SIZE: str(size), "licence": LICENCE}
        temporary.write_bytes(serialize(state, header))
    return size


def load(
    path: _PathLike, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Network, int]:
    """A network from a file that `convert` wrote, and the frames' side that it is for.

    Args:
        path: the .safetensors.
        device: to put it on.
        dtype: of the large matrices. The rest is float32, or float64 with them.
    """
    path = found(path)
    if path.suffix != ".safetensors":
        raise InputError(
            f"checkpoint: expected a .safetensors file, found {path}; once, 'fasttracks convert "
            f"{path}' makes one from a released checkpoint"
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            names: list[str] = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            with torch.device("meta"):
                network = Network()
            expected = {name: tuple(p.shape) for name, p in network.state_dict().items()}
            if header.get("kind") != _KIND or header.get(_SIZE) not in ("256", "512"):
                raise InputError(f"checkpoint: {path} holds no TAPNext weights; {HOW}")
            _check(path, shapes, expected)
            state = {
                name: file.get_tensor(name).to(device, _dtype(name, dtype)) for name in expected
            }
    except SafetensorError as error:
        raise InputError(
            f"checkpoint: {path} is not a whole safetensors file ({error}); {HOW}"
        ) from None
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False), int(header[_SIZE])


_HALF = re.compile(
    r"blocks\.\d+\.((gates|branches|merge|up|down|project|mlp_up|mlp_down)\.weight|qkv\..*)"
    r"|heads\.(first|second|coordinates)\.weight"
)


def _dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """That of one of our tensors: `dtype` for what is multiplied by half-precision tokens."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return dtype if _HALF.fullmatch(name) else wide


def _check(path: Path, shapes: Mapping[str, _Shape], expected: Mapping[str, _Shape]) -> None:
    problems = [
        f"has {name} of shape {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    problems += [f"lacks {name}" for name in expected if name not in shapes]
    if problems:
        what = " and ".join(problems[:2])
        more = f", and {len(problems) - 2} more like that" if len(problems) > 2 else ""
        raise InputError(f"checkpoint: {path} doesn't fit TAPNext's network: it {what}{more}")


def _converted(
    source: Path, shapes: Mapping[str, _Shape], read: _Read, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Our tensors, from released ones whose shapes are known before they are read."""
    layout = _layout()
    _check(source, shapes, {k: shape for parts in layout.values() for k, shape in parts.items()})
    with torch.device("meta"):
        ours = Network().state_dict()
    state = {}
    for key, tensor in ours.items():
        parts = [read(name) for name in layout[key]]
        if key.endswith(".up.weight"):  # (2, inputs, outputs)
            parts = [part.mT for part in parts]
        whole = torch.cat([part.to(_dtype(key, dtype)) for part in parts]).reshape(tensor.shape)
        if not torch.isfinite(whole).all():
            raise InputError(f"checkpoint: {source} has numbers in {key} that are not finite")
        state[key] = whole
    return state


def _layout() -> dict[str, dict[str, _Shape]]:
    """For each of our tensors the released ones, with their shapes, that are joined to make it."""
    C, inner, gates = 768, 3072, 768 // HEAD
    layout: dict[str, dict[str, _Shape]] = {
        "mask_token": {"mask_token": (1, 1, 1, C)},
        "unknown_token": {"unknown_token": (1, 1, C)},
        "query_token": {"point_query_token": (1, 1, 1, C)},
        "image_position": {"image_pos_emb": (1, 1024, C)},
    }

    def put(
        ours: str, names: list[str], weight: _Shape, bias: _Shape, kinds: str = ".weight .bias"
    ) -> None:
        for kind, released, shape in zip(
            ("weight", "bias"), kinds.split(), (weight, bias), strict=True
        ):
            layout[f"{ours}.{kind}"] = {name + released: shape for name in names}

    put("patch", ["lin_proj"], (C, 3, PATCH, PATCH), (C,))
    put("norm", ["encoder_norm"], (C,), (C,))
    for i in range(12):
        ours, time, vit = f"blocks.{i}.", f"blocks.{i}.ssm_block.", f"blocks.{i}.vit_block."
        recurrent = time + "recurrent_block."
        layout[ours + "time_norm"] = {time + "temporal_pre_norm.scale": (C,)}
        linear = [recurrent + "linear_y", recurrent + "linear_x"]
        put(ours + "branches", linear, (C, C), (C,))
        put(ours + "convolution", [recurrent + "conv_1d"], (TAPS, C), (C,), ".w .b")
        both = [recurrent + "rg_lru.input_gate", recurrent + "rg_lru.a_gate"]
        put(ours + "gates", both, (gates, HEAD, HEAD), (gates, HEAD), ".w .b")
        layout[ours + "decay"] = {recurrent + "rg_lru.a_param": (C,)}
        put(ours + "merge", [recurrent + "linear_out"], (C, C), (C,))
        layout[ours + "channel_norm"] = {time + "channel_pre_norm.scale": (C,)}
        up = time + "mlp_block.ffw_up"
        put(ours + "up", [up], (2, C, inner), (2, 1, 1, inner), ".w .b")
        put(ours + "down", [time + "mlp_block.ffw_down"], (C, inner), (C,))
        put(ours + "attention_norm", [vit + "ln_1"], (C,), (C,))
        attention = vit + "self_attention."
        put(ours + "qkv", [attention + "in_proj"], (3 * C, C), (3 * C,), "_weight _bias")
        put(ours + "project", [attention + "out_proj"], (C, C), (C,))
        put(ours + "mlp_norm", [vit + "ln_2"], (C,), (C,))
        put(ours + "mlp_up", [vit + "mlp.0"], (inner, C), (inner,))
        put(ours + "mlp_down", [vit + "mlp.3"], (C, inner), (C,))
    for name, layer, inputs in (("first", 0, C), ("second", 3, HIDDEN)):
        head = [f"coordinate_head.{layer}", f"visible_head.{layer}"]
        put(f"heads.{name}", head, (HIDDEN, inputs), (HIDDEN,))
        head = [f"coordinate_head.{layer + 1}", f"visible_head.{layer + 1}"]
        put(f"heads.{name}_norm", head, (HIDDEN,), (HIDDEN,))
    put("heads.coordinates", ["coordinate_head.6"], (2 * SPACE, HIDDEN), (2 * SPACE,))
    put("heads.visible", ["visible_head.6"], (1, HIDDEN), (1,))
    return layout


def _state_dict(path: Path) -> dict[str, Any]:
    """The tensors of a .pt or .ckpt by their released names; their numbers stay on disk."""
    checkpoint = read_plain(found(path), largest=2**32)  # an optimiser's state is in it too
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    if not isinstance(state, dict):
        raise InputError(f"checkpoint: {path} has no 'state_dict' of tensors")
    return {str(name).removeprefix("tapnext."): tensor for name, tensor in state.items()}


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and value.is_floating_point()
    )


_JAX = (  # released names to the JAX code's, one substitution after the other
    (r"^(mask|unknown|point_query)_token$", r"backbone/\1_token"),
    (r"^image_pos_emb$", "backbone/pos_embedding"),
    (r"^lin_proj", "backbone/embedding"),
    (r"^encoder_norm", "backbone/Transformer/encoder_norm"),
    (r"^blocks\.(\d+)", r"backbone/Transformer/encoderblock_\1"),
    (r"ln_1", "LayerNorm_0"),
    (r"ln_2", "LayerNorm_1"),
    (r"mlp\.0", "MlpBlock_0/Dense_0"),
    (r"mlp\.3", "MlpBlock_0/Dense_1"),
    (r"self_attention\.in_proj_", "MultiHeadDotProductAttention_0/QKV."),
    (r"self_attention\.out_proj", "MultiHeadDotProductAttention_0/out"),
    (r"_head\.(\d)", r"_head/layers_\1"),
    (r"\.", "/"),
    (r"((?i:_norm|LayerNorm_\d|layers_1|layers_4)/)weight", r"\1scale"),
    (r"/weight", "/kernel"),
)


def _jax_names(released: str) -> list[str]:
    """The arrays of an .npz that make up a released tensor."""
    for pattern, name in _JAX:
        released = re.sub(pattern, name, released)
    if "/QKV/" in released:
        return [released.replace("QKV", part) for part in ("query", "key", "value")]
    return [released]


def _from_jax(name: str, parts: list[Tensor]) -> Tensor:
    """A released tensor from the arrays that `_jax_names` says: there, inputs come first."""
    kernel = name == "lin_proj.weight" or _jax_names(name)[0].endswith("/kernel")
    if not kernel:
        return torch.cat([part.flatten() for part in parts]) if len(parts) > 1 else parts[0]
    if name == "lin_proj.weight":
        return parts[0].squeeze(0).permute(3, 2, 0, 1)
    inputs = 0 if "out_proj" not in name else 1  # the last axis of inputs; heads are two axes
    return torch.cat([part.flatten(0, inputs).flatten(1).T for part in parts])


def _of_npz(archive: zipfile.ZipFile) -> tuple[dict[str, _Shape], _Read]:
    """An .npz file's tensors by their released names: their shapes, and how to read one.

    Only what is asked for is read, and nothing before its shape is known.
    """

    def arrays(name: str, read: Callable[[IO[bytes]], Tensor]) -> Tensor:
        found = []
        for member in _jax_names(name):
            with archive.open(member + ".npy") as file:
                found.append(read(file))
        return _from_jax(name, found)

    def values(file: IO[bytes]) -> Tensor:
        return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))

    def form(file: IO[bytes]) -> Tensor:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read[version](file)
        if dtype.kind != "f":
            raise ValueError(f"it holds {dtype}, expected floats")
        return torch.empty(shape, device="meta")

    shapes = {}
    for parts in _layout().values():
        for name in parts:
            with suppress(KeyError, RuntimeError):  # not there, or not of its number of axes
                shapes[name] = tuple(arrays(name, form).shape)
    return shapes, lambda name: arrays(name, values)
