"""Keeps of pytest-benchmark's JSON what a reader of results/ wants."""

from typing import Any

import machine
import torch


def pytest_benchmark_update_json(
    config: Any, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Device, versions, commit; and for each benchmark its times in milliseconds."""
    rows = [
        {
            "name": row["name"],
            **{f"{key} ms": round(1e3 * row["stats"][key], 3) for key in ("median", "min", "max")},
            "rounds": row["stats"]["rounds"],
            **row["extra_info"],
        }
        for row in output_json["benchmarks"]
    ]
    output_json.clear()
    output_json.update(machine.describe("cuda" if torch.cuda.is_available() else "cpu"))
    output_json["benchmarks"] = rows
