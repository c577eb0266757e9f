"""Keep measurements, and make README's tables and the plot: `python benchmarks/report.py PART...`.

A PART is what `pytest benchmarks --benchmark-json=PART` or `cold_start.py -o PART` wrote. Its rows
go into results/DEVICE.json, in place of those of the same name. Without PARTs only the README and
the plot are made anew, from the results of `SHOWN`.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SHOWN = "nvidia-h100-80gb-hbm3"
ROOF = 989.0  # TFLOP/s: dense float16 of an H100 SXM
KEYS = {"forward": ("column", "tracks", "frames"),
        "kernels": ("operation", "backend", "tracks", "frames")}  # fmt: skip
OURS, TORCH, REFERENCE, TF32 = "engine fp16", "strongest torch", "reference fp32", "reference tf32"

Row = dict[str, Any]


def merge(part: dict[str, Any]) -> None:
    """Put a part's rows into the results of its device."""
    path = RESULTS / (re.sub(r"\W+", "-", part["device"]).strip("-").lower() + ".json")
    record = json.loads(path.read_text()) if path.exists() else {}
    for name, key in KEYS.items():
        rows = {tuple(row[k] for k in key): row for row in record.get(name, [])}
        rows |= {tuple(row[k] for k in key): row for row in part.get(name, [])}
        record[name] = [rows[k] for k in sorted(rows, key=lambda k: (k[-2] * k[-1], k))]
    record |= {name: value for name, value in part.items() if name not in KEYS}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def forward_table(record: dict[str, Any]) -> str:
    """A line for each size; times are medians of the whole forward."""
    lines = [
        "| tracks × frames | reference, float32 | with TF32 | strongest torch, float16 "
        "| fasttracks, float16 | against reference | against torch | p99 / p50 | TFLOP/s (of "
        f"{ROOF:.0f}) | memory |",
        "| --- " * 10 + "|",
    ]
    for (tracks, frames), columns in _sizes(record).items():
        if OURS not in columns:
            continue
        row = columns[OURS]
        median = {name: found["p50 ms"] for name, found in columns.items()}
        cells = [
            f"{tracks} × {frames}",
            *(_number(median.get(name), " ms") for name in (REFERENCE, TF32, TORCH)),
            f"**{_number(median[OURS], ' ms')}**",
            *(
                _number(median[name] / median[OURS] if name in median else None, "×")
                for name in (REFERENCE, TORCH)
            ),
            f"{row['p99 ms'] / row['p50 ms']:.2f}",
            f"{row['TFLOP/s']:.0f} ({row['TFLOP/s'] / ROOF:.0%})",
            f"{row['memory GB']:.2f} GB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kernel_table(record: dict[str, Any]) -> str:
    """A line for each operation, µs a call, ours and eager torch's, by size."""
    sizes = list(dict.fromkeys((row["tracks"], row["frames"]) for row in record["kernels"]))
    lines = [
        "| µs: fasttracks / eager torch | " + " | ".join(f"{n} × {t}" for n, t in sizes) + " |",
        "| --- " * (1 + len(sizes)) + "|",
    ]
    by = {tuple(row[k] for k in KEYS["kernels"]): row for row in record["kernels"]}
    for operation in dict.fromkeys(row["operation"] for row in record["kernels"]):
        cells = [
            " / ".join(_number(by.get((operation, backend, *size), {}).get("µs"), "")
                       for backend in ("triton", "torch"))
            for size in sizes
        ]  # fmt: skip
        lines.append(f"| {operation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """Medians by size, and what the tensor cores' roof would allow."""
    sizes = _sizes(record)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, style in {REFERENCE: "s--", TF32: "v--", TORCH: "D-", OURS: "o-"}.items():
        points = [(i, c[name]["p50 ms"]) for i, c in enumerate(sizes.values()) if name in c]
        axis.plot(*zip(*points, strict=True), style, label=name)
    rows = [next(iter(columns.values())) for columns in sizes.values()]
    floor = [row["TFLOP/s"] * row["p50 ms"] / ROOF for row in rows]
    axis.plot(range(len(floor)), floor, "k:", label=f"{ROOF:.0f} TFLOP/s")
    axis.set_xticks(range(len(sizes)), [f"{n}×{t}" for n, t in sizes])
    axis.set(yscale="log", ylabel="ms", xlabel="tracks × frames", title=record["device"])
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def readme(record: dict[str, Any], text: str) -> str:
    """The README with the tables between their marks made anew."""
    for name, table in {"forward": forward_table, "kernels": kernel_table}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        head, _, rest = text.partition(begin)
        text = head + begin + table(record) + "\n" + end + rest.partition(end)[2]
    return text


def _sizes(record: dict[str, Any]) -> dict[tuple[int, int], dict[str, Row]]:
    """Rows by (tracks, frames) and column."""
    sizes: dict[tuple[int, int], dict[str, Row]] = {}
    for row in record["forward"]:
        sizes.setdefault((row["tracks"], row["frames"]), {})[row["column"]] = row
    return sizes


def _number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g}{unit}" if value < 100 else f"{value:.0f}{unit}"


def main() -> None:
    """Merge the parts, write README and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, nargs="*", metavar="PART")
    for part in parser.parse_args().parts:
        merge(json.loads(part.read_text()))
    record = json.loads((RESULTS / f"{SHOWN}.json").read_text())
    path = ROOT / "README.md"
    path.write_text(readme(record, path.read_text()))
    draw(record, RESULTS / f"{SHOWN}.png")


if __name__ == "__main__":
    main()
