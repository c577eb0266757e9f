"""What several tests share: the conformance vectors and small networks."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttracks.config import Config
from fasttracks.network import TracksTo4D

VECTORS = Path(__file__).parent / "conformance"
NAMES = ("n5_f50", "n37_f21", "n64_f33_focal", "n100_f50")
TINY = Config(width=32, heads=2, head_width=16, mlp_width=48, rounds=2, bases=4, frequencies=6)


def rule_weights() -> dict[str, Tensor]:
    """Weights in the released layout, by the rule under which the vectors were made."""
    layout = json.loads((VECTORS / "state_dict_layout.json").read_text())
    weights = {}
    for key, shape in layout.items():
        z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        if key.endswith(".bias"):
            z *= 0.02
            if key == "conv_final.bias":
                z[2] -= 15
                z[[16, 20]] += 1
        elif len(shape) == 1:
            z = 1 + 0.1 * z
        else:
            z /= np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(z.astype(np.float32))
    return weights


def vectors(name: str) -> dict[str, np.ndarray]:
    """The released network's input and answers."""
    with np.load(VECTORS / f"{name}.npz") as file:
        return dict(file)


def tiny_network(seed: int = 0, dtype: torch.dtype = torch.float64) -> TracksTo4D:
    """A small network with random weights whose cameras look at the scene."""
    torch.manual_seed(seed)
    network = TracksTo4D(TINY)
    with torch.no_grad():
        network.camera.weight *= 0.1
        network.camera.bias[2] = -15.0
        network.camera.bias[-6:] = torch.tensor([1.0, 0, 0, 0, 1, 0])
    return network.to(dtype).eval()


def random_tracks(
    frames: int, tracks: int, *, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Network input (B, T, N, 3), four fifths of it observed."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(batch, frames, tracks, 2, generator=generator, dtype=dtype) - 0.5
    observed = torch.rand(batch, frames, tracks, 1, generator=generator) < 0.8
    return torch.cat([positions, observed.to(dtype)], -1)


def relative(value: object, truth: object) -> float:
    """‖value − truth‖ / ‖truth‖; the plain norm where the truth is zero."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (value, truth))
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory is NaN, so an element that nobody wrote can't pass."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_within_budget(
    found: Sequence[Tensor], eager: Sequence[Tensor], truth: Sequence[Tensor]
) -> None:
    """A kernel errs at most twice as much as eager torch in its dtype, plus float32's rounding."""
    for y, plain, exact in zip(found, eager, truth, strict=True):
        assert y.shape == exact.shape
        assert y.dtype == plain.dtype
        scale = exact.abs().max()
        allowed = 2 * (plain - exact).abs().max() + 4 * torch.finfo(torch.float32).eps * scale
        assert (y - exact).abs().max() <= allowed
