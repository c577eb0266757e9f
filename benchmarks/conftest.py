"""Keeps of pytest-benchmark's JSON what a reader of results/ wants."""

from typing import Any

import machine
import torch


def pytest_benchmark_update_json(
    config: Any, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Device, versions, commit; and of each benchmark what it says of itself."""
    rows = [
        row["extra_info"] | {"calls": row["stats"]["rounds"]} for row in output_json["benchmarks"]
    ]
    output_json.clear()
    output_json.update(machine.describe("cuda" if torch.cuda.is_available() else "cpu"))
    output_json["forward"] = [row for row in rows if "column" in row]
    output_json["kernels"] = [row for row in rows if "operation" in row]
