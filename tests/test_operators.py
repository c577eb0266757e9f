"""Compilers and exporters keep the kernels as operators of torch."""

import copy

import pytest
import torch
from helpers import TINY, random_tracks, tiny_network
from torch.fx import GraphModule

import fasttracks
from fasttracks import network as network_module
from fasttracks.backends import TORCH, triton
from fasttracks.operators import OPERATORS

EXPECTED = {
    "fasttracks.embed.default": 1,
    "fasttracks.attention.default": 2 * TINY.rounds,
    "fasttracks.mlp.default": 2 * TINY.rounds,
    "fasttracks.heads.default": 1,
    "fasttracks.compose_project.default": 1,
}


def found_in(module: GraphModule) -> dict[str, int]:
    names = [str(n.target) for n in module.graph.nodes if "fasttracks." in str(n.target)]
    return {name: names.count(name) for name in names}


@pytest.fixture
def network(monkeypatch):
    """A network on the CPU that is traced as it is on CUDA; the operators run their twins."""
    pytest.importorskip("triton")
    runnable = network_module.runnable

    def as_on_cuda(backend, device, dtype, grad):
        tracing = torch.compiler.is_compiling()
        return runnable(backend, torch.device("cuda"), dtype, grad) if tracing else TORCH

    monkeypatch.setattr(network_module, "runnable", as_on_cuda)
    network = tiny_network(dtype=torch.float32).requires_grad_(False)
    network.blocks.half()
    network.backend = triton()
    return network


def assert_close(found, expected):
    for name, value in expected._asdict().items():
        assert (getattr(found, name) - value).norm() <= 5e-3 * value.norm(), name


def test_export(network):
    inputs = random_tracks(5, 6, dtype=torch.float32)
    tracks = torch.export.Dim("tracks", min=2)
    program = torch.export.export(network, (inputs,), dynamic_shapes=({2: tracks},))
    assert found_in(program.graph_module) == EXPECTED
    for count in 6, 9:
        inputs = random_tracks(5, count, dtype=torch.float32)
        assert_close(program.module()(inputs), network(inputs))


def test_compile(network):
    graphs = []
    compiled = torch.compile(
        network, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True
    )
    inputs = random_tracks(5, 6, dtype=torch.float32)
    assert_close(compiled(inputs), network(inputs))
    assert sum(found_in(graphs[0]).values()) == sum(EXPECTED.values())


def test_float32_blocks_are_plain_torch(network):
    network.blocks.float()
    inputs = random_tracks(5, 6, dtype=torch.float32)
    program = torch.export.export(network, (inputs,))
    assert set(found_in(program.graph_module)) == {
        f"fasttracks.{name}.default" for name in ("embed", "heads", "compose_project")
    }
    assert_close(program.module()(inputs), network(inputs))


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 3, 1), (1, 1, 1)])
def test_operators(network, shape):
    """Schema, aliasing and fake results, of every operator on what it gets in a network."""
    batch, frames, tracks = shape
    calls = {}

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            calls[str(operator)] = operator, args, kwargs or {}
            return operator(*args, **kwargs or {})

    inputs = random_tracks(frames, tracks, batch=batch, dtype=torch.float32)
    with torch.no_grad(), Record():
        x = network.embedding(inputs, torch.float16, OPERATORS)
        for block in network.blocks:
            x = block(x, OPERATORS)
        network.read(x, OPERATORS)
    assert set(EXPECTED) <= set(calls)
    for name in EXPECTED:
        operator, args, kwargs = calls[name]
        torch.library.opcheck(operator, args, kwargs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_compiled_is_eager(precision):
    network = fasttracks.load("base", device="cuda", precision=precision, backend="triton")
    compiled = torch.compile(network, fullgraph=True)
    for tracks in 300, 111:
        inputs = random_tracks(50, tracks, dtype=torch.float32).cuda()
        found, expected = compiled(inputs), network(inputs)
        for name, value in expected._asdict().items():
            error = (getattr(found, name) - value).norm() / value.norm()
            assert error <= (1e-4 if precision == "fp32" else 0), name
    program = torch.export.export(network, (inputs,))
    counts = found_in(program.graph_module)
    assert counts["fasttracks.embed.default"] == counts["fasttracks.heads.default"] == 1
    assert torch.equal(program.module()(inputs).points, network(inputs).points)


def test_a_network_can_be_copied():
    network = tiny_network()
    network.backend = OPERATORS
    assert copy.deepcopy(network).backend == OPERATORS
