"""Where the released TracksTo4D checkpoints keep each of our network's weights."""

from torch import Tensor, cat

from fasttracks.config import Config

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


def released_name(name: str) -> str:
    """A weight's key in a released checkpoint, from its key in ours."""
    module, kind = name.rsplit(".", 1)
    if not module.startswith("blocks."):
        trunk = "" if module in ("camera", "points") else "transformer_my."
        return f"{trunk}{_RELEASED[module]}.{kind}"
    _, index, layer = module.split(".")
    axis = ("transformer_frames", "transformer_points")[int(index) % 2]
    return f"transformer_my.{axis}.{int(index) // 2}.{_RELEASED[layer]}.{kind}"


def released_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape there, from its key and shape here."""
    # The released camera head also computes the first coefficient, always replaced by 1,
    # and two channels that nothing reads.
    return (shape[0] + 3, *shape[1:]) if name.startswith("camera.") else shape


def from_released(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Our weight of that name, from the released one."""
    if name.startswith("camera."):
        return cat([tensor[:4], tensor[5 : config.bases + 10]])
    # x, y, z of all bases to x, y, z basis by basis
    return regrouped(tensor, 3) if name.startswith("points.") else tensor


def regrouped(tensor: Tensor, groups: int) -> Tensor:
    """Rows of so many groups, member by member; the last row, of γ, stays the last."""
    basis = tensor[:-1].unflatten(0, (groups, -1)).transpose(0, 1).flatten(0, 1)
    return cat([basis, tensor[-1:]])
