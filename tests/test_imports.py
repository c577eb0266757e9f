"""Imports go downwards only: what a module may use lies in a room below its own."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up. A room is a module of `fasttracks` or a package, whose modules may import
# each other as long as no circle comes of it.
FLOORS = [
    {"errors", "geometry", "graphs", "parallax"},
    {"config", "files", "inputs", "checks"},
    {"ops", "kernels", "released", "checkpoint", "track_files", "image_files"},
    {"backends", "reference", "tracks"},
    {"operators", "plausible"},
    {"network"},
    {"weights", "engine", "learning", "programs", "reconstruction_data"},
    {"summary"},
    {"export", "viewers"},
    {"reconstruction", "refine"},
    {"long"},
    {"clips"},
    {"pipeline", "video"},
    {"trackers", "evaluation"},
    {"stream", "batch"},
    {"performance", "env"},
    {"scenes"},
    {"training"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its name, without its `__init__`."""
    found = {}
    for path in [*ROOT.glob("fasttracks/**/*.py"), *ROOT.glob("kernels/*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name.replace("kernels", "fasttracks.kernels", 1) if "kernels" in name else name] = (
            path
        )
    found.pop("fasttracks")
    return found


def imports(path: Path, names: dict[str, Path]) -> set[str]:
    """Modules of the package that a module imports, at its top, in a function or for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & names.keys() or {str(node.module)}
    return found & names.keys()


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(name) for name in modules()} == set(FLOOR)


def test_no_import_goes_up():
    names = modules()
    wrong = [
        f"{name} imports {other}"
        for name, path in names.items()
        for other in imports(path, names)
        if room(other) != room(name) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert wrong == []


def test_there_is_no_circle():
    names = modules()
    below = {name: imports(path, names) for name, path in names.items()}
    while free := {name for name, others in below.items() if not others & below.keys()}:
        below = {name: others for name, others in below.items() if name not in free}
    assert below == {}


def test_reconstructing_imports_neither_training_nor_scenes_nor_triton_on_a_cpu():
    code = """
import sys
import numpy as np
import fasttracks
tracks = np.random.default_rng(0).uniform(0, 99, (4, 9, 2))
fasttracks.reconstruct(tracks, image_size=(99, 99), device="cpu", refine="bundle")
print([m for m in sys.modules if m.startswith(("fasttracks.training", "fasttracks.scenes"))])
print("triton" in sys.modules)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert out[0] == "[]"
