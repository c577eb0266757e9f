"""The embedding's kernel against plain torch in float64."""

import pytest
import torch
from helpers import assert_within_budget, poisoned_memory
from torch import Tensor

pytest.importorskip("triton")

from fasttracks import ops
from fasttracks.kernels.embed import embed

Affine = tuple[Tensor, Tensor]


def layers(octaves: int, width: int, device: torch.device) -> tuple[Affine, Affine, Affine]:
    """Weights and biases of the norm, the linear layer and the other norm."""
    generator = torch.Generator().manual_seed(octaves + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    features = 6 * octaves + 4
    norm_in = (1 + 0.1 * normal(features), 0.1 * normal(features))
    linear = (normal(width, features) / features**0.5, 0.1 * normal(width))
    return norm_in, linear, (1 + 0.1 * normal(width), 0.1 * normal(width))


def positions(batch: int, frames: int, tracks: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(frames + tracks)
    x = torch.rand(batch, frames, tracks, 3, generator=generator) * 2 - 1
    return torch.cat([x[..., :2], (x[..., 2:] > 0).float()], -1).to(device)


def doubled(arguments: tuple[Affine, ...]) -> tuple[Affine, ...]:
    return tuple((weight.double(), bias.double()) for weight, bias in arguments)


def check(tracks: Tensor, weights: tuple[Affine, ...], dtype: torch.dtype) -> None:
    with poisoned_memory():
        found = embed(tracks, *weights, dtype)
    eager = ops.embed(tracks, *weights, dtype)
    truth = ops.embed(tracks.double(), *doubled(weights))
    assert found.is_contiguous()
    assert_within_budget([found], [eager], [truth])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "octaves", "width"),
    [((1, 1, 1), 12, 256), ((3, 2, 17), 12, 48), ((1, 2, 63), 12, 256), ((2, 5, 33), 1, 32)],
)
def test_embed(shape, octaves, width, dtype, kernel_device):
    check(positions(*shape, kernel_device), layers(octaves, width, kernel_device), dtype)


def test_any_strides(kernel_device):
    tracks = positions(2, 9, 3, kernel_device).transpose(1, 2)
    check(tracks, layers(12, 32, kernel_device), torch.float32)


@pytest.mark.parametrize("reach", [1.0, 30.0, 1000.0])
def test_sines_are_exact_where_float32_ones_are_not(reach, kernel_device):
    """Eager float32 rounds the sine's argument, up to 6434 u; the kernel does not."""
    tracks = positions(1, 1, 64, kernel_device) * reach
    weights = layers(12, 256, kernel_device)
    truth = ops.embed(tracks.double(), *doubled(weights))
    eager = (ops.embed(tracks, *weights) - truth).abs().max()
    error = (embed(tracks, *weights) - truth).abs().max()
    assert error < 1e-5 < eager


@pytest.mark.gpu
def test_position_code_of_long_clips(kernel_device):
    check(positions(1, 20_000, 3, kernel_device), layers(12, 256, kernel_device), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_many_tracks(dtype, kernel_device):
    check(positions(1, 50, 1000, kernel_device), layers(12, 256, kernel_device), dtype)
