"""What libfasttracks asks of the driver, for shapes: `calls.py MOCK LIBRARY WEIGHTS DUMP`.

Reads a JSON list of [clips, frames, tracks]; prints for each the mock's lines, where the tracks are
copied to and the addresses of the outputs. DUMP gets the bytes of the weights in "device" memory.
"""

import ctypes
import json
import sys
from pathlib import Path

FIELDS = (
    "rotation", "position", "focal", "coefficients", "basis", "motion", "points", "points_camera",
    "projection",
)  # fmt: skip


class Outputs(ctypes.Structure):
    """`ft_outputs`."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in FIELDS)


def main() -> None:
    """Call and print."""
    mock = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    mock.mock_log.restype = ctypes.c_char_p
    mock.mock_first.restype = ctypes.c_uint64
    library = ctypes.CDLL(sys.argv[2])
    library.ft_last_error.restype = ctypes.c_char_p

    def check(status: int) -> None:
        if status:
            raise RuntimeError(f"{status}: {library.ft_last_error().decode()}")

    shapes = json.load(sys.stdin)
    engine, size = ctypes.c_void_p(), ctypes.c_size_t()
    limits = [max(sizes) for sizes in zip(*shapes, strict=True)]
    check(library.ft_create(sys.argv[3].encode(), 0, *limits, ctypes.byref(engine)))
    base = mock.mock_first(ctypes.byref(size))
    Path(sys.argv[4]).write_bytes(ctypes.string_at(base, size.value))
    results = []
    for shape in shapes:
        outputs = Outputs()
        tracks = (ctypes.c_float * (3 * shape[0] * shape[1] * shape[2]))()
        tracks[0] = 0.5
        mock.mock_log()
        check(library.ft_run(engine, None, tracks, *shape, ctypes.byref(outputs)))
        lines = [json.loads(line) for line in mock.mock_log().decode().splitlines()]
        check(library.ft_run(engine, None, tracks, *shape, ctypes.byref(outputs)))
        again = mock.mock_log().decode().splitlines()
        results.append(
            {
                "lines": lines,
                "again": [json.loads(line) for line in again],
                "outputs": {name: getattr(outputs, name) for name in FIELDS},
            }
        )
    library.ft_destroy(engine)
    json.dump({"weights": base, "calls": results, "live": mock.mock_live()}, sys.stdout)


if __name__ == "__main__":
    main()
