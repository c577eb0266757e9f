"""Hostile inputs and exports that are cut short; `benchmarks/fuzz.py` has many more."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def test_a_few_of_each_kind():
    """In a process of its own, as it forks, which torch's threads don't survive."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--cases", "64", "--failures", "18", "--seed", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "wrong" not in done.stdout
