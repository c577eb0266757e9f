"""`fasttracks batch` as a whole: `python benchmarks/folders.py PART -o FILE`. Parts:

clips   300 short clips, 20 of them bad in ten ways, on this machine's cores: wall time beside the
        seconds of all stages, memory of all processes, each result beside `reconstruct`'s.
kills   what is left, and what comes of starting again, where the parent or a worker is killed, the
        disk is full or Ctrl-C is pressed, at random moments. The full disk is a small tmpfs: root.
many    20,000 track files: time until the first is begun, and memory while they are done.
gpus    track files of 256 × 50 on one GPU and on all: clips a second, and how busy each GPU is.

The videos are cat.mp4, bear.mp4 and sheep.mp4 of --data; without, the shipped sheep.mp4 thrice.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from folder_clips import generated, many_copies, short_clips

import fasttracks
from fasttracks.batch.index import TIMES, Index, read
from fasttracks.batch.inputs import find
from fasttracks.performance.sample import CLIP
from fasttracks.reconstruction import Reconstruction
from fasttracks.trackers import configured
from fasttracks.tracks import Tracks

GRID = 10  # tracks along a side, in videos


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("clips", "kills", "many", "gpus"))
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--data", metavar="FOLDER", help="with the videos, mocap_cmu.npz, ...")
    parser.add_argument("--count", type=int, help="of good clips; 280, 16, 20,000 or 5,000")
    parser.add_argument("--moments", type=int, default=20, help="of kills")
    parser.add_argument("--seconds", type=float, default=90.0, help="that many are done for")
    parser.add_argument("--folder", metavar="FOLDER", help="for clips and results, while it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # A shell that runs this in the background ignores Ctrl-C, as all that it starts would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        part: Callable[[Path, argparse.Namespace], dict[str, Any]] = globals()[options.part]
        found = part(Path(folder), options)
    record = {**machine.describe("cuda" if options.part == "gpus" else "cpu"), **found}
    Path(options.output).write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def clips(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """300 short clips on all cores."""
    short_clips(folder / "in", videos(options.data), options.data, options.count or 280)
    arguments = ["--grid", str(GRID), "--device", "cpu"]
    with watched([folder / "in", folder / "out", *arguments]) as run:
        assert run.process.wait() == 0
    rows = list(read(folder / "out").values())
    good = [row for row in rows if row["status"] == "done"]
    bad = [row for row in rows if row["status"] == "failed"]
    stages = {
        name: sum(row[name] or 0 for row in rows) for name in TIMES if name.startswith("seconds_")
    }
    cores = len(os.sched_getaffinity(0))
    network = fasttracks.load("base", device="cpu")
    different = [row["name"] for row in good if not is_same(row, folder / "out", network)]
    return {
        "clips": len(rows),
        "cores": cores,
        "wall seconds": run.seconds,
        "seconds of stages": stages,
        "wall / (seconds of stages / cores)": run.seconds / (sum(stages.values()) / cores),
        "CPU seconds of all processes": run.cpu,
        "load at the end": os.getloadavg()[0],
        "peak memory of all processes, GB": max(run.memory) / 1e9,
        "unlike reconstruct": different,
        "errors": {row["name"]: row["error"].replace(str(folder), "") for row in bad},
    }


def is_same(row: dict[str, Any], output: Path, network: fasttracks.TracksTo4D) -> bool:
    """Whether a clip's result is, bit for bit, what `track` and `reconstruct` make of it here."""
    path = row["path"]
    if path.endswith(".npz"):
        tracks = Tracks.load(path)
    else:
        from fasttracks.trackers import read_whole, to_tracks

        tracks = to_tracks(read_whole(path, max_size=1024), configured("klt", grid=GRID))
    expected = fasttracks.reconstruct(tracks, model=network, refine="bundle")
    found = Reconstruction.load(output / f"{row['name']}.npz")
    return all(
        np.array_equal(getattr(found, name), value, equal_nan=isinstance(value, np.ndarray))
        if isinstance(value, np.ndarray)
        else getattr(found, name) == value
        for name, value in vars(expected).items()
    )


def kills(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Twenty random moments: the state then, and after starting again."""
    count = options.count or 16
    short_clips(folder / "in", videos(options.data), options.data, count)
    arguments = [folder / "in", folder / "out", "--grid", str(GRID), "--device", "cpu"]
    arguments += ["--refine", "none", "--export", "ply,colmap"]  # quick, and many files
    with watched(arguments) as whole:
        assert whole.process.wait() == 0
    expected = files_in(folder / "out")
    size = sum(map(len, expected.values()))
    rng = random.Random(0)
    ways = ["parent", "worker", "ctrl-c", *(["full disk"] if os.geteuid() == 0 else [])]
    moments = []
    for i in range(options.moments):
        shutil.rmtree(folder / "out", ignore_errors=True)
        way, share = ways[i % len(ways)], rng.uniform(0, 0.9)
        with small_disk(folder / "out", int(size * share) if way == "full disk" else None) as room:
            run = start(arguments)
            if way != "full disk":
                wait_for(folder / "out/index.jsonl", int(share * (count + 20)), run)
                time.sleep(rng.uniform(0, 4 * whole.seconds / (count + 20)))
            if way == "parent":
                run.kill()
            elif way == "ctrl-c":
                os.killpg(run.pid, signal.SIGINT)
            elif way == "worker" and (workers := children(run.pid)):
                os.kill(rng.choice(workers), signal.SIGKILL)
            status = run.wait()
            half = [name for name in files_in(folder / "out") if not is_whole(folder / "out", name)]
            done = sum(row["status"] == "done" for row in read(folder / "out").values())
            room()
            again = start(arguments).wait()
            lines = (folder / "out/index.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            found = files_in(folder / "out")
            moments.append(
                {
                    "way": way,
                    "share of the run": round(share, 3),
                    "status": status,
                    "done then": done,
                    "half written": half,
                    "status of the second run": again,
                    "rows": len(rows),
                    "clips with a row": len({row["path"] for row in rows}),
                    "done": sum(row["status"] == "done" for row in rows),
                    "same files": found == expected,
                }
            )
            print(moments[-1], flush=True)
    right: dict[str, Any] = {"rows": count + 20, "clips with a row": count + 20, "done": count,
             "half written": [], "same files": True, "status of the second run": 0}  # fmt: skip
    wrong = [m for m in moments if any(m[name] != value for name, value in right.items())]
    return {"clips": count + 20, "moments": moments, "wrong": wrong}


def many(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """How soon 20,000 are begun, and whether memory grows while they are done."""
    count = options.count or 20_000
    many_copies(folder / "in", generated(8, 8, 16, options.data), count, 2)
    arguments = [folder / "in", folder / "out", "--device", "cpu", "--refine", "none"]
    with watched(arguments) as run:
        index = folder / "out/index.jsonl"
        begun = time.perf_counter()
        while not (index.exists() and index.stat().st_size):
            time.sleep(0.01)
        first = time.perf_counter() - begun
        pid = run.process.pid
        cpu = sum(cpu_of(process) for process in (pid, *children(pid)))
        time.sleep(options.seconds)
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.process.wait() == 130
    done = read(folder / "out")
    parent = run.parent
    quarter, last = len(parent) // 4, len(parent) // 20
    # How soon is it known that all are done?
    with Index(folder / "out") as rows:
        example = next(row for row in done.values() if row["status"] == "done")
        from fasttracks.batch.settings import Settings
        from fasttracks.weights import SHIPPED

        settings = Settings("", "", str(SHIPPED["base"]), refine="none")
        for clip in find(str(folder / "in"), folder / "out"):
            finished = {"fingerprint": settings.fingerprint(clip.path), "finished": time.time()}
            rows.add({**example, **clip._asdict(), **finished})
            (folder / "out" / f"{clip.name}.npz").touch()
    begun = time.perf_counter()
    assert start(arguments).wait() == 0
    return {
        "clips": count,
        "seconds until the first row": first,
        "CPU seconds of all processes until then": cpu,
        "load at the end": os.getloadavg()[0],
        "rows": len(done),
        "seconds": run.seconds,
        "parent's memory after a quarter, GB": float(np.mean(parent[quarter : quarter + last]))
        / 1e9,
        "parent's memory at the end, GB": float(np.mean(parent[-last:])) / 1e9,
        "peak memory of all processes, GB": max(run.memory) / 1e9,
        "seconds of a run where all are done": time.perf_counter() - begun,
    }


def gpus(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Track files of 256 × 50 on one GPU and on all."""
    count = options.count or 5_000
    begun = time.perf_counter()
    many_copies(
        folder / "in", generated(16, 50, 256, options.data, "cuda"), count, os.cpu_count() or 1
    )
    many_copies(folder / "few", generated(4, 50, 256, options.data, "cuda"), 128, 4)
    print(f"made in {time.perf_counter() - begun:.0f} s", flush=True)
    with watched([folder / "few", folder / "warm"]) as run:  # kernels are compiled
        assert run.process.wait() == 0
    found: dict[str, Any] = {"clips": count, "cores": len(os.sched_getaffinity(0))}
    for name, device in (("one GPU", "cuda:0"), (f"{torch.cuda.device_count()} GPUs", "cuda")):
        output = folder / device.replace(":", "")
        with watched([folder / "in", output, "--device", device]) as run, busy_gpus() as busy:
            assert run.process.wait() == 0
        rows = list(read(output).values())
        assert len(rows) == count
        times = np.sort([row["finished"] for row in rows])
        begin, end = times[0], times[-1]
        found[name] = {
            "failed": sum(row["status"] != "done" for row in rows),
            "seconds in all": run.seconds,
            "clips a second, from the first finished to the last": float(
                (count - 1) / (end - begin)
            ),
            "share of that time in which each GPU was busy, by nvidia-smi": {
                gpu: float(np.mean([share for at, share in seen if begin < at < end]))
                for gpu, seen in busy.items()
            },
            "milliseconds of a clip by stage": {
                stage: 1e3 * float(np.mean([row[stage] or 0 for row in rows]))
                for stage in TIMES
                if stage.startswith("seconds_")
            },
            "median reprojection error, pixels": float(
                np.median([row["reprojection_error_median"] for row in rows])
            ),
            "peak memory of all processes, GB": max(run.memory) / 1e9,
        }
        shutil.rmtree(output)
        print(found[name], flush=True)
    rates = [
        value["clips a second, from the first finished to the last"]
        for value in found.values()
        if isinstance(value, dict)
    ]
    return {**found, "times as fast": rates[1] / rates[0]}


def videos(data: str | None) -> list[Path]:
    """Three, of which clips are cut."""
    if data is None:
        return [CLIP.with_suffix(".mp4")] * 3
    return [Path(data, f"{name}.mp4") for name in ("cat", "bear", "sheep")]


class Watched:
    """A run of `fasttracks batch`, and once it is over what it took."""

    def __init__(self, arguments: list[Any]) -> None:
        self.process = start(arguments)
        self.memory: list[int] = []  # bytes of all processes, what they share counted once
        self.parent: list[int] = []
        self.seconds = self.cpu = 0.0


@contextmanager
def watched(arguments: list[Any]) -> Iterator[Watched]:
    """Measure a run, which is to be over when this is."""
    before, begin = os.times(), time.perf_counter()
    run = Watched(arguments)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            parts = [memory_of(pid) for pid in (run.process.pid, *children(run.process.pid))]
            if parts[0]:
                run.memory.append(sum(parts))
                run.parent.append(parts[0])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield run
    finally:
        run.process.wait()
        run.seconds = time.perf_counter() - begin
        over.set()
        thread.join()
        after = os.times()
        run.cpu = sum(after[2:4]) - sum(before[2:4])


def wait_for(index: Path, rows: int, run: subprocess.Popen[bytes]) -> None:
    """Until an index has so many rows, or the run is over."""
    while run.poll() is None:
        if index.exists() and index.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.002)


def start(arguments: list[Any]) -> subprocess.Popen[bytes]:
    """`fasttracks batch` in a group of processes of its own."""
    command = [sys.executable, "-m", "fasttracks", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def memory_of(pid: int) -> int:
    """Bytes of a process; of pages that several share, its part (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def cpu_of(pid: int) -> float:
    """Seconds that a process has had a core for."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def files_in(folder: Path) -> dict[str, bytes]:
    """All files by name, hidden ones included, but for the index."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("index.") and ".unfinished" not in str(path)
    }


def is_whole(folder: Path, name: str) -> bool:
    """Whether a file of results can be read; of others nothing is said."""
    if not name.endswith(".npz"):
        return True
    try:
        Reconstruction.load(folder / name)
    except fasttracks.InputError:
        return False
    return True


@contextmanager
def small_disk(folder: Path, room: int | None) -> Iterator[Callable[[], Any]]:
    """A folder on a disk of so many bytes, if any; what is yielded enlarges it."""
    if room is None:
        yield lambda: None
        return
    folder.mkdir()
    size = f"size={max(room, 1 << 16)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        larger = ["mount", "-o", "remount,size=1g", str(folder)]
        yield lambda: subprocess.run(larger, check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def busy_gpus() -> Iterator[dict[str, list[tuple[float, float]]]]:
    """By GPU, times and shares of the time before in which a kernel ran, as nvidia-smi tells."""
    command = ["nvidia-smi", "--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits"]
    found: dict[str, list[tuple[float, float]]] = {}
    smi = subprocess.Popen([*command, "-lms", "200"], stdout=subprocess.PIPE, text=True)

    def look() -> None:
        assert smi.stdout
        for line in smi.stdout:
            gpu, percent = line.split(",")
            found.setdefault(f"cuda:{gpu}", []).append((time.time(), float(percent) / 100))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        smi.terminate()
        thread.join()


if __name__ == "__main__":
    main()
