"""Hostile inputs: each is refused in one line or works, soon, in little memory, leaving nothing.

    python benchmarks/fuzz.py --cases 2000 --failures 60 -o benchmarks/results/fuzz.json

Kinds of case, in turn (`fuzz_cases.py`): track files, reconstructions, weights, checkpoints, clips
with truth, videos and playlists, arguments of the command line, and of the functions. Each runs in
a process of its own.

The failures are exports of which the disk gets full, or whose process is killed: what was there is
whole, or is what it was before; the next export leaves nothing else.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import machine
import torch
from fuzz_cases import FORMATS, KINDS, Case, make_seeds

from fasttracks import InputError, Reconstruction

GOOD = ("works", "refused", "whole", "as before", "between")
SECONDS, BYTES = 10, 2e9  # of computing and of memory, that a case may take
TARGETS = {
    "ply": "a.ply", "gltf": "a.glb", "npz": "a.npz", "page": "a.html", "tum": "a.txt",
    "kitti": "a.txt",
}  # fmt: skip


class Outcome(NamedTuple):
    """How a case went: "works", "refused", or what was wrong."""

    kind: str
    case: str
    said: str
    seconds: float
    bytes: float


def cases(count: int, seed: int = 0) -> Iterator[Outcome]:
    """How so many cases go, of each kind in turn."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder)
        make_seeds(seeds)
        for i in range(count):
            yield run(seeds, i, seed)


def run(seeds: Path, number: int, seed: int) -> Outcome:
    """One case, in a folder and a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        work = Path(folder) / "work"
        work.mkdir()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(seeds, number, seed, work, report)
        while True:
            done, status, usage = os.wait4(child, os.WNOHANG)
            if done or time.monotonic() - began > 30 * SECONDS:  # of waiting, too
                break
            time.sleep(0.002)
        if not done:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        kind = KINDS[number % len(KINDS)].__name__
        case, said, seconds = "", f"ended by {status}", time.monotonic() - began
        if report.exists() and report.read_text():
            case, said, seconds = json.loads(report.read_text())
        memory = 1024.0 * usage.ru_maxrss
        if said in ("works", "refused"):
            if seconds > SECONDS:
                said = f"took {seconds:.1f} s"
            elif memory > BYTES:
                said = f"took {memory / 1e9:.1f} GB"
        return Outcome(kind, f"{number}: {case}", said, seconds, memory)


def _child(seeds: Path, number: int, seed: int, work: Path, report: Path) -> None:
    os.chdir(work)
    out = os.open(os.devnull, os.O_WRONLY)
    case = Case("", lambda: None)
    began = time.process_time()
    try:
        rng = random.Random(f"{seed} {number}")
        case = KINDS[number % len(KINDS)](seeds, rng)
        before = _names(work)
        printed = io.StringIO()
        os.dup2(out, 1)
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
            said = _call(case)
        after = _names(work)
        if said == "refused" and after != before:
            said = f"left {sorted(after - before)}, took {sorted(before - after)}"
        elif any(name.startswith(".fasttracks-") for name in after):
            said = "left a temporary folder"
        elif printed.getvalue().count("\nfasttracks: error") or "Traceback" in printed.getvalue():
            said = f"printed {printed.getvalue()[-300:]!r}"
        elif max(map(len, printed.getvalue().split("\n"))) > 1200:
            said = "printed a long line"
    except BaseException:
        said = "".join(traceback.format_exc())
    report.write_text(json.dumps([case.name, said, time.process_time() - began]))
    os._exit(0)


def _call(case: Case) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter(
            "error", RuntimeWarning
        )  # of numbers that should not have come so far
        try:
            result = case.run()
        except InputError as error:
            message = str(error)
            return "refused" if len(message) < 1100 and "\n" not in message else "long message"
        except SystemExit as stop:
            result = stop.code
    return "refused" if result == 2 else "works"


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Exports of which the disk gets full, or that are killed.


def failures(count: int, seed: int = 0) -> Iterator[Outcome]:
    """How so many exports go."""
    with tempfile.TemporaryDirectory() as folder:
        make_seeds(Path(folder))
        for i in range(count):
            with tempfile.TemporaryDirectory() as work:
                yield fail(Path(folder), Path(work), random.Random(f"{seed} {i}"), i)


def fail(seeds: Path, work: Path, rng: random.Random, number: int) -> Outcome:
    """Exports that don't come to their end: a file may not grow, or their process is killed."""
    form = (*FORMATS, "npz", "page")[number % 9]
    full = number % 2 == 0
    there = rng.random() < 0.5
    target = work / TARGETS.get(form, "a")
    result = Reconstruction.load(seeds / "reconstruction.npz")
    larger = result.scaled(2)  # another export, as large
    if there:
        export(result, form, target)
    before = _contents(work)
    whole, other = _whole(larger, form), _whole(result, form)
    child = os.fork()
    if child == 0:
        if full:  # writing beyond fails, as if the disk were full
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            most = rng.randrange(max(map(len, whole.values())))
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            with contextlib.suppress(OSError):
                export(larger, form, target)
            os._exit(0)
        # It ends the process after so much computing, wherever that is then.
        signal.setitimer(signal.ITIMER_PROF, rng.uniform(0.005, 0.1))
        while True:
            export(larger, form, target)
            export(result, form, target)
    os.waitpid(child, 0)
    found = _contents(work)
    left = {name for name in found if ".fasttracks-" in name}
    now = {name: data for name, data in found.items() if name not in left}
    name = f"{number}: {form}, {'full' if full else 'killed'}, {'there' if there else 'new'}"
    if full and left:
        return Outcome("failures", name, f"left {sorted(left)}", 0, 0)
    said = "as before" if now == before else "whole"
    if now not in (before, whole, other):
        said = f"half an export: {sorted(now)}"
        # Files of a folder that was there are replaced one by one, each of them whole.
        if not full and set(now) == set(whole) and all(now[n] in (whole[n], other[n]) for n in now):
            said = "between"
    if said in GOOD:
        export(larger, form, target)
        if _contents(work) != whole:
            said = f"the next left {sorted(_contents(work))}"
    return Outcome("failures", name, said, 0, 0)


def export(result: Reconstruction, form: str, target: Path) -> None:
    """Write a reconstruction in a format."""
    from fasttracks.export import FORMATS as KNOWN
    from fasttracks.viewers.page import write_page

    if form == "npz":
        return result.save(target)
    if form == "page":
        return write_page(result, target)
    getattr(result, KNOWN[form].method)(target, **KNOWN[form].options)


def _whole(result: Reconstruction, form: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        export(result, form, Path(folder) / TARGETS.get(form, "a"))
        return _contents(Path(folder))


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main() -> int:
    """Run the cases, print those that go wrong, and keep what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--failures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="the .json to keep the outcome in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[Outcome]] = {}
    for outcome in chain(
        cases(options.cases, options.seed), failures(options.failures, options.seed)
    ):
        found.setdefault(outcome.kind, []).append(outcome)
        if outcome.said not in GOOD:
            print(f"{outcome.kind} {outcome.case}\n    {outcome.said.strip()}", flush=True)
    record = {kind: summary(outcomes) for kind, outcomes in found.items()}
    for kind, row in record.items():
        print(f"{kind:16}", row)
    if options.output:
        setup = {name: getattr(options, name) for name in ("cases", "failures", "seed")}
        text = json.dumps({**machine.describe("cpu"), **setup, "kinds": record}, indent=1)
        options.output.write_text(text + "\n")
    return int(any("wrong" in row for row in record.values()))


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """How often each end came, and the most time and memory."""
    counts = Counter(o.said if o.said in GOOD else "wrong" for o in outcomes)
    most = max(o.seconds for o in outcomes), max(o.bytes for o in outcomes)
    return {
        **dict(sorted(counts.items())),
        "seconds at most": round(most[0], 1),
        "GB at most": round(most[1] / 1e9, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
