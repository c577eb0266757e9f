"""The network as a program for other runtimes, against the float64 reference."""

from pathlib import Path

import pytest
import torch
from helpers import tiny_network

from fasttracks import programs, reference
from fasttracks.cli.main import main
from fasttracks.errors import InputError
from fasttracks.geometry import Prediction
from fasttracks.weights import save

SIZES = ((1, 9, 20), (3, 17, 3), (2, 1, 1), (1, 2, 40))


def inputs(size: tuple[int, int, int]) -> torch.Tensor:
    tracks = torch.rand(*size, 3, generator=torch.Generator().manual_seed(29)) - 0.5
    tracks[..., 2] = (tracks[..., 2] > 0).float()
    return tracks


def check(network, run) -> None:
    """A program errs at most twice as much as torch in float32 does."""
    weights = {name: value.double() for name, value in network.state_dict().items()}
    for size in SIZES:
        tracks = inputs(size)
        truth = reference.forward(weights, network.config, tracks.double())
        with torch.no_grad():
            plain = network(tracks)
        found = run(tracks)
        assert len(found) == len(Prediction._fields)
        for mine, eager, value in zip(found, plain, truth, strict=True):
            assert mine.shape == value.shape
            scale = value.abs().max()
            off = (mine - value).abs().max() / scale
            assert off <= 2 * (eager - value).abs().max() / scale + 1e-6


@pytest.mark.slow
def test_onnx_takes_every_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network = tiny_network(dtype=torch.float32)
    save(network, tmp_path / "tiny.safetensors")
    path = tmp_path / "program.onnx"
    arguments = ["export-program", str(path), "--model", str(tmp_path / "tiny.safetensors")]
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        assert main(arguments) == 2  # says so, and leaves nothing
        assert not path.exists()
        return
    assert main(arguments) == 0
    assert main(arguments) == 2  # it exists
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == list(Prediction._fields)

    def run(tracks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(x) for x in session.run(None, {"tracks": tracks.numpy()})]

    check(network, run)


@pytest.mark.slow
def test_a_package_takes_every_size(tmp_path: Path) -> None:
    network = tiny_network(dtype=torch.float32)
    path = tmp_path / "program.pt2"
    programs.write(network, path)
    program = torch._inductor.aoti_load_package(str(path))
    check(network, program)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ending in \.onnx or \.pt2"):
        programs.write(tiny_network(dtype=torch.float32), tmp_path / "program.pt")
