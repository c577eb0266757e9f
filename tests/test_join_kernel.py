"""A stream's world by kernels, against the same in torch."""

import math

import numpy as np
import pytest
import torch
from helpers import poisoned_memory
from torch import nn

pytest.importorskip("triton")

from fasttracks.geometry import Prediction, exponential
from fasttracks.inputs import hold
from fasttracks.kernels import join
from fasttracks.kernels.launches import table, using
from fasttracks.stream.world import Seen, World

DOUBLE = {"dtype": torch.float64}


class Drifting(nn.Module):
    """Says of each window about the same, in a world of its own."""

    def __init__(self, frames, tracks, dtype, device):
        super().__init__()
        self.points = nn.Linear(1, 1).to(device)
        self.draw = torch.Generator().manual_seed(frames * tracks)
        self.dtype = dtype
        g = self.draw
        turn = 0.02 * torch.arange(frames, **DOUBLE)[:, None] * torch.randn(1, 3, generator=g)
        self.rotation = exponential(turn)
        self.position = 0.1 * torch.randn(frames, 3, generator=g).cumsum(0).double()
        self.static = torch.randn(tracks, 3, generator=g).double() * 2 + torch.tensor([0.0, 0, 9])
        self.motion = 0.001 * torch.rand(tracks, generator=g).double().exp() ** 2
        self.motion[:2] = 0.0  # as sure as can be, and alike

    def say(self) -> None:
        """Draw what is said of the next window."""
        noise = [torch.randn(3, generator=self.draw, **DOUBLE) for _ in range(4)]
        turn, scale = exponential(noise[0]), noise[1][0].exp()
        moved = [scale * (p + 0.01 * noise[3]) @ turn.mT for p in (self.position, self.static)]
        position, static = (p + noise[2] for p in moved)
        still = static.expand(len(position), *static.shape)
        # A trailing axis that is not contiguous, as a network's answers may be.
        basis = torch.stack([static, static], -1).movedim(-1, 0)
        values = {
            "rotation": turn @ self.rotation,
            "position": position,
            "basis": basis,
            "motion": self.motion,
            "points": still + 0.1 * torch.randn(static.shape, generator=self.draw),
        }
        nothing = torch.zeros(1)
        fields = [values.get(name, nothing) for name in Prediction._fields]
        to = self.points.weight.device
        self.said = Prediction(*(field[None].to(to, self.dtype) for field in fields))

    def forward(self, tracks):
        return self.said


def worlds(frames, tracks, hop, dtype, device):
    """A world by kernels, one by torch, and what both hear from."""
    model = Drifting(frames, tracks, dtype, device)
    model.say()
    both = []
    for by_kernels in (True, False):
        world = World(model, frames, tracks, hop, False)
        world._graph = None
        world._has_kernels = by_kernels
        both.append(world)
    return model, *both


def window_of(frames, tracks, rng):
    """Some tracks in a window, some of them never seen, and what is said of their slots."""
    window = rng.uniform(-1, 1, (frames, tracks, 3)).astype(np.float32)
    seen = rng.uniform(size=(frames, tracks)) < rng.uniform(size=tracks) ** 0.3
    seen[:, 0] = False
    window[..., 2] = seen
    own = seen.sum(0) >= 2
    shown = np.where(own, np.arange(tracks), np.flatnonzero(own)[0])
    return window, shown, own


@pytest.mark.parametrize(
    ("frames", "tracks", "hop", "dtype"),
    [(9, 40, 1, torch.float32), (12, 40, 5, torch.float64), (70, 9, 3, torch.float32)],
)
def test_joining(frames, tracks, hop, dtype, kernel_device) -> None:
    model, kernels, plain = worlds(frames, tracks, hop, dtype, kernel_device)
    small = table(kernel_device) | {  # so that there are several blocks
        "world_weigh": [(math.inf, {"FRAMES": 8, "TRACKS": 8, "POINTS": 16, "num_warps": 4})],
        "world_join": [(math.inf, {"POINTS": 16, "BLOCK": 16, "num_warps": 4})],
    }
    rng = np.random.default_rng(tracks)
    shared = 0.0
    for i in range(3):
        model.say()
        window, shown, own = window_of(frames, tracks, rng)
        fresh = (rng.uniform(size=tracks) < 0.1) if i else np.ones(tracks, bool)
        given = window, shown, own, fresh, i == 0
        with poisoned_memory(), using(kernel_device, small):
            found = kernels.push(*given)
        expected = plain.push(*given)
        assert found is not None and expected is not None
        for name, a, b in zip(Seen._fields, found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f"{name}, window {i}")
        for name, a, b in zip(plain._state._fields, kernels._state, plain._state, strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
        shared = max(shared, float(found.shared))
    assert shared >= 8 or tracks < 40  # else nothing tells the scale


def test_a_world_after_nan(kernel_device) -> None:
    model, kernels, _ = worlds(9, 12, 1, torch.float32, kernel_device)
    window, shown, own = window_of(9, 12, np.random.default_rng(0))
    fresh = np.zeros(12, bool)
    model.said = Prediction(*(value * torch.nan for value in model.said))
    assert kernels.push(window, shown, own, fresh, True) is None
    model.say()
    assert kernels.push(window, shown, own, fresh, False) is None
    assert kernels.push(window, shown, own, fresh, True) is not None
    assert kernels.push(window, shown, own, fresh, False) is not None


@pytest.mark.parametrize("shape", [(1, 3), (7, 20), (150, 5)])
def test_holding(shape, kernel_device) -> None:
    frames, tracks = shape
    window, shown, _ = (
        window_of(frames, tracks, np.random.default_rng(1))
        if frames > 1
        else (np.ones((1, 3, 3), np.float32), np.arange(3), None)
    )
    shown = np.roll(shown, 1)
    flags = torch.zeros(3, tracks)
    flags[2] = torch.from_numpy(shown)
    there = torch.from_numpy(window).to(kernel_device)
    with poisoned_memory():
        found = join.show(there, flags.to(kernel_device))
    assert found.cpu().equal(hold(torch.from_numpy(window[:, shown]))[None])
