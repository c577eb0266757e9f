"""Keep measurements, and make README's tables and the plot: `python benchmarks/report.py PART...`.

A PART is what `pytest benchmarks --benchmark-json=PART` or `cold_start.py -o PART` wrote. Its rows
go into results/DEVICE.json with its commit, in place of those of the same name. Without PARTs only
the README and the plot are made anew, from the results of `SHOWN`.
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
OURS = "engine fp16"
REFERENCE, TORCH = "reference fp32", "strongest torch"
BASELINES = ("released code", REFERENCE, "reference tf32", "eager torch fp16", TORCH)

Row = dict[str, Any]


def merge(part: dict[str, Any]) -> None:
    """Put a part's rows into the results of its device."""
    path = RESULTS / (re.sub(r"\W+", "-", part["device"]).strip("-").lower() + ".json")
    record = json.loads(path.read_text()) if path.exists() else {}
    for name, key in KEYS.items():
        rows = {tuple(row[k] for k in key): row for row in record.get(name, [])}
        rows |= {
            tuple(row[k] for k in key): row | {"commit": part["commit"]}
            for row in part.get(name, [])
        }
        record[name] = [rows[k] for k in sorted(rows, key=lambda k: (k[-2] * k[-1], k))]
    record |= {name: value for name, value in part.items() if name not in (*KEYS, "commit")}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def forward_table(record: dict[str, Any]) -> str:
    """A line for each size; times are medians of the whole forward."""
    lines = []
    for (tracks, frames), columns in _sizes(record).items():
        if OURS not in columns:
            continue
        ours = columns[OURS]
        ms = {name: row["p50 ms"] for name, row in columns.items()}
        line = {"tracks × frames": f"{tracks} × {frames}"}
        for name in BASELINES:
            line[name] = _number(ms.get(name), " ms")
        line[OURS] = f"**{_number(ms[OURS], ' ms')}**"
        for name in (REFERENCE, TORCH):
            line[f"against {name}"] = _number(ms[name] / ms[OURS] if name in ms else None, "×")
        line |= {
            "p99 / p50": f"{ours['p99 ms'] / ours['p50 ms']:.2f}",
            f"TFLOP/s (of {ROOF:.0f})": f"{ours['TFLOP/s']:.0f} ({ours['TFLOP/s'] / ROOF:.0%})",
            "memory": f"{ours['memory GB']:.2f} GB",
        }
        lines.append(line)
    return _table(lines)


def kernel_table(record: dict[str, Any]) -> str:
    """A line for each operation, µs a call, ours and eager torch's, by size."""
    lines: dict[str, dict[str, str]] = {}
    by = {tuple(row[k] for k in KEYS["kernels"]): row for row in record["kernels"]}
    for operation, _, tracks, frames in by:
        line = lines.setdefault(operation, {"µs: fasttracks / eager torch": operation})
        line[f"{tracks} × {frames}"] = " / ".join(
            _number(by.get((operation, backend, tracks, frames), {}).get("µs"), "")
            for backend in ("triton", "torch")
        )
    return _table(list(lines.values()))


def draw(record: dict[str, Any], path: Path) -> None:
    """Medians by size, and what the tensor cores' roof would allow."""
    sizes = _sizes(record)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    styles = ("x--", "s--", "v--", "^--", "D-", "o-")
    for name, style in zip((*BASELINES, OURS), styles, strict=True):
        points = [(i, c[name]["p50 ms"]) for i, c in enumerate(sizes.values()) if name in c]
        if points:
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
    """The README with the tables that are between its marks made anew."""
    for name, table in {"forward": forward_table, "kernels": kernel_table}.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        if begin in text:
            head, _, rest = text.partition(begin)
            text = head + begin + table(record) + "\n" + end + rest.partition(end)[2]
    return text


def _table(lines: list[dict[str, str]]) -> str:
    """Markdown, without the columns that no line has anything in."""
    names = [name for name in lines[0] if any(line[name] != "–" for line in lines)]
    rows = [names, ["---"] * len(names), *([line[name] for name in names] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
