"""Which backend runs, and what it says when it can't."""

import warnings
from dataclasses import replace

import pytest
import torch
from helpers import TINY, random_tracks, relative, tiny_network

import fasttracks
from fasttracks import InputError, TracksTo4D, backends, ops
from fasttracks import network as network_module
from fasttracks.backends import TORCH, Backend, choose
from fasttracks.network import runnable
from fasttracks.operators import OPERATORS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KERNELS = Backend("triton", *("kernel" for _ in Backend._fields[1:]))


@pytest.fixture
def gpu(monkeypatch):
    """As if torch saw a GPU, of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(backends, "triton", lambda: KERNELS)
    backends._fall_back.cache_clear()


def test_auto_is_triton_on_a_gpu(gpu):
    pytest.importorskip("triton")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("auto", TINY) is choose("triton", TINY, CUDA) is KERNELS
        assert choose("torch", TINY) is choose("auto", TINY, CPU) is TORCH
        assert TracksTo4D(TINY).backend is KERNELS


@pytest.mark.parametrize(
    ("module", "name", "value", "why"),
    [
        (torch.cuda, "get_device_capability", lambda device=None: (7, 5), "7.5 is below 8.0"),
        (backends, "find_spec", lambda name: None, "Triton is not installed"),
    ],
)
def test_without_triton_auto_falls_back_once_aloud(gpu, monkeypatch, module, name, value, why):
    monkeypatch.setattr(module, name, value)
    with pytest.warns(UserWarning, match=why) as said:
        assert all(TracksTo4D(TINY).backend is TORCH for _ in range(2))
    assert len(said) == 1
    with pytest.raises(InputError, match=f"backend: 'triton' can't run, as .*{why}"):
        TracksTo4D(TINY, backend="triton")


def test_a_cpu_is_no_fall_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fasttracks.load("base", device="cpu").backend is TORCH
        assert TracksTo4D(TINY).backend is TORCH
    with pytest.raises(InputError, match="backend: 'triton' can't run"):
        fasttracks.load("base", device="cpu", backend="triton")


@pytest.mark.parametrize("size", [{"width": 48}, {"head_width": 8}])
def test_unusual_sizes_are_plain_torch(gpu, size):
    pytest.importorskip("triton")
    config = replace(TINY, **size)
    assert TracksTo4D(config).backend is TORCH
    with pytest.raises(InputError, match="width and head_width are not powers of two from 16 on"):
        TracksTo4D(config, backend="triton")


def test_unknown_name():
    with pytest.raises(InputError, match="backend: expected 'auto', 'triton' or 'torch', found"):
        choose("cuda", TINY)


def test_what_the_kernels_can_not_run_is_plain_torch(monkeypatch):
    assert runnable(KERNELS, CUDA, torch.float16, False) is KERNELS
    assert runnable(KERNELS, CUDA, torch.bfloat16, False) is KERNELS
    assert runnable(KERNELS, CUDA, torch.float64, False) is TORCH
    assert runnable(KERNELS, CUDA, torch.float16, True) is TORCH
    assert runnable(KERNELS, CPU, torch.float16, False) is TORCH
    assert runnable(TORCH, CUDA, torch.float16, False) is TORCH
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert runnable(KERNELS, CUDA, torch.float16, False) is OPERATORS
    monkeypatch.undo()
    mixed = runnable(KERNELS, CUDA, torch.float32, False)
    assert (mixed.attention, mixed.mlp) == (ops.attention, ops.mlp)
    assert mixed.embed == mixed.heads == "kernel"


def test_an_operation_whose_kernel_is_empty_is_plain_torch_and_says_so_once(tmp_path):
    pytest.importorskip("triton")
    from fasttracks.kernels.common import EmptyKernel, refuse_empty

    calls = []
    path = tmp_path / "_embed.ptx"
    path.write_text(".visible .entry _embed(.param .u64 .ptr .global .align 16 x) { trap; ret; }")

    def embed(*arguments):
        calls.append(arguments)
        refuse_empty(None, None, "_embed", {path.name: str(path), "_embed.cubin": "?"}, "?")

    backends._fall_back.cache_clear()
    operation = backends._unless_empty("embed", embed, EmptyKernel)
    layers = tiny_network(dtype=torch.float32).requires_grad_(False).embedding
    weights = map(ops.affine, (layers.norm_in, layers.linear, layers.norm_out))
    given = (random_tracks(3, 4, dtype=torch.float32), *weights)
    with pytest.warns(
        UserWarning, match="compiled the kernel _embed to nothing, for embed"
    ) as said:
        for _ in range(2):
            assert torch.equal(operation(*given), ops.embed(*given))
    assert len(said) == len(calls) == 1
    with pytest.raises(EmptyKernel):
        operation.__wrapped__(*given)


def test_a_kernel_that_stores_is_not_empty(tmp_path):
    pytest.importorskip("triton")
    from fasttracks.kernels.common import refuse_empty

    for i, store in enumerate(
        ("st.global.v4.b32 [%rd1], {%r1};", "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group")
    ):
        path = tmp_path / f"{i}.ptx"
        path.write_text(f"@%p1 trap;\n@%p2 {store}")
        refuse_empty(None, None, "_embed", {path.name: str(path)}, "?")
    refuse_empty(None, None, "_embed", None, "?")


@pytest.mark.parametrize("source", ["parameters", "tracks", "nothing"])
def test_gradients_are_seen(monkeypatch, source):
    seen = []
    monkeypatch.setattr(network_module, "runnable", lambda *given: seen.append(given[-1]) or TORCH)
    network = tiny_network().requires_grad_(source == "parameters")
    network(random_tracks(3, 4).requires_grad_(source == "tracks"))
    with torch.no_grad():
        network(random_tracks(3, 4))
    assert seen == [source != "nothing", False]


@pytest.mark.parametrize("shape", [(2, 5, 9), (1, 1, 1), (1, 3, 70)])
def test_the_kernels_make_a_network(shape, kernel_device):
    batch, frames, tracks = shape
    network = tiny_network(dtype=torch.float32).requires_grad_(False).to(kernel_device)
    network.blocks.half()
    inputs = random_tracks(frames, tracks, batch=batch, dtype=torch.float32).to(kernel_device)
    predictions = []
    for run in (backends.triton(), TORCH):
        x = network.embedding(inputs, torch.float16, run)
        for block in network.blocks:
            x = block(x, run)
        predictions.append(network.read(x, run))
    for name, value in predictions[0]._asdict().items():
        assert relative(value.cpu(), getattr(predictions[1], name).cpu()) < 5e-3, name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", [(64, 1, 1), (2, 17, 63), (1, 50, 300), (1, 111, 17)])
def test_backends_agree(precision, shape):
    batch, frames, tracks = shape
    inputs = random_tracks(frames, tracks, batch=batch, dtype=torch.float32).cuda()
    ours, plain = (
        fasttracks.load("base", device="cuda", precision=precision, backend=backend)(inputs)
        for backend in ("triton", "torch")
    )
    # Twice what torch itself errs where a clip is a single point.
    bound = {"fp32": 1e-4, "fp16": 8e-3, "bf16": 6e-2}[precision]
    for name, value in ours._asdict().items():
        expected = getattr(plain, name)
        error = value - expected
        if name == "projection":  # a point may lie beside its camera: judge it where it doesn't
            error *= plain.points_camera[..., 2:] > 1
        assert error.norm() <= bound * expected.norm(), name


@pytest.mark.gpu
@pytest.mark.parametrize(("frames", "tracks"), [(50, 100), (65, 130), (3, 7)])
def test_launches_that_overlap_see_what_the_last_wrote(frames, tracks):
    """Kernels begin while those before them end: pauses in between change no bit."""
    network = fasttracks.load("base", device="cuda", precision="fp16", backend="triton")
    x = random_tracks(frames, tracks, dtype=torch.float32).cuda()

    def pausing(function):
        def call(*args, **keywords):
            result = function(*args, **keywords)
            torch.cuda.synchronize()
            return result

        return call

    with torch.no_grad():
        at_once = [network(x) for _ in range(20)]
        network.backend = Backend("triton", *map(pausing, network.backend[1:]))
        paused = network(x)
    for found in at_once:
        assert all(map(torch.equal, found, paused))
