"""Gluon functions that Triton renamed between 3.6 and 3.9, under one name each."""
# mypy: allow-untyped-defs

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
copy_out = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
barrier = getattr(gl, "barrier", None) or gl.thread_barrier

if hasattr(gl.shared_memory_descriptor, "reinterpret"):

    @gluon.jit
    def reinterpret(tile, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory as a tile of another shape and layout."""
        return tile.reinterpret(tile.dtype, shape, layout)
else:

    @gluon.jit
    def reinterpret(tile, shape: gl.constexpr, layout: gl.constexpr):
        """The same shared memory as a tile of another shape and layout."""
        return tile._reinterpret(tile.dtype, shape, layout)
