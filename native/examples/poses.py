"""Tracks in, camera poses out, without torch: `python poses.py LIBRARY WEIGHTS TRACKS.npz`."""

import ctypes
import sys
import time

import numpy as np

FIELDS = (
    *("rotation", "position", "focal", "coefficients", "basis", "motion"),
    *("points", "points_camera", "projection"),
)


class Outputs(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in FIELDS)


def load(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.ft_last_error.restype = ctypes.c_char_p
    library.ft_destroy.argtypes = (ctypes.c_void_p,)
    library.ft_run.argtypes = (*(ctypes.c_void_p,) * 3, *(ctypes.c_int,) * 3, ctypes.c_void_p)
    if library.ft_abi_version() != 1:
        raise RuntimeError("expected ABI version 1")
    return library


def check(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise RuntimeError(f"status {status}: {library.ft_last_error().decode()}")


def main() -> None:
    """Reconstruct, three times, and print."""
    library = load(sys.argv[1])
    with np.load(sys.argv[3]) as file:
        pixels = np.ascontiguousarray(file["tracks"], np.float32)
        seen = np.ascontiguousarray(file["visibility"], np.uint8)
        cameras = np.broadcast_to(file["intrinsics"], (len(seen), 3, 3))
        cameras = np.ascontiguousarray(cameras, np.float64)
    frames, tracks = seen.shape
    engine = ctypes.c_void_p()
    weights = sys.argv[2].encode()
    check(library, library.ft_create(weights, 0, 1, frames, tracks, ctypes.byref(engine)))
    position = np.empty((frames, 3), np.float32)
    outputs = Outputs(position=position.ctypes.data)
    given = [ctypes.c_void_p(array.ctypes.data) for array in (pixels, seen, cameras)]
    for _ in range(3):
        start = time.perf_counter()
        sizes = (1, frames, tracks, ctypes.byref(outputs))
        check(library, library.ft_run_host(engine, *given, *sizes))
        print(f"{(time.perf_counter() - start) * 1e3:.2f} ms")
    print(position)
    library.ft_destroy(engine)


if __name__ == "__main__":
    main()
