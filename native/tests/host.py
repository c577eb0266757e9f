"""What `ft_run_host` gives the network: `host.py MOCK LIBRARY WEIGHTS CLIP.npz OUT.npy`."""

import ctypes
import json
import sys

import numpy as np
from calls import FIELDS, Outputs


def main() -> None:
    """Call, and save what the embedding would read."""
    mock = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    mock.mock_log.restype = ctypes.c_char_p
    library = ctypes.CDLL(sys.argv[2])
    library.ft_last_error.restype = ctypes.c_char_p
    with np.load(sys.argv[4]) as file:
        pixels, seen = file["tracks"].astype(np.float32), file["visibility"].astype(np.uint8)
        cameras = file["intrinsics"].astype(np.float64)
    frames, tracks = seen.shape
    engine = ctypes.c_void_p()
    path = sys.argv[3].encode()
    if library.ft_create(path, 0, 1, frames, tracks, ctypes.byref(engine)):
        raise RuntimeError(library.ft_last_error().decode())
    mock.mock_log()
    results = {name: np.full(frames * tracks * 12, 7, np.float32) for name in FIELDS}
    outputs = Outputs(**{name: value.ctypes.data for name, value in results.items()})
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (pixels, seen, cameras)]
    per_frame = int(cameras.ndim == 3)
    status = library.ft_run_host(
        engine, *pointers, per_frame, frames, tracks, ctypes.byref(outputs)
    )
    print(json.dumps([status, library.ft_last_error().decode() if status else ""]))
    if not status:
        line = json.loads(mock.mock_log().decode().splitlines()[0])
        address = line["parameters"][0][1]
        values = np.frombuffer(ctypes.string_at(address, 12 * frames * tracks), np.float32)
        np.save(sys.argv[5], values.reshape(frames, tracks, 3))
    library.ft_destroy(engine)


if __name__ == "__main__":
    main()
