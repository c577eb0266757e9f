"""TAPNext's kernels against their torch twins in float64, and on a GPU the whole of a step."""

import numpy as np
import pytest
import torch
from helpers import assert_within_budget, poisoned_memory
from test_tapnext import follow, noise, tiny, tracker

pytest.importorskip("triton")

from fasttracks.kernels import tapnext as kernels
from fasttracks.trackers.tapnext import network
from fasttracks.trackers.tapnext.session import Session, fastest
from fasttracks.trackers.tapnext.weights import _dtype

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


def normal(seed: int, *shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def cast(model: network.Network, dtype: torch.dtype) -> network.Network:
    """A network whose large matrices are in some dtype, as when it is loaded."""
    for name, p in model.named_parameters():
        p.data = p.data.to(_dtype(name, dtype))
    return model


def double(values: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [
        v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values
    ]


@DTYPES
@pytest.mark.parametrize("layer", [True, False], ids=["layer norm", "rms"])
@pytest.mark.parametrize(("shape", "width"), [((1, 1), 128), ((2, 9), 192)])
def test_add_norm(shape, width, layer, dtype, kernel_device) -> None:
    x, delta = (normal(i, *shape, width, device=kernel_device) for i in (0, 1))
    bias, weight, shift = (normal(i, width, device=kernel_device) for i in (2, 3, 4))
    arguments = [x, delta.to(dtype), bias, weight, shift if layer else None]
    eager = network.add_norm(*arguments, 1e-6, dtype)
    truth = network.add_norm(*double(arguments), 1e-6, torch.float64)
    with poisoned_memory():
        found = kernels.add_norm(x.clone(), *arguments[1:], 1e-6, dtype)
        alone = kernels.add_norm(x, None, None, *arguments[3:], 1e-6, dtype)
    assert_within_budget(found, eager, truth)
    eager = network.add_norm(x, None, None, *arguments[3:], 1e-6, dtype)
    truth = network.add_norm(x.double(), None, None, *double(arguments[3:]), 1e-6, torch.float64)
    assert_within_budget(alone, eager, truth)


@DTYPES
@pytest.mark.parametrize("frame", [0, 3])
@pytest.mark.parametrize(("shape", "width"), [((1, 1), 64), ((2, 9), 128)])
def test_recur(shape, width, frame, dtype, kernel_device) -> None:
    def made(seed: int, *size: int) -> torch.Tensor:
        return normal(seed, *size, device=kernel_device)

    branches = made(0, *shape, 2 * width).to(dtype)
    rate = 8 * torch.nn.functional.softplus(2 * made(6, width) - 4)
    rate[:3] = torch.tensor([0.0, 1e-6, 100.0])  # decays of nothing and of everything
    arguments = [
        *(branches, 0.1 * made(1, 2 * width), made(2, 4, width) / 2, 0.1 * made(3, width)),
        *(made(4, 2, width // 64, 64, 64).to(dtype) / 8, 0.1 * made(5, 2 * width).view(2, width)),
        rate,
    ]
    state = [made(7, *shape, width), made(8, *shape, 3, width).to(dtype)]
    number = torch.tensor(frame, dtype=torch.int32, device=kernel_device)

    def run(recur, arguments, state):
        state = [part.clone() for part in state]
        return [recur(*arguments, *state, number), *state]

    with poisoned_memory():
        found = run(kernels.recur, arguments, state)
    eager = run(network.recur, arguments, state)
    truth = run(network.recur, double(arguments), double(state))
    assert_within_budget(found, eager, truth)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("shape", "width"), [((1, 1), 32), ((2, 3), 2500)])
def test_activate(shape, width, gated, kernel_device) -> None:
    x = (3 * normal(0, *shape, width, device=kernel_device)).half()  # as exact as `gelu` is
    bias = normal(1, width, device=kernel_device)
    eager = network.activate(x, bias, gated=gated)
    truth = network.activate(x.double(), bias.double(), gated=gated)
    with poisoned_memory():
        found = kernels.activate(x.clone(), bias, gated=gated)
    assert_within_budget([found], [eager], [truth])


@pytest.mark.parametrize("count", [1, 17])
def test_heads(count, kernel_device) -> None:
    heads = cast(tiny(depth=1), torch.float16).heads.to(kernel_device)
    # Positions everywhere, and peaks from flat to sharp.
    heads.coordinates.bias.copy_(normal(1, 512, device=kernel_device))
    x = normal(2, 1, count, 128, device=kernel_device).half()
    with torch.no_grad(), poisoned_memory():
        found = kernels.heads(x, heads)
    with torch.no_grad():
        eager = network.heads(x, heads)
        truth = network.heads(x.double(), heads.double())
    for column in (slice(0, 2), slice(2, 3), slice(3, 4)):
        assert_within_budget(*([y[..., column]] for y in (found, eager, truth)))


def test_positions_beside_the_border(kernel_device) -> None:
    """Bins at both ends, where the disc of certainty is cut off."""
    heads = tiny(depth=1).heads.to(kernel_device)
    heads.coordinates.weight.zero_()
    x = torch.zeros(1, 1, 128, device=kernel_device)
    for y, across in ((0, 255), (3, 250), (255, 0)):
        heads.coordinates.bias.zero_()
        heads.coordinates.bias[[y, 256 + across]] = 30.0
        with torch.no_grad():
            found, twin = kernels.heads(x, heads), network.heads(x, heads)
        torch.testing.assert_close(found, twin, atol=1e-4, rtol=1e-5)
        assert found[0, 0, 3] > 0.999


def test_a_step_by_kernels_is_one_by_torch(kernel_device) -> None:
    model = tiny(width=64, depth=1).to(kernel_device)
    ours = network.Operations(
        kernels.add_norm, kernels.recur, kernels.activate, network.attend, kernels.heads
    )
    frames = 2 * torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)) - 1
    queries = torch.tensor([[0, 30.0, 200.0], [1, 250.0, 3.0], [5, 0.0, 0.0]])
    frames, queries = frames.to(kernel_device), queries.to(kernel_device)
    found, state = follow(model, frames, queries, ours)
    twin, other = follow(model, frames, queries)
    torch.testing.assert_close(found, twin, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(state.hidden, other.hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state.taps, other.taps, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [1, 17, 1000])
def test_session_on_cuda(queries, kernel_device) -> None:
    """CUDA graphs of half precision against torch in float32; births in spare rows, bit for bit."""
    model = tiny(width=128, depth=2).to(kernel_device)
    generator = torch.Generator().manual_seed(3)
    frames = (2 * torch.rand(5, 256, 256, 3, generator=generator) - 1).to(kernel_device)
    points = (256 * torch.rand(1, queries, 2, generator=generator)).to(kernel_device)
    birth = torch.randint(0, 4, (1, queries), generator=generator).to(kernel_device)
    rows = torch.arange(queries, device=kernel_device)
    given = torch.cat([birth[0, :, None].float(), points[0]], 1)
    truth, _ = follow(model, frames, given)
    half = cast(model, torch.float16)
    eager, _ = follow(half, frames, given)
    session = Session(half, queries)
    assert session.operations.recur is kernels.recur
    found = []
    for late in (False, True):
        session.reset()
        if not late:
            session.declare(rows, birth, points)
        out = []
        for t, frame in enumerate(frames):
            if late:
                new = rows[birth[0] == t]
                session.declare(new, birth[:, new], points[:, new])
            out.append(session.step(frame[None]).clone())
        found.append(torch.cat(out))
    assert torch.equal(*found)
    born = torch.arange(5, device=kernel_device)[:, None] >= birth
    off, plain = ((y - truth)[born].abs().quantile(0.99, 0) for y in (found[0], eager))
    assert (off <= 2 * plain + 1e-4).all()


@pytest.mark.gpu
def test_memory_is_flat(kernel_device) -> None:
    made = tracker(cast(tiny(), torch.float16).to(kernel_device), grid=4)
    made.__dict__["_loaded"] = made._loaded[0], 64, kernel_device
    peaks = []
    for count in (60, 600):
        frames = noise(count)
        made(frames, queries=np.array([[t % 60, 5.0, 5.0] for t in range(48)]))
        torch.cuda.reset_peak_memory_stats()
        made(frames, queries=np.array([[t % 60, 5.0, 5.0] for t in range(48)]))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0] + 10_000_000


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_backends(dtype, kernel_device) -> None:
    operations = fastest(kernel_device, dtype)
    assert (operations.recur is kernels.recur) == (dtype == torch.float16)
    assert fastest(torch.device("cpu"), dtype) is network.TORCH
