"""The engine gives what its network gives, whoever calls it from wherever."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import random_tracks, tiny_network

import fasttracks
from fasttracks import Engine, InputError


def inputs(frames, tracks, batch=1, seed=0, device="cuda"):
    return random_tracks(frames, tracks, batch=batch, seed=seed, dtype=torch.float32).to(device)


def assert_same_bits(found, expected):
    for name, value in found._asdict().items():
        assert torch.equal(value, getattr(expected, name)), name


@pytest.fixture(scope="module")
def network():
    return fasttracks.load("base", device="cuda", backend="triton")


def test_on_the_cpu_it_is_the_network():
    network = tiny_network(dtype=torch.float32)
    engine = Engine(network, max_tracks=9, max_frames=7, max_clips=2)
    engine.warm_up([(1, 7, 9), (2, 3, 4)])
    for shape in (7, 9, 1), (3, 4, 2), (1, 1, 1):
        x = inputs(*shape, device="cpu")
        assert_same_bits(engine(x), network(x))
    assert not engine(x).points.requires_grad


def test_limits():
    network = tiny_network(dtype=torch.float32)
    engine = Engine(network, max_tracks=9, max_frames=7)
    for shape in (7, 10, 1), (8, 9, 1), (7, 9, 2), (0, 9, 1):
        with pytest.raises(InputError, match=r"expected up to \(1, 7, 9\) \(clips, frames, tra"):
            engine(inputs(*shape, device="cpu"))
    with pytest.raises(InputError, match=r"expected shape \(B, T, N, 3\), found \(7, 9, 3\)"):
        engine(inputs(7, 9, device="cpu")[0])
    with pytest.raises(InputError, match="max_frames: expected at least 1, found 0"):
        Engine(network, max_tracks=9, max_frames=0)


def test_reconstruct_takes_an_engine():
    network = tiny_network(dtype=torch.float32)
    engine = Engine(network, max_tracks=9, max_frames=7)
    tracks = np.random.default_rng(0).uniform(0, 400, (7, 9, 2))
    found, expected = (
        fasttracks.reconstruct(tracks, image_size=(400, 400), model=model)
        for model in (engine, network)
    )
    assert np.array_equal(found.points, expected.points)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_same_bits_as_the_network(precision):
    network = fasttracks.load("base", device="cuda", precision=precision, backend="triton")
    engine = Engine(network, max_tracks=300, max_frames=50, max_clips=3)
    shapes = [(50, 300, 1), (1, 1, 1), (17, 63, 3), (50, 111, 2)]
    expected = {shape: network(inputs(*shape)) for shape in shapes}
    kept = []
    for shape in shapes * 2:
        found = engine(inputs(*shape))
        assert_same_bits(found, expected[shape])
        kept.append((found, shape))
    for found, shape in kept:  # which later calls have not touched
        assert_same_bits(found, expected[shape])


@pytest.mark.gpu
def test_input_from_elsewhere_and_of_another_dtype(network):
    engine = Engine(network, max_tracks=30, max_frames=20)
    expected = network(inputs(20, 30))
    assert_same_bits(engine(inputs(20, 30, device="cpu").double()), expected)
    assert_same_bits(engine(inputs(20, 30).transpose(1, 2).contiguous().transpose(1, 2)), expected)


@pytest.mark.gpu
def test_input_that_wants_a_gradient_leaves_no_history(network):
    engine = Engine(network, max_tracks=30, max_frames=20)
    found = engine(inputs(20, 30).requires_grad_(True))
    assert_same_bits(found, network(inputs(20, 30)))
    assert not found.points.requires_grad
    assert not engine._input.requires_grad


@pytest.mark.gpu
def test_a_few_graphs_are_kept(network):
    engine = Engine(network, max_tracks=40, max_frames=20, max_graphs=2)
    for tracks in (10, 20, 30, 40, 10, 20):
        assert_same_bits(engine(inputs(20, tracks)), network(inputs(20, tracks)))
        assert len(engine._replays) <= 2


@pytest.mark.gpu
def test_steady_state_neither_waits_nor_takes_memory(network):
    engine = Engine(network, max_tracks=100, max_frames=20)
    x = inputs(20, 100)
    engine(x, copy=False)
    torch.cuda.synchronize()
    taken = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        first = engine(x, copy=False)
        second = engine(x, copy=False)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == taken
        engine(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert first.points.data_ptr() == second.points.data_ptr()


@pytest.mark.gpu
def test_threads_and_streams(network):
    engine = Engine(network, max_tracks=200, max_frames=20)
    shapes = [(20, 200), (20, 150), (7, 33)]
    expected = {(i, s): network(inputs(*shapes[s], seed=i)) for i in range(4) for s in range(3)}
    torch.cuda.synchronize()

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for step in range(30):
                s = (step + i) % len(shapes)
                found = engine(inputs(*shapes[s], seed=i))
                torch.cuda.current_stream().synchronize()
                assert_same_bits(found, expected[i, s])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.gpu
@pytest.mark.parametrize(("frames", "tracks"), [(50, 20_000), (1000, 100)])
def test_large(network, frames, tracks):
    """Tracks × heads beyond a grid axis, offsets past 2³¹."""
    x = inputs(frames, tracks)
    found = network(x)
    assert all(torch.isfinite(value).all() for value in found)
    plain = fasttracks.load("base", device="cuda", backend="torch")(x)
    assert (found.points - plain.points).norm() <= 5e-3 * plain.points.norm()
    assert_same_bits(network(x), found)
