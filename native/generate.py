"""Compile the kernels of the network's forward for GPUs that need not be here, as C++ sources.

    python native/generate.py -o build/kernels --architectures 80 86 89 90 100 120

The network's own code runs on tensors without memory, once for each case that its launches tell
apart; what Triton compiles on the way is kept. Written are a source file and cubins for each
compute capability (90 for 9.0), `constants.h`, and `manifest.json`, which is kept in the
repository beside this file, where `--manifest` writes it.
"""

import argparse
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # no paths of this machine in what is compiled

import torch
import triton
from fake_gpu import DEVICE, Recorder, fake, network_of, pretend
from kernel_sources import LAUNCHES, ROOT, digests
from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST
from triton.tools.tensor_descriptor import TensorDescriptor

from fasttracks.config import Config
from fasttracks.kernels import attention, attention_triton, common, embed, heads, launches, mlp

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# B, T, N: short and long sequences, few and many tokens, split hidden units and whole ones.
SHAPES = ((1, 20, 100), (1, 100, 20), (1, 100, 1000), (1, 1000, 50))
# Of a matrix that is passed without a tensor map: fill with NaN, and, in newer Triton, round.
FLAGS = 1 + ("round_f32_to_tf32" in TensorDescriptor.__dataclass_fields__)
LETTERS = {"i32": "i", "i64": "l", "fp32": "f"}


def compile_for(architecture: int, out: Path) -> dict[str, Any]:
    """Write `sm_NN.cpp` and its cubins; returns the part of the manifest."""
    kernels: dict[tuple[str, float, int], tuple[Any, Any]] = {}
    rows: dict[str, float] = {}  # by launch, which row was asked for last

    def launched(source: Any, metadata: Any, *_: Any) -> None:
        module = source.fn.fn.__module__.rpartition(".")[2]
        name = LAUNCHES[f"{module}.{source.fn.fn.__name__}"]
        constants = _constants(source)
        variant = source.signature.get("y") == "*fp32" or bool(constants.get("PREDICTS_FOCAL"))
        key = (name, rows[name], int(variant))
        found = kernels.setdefault(key, (source, metadata))
        if found[1].hash != metadata.hash:
            raise AssertionError(f"{key} stands for two kernels")

    recorder = Recorder(architecture, launched)
    with pretend(
        recorder, architecture, 132, launched=lambda name, most: rows.update({name: most})
    ):
        for focal in (False, True):
            model = network_of(Config(predicts_focal=focal))
            for shape in SHAPES if not focal else SHAPES[:1]:
                model(fake(*shape, 3))
        table = launches.table(DEVICE)
    wanted = {(name, most) for name, *_ in kernels for most, _ in table[name]}
    if wanted != {key[:2] for key in kernels}:
        raise AssertionError(f"not reached: {wanted - {key[:2] for key in kernels}}")

    folder = out / f"sm_{architecture}"
    folder.mkdir(parents=True, exist_ok=True)
    text, manifest, entries = [_HEAD], {}, []
    for i, (key, (source, metadata)) in enumerate(
        sorted(kernels.items(), key=lambda item: item[0])
    ):
        name, most, variant = key
        cubin = recorder.cubins[metadata.hash]
        symbol = f"ft_sm_{architecture}_{i}"
        (folder / f"{i}.cubin").write_bytes(cubin)
        text.append(f'FT_EMBED({symbol}, "sm_{architecture}/{i}.cubin")')
        options = next(options for bound, options in table[name] if bound == most)
        entries.append(_entry(key, options, source, metadata, symbol))
        label = f"{name} up to {most:.0f}" if most != float("inf") else name
        manifest[label + " wide" * variant] = {
            "sha256": hashlib.sha256(cubin).hexdigest(),
            "bytes": len(cubin),
            "shared": metadata.shared,
        }
    text += [f"const Kernel ft_sm_{architecture}[] = {{", *entries, "};"]
    text.append(
        f"extern const Architecture ft_sm_{architecture}_all = "
        f"{{{architecture}, ft_sm_{architecture}, {len(entries)}}};"
    )
    (out / f"sm_{architecture}.cpp").write_text("\n".join([*text, "}  // namespace ft", ""]))
    return manifest


def _constants(source: Any) -> dict[str, Any]:
    return {source.fn.arg_names[index[0]]: value for index, value in source.constants.items()}


def _entry(
    key: tuple[str, float, int], options: Any, source: Any, metadata: Any, cubin: str
) -> str:
    """A `Kernel` of kernels.h."""
    if metadata.num_ctas != 1 or metadata.launch_cooperative_grid:
        raise AssertionError(f"{key}: clusters and cooperative launches are not provided for")
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise AssertionError(f"{key}: scratch memory is not provided for")
    name, most, variant = key
    letters, descriptors = [], []
    maps = list(getattr(metadata, "tensordesc_meta", None) or [])
    for kind in source.signature.values():
        if kind == "constexpr":
            continue
        if kind.startswith("tensordesc"):
            letters.append("d" if maps else "D" + "z" * FLAGS + "s")
            if maps:
                found = maps.pop(0)
                box = list(found["block_size"])[::-1]
                if found["fp4_padded"]:
                    raise AssertionError(f"{key}: padded 4-bit tiles are not provided for")
                element = TMA_DTYPE_DEVICE_TO_HOST[found["elem_type"]]
                descriptors.append(
                    f"{{{found['swizzle']}, {found['elem_size']}, {element}, {len(box)}, "
                    f"{{{', '.join(map(str, box))}}}}}"
                )
        else:
            letters.append("p" if kind.startswith("*") else LETTERS[kind])
    numbers = [
        f'{{"{option}", {value}}}' for option, value in options.items() if type(value) is int
    ]
    bound = "INT64_MAX" if most == float("inf") else f"{most:.0f}"
    return (
        f'  {{"{name}", {bound}, {variant}, {{{", ".join(numbers)}}}, "{metadata.name}", {cubin}, '
        f"{cubin}_end, {metadata.shared}, {metadata.num_warps}, {int(metadata.launch_pdl)}, "
        f'"{"".join(letters)}", {{{", ".join(descriptors)}}}}},'
    )


_HEAD = """// Written by native/generate.py.
#include <cstdint>

#include "kernels.h"

namespace ft {"""


def constants() -> str:
    """`constants.h`: numbers of the kernels' launchers, and the network's sizes."""
    config = Config()
    lines = ["// Written by native/generate.py.", "#pragma once", "namespace ft {"]
    numbers = {
        "kLongest": attention_triton.LONGEST,
        "kTokensAtOnce": attention.TOKENS_AT_ONCE,
        "kPrograms": heads._PROGRAMS,
        **{
            "k" + "".join(part.title() for part in name.split("_")): value
            for name, value in asdict(config).items()
            if type(value) is int and name != "rounds"
        },
        "kFeatures": config.features,
        "kCameraRows": sum(config.camera_channels),
        "kPointRows": 3 * config.bases + 1,
        **dict.fromkeys(("kHopperRows", "kHopperMlpRows", "kHopperMlpStep"), 1),  # if unused
    }
    if common.GLUON:
        from fasttracks.kernels import attention_hopper, mlp_hopper

        numbers["kHopperRows"] = attention_hopper.GROUPS.value * attention_hopper.ROWS.value
        numbers["kHopperMlpRows"] = 2 * mlp_hopper.ROWS.value
        numbers["kHopperMlpStep"] = mlp_hopper.STEP.value
    lines += [f"constexpr int {name} = {value};" for name, value in numbers.items()]
    lines += [
        f"constexpr double kCost{name.title()} = {value!r};" for name, value in mlp.COST.items()
    ]
    lines.append(f"constexpr double kEps = {common.EPS.value!r};")
    lines.append(
        f"constexpr double kScale = {attention_triton.softmax_scale(config.head_width)!r};"
    )
    rates = embed._rates(config.width, torch.device("cpu")).flatten().tolist()
    lines.append(f"constexpr float kRates[{len(rates)}] = {{")
    lines += [f"    {value.hex()}f," for value in rates]
    return "\n".join([*lines, "};", "}  // namespace ft", ""])


def main() -> None:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--manifest", action="store_true", help="renew native/manifest.json")
    options = parser.parse_args()
    options.architectures = sorted(options.architectures)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "constants.h").write_text(constants())
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(compile_for, options.architectures, [options.output] * 99))
    manifest = {
        "triton": triton.__version__,
        "sources": digests(),
        "kernels": {f"sm_{n}": part for n, part in zip(options.architectures, parts, strict=True)},
    }
    names = [f"ft_sm_{n}_all" for n in options.architectures]
    (options.output / "architectures.cpp").write_text(
        "\n".join(
            [
                *("// Written by native/generate.py.", '#include "kernels.h"', "namespace ft {"),
                *(f"extern const Architecture {name};" for name in names),
                "extern const Architecture* const architectures[] = {",
                *(f"    &{name}," for name in names),
                *("};", f"extern const int architecture_count = {len(names)};"),
                *("}  // namespace ft", ""),
            ]
        )
    )
    text = json.dumps(manifest, indent=1) + "\n"
    (options.output / "manifest.json").write_text(text)
    if options.manifest:
        (ROOT / "native" / "manifest.json").write_text(text)


if __name__ == "__main__":
    main()
