"""TAPNext's checkpoint with weights made by a rule, in place of the trained ones.

The conformance vectors in `tests/conformance` are what the authors' code gives under this rule.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttracks.trackers.tapnext.weights import _layout

TABLE = "query_pos_embed"  # that checkpoints hold and nobody needs


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of a released checkpoint's tensors, by name."""
    shapes = {name: shape for parts in _layout().values() for name, shape in parts.items()}
    return {**shapes, TABLE: (1, 256 * 256, 768)}


def rule_weights() -> dict[str, Tensor]:
    """A released checkpoint's state dict, float32. Its table is of zeros."""
    weights = {}
    for key, shape in released_shapes().items():
        if key == TABLE:
            weights[key] = torch.zeros(()).expand(shape)
            continue
        z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        if key.endswith("_token") or key == "image_pos_emb":
            z *= 0.5
        elif key.endswith(".scale"):
            z *= 0.1
        elif key.endswith(".a_param"):
            z = 1.5 * z - 3
        elif key.endswith(("bias", ".b")):
            z *= 0.02
        elif key.endswith(".conv_1d.w"):
            z *= 0.5
        elif key.endswith(".ffw_up.w"):
            z /= np.sqrt(768)
        elif key.endswith("_gate.w"):
            z /= 8
        elif key == "coordinate_head.6.weight":
            z *= 0.25
        elif len(shape) == 1:
            z = 1 + 0.1 * z
        else:
            z /= np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(z.astype(np.float32))
    return weights


def save_checkpoint(path: Path) -> None:
    """Write it as the released .pt files are."""
    state = {f"tapnext.{key}": tensor for key, tensor in rule_weights().items()}
    torch.save({"state_dict": state, "epoch": 1}, path)
