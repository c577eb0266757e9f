"""Calls that are refused: `statuses.py LIBRARY WEIGHTS [MOCK]` prints statuses and messages."""

import ctypes
import json
import sys

from calls import Outputs


def main() -> None:
    """Call and print."""
    if sys.argv[3:]:
        ctypes.CDLL(sys.argv[3], ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(sys.argv[1])
    library.ft_last_error.restype = ctypes.c_char_p
    weights = sys.argv[2].encode()
    engine, outputs = ctypes.c_void_p(), Outputs()
    pointer, into = ctypes.byref(engine), ctypes.byref(outputs)
    found = {"abi": library.ft_abi_version()}

    def note(name: str, status: int) -> None:
        found[name] = [status, library.ft_last_error().decode() if status else ""]

    note("supported", library.ft_device_supported(0))
    note("supported 1", library.ft_device_supported(1))
    note("null path", library.ft_create(None, 0, 1, 1, 1, pointer))
    note("null engine", library.ft_create(weights, 0, 1, 1, 1, None))
    note("no limit", library.ft_create(weights, 0, 1, 0, 1, pointer))
    note("no file", library.ft_create(b"/none\n.safetensors", 0, 1, 1, 1, pointer))
    note("folder", library.ft_create(b"/", 0, 1, 1, 1, pointer))
    note("device 1", library.ft_create(weights, 1, 1, 9, 9, pointer))
    note("create", library.ft_create(weights, 0, 1, 9, 9, pointer))
    tracks = (ctypes.c_float * 243)()
    if engine.value:
        note("run", library.ft_run(engine, None, tracks, 1, 9, 9, into))
        note("too many", library.ft_run(engine, None, tracks, 1, 9, 10, into))
        note("none", library.ft_run(engine, None, tracks, 0, 9, 9, into))
        note("null tracks", library.ft_run(engine, None, None, 1, 9, 9, into))
        result, size = ctypes.c_void_p(), ctypes.c_uint64()
        where = (ctypes.byref(result), ctypes.byref(size))
        note("stage", library.ft_debug_run(engine, tracks, 1, 9, 9, 15, *where))
        found["stage bytes"] = size.value
        note("no stage", library.ft_debug_run(engine, tracks, 1, 9, 9, 16, *where))
    note("no engine", library.ft_run(None, None, tracks, 1, 9, 9, into))
    library.ft_destroy(engine)
    library.ft_destroy(None)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
