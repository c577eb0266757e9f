"""The network's symmetries, sizes and precisions; the reference is the oracle."""

import copy
from itertools import product

import pytest
import torch
from helpers import random_tracks, relative, tiny_network

import fasttracks
from fasttracks import network as network_module
from fasttracks import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_same(prediction, truth, bound):
    for name, value in prediction._asdict().items():
        expected = getattr(truth, name)
        assert value.shape == expected.shape, name
        assert relative(value.detach(), expected.detach()) <= bound, name


@pytest.mark.parametrize(
    ("frames", "tracks"), [*product((1, 2, 14, 15, 64), (1, 17, 111)), (1, 1000), (15, 1000)]
)
def test_any_size(frames, tracks):
    network = tiny_network()
    inputs = random_tracks(frames, tracks, seed=frames + tracks)
    prediction = network(inputs)
    assert all(torch.isfinite(value).all() for value in prediction)
    truth = reference.forward(network.state_dict(), network.config, inputs)
    assert_same(prediction, truth, 1e-11)


def test_permuting_tracks_permutes_points_and_moves_no_camera():
    network = fasttracks.load("base", device="cpu", precision="fp32").double()
    inputs = random_tracks(15, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    plain, permuted = network(inputs), network(inputs[:, :, order])
    for name in ("rotation", "position", "focal", "coefficients"):
        assert relative(getattr(permuted, name), getattr(plain, name)) <= 1e-9, name
    for name in ("points", "points_camera", "projection", "basis"):
        assert relative(getattr(permuted, name), getattr(plain, name)[:, :, order]) <= 1e-9, name
    assert relative(permuted.motion, plain.motion[:, order]) <= 1e-9


def test_clips_of_a_batch_do_not_see_each_other():
    network = tiny_network()
    inputs = random_tracks(6, 9, batch=3)
    together = network(inputs)
    for i in range(3):
        alone = network(inputs[i : i + 1])
        assert_same(type(together)(*(value[i : i + 1] for value in together)), alone, 1e-12)


@pytest.mark.parametrize("limit", [1, 20, 50])
def test_working_in_parts_changes_nothing(monkeypatch, limit):
    network = tiny_network()
    inputs = random_tracks(7, 11, batch=2)
    whole = network(inputs)
    monkeypatch.setattr(network_module, "_TOKENS_AT_ONCE", {"cpu": limit})
    assert_same(network(inputs), whole, 1e-12)


@pytest.mark.parametrize("predicts_focal", [False, True])
def test_gradients_agree_with_the_reference(predicts_focal):
    network = tiny_network()
    network.config = type(network.config)(
        **{**vars(network.config), "predicts_focal": predicts_focal}
    )
    inputs = random_tracks(5, 8)
    weights = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    reference.forward(weights, network.config, inputs).projection.square().sum().backward()
    network(inputs).projection.square().sum().backward()
    for name, parameter in network.named_parameters():
        if weights[name].grad.any():  # not the biases of γ and, if it isn't predicted, the focal
            assert relative(parameter.grad, weights[name].grad) <= 1e-9, name


def assert_within_budget(network, dtype, inputs, slack):
    """Errors against float64 at most twice those of the reference in the same precision."""
    oracle = copy.deepcopy(network).double()
    truth = reference.forward(oracle.state_dict(), oracle.config, inputs.double())
    network.float().blocks.to(dtype)
    inputs = inputs.float()
    yardstick = reference.forward(network.state_dict(), network.config, inputs)
    prediction = network(inputs)
    for name in ("points", "rotation", "position", "motion", "projection"):
        expected = getattr(truth, name).detach().cpu()
        ours, eager = (
            relative(getattr(p, name).detach().cpu(), expected) for p in (prediction, yardstick)
        )
        assert ours <= 2 * eager + slack, (name, ours, eager)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_budget(dtype):
    assert_within_budget(tiny_network(), dtype, random_tracks(20, 30), slack=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "frames", "tracks"), [(64, 1, 1), (1, 50, 100), (1, 21, 675), (1, 15, 1000)]
)
def test_gpu_error_budget(dtype, batch, frames, tracks):
    network = fasttracks.load("base", device="cuda", backend="triton")
    inputs = random_tracks(frames, tracks, batch=batch).cuda()
    assert_within_budget(network, dtype, inputs, slack=1e-5)


@pytest.mark.gpu
def test_gpu_is_deterministic():
    network = fasttracks.load("base", device="cuda", backend="triton")
    inputs = random_tracks(50, 300).float().cuda()
    first, second = network(inputs), network(inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
def test_gpu_kernels_are_compiled_where_they_were_before(monkeypatch):
    """Threads that find their kernels loaded have no CUDA context of their own yet."""
    network = fasttracks.load("base", device="cuda", backend="triton")
    inputs = random_tracks(5, 70).float().cuda()
    first = network(inputs)
    monkeypatch.setattr(network_module, "_compiled", set())
    assert all(map(torch.equal, network(inputs), first))
