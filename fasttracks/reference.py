"""TracksTo4D's whole forward in plain torch: the oracle that everything else is held against.

Written to be read beside the paper (arXiv 2404.07097, section 3): no fusing, attention
scores in memory, any floating dtype, any device. Nothing but tests and benchmarks calls it.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttracks.config import Config
from fasttracks.geometry import Prediction, compose, project, rotation_from_6d, to_camera

Weights = Mapping[str, Tensor]


def forward(weights: Weights, config: Config, tracks: Tensor) -> Prediction:
    """Tracks (B, T, N, 3) of normalised u, v and visibility to cameras and points.

    `weights` are `TracksTo4D.state_dict()`, on the device and in the dtype of `tracks`; those
    of the blocks may be in another, which the blocks then work in.
    """
    x = embed(weights, config, tracks).to(weights["blocks.0.qkv.weight"].dtype)
    for i in range(2 * config.rounds):
        # Even blocks attend over the frames of a track, odd ones over the tracks of a frame.
        if i % 2 == 0:
            x = block(weights, config, f"blocks.{i}", x.transpose(1, 2)).transpose(1, 2)
        else:
            x = block(weights, config, f"blocks.{i}", x)

    x = x.to(tracks.dtype)
    position, focal, coefficients, rotation = camera_head(weights, config, x.mean(2))
    basis, motion = point_head(weights, config, x.mean(1))
    points = compose(basis, coefficients)
    points_camera = to_camera(points, rotation, position)
    projection = project(points_camera, focal)
    return Prediction(
        rotation, position, focal, coefficients, basis, motion, points, points_camera, projection
    )


def embed(weights: Weights, config: Config, tracks: Tensor) -> Tensor:
    """Tokens (B, T, N, C): Fourier features, a linear layer, and the frame's position code."""
    pi = torch.tensor(math.pi, dtype=torch.float32).to(tracks)  # float32's π, in every dtype
    features = [tracks]
    for j in range(config.frequencies):
        features += [torch.sin(tracks * (2**j * pi)), torch.cos(tracks * (2**j * pi))]
    features.append(torch.ones_like(tracks[..., :1]))
    x = layer_norm(weights, "embedding.norm_in", torch.cat(features, -1))
    x = layer_norm(weights, "embedding.norm_out", linear(weights, "embedding.linear", x))

    half = config.width // 2
    frame = torch.arange(tracks.shape[1], dtype=torch.float64, device=tracks.device)
    rate = 10000 ** (-torch.arange(half, dtype=torch.float64, device=tracks.device) / (half - 1))
    angle = frame[:, None] * rate
    return x + torch.cat([angle.sin(), angle.cos()], -1).to(x)[:, None]


def block(weights: Weights, config: Config, name: str, x: Tensor) -> Tensor:
    """One transformer block over the last-but-one axis of (B, S, L, C)."""
    h = linear(weights, f"{name}.qkv", layer_norm(weights, f"{name}.attention_norm", x))
    q, k, v = h.unflatten(-1, (3, config.heads, config.head_width)).permute(3, 0, 1, 4, 2, 5)
    scores = torch.softmax(q @ k.mT / math.sqrt(config.head_width), -1)
    x = x + linear(weights, f"{name}.out", (scores @ v).transpose(2, 3).flatten(3))

    h = linear(weights, f"{name}.up", layer_norm(weights, f"{name}.mlp_norm", x))
    x = x + linear(weights, f"{name}.down", F.gelu(h))
    return layer_norm(weights, f"{name}.norm", x)


def camera_head(weights: Weights, config: Config, x: Tensor) -> tuple[Tensor, ...]:
    """Position, focal correction, coefficients and rotation from (B, T, C).

    A convolution along time whose frames are indexed modulo T.
    """
    reach = config.camera_kernel // 2
    frames = x.shape[1]
    around = torch.arange(-reach, frames + config.camera_kernel - 1 - reach) % frames
    out = F.conv1d(x[:, around].mT, weights["camera.weight"], weights["camera.bias"]).mT
    position, focal, coefficients, rotation = out.split(config.camera_channels, -1)
    focal = 1 + 0.05 * focal[..., 0] if config.predicts_focal else torch.ones_like(focal[..., 0])
    coefficients = torch.cat([torch.ones_like(focal[..., None]), coefficients], -1)
    return position, focal, coefficients, rotation_from_6d(rotation)


def point_head(weights: Weights, config: Config, x: Tensor) -> tuple[Tensor, Tensor]:
    """Basis (B, K, N, 3) and motion level γ (B, N) from (B, N, C)."""
    out = linear(weights, "points", x)
    basis = out[..., :-1].unflatten(-1, (config.bases, 3)).transpose(1, 2)
    return basis, F.elu(out[..., -1]) + 1 + 1e-5


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A linear layer, with its bias if it has one."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Layer normalisation over the channels."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
