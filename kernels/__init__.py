"""Triton kernels and their launchers, installed as `fasttracks.kernels`.

The directory is called `kernels`, like a well-known package on PyPI, so it refuses any other name.
"""

if __name__ != "fasttracks.kernels":
    raise ImportError(f"{__name__!r} is a part of fasttracks: import fasttracks.kernels instead")
