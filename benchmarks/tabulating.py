"""Results, and lines of Markdown of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LATEST = "nvidia-h200"  # that calls, streams and the C library are shown on


def read(name: str) -> Any:
    """The results called `name`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def read_if_there(name: str) -> Any:
    """The same, or None where nothing was measured yet."""
    return read(name) if (RESULTS / f"{name}.json").is_file() else None


def formatted(rows: Iterable[Mapping[str, Any]], columns: dict[str, str]) -> str:
    """A line for each row; columns say by label how a row's values are written."""
    return table([{label: form.format_map(row) for label, form in columns.items()} for row in rows])


def table(lines: list[dict[str, str]]) -> str:
    """Markdown, without the columns that no line has anything in."""
    names = [name for name in lines[0] if any(line[name] != "–" for line in lines)]
    rows = [names, ["---"] * len(names), *([line[name] for name in names] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g}{unit}" if value < 100 else f"{value:.0f}{unit}"
