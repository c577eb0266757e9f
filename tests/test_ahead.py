"""Kernels compiled ahead, without a GPU, are those that launches look for."""

import os
import subprocess
import sys
import threading
import time

import pytest

nvidia = pytest.importorskip("triton.backends.nvidia.driver")

_LAUNCHES = """
import torch
from triton import knobs
from fasttracks.kernels import ahead, embed, prepare

ahead.pretend(80)
compiled = []
knobs.compilation.listener = lambda *, src, cache_hit, **_: compiled.append((src.name, cache_hit))
zeros = torch.zeros


def prepared():
    about, cameras = (zeros(s, dtype=torch.float64) for s in ((1, 4), (1, 9, 3, 3)))
    return prepare.prepare(zeros(1, 9, 7, 2), zeros(1, 9, 7, dtype=torch.uint8), cameras, about)


def work():
    prepare.count(prepared())
    prepare.count(prepared())


print(ahead.compile_ahead(work, torch.device("cpu")))
print(sorted(compiled))
for emptied in (False, True):
    compiled.clear()
    if emptied:
        prepare._prepare.device_caches.clear()
    try:
        prepared()
    except AttributeError:  # there is no GPU to load it
        print(compiled)
"""


def test_a_launch_finds_what_was_compiled_ahead(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    out = subprocess.run(
        [sys.executable, "-c", _LAUNCHES],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert out == ["2", "[('_count', False), ('_prepare', False)]", "[]", "[('_prepare', True)]"]
    # And the C code that launches kernels, once or for each, as Triton's version has it.
    libraries = [path.name.split(".")[0] for path in tmp_path.rglob("*.so")]
    assert libraries.count("cuda_utils") == 1
    assert libraries.count("__triton_launcher") == 2 * hasattr(nvidia, "make_launcher")


_KEYS = """
import sys
from types import SimpleNamespace
import torch
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction
from fasttracks.kernels import ahead, common, mlp

ahead.pretend(80)
keys = {}


def preload(kernel, _):
    keys[kernel.fn.__name__] = kernel.cache_key
    return SimpleNamespace(src=None, metadata=None)


JITFunction.preload = preload
driver.active.launcher_cls = lambda *_: None
for earlier in sys.argv[1:]:  # as another thread does that compiles a kernel which calls it
    getattr(common, earlier).cache_key
half = lambda *shape: torch.zeros(shape, dtype=torch.float16)
norm = half(64), half(64)
up, down = (half(256, 64), half(256)), (half(64, 256), half(64))
ahead.compile_ahead(lambda: mlp.mlp(half(9, 64), norm, up, down, norm), torch.device("cpu"))
print(sorted(keys.items()))
"""


def test_keys_do_not_depend_on_what_was_compiled_before():
    """Triton 3.6 by itself leaves out constants of functions whose key was not asked for before."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = [
        subprocess.run(
            [sys.executable, "-c", _KEYS, *earlier],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for earlier in ([], ["layer_norm"])
    ]
    assert "_finish" in found[0]
    assert found[0] == found[1]


def test_turns_go_by_rank():
    from fasttracks.kernels.ahead import _Turns

    turns, order = _Turns(), []

    def take(rank):
        with turns.turn(rank):
            order.append(rank)

    threads = [threading.Thread(target=take, args=(rank,)) for rank in (2, 0, 2, 1)]
    with turns.turn(3):
        for thread in threads:
            thread.start()
        while len(turns._waiting) < len(threads):
            time.sleep(0.001)
        assert not order
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 2]


def test_architectures_that_are_none(capsys):
    from fasttracks.cli.main import main

    for name in ("sm_75", "hopper"):
        assert main(["compile", "--arch", name]) == 2
        assert "expected sm_80 or above" in capsys.readouterr().err
