"""What Triton's launcher asks of the driver, for shapes: `record.py MOCK CAPABILITY PROCESSORS`.

The network's code runs on tensors without memory, Triton's driver on the mock's libcuda.so.1. Reads
a JSON list of [clips, frames, tracks, whether it predicts the focal length]; prints for each a
list of the mock's lines and of the addresses of weights and outputs, by name.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

mock_path, capability, processors = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
os.environ["TRITON_LIBCUDA_PATH"] = str(mock_path.parent)
os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
mock = ctypes.CDLL(str(mock_path), ctypes.RTLD_GLOBAL)
mock.mock_log.restype = ctypes.c_char_p
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402 - and Triton's, after what they look for is said
from fake_gpu import fake, network_of, pretend  # noqa: E402
from triton.backends.nvidia.driver import CudaDriver  # noqa: E402

from fasttracks.config import Config  # noqa: E402
from fasttracks.kernels import embed  # noqa: E402


def driver() -> Any:
    """Triton's, which asks torch for the GPU."""
    found = CudaDriver()
    found.get_current_device = lambda: 0
    found.get_current_stream = lambda _: 0
    found.get_device_capability = lambda _: divmod(capability, 10)
    return found


def main() -> None:
    """Record and print."""

    def copied(source: torch.Tensor, target: torch.Tensor) -> None:
        # The mock's log so far goes first, as launches and copies are in order.
        lines.extend(mock.mock_log().decode().splitlines())
        line = {
            "contiguous": [source.data_ptr(), target.data_ptr(), target.element_size()],
            "shape": list(source.shape),
            "strides": list(source.stride()),
        }
        lines.append(json.dumps(line))

    results = []
    with pretend(driver(), capability, processors, copied=copied):
        models = {focal: network_of(Config(predicts_focal=focal)) for focal in (False, True)}
        for *shape, focal in json.load(sys.stdin):
            model, lines = models[focal], []
            tracks = fake(*shape, 3)
            prediction = model(tracks)
            lines.extend(mock.mock_log().decode().splitlines())
            names = {name: value.data_ptr() for name, value in model.named_parameters()}
            names["rates"] = embed._rates(Config().width, tracks.device).data_ptr()
            results.append(
                {
                    "lines": [json.loads(line) for line in lines],
                    "weights": names,
                    "tracks": tracks.data_ptr(),
                    "outputs": {k: v.data_ptr() for k, v in prediction._asdict().items()},
                }
            )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
