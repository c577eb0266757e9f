"""Each driver call failing once, at every place: `faults.py MOCK LIBRARY WEIGHTS`.

Prints for each fault the statuses and messages that differ from success, and what was left behind.
"""

import ctypes
import json
import sys

from calls import FIELDS, Outputs

OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700
FAULTS = ((0, OUT_OF_MEMORY), (1, ILLEGAL_ADDRESS), (5, OUT_OF_MEMORY), (20, ILLEGAL_ADDRESS))
CALLS = (
    "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2", "cuModuleLoadData", "cuModuleGetFunction", "cuFuncGetAttribute",
    "cuFuncSetAttribute", "cuMemAlloc_v2", "cuMemcpyHtoD_v2", "cuMemcpyDtoHAsync_v2",
    "cuStreamCreate", "cuStreamSynchronize", "cuStreamWaitEvent", "cuStreamBeginCapture_v2",
    "cuStreamEndCapture", "cuEventCreate", "cuEventRecord", "cuGraphInstantiateWithFlags",
    "cuGraphLaunch", "cuLaunchKernelEx", "cuTensorMapEncodeTiled", "cuMemcpy2DAsync_v2",
)  # fmt: skip


def main() -> None:
    """Fail and print."""
    mock = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(sys.argv[2])
    library.ft_last_error.restype = ctypes.c_char_p
    shape = (1, 40, 2000)  # with tokens enough for two parts, one of which is copied
    tracks = (ctypes.c_float * (3 * 40 * 2000))()
    pixels = (ctypes.c_float * (2 * 40 * 2000))()
    camera = (ctypes.c_double * 9)(600, 0, 320, 0, 600, 240, 0, 0, 1)

    def calls() -> list[tuple[int, str]]:
        engine, outputs = ctypes.c_void_p(), Outputs()
        position = (ctypes.c_float * (3 * 40))()
        host = Outputs(position=ctypes.addressof(position))
        statuses = []

        def note(status: int) -> int:
            statuses.append((status, library.ft_last_error().decode() if status else ""))
            return status

        path = sys.argv[3].encode()
        if not note(library.ft_create(path, 0, *shape, ctypes.byref(engine))):
            stream = ctypes.c_void_p(0)
            for _ in range(2):
                note(library.ft_run(engine, stream, tracks, *shape, ctypes.byref(outputs)))
            note(
                library.ft_run_host(engine, pixels, None, camera, 0, *shape[1:], ctypes.byref(host))
            )
            library.ft_destroy(engine)
        return statuses

    found = []
    for name in CALLS:
        for after, result in FAULTS:
            mock.mock_fail(name.encode(), result, after)
            statuses = calls()
            mock.mock_fail(name.encode(), 0, 0)
            calls()  # takes the fault, if it was not reached, as success
            found.append(
                {"call": name, "after": after, "result": result, "statuses": statuses,
                 "live": mock.mock_live(), "again": [status for status, _ in calls()]}
            )  # fmt: skip
    json.dump({"fields": len(FIELDS), "faults": found}, sys.stdout)


if __name__ == "__main__":
    main()
