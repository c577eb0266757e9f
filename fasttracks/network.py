"""TracksTo4D, lean: the network of arXiv 2404.07097 for inference and fine-tuning."""

from typing import Any

import torch
from torch import Tensor, nn

from fasttracks import ops
from fasttracks.config import Config
from fasttracks.geometry import Prediction, rotation_from_6d

# Tokens that a block works on at a time. Sequences don't see each other, so this changes
# no result; it bounds the memory of the widest activations (3072 channels).
_TOKENS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 17}


class TracksTo4D(nn.Module):
    """Point tracks to cameras and points.

    The transformer blocks may be float32, float16 or bfloat16 (`blocks.to(dtype)`); the
    embedding, the heads and all geometry stay in float32, or float64 after `.double()`.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self.embedding = _Embedding(config)
        self.blocks = nn.ModuleList(
            _Block(config, axis) for _ in range(config.rounds) for axis in (ops.TIME, ops.TRACK)
        )
        self.camera = nn.Conv1d(config.width, sum(config.camera_channels), config.camera_kernel)
        self.points = nn.Linear(config.width, 3 * config.bases + 1)

    def forward(self, tracks: Tensor) -> Prediction:
        """Cameras and points of B clips, any T ≥ 1 and N ≥ 1.

        tracks (B, T, N, 3): image coordinates u, v (pixels through K⁻¹) and 1 where the
        point was observed, else 0, in the heads' dtype (`points.weight.dtype`).
        Unobserved u, v hold the tracker's guess and must be finite.
        """
        x = self.embedding(tracks).to(next(self.blocks.parameters()).dtype)
        for block in self.blocks:
            x = block(x)
        return self.read(x)

    def read(self, x: Tensor) -> Prediction:
        """Heads and geometry: what the tokens (B, T, N, C) of the last block say."""
        camera = ops.camera_head(x, *_affine(self.camera))
        position, focal, coefficients, rotation = camera.split(self.config.camera_channels, -1)
        one = torch.ones_like(focal)
        focal = (1 + 0.05 * focal if self.config.predicts_focal else one)[..., 0]
        coefficients = torch.cat([one, coefficients], -1)
        rotation = rotation_from_6d(rotation)

        points = ops.point_head(x, *_affine(self.points))
        basis = points[..., :-1].unflatten(-1, (self.config.bases, 3)).transpose(1, 2)
        motion = nn.functional.elu(points[..., -1]) + 1 + 1e-5

        return Prediction(
            rotation,
            position,
            focal,
            coefficients,
            basis,
            motion,
            *ops.compose_project(basis, coefficients, rotation, position, focal),
        )


class _Embedding(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(config.features)
        self.linear = nn.Linear(config.features, config.width)
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, tracks: Tensor) -> Tensor:
        return ops.embed(
            tracks, _affine(self.norm_in), _affine(self.linear), _affine(self.norm_out)
        )


class _Block(nn.Module):
    """Attention along one axis of (B, T, N, C), then an MLP and a closing norm."""

    def __init__(self, config: Config, axis: int) -> None:
        super().__init__()
        self.heads, self.axis = config.heads, axis
        inner = config.heads * config.head_width
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        rows = ops.TRACK if self.axis == ops.TIME else ops.TIME
        limit = _TOKENS_AT_ONCE.get(x.device.type, _TOKENS_AT_ONCE["cpu"])
        at_once = max(1, limit // (x.shape[0] * x.shape[self.axis]))
        if at_once >= x.shape[rows]:
            return self._sequences(x)
        return torch.cat([self._sequences(part) for part in x.split(at_once, rows)], rows)

    def _sequences(self, x: Tensor) -> Tensor:
        x = ops.attention(
            x,
            _affine(self.attention_norm),
            self.qkv.weight,
            self.out.weight,
            heads=self.heads,
            axis=self.axis,
        )
        return ops.mlp(
            x,
            _affine(self.mlp_norm),
            _affine(self.up),
            _affine(self.down),
            _affine(self.norm),
        )


def _affine(layer: Any) -> ops.Affine:
    return layer.weight, layer.bias
