"""Rows through all stages in processes of this machine."""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count, cycle
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from fasttracks.batch.index import Row
from fasttracks.batch.settings import Settings
from fasttracks.batch.stages import ended
from fasttracks.errors import InputError
from fasttracks.files import scratch_folder

_AT_ONCE = 64  # clips of one shape on a GPU
_POSITIONS_AT_ONCE = 2**20  # of their tracks
_BATCHES = 4  # that are on their way, for each GPU
_TRIES = 2  # of a clip whose process dies
_STARTS = 4  # of processes that die before they are ready, one after the other
_TASKS = {"all": ("all",), "tracker": ("write", "track"), "gpu": ("reconstruct",)}  # by role


class _Task(NamedTuple):
    name: str  # of the method of `worker._Worker`
    rows: list[Row]


class _Process:
    """A worker's process, as its parent sees it."""

    def __init__(self, settings: Settings, device: str, role: str, folder: str, slots: int) -> None:
        self.device, self.role, self.slots = device, role, slots
        self.tasks: dict[int, _Task] = {}
        self.ready = False
        self.connection, theirs = Pipe()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from fasttracks.batch.worker import main; main({theirs.fileno()})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's to handle
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        threads = slots if role == "gpu" else 1
        with suppress(OSError):  # it died: that will be seen where it is waited for
            self.connection.send((settings, device, role, folder, threads))

    def give(self, number: int, task: _Task) -> None:
        """Have it do a task, whose number comes back with what it made."""
        self.tasks[number] = task
        with suppress(OSError):
            self.connection.send((number, *task))

    def kill(self) -> int:
        """End it, if it goes on; its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class _Run:
    """Hands tasks to processes, and knows where each clip is.

    No more clips are on their way than keep the processes busy, however many there are.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        settings: Settings,
        gpus: Sequence[str],
        workers: int,
        folder: str,
    ) -> None:
        self.settings, self.folder = settings, folder
        self.found = enumerate(rows)
        self.tracked: dict[tuple[int, ...], deque[Row]] = defaultdict(deque)  # by shape
        self.reconstructed: deque[Row] = deque()
        self.finished: deque[Row] = deque()
        self.again: dict[str, deque[Row]] = defaultdict(deque)  # by task, whose process died
        self.on_their_way = 0
        self.most = 4 * workers + _BATCHES * _AT_ONCE * len(gpus)
        self.numbers = count()
        self.failed_starts = 0
        self.processes: list[_Process] = []
        for _, place in zip(range(workers), cycle(gpus or ["cpu"]), strict=False):
            self._start(place, "tracker" if gpus else "all", 2 if gpus else 1)
        for gpu in gpus:
            self._start(gpu, "gpu", 2)

    def rows(self) -> Iterator[Row]:
        """Rows at their end, as they come."""
        while True:
            for process in self.processes:
                while len(process.tasks) < process.slots and (task := self._next(process.role)):
                    process.give(next(self.numbers), task)
            if not self.on_their_way:
                return
            by_connection: dict[Any, _Process] = {p.connection: p for p in self.processes}
            for connection in wait(list(by_connection)):
                self._receive(by_connection[connection])
            while self.finished:
                self.on_their_way -= 1
                yield self.finished.popleft()

    def end(self) -> None:
        """Whatever the processes are at."""
        for process in self.processes:
            process.kill()

    def _start(self, device: str, role: str, slots: int) -> None:
        self.processes.append(_Process(self.settings, device, role, self.folder, slots))

    def _next(self, role: str) -> _Task | None:
        for name in _TASKS[role]:
            again = self.again[name]
            rows = [again.popleft()] if again else self._fresh(name)
            if rows:
                return _Task(name, rows)
        return None

    def _fresh(self, task: str) -> list[Row]:
        """Rows that are waiting for a task; for a GPU as many as there are of one shape."""
        if task == "reconstruct":
            shape = max(self.tracked, key=lambda shape: len(self.tracked[shape]), default=(0, 0))
            most = min(_AT_ONCE, max(1, _POSITIONS_AT_ONCE // max(1, shape[0] * shape[1])))
            waiting = self.tracked.pop(shape, deque())
            rows = [waiting.popleft() for _ in range(min(most, len(waiting)))]
            if waiting:
                self.tracked[shape] = waiting
            return rows
        if task == "write":
            return [self.reconstructed.popleft()] if self.reconstructed else []
        if self.on_their_way >= self.most:
            return []
        for number, row in self.found:
            self.on_their_way += 1
            return [{**row, "number": number}]
        return []

    def _receive(self, process: _Process) -> None:
        try:
            number, rows = process.connection.recv()
        except (EOFError, OSError):
            return self._replace(process)
        if number == "unfit":
            raise InputError(rows)
        if number == "ready":
            process.ready, self.failed_starts = True, 0
            return
        task = process.tasks.pop(number)
        for row in task.rows:
            for column in ("tracks", "reconstruction"):
                if column in row:
                    os.unlink(row[column])
        for row in rows:
            if "status" in row:
                self.finished.append(row)
            elif task.name == "track":
                self.tracked[row["shape"]].append(row)
            else:
                self.reconstructed.append(row)

    def _replace(self, process: _Process) -> None:
        """Start another process for one that died; its clips are tried again, each on its own."""
        self.processes.remove(process)
        status = process.kill()
        self.failed_starts += not process.ready
        if self.failed_starts >= _STARTS:
            raise InputError(
                f"batch: {_STARTS} processes ended before they were ready, the last with status "
                f"{status}; is there enough memory? --workers takes fewer"
            )
        self._start(process.device, process.role, process.slots)
        for task in process.tasks.values():
            for row in task.rows:
                row["tries"] = row.get("tries", 0) + 1
                if row["tries"] < _TRIES:
                    self.again[task.name].append(row)
                else:
                    error = (
                        f"worker died: {_TRIES} processes ended during '{task.name}', the last "
                        f"with status {status}; -9 is often for want of memory"
                    )
                    self.finished.append(ended({**row, "status": "failed", "error": error}))


def run(
    rows: Iterable[Row], settings: Settings, gpus: Sequence[str], workers: int
) -> Generator[Row, None, None]:
    """Rows of clips, which have a path and a name, at their end, in the order in which they come.

    Args:
        rows: taken as they are needed.
        settings: what is to be done.
        gpus: as "cuda:1"; none: all is done on the CPU.
        workers: processes that track and write, and without GPUs also reconstruct, a thread each.

    Raises:
        InputError: the model or an option is at fault, or no process can be started.
    """
    with ExitStack() as stack:
        folder = ""
        if gpus:
            temporary = scratch_folder(Path(tempfile.gettempdir()))
            folder = str(stack.enter_context(temporary))
        made = _Run(rows, settings, gpus, workers, folder)
        stack.callback(made.end)
        yield from made.rows()
