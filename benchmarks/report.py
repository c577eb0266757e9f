"""Keep measurements, and make the tables of every README from them.

    python benchmarks/report.py PART...

A PART is what `pytest benchmarks --benchmark-json=PART` or `call.py` wrote. Its rows go into
results/DEVICE.json with its commit, in place of those of the same name. Then, with or without
PARTs, each table between marks such as `<!-- forward -->` and `<!-- /forward -->` in a Markdown
file is made anew from results/, and the plot of the forward times is drawn.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import BASELINES, KEYS, OURS, ROOF, SHOWN, TABLES, sizes
from tabulating import RESULTS, read

ROOT = Path(__file__).parents[1]


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


def draw(record: dict[str, Any], path: Path) -> None:
    """Medians by size, and what the tensor cores' roof would allow."""
    columns_of = sizes(record)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    styles = ("x--", "s--", "v--", "^--", "D-", "o-")
    for name, style in zip((*BASELINES, OURS), styles, strict=True):
        points = [(i, c[name]["p50 ms"]) for i, c in enumerate(columns_of.values()) if name in c]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=name)
    rows = [next(iter(columns.values())) for columns in columns_of.values()]
    floor = [row["TFLOP/s"] * row["p50 ms"] / ROOF for row in rows]
    axis.plot(range(len(floor)), floor, "k:", label=f"{ROOF:.0f} TFLOP/s")
    axis.set_xticks(range(len(columns_of)), [f"{n}×{t}" for n, t in columns_of])
    axis.set(yscale="log", ylabel="ms", xlabel="tracks × frames", title=record["device"])
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


_MARKED = re.compile(r"<!-- ([a-z ]+) -->\n(.*?)<!-- /\1 -->\n", re.DOTALL)


def filled(text: str) -> str:
    """Markdown with the tables that are between its marks made anew; KeyError for no such table."""
    return _MARKED.sub(
        lambda mark: f"<!-- {mark[1]} -->\n{TABLES[mark[1]]()}\n<!-- /{mark[1]} -->\n", text
    )


def documents() -> Iterator[Path]:
    """The project's own Markdown files."""
    rooms = ("docs", "benchmarks", "kernels", "native", "fasttracks/*")
    for place in ("*.md", *(f"{room}/*.md" for room in rooms)):
        yield from sorted(ROOT.glob(place))


def main() -> None:
    """Merge the parts, write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, nargs="*", metavar="PART")
    for part in parser.parse_args().parts:
        merge(json.loads(part.read_text()))
    for path in documents():
        path.write_text(filled(path.read_text()))
    draw(read(SHOWN), RESULTS / f"{SHOWN}.png")


if __name__ == "__main__":
    main()
