"""The network as a program for other runtimes: ONNX, or torch's AOTInductor for CPUs.

Both take float32 tracks (B, T, N, 3) of any size, as `TracksTo4D.forward` does, and give the
fields of a `Prediction` in order. They are the plain network in float32: none of our kernels.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fasttracks.backends import TORCH
from fasttracks.errors import InputError
from fasttracks.geometry import Prediction
from fasttracks.network import TracksTo4D

ENDINGS = (".onnx", ".pt2")
_NEEDED = ("onnx", "onnxscript")


class _Whole(nn.Module):
    """The network all at once: what it splits to save memory would fix sizes in a program."""

    def __init__(self, network: TracksTo4D) -> None:
        super().__init__()
        self.network = network

    def forward(self, tracks: Tensor) -> tuple[Tensor, ...]:
        x = self.network.embedding(tracks)
        blocks: Any = self.network.blocks
        for block in blocks:
            x = block.transform(block.attend(x, TORCH), TORCH)
        return tuple(self.network.read(x))


def write(network: TracksTo4D, path: Path) -> None:
    """Write a network on the CPU, in float32, as the file that the path's ending stands for.

    Raises:
        InputError: another ending; for ONNX, a package is missing or this PyTorch is too old.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"-o: expected a name ending in .onnx or .pt2, found {path}")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise InputError(f"-o: ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}")
    size = torch.export.Dim.AUTO
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch's exporters use themselves
        program = torch.export.export(
            _Whole(network).eval(),
            (torch.zeros(2, 7, 5, 3),),
            dynamic_shapes=({0: size, 1: size, 2: size},),
        )
        if path.suffix == ".pt2":
            torch._inductor.aoti_compile_and_package(program, package_path=str(path.absolute()))
        else:
            _write_onnx(program, path)


def _write_onnx(program: Any, path: Path) -> None:
    from onnxscript import opset18

    def remainder(value: Any, divisor: Any) -> Any:
        """Torch's own translation takes no divisor that is known at run time only."""
        return opset18.Mod(value, divisor)

    try:
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=["tracks"],
            output_names=list(Prediction._fields),
            custom_translation_table={torch.ops.aten.remainder.Scalar: remainder},
        )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(
            f"-o: PyTorch {torch.__version__} can't say the network in ONNX; 2.13 and newer can"
        ) from error
    assert onnx is not None
    onnx.save(str(path))
