"""Compile the kernels for GPUs that are not here and print, as JSON, what came of each.

    python tests/cross_compile.py [ARCHITECTURE ...]

A process of its own, because kernels can't be compiled where TRITON_INTERPRET is set.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from fasttracks.geometry import MIN_DEPTH
from fasttracks.kernels import (
    adjust,
    adjust_cameras,
    adjust_fit,
    adjust_motion,
    adjust_points,
    attention_hopper,
    attention_triton,
    cholesky,
    compose_project,
    embed,
    fit_scale,
    heads,
    join,
    mlp,
    mlp_hopper,
    prepare,
    tapnext,
)
from fasttracks.kernels.common import GLUON, is_empty
from fasttracks.kernels.launches import shipped

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Case:
    """A kernel as its launcher launches it.

    `keywords` are the constexprs and the compiler's options; `types` those of the arguments that
    are neither annotated nor pointers to float32. It is compiled for the `architectures`.
    """

    name: str
    kernel: Any
    keywords: dict[str, Any]
    types: dict[str, str]
    architectures: tuple[int, ...] = ARCHITECTURES


def tile(dtype: str, *shape: int, gluon: bool = False) -> str:
    """The type of a tensor descriptor with blocks of a shape."""
    layout = f",{gl.NVMMASharedLayout.get_default_for(list(shape), gl.float16)!r}" if gluon else ""
    return f"tensordesc<{dtype}{list(shape)}{layout}>"


def launched(kernel: str, family: str = "default", index: int = -1) -> dict[str, Any]:
    """Options of a shipped launch, by default that of the largest sizes."""
    return shipped()[family][kernel][index][1]


def attention_cases(dtype: str) -> list[Case]:
    """The kernels of attention as launched at width 256 with 16 heads of 64."""
    triton_kernels, hopper_kernels = attention_triton, attention_hopper
    pointers = dict.fromkeys(("x", "gamma", "beta", "qkv", "out"), f"*{dtype}")
    numbers = dict.fromkeys(("rows", "splits", "length", "sequences", "pack"), "i32")
    types = pointers | numbers | {"scale": "fp32"}
    heads = {"HEADS": 16, "HEAD": 64}
    norm = launched("norm_project")
    m, n = norm["BLOCK_M"], norm["BLOCK_N"]
    cases = [
        Case(
            f"norm_project {dtype}",
            triton_kernels._norm_project,
            {"WIDTH": 256, "COLUMNS": 3072, **norm},
            types | {"weight": tile(dtype, n, 256), "out": tile(dtype, m, n)},
        ),
        Case(
            f"norm_project hopper {dtype}",
            hopper_kernels._norm_project,
            {"HEADS": 16, **launched("hopper_norm_project", "sm_90")},
            types
            | dict.fromkeys(("x", "weight"), tile(dtype, 64, 256, gluon=True))
            | {"out": tile(dtype, 64, 64, gluon=True)},
            (90,),
        ),
    ]
    launch = launched("attend")
    queries, keys = (tile(dtype, 1, launch[f"BLOCK_{side}"], 64) for side in "MN")
    descriptors = {"queries": queries, "keys": keys, "out": queries}
    kernel = triton_kernels._attend
    cases.append(Case(f"attend {dtype}", kernel, {**heads, **launch}, types | descriptors))
    launch = launched("hopper_attend", "sm_90")
    queries, keys = (tile(dtype, 1, launch[f"BLOCK_{side}"], 64, gluon=True) for side in "MN")
    descriptors = {"queries": queries, "keys": keys, "out": queries}
    kernel, keywords = hopper_kernels._attend, {"HEADS": 16, **launch}
    cases.append(Case(f"attend hopper {dtype}", kernel, keywords, types | descriptors, (90,)))
    for name, launch, architectures in (
        ("attend_project", launched("attend_project"), ARCHITECTURES),
        ("attend_project few", launched("attend_project", "sm_90", 0), (90,)),
        ("attend_project many", launched("attend_project", "sm_90"), (90,)),
    ):
        keywords = {"WIDTH": 256, "BLOCK": triton_kernels.LONGEST, **heads, **launch}
        descriptors = {"weight": tile(dtype, 256, 64)}
        kernel = triton_kernels._attend_project
        cases.append(Case(f"{name} {dtype}", kernel, keywords, types | descriptors, architectures))
    for name, launch, architectures in (
        ("project", launched("project"), ARCHITECTURES),
        ("project few", launched("project", "sm_90", 0), (90,)),
        ("project many", launched("project", "sm_90"), (90,)),
    ):
        m, n, k = (launch[f"BLOCK_{side}"] for side in "MNK")
        descriptors = {"x": tile(dtype, m, k), "weight": tile(dtype, n, k)}
        descriptors |= dict.fromkeys(("residual", "out"), tile(dtype, m, n))
        keywords = {"INNER": 1024, "WIDTH": 256, **launch}
        kernel = triton_kernels._project
        cases.append(Case(f"{name} {dtype}", kernel, keywords, descriptors, architectures))
    return cases


LENGTHS = {"T": "i32", "N": "i32"}


def refinement_cases() -> list[Case]:
    """The kernels of bundle adjustment in float64."""
    depth = {"MIN_DEPTH": 0.01}
    panel = {"FIRST": True, "TILE": cholesky.TILE, **launched("cholesky")}
    launches = {
        "adjust points": (adjust_points._points, {**depth, **launched("adjust_points")}),
        "adjust cameras": (adjust_cameras._cameras, {**depth, **launched("adjust_cameras")}),
        "adjust move": (adjust_cameras._move_cameras, launched("adjust_move")),
        "adjust cost": (adjust_points._cost, {**depth, **launched("adjust_points")}),
        "adjust fit": (
            adjust_fit._fit,
            {"LEAST": 1e-3, "DEPTH": 0.3, **depth, **launched("fit_scale")},
        ),
        "adjust accept": (adjust._accept, launched("adjust_accept")),
        "motion by point": (adjust_motion._by_point, {**depth, **launched("adjust_motion")}),
        "motion cost": (adjust_motion._cost, {**depth, **launched("adjust_motion")}),
        "fit_scale": (fit_scale._fit_scale, {"LEAST": 1e-3, **launched("fit_scale")}),
        "cholesky": (cholesky._panel, panel),
    }
    numbers = dict.fromkeys(("C", "K", "n", "panel", "blocks", "iterations", "move"), "i32")
    return [
        Case(
            name,
            kernel,
            keywords,
            {p.name: "*fp64" for p in kernel.params if not p.is_constexpr} | LENGTHS | numbers,
            (80, 90),
        )
        for name, (kernel, keywords) in launches.items()
    ]


def tapnext_cases() -> list[Case]:
    """TAPNext's kernels at its width, in half precision."""
    halves = ("delta", "out", "branches", "gates_weight", "taps", "x", "first", "second")
    types = dict.fromkeys((*halves, "coordinates"), "*fp16") | {"rows": "i32", "frame": "*i32"}
    wide, precision = {"WIDTH": 768}, {"PRECISION": "tf32"}
    norm = {**wide, "BLOCK_WIDTH": 1024, "ADD": True, "LAYER": True, **launched("tapnext_add_norm")}
    head = {"HIDDEN": 256, "SPACE": 256, "REACH": 20, "RADIUS": 8, **launched("tapnext_heads")}
    inner = {"INNER": 3072, "GATED": True, **launched("tapnext_activate")}
    cases: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
        "add_norm": (tapnext._add_norm, norm, {"x": "*fp32"}),
        "recur": (
            tapnext._recur,
            {**wide, **precision, "HEAD": 64, **launched("tapnext_recur")},
            {},
        ),
        "activate": (tapnext._activate, inner, {}),
        "heads": (tapnext._heads, {**wide, **precision, **head}, {"out": "*fp32"}),
    }
    return [
        Case(f"tapnext {name}", kernel, keywords, types | more)
        for name, (kernel, keywords, more) in cases.items()
    ]


def input_cases() -> list[Case]:
    """The kernels that prepare inputs, for both dtypes of positions and of visibility."""
    types = dict.fromkeys(("cameras", "about", "parts", "counts"), "*fp64") | LENGTHS
    types |= dict.fromkeys(("bins", "links"), "*i32") | {"seen_at": "*u8"}
    types |= dict.fromkeys(("pitch", "blocks"), "i32")
    constants = {"BINS": prepare.BINS, "PARTS": prepare.PARTS}
    keywords = {"FARTHEST": 1e7, **constants, **launched("prepare")}
    return [
        *(
            Case(
                f"prepare {positions} {visible}",
                prepare._prepare,
                {"SCORES": visible == "fp64", **keywords},
                types | {"positions": f"*{positions}", "visible": f"*{visible}"},
            )
            for positions in ("fp32", "fp64")
            for visible in ("u8", "fp64")
        ),
        Case(
            "count",
            prepare._count,
            {"SAMPLES": prepare.SAMPLES, **constants, **launched("count")},
            types,
        ),
    ]


def stream_cases() -> list[Case]:
    """The kernels of a stream's world."""
    weigh = {"QUANTILE": 0.005, "NOISE": 1e-3, "STILL": 2.5, "POWER": 4, "LEAST": 0.01}
    rules = {"LEAST_SHARED": 8, "LEAST_SURE": 0.01, "ROUNDS": 4, "POLAR": 4}
    rules |= {"MEMORY": 50.0, "FRAMES": 64}
    state = ("world_rotation", "world_position", "old_position", "frame_weight", "started")
    state += ("world_points", "old_points", "point_weight", "log_scale", "about")
    types = dict.fromkeys(state, "*fp64") | LENGTHS | {"hop": "i32"}
    return [
        Case("world show", join._show, launched("world_show"), types),
        Case("world weigh", join._weigh, weigh | launched("world_weigh"), types),
        Case("world join", join._join, rules | launched("world_join"), types),
    ]


CHANNELS = {"WIDTH": 256, "BLOCK_WIDTH": 256}
CONV = {"ROWS": 21, "KERNEL": 31, "BLOCK_KERNEL": 32}
MLP_TYPES = {
    **dict.fromkeys(("x", "y", "partial"), "*fp16"),
    **{
        f"{layer}_{part}": "*fp16"
        for layer in ("norm", "up", "down", "out")
        for part in ("weight", "bias")
    },
    **dict.fromkeys(("rows", "items", "splits", "apart"), "i32"),
    **dict.fromkeys(("x_tiles", "partial_tiles"), tile("fp16", 64, 256, gluon=True)),
    "up_tiles": tile("fp16", 128, 128, gluon=True),
    "down_tiles": tile("fp16", 256, 64, gluon=True),
}

CASES = [
    *input_cases(),
    *stream_cases(),
    *(
        Case(
            f"compose_project K={K}",
            compose_project._compose_project,
            {"K": K, "MIN_DEPTH": MIN_DEPTH, **launched("compose_project")},
            LENGTHS,
        )
        for K in (12, 32)
    ),
    *(
        Case(
            name,
            embed._embed,
            {"FEATURES": 76, **CHANNELS, **launch},
            {"tokens": "*fp16", **LENGTHS},
            architectures,
        )
        for name, launch, architectures in (
            ("embed", launched("embed"), ARCHITECTURES),
            ("embed many", launched("embed", "sm_90"), (90,)),
        )
    ),
    Case(
        "heads sum",
        heads._sum,
        {"WIDTH": 256, **launched("heads_sum")},
        {"tokens": "*fp16", "frames_at_once": "i32", **LENGTHS},
    ),
    Case(
        "heads points",
        heads._points,
        {**CHANNELS, "ROWS": 37, "BLOCK_ROWS": 64, **launched("heads_points")},
        {"parts": "i32", **LENGTHS},
    ),
    Case(
        "heads taps",
        heads._taps,
        {**CHANNELS, **CONV, **launched("heads_taps")},
        {"parts": "i32", **LENGTHS},
    ),
    Case(
        "heads cameras",
        heads._cameras,
        {"BLOCK_ROWS": 32, "PREDICTS_FOCAL": True, **CONV, **launched("heads_cameras")},
        {},
    ),
    Case("mlp", mlp._mlp, {"C": 256, "H": 2048, "BLOCK_C": 256, **launched("mlp")}, MLP_TYPES),
    Case(
        "mlp finish", mlp._finish, {"C": 256, "BLOCK_C": 256, **launched("mlp_finish")}, MLP_TYPES
    ),
    *(
        Case(
            name,
            mlp_hopper._mlp,
            {"H": 2048, "WIDE": "wide" in name, **launched("hopper_mlp", "sm_90")},
            MLP_TYPES | types,
            (90,),
        )
        for name, types in {
            "mlp hopper": {"y": tile("fp16", 64, 256, gluon=True)},
            "mlp hopper wide": dict.fromkeys(("y", "out_weight", "out_bias"), "*fp32"),
        }.items()
    ),
    *attention_cases("fp16"),
    *refinement_cases(),
    *tapnext_cases(),
]


def compile_for(architecture: int, case: Case) -> dict[str, Any]:
    """Compile down to machine code and read its resources.

    Returns:
        name, architecture; empty: whether nothing is left of it; stack in bytes per thread (spills
        live there); shared memory in bytes per block; wgmma: whether Hopper's matrix instruction
        is used;
        overlaps: whether it may begin before the launch before it is done;
        specialised: arguments that are numbers and whose value may compile the kernel anew.
    """
    signature = {}
    attributes = {}
    specialised = []
    for param in case.kernel.params:
        kind = "constexpr" if param.is_constexpr else param.annotation_type
        kind = signature[param.name] = kind or case.types.get(param.name, "*fp32")
        if kind == "constexpr" or param.do_not_specialize:
            continue
        if kind.startswith("tensordesc"):
            continue
        if not kind.startswith("*"):
            specialised.append(param.name)
        elif not param.do_not_specialize_on_alignment:  # torch aligns its tensors
            attributes[(param.num,)] = [["tt.divisibility", 16]]

    keywords = {**case.keywords, "OVERLAP": architecture >= 90}
    constexprs = {k: v for k, v in keywords.items() if k in signature}
    source = GluonASTSource if isinstance(case.kernel, GluonJITFunction) else ASTSource
    compiled = triton.compile(
        source(case.kernel, signature, constexprs, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={k: v for k, v in keywords.items() if k not in constexprs or k == "num_warps"},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.check_output(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name], text=True
        )
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return {
        "name": case.name,
        "architecture": architecture,
        "empty": is_empty(compiled.asm["ptx"]),
        "stack": int(stack),
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma" in compiled.asm["ptx"],
        "overlaps": "griddepcontrol.wait" in compiled.asm["ptx"],
        "specialised": specialised,
    }


if __name__ == "__main__":
    wanted = [int(argument) for argument in sys.argv[1:]] or ARCHITECTURES
    todo = [
        (architecture, case)
        for case in CASES
        for architecture in case.architectures
        if architecture in wanted and (GLUON or not isinstance(case.kernel, GluonJITFunction))
    ]
    # Most of it is not Python.
    with ThreadPoolExecutor(os.cpu_count()) as pool, tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        print(json.dumps(list(pool.map(compile_for, *zip(*todo, strict=True))), indent=1))
