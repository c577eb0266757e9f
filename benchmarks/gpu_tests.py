"""Run the tests that need a GPU and keep what came of them: `python benchmarks/gpu_tests.py`.

Further options are pytest's, such as `-n 4` of pytest-xdist, as most of the time is compilation.
Writes results/gpu-tests.json, which `tests/test_docs.py` holds against the kernels and tests that
are there now. Exits like pytest does.
"""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import machine
import pytest

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "results" / "gpu-tests.json"


class Counted:
    """A pytest plugin that counts outcomes."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once, or its set-up or tear-down where that failed."""
        if report.when == "call" or not report.passed:
            self.outcomes[report.outcome] += 1


def kernels() -> dict[str, str]:
    """A digest of each kernel's source."""
    files = [*ROOT.glob("kernels/*.py"), ROOT / "kernels" / "launches.json"]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest()[:12] for f in sorted(files)}


def main() -> int:
    """Run and record."""
    counted = Counted()
    status = pytest.main(["-m", "gpu", "-q", str(ROOT / "tests"), *sys.argv[1:]], plugins=[counted])
    record: dict[str, Any] = {
        **machine.describe("cuda"),
        **{outcome: counted.outcomes[outcome] for outcome in ("passed", "failed", "skipped")},
        "kernels": kernels(),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
