"""Tracks in, camera poses out, without torch: `python poses.py LIBRARY WEIGHTS TRACKS.npz`."""

import ctypes
import sys
import time

import numpy as np

FIELDS = (
    "rotation", "position", "focal", "coefficients", "basis", "motion", "points", "points_camera",
    "projection",
)  # fmt: skip


class Outputs(ctypes.Structure):
    """`ft_outputs`: an address for each field."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in FIELDS)


def load(path: str) -> ctypes.CDLL:
    """The library."""
    library = ctypes.CDLL(path)
    library.ft_last_error.restype = ctypes.c_char_p
    library.ft_destroy.argtypes = (ctypes.c_void_p,)
    library.ft_run.argtypes = (*(ctypes.c_void_p,) * 3, *(ctypes.c_int,) * 3, ctypes.c_void_p)
    if library.ft_abi_version() != 1:
        raise RuntimeError("libfasttracks: expected ABI version 1")
    return library


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise what went wrong."""
    if status:
        raise RuntimeError(f"status {status}: {library.ft_last_error().decode()}")


def main() -> None:
    """Reconstruct, three times, and print."""
    library = load(sys.argv[1])
    with np.load(sys.argv[3]) as file:
        pixels = np.ascontiguousarray(file["tracks"], np.float32)
        seen = np.ascontiguousarray(file["visibility"], np.uint8)
        cameras = np.ascontiguousarray(np.broadcast_to(file["intrinsics"], (len(seen), 3, 3)))
    frames, tracks = seen.shape
    engine = ctypes.c_void_p()
    create = library.ft_create(sys.argv[2].encode(), 0, 1, frames, tracks, ctypes.byref(engine))
    check(library, create)
    position = np.empty((frames, 3), np.float32)
    outputs = Outputs(position=position.ctypes.data)
    given = (pixels.ctypes.data, seen.ctypes.data, cameras.astype(np.float64).ctypes.data)
    for _ in range(3):
        start = time.perf_counter()
        arguments = (*map(ctypes.c_void_p, given), 1, frames, tracks, ctypes.byref(outputs))
        check(library, library.ft_run_host(engine, *arguments))
        print(f"{(time.perf_counter() - start) * 1e3:.2f} ms")
    print(position)
    library.ft_destroy(engine)


if __name__ == "__main__":
    main()
