"""A process that takes rows through stages, one task after the other, for `local`.

It ends when its parent does: the connection to it ends then.
"""

import os
import pickle
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fasttracks.batch.index import Row
from fasttracks.batch.settings import Settings
from fasttracks.batch.stages import Reconstructor, ended, track, use_one_thread, write
from fasttracks.errors import InputError


class _Worker:
    """What the tasks are; each takes rows and returns them."""

    def __init__(self, settings: Settings, device: str, role: str, folder: str) -> None:
        self.settings, self.device, self.folder = settings, device, Path(folder)
        # One thread asks a GPU for everything, as its own device: what is made on no device in
        # particular would take memory of the first GPU.
        self._one = ThreadPoolExecutor(1, initializer=partial(_use, device))
        _use(device if role == "gpu" else "cpu")
        if role != "tracker":
            where = "cpu" if role == "all" else device
            self.reconstructor = Reconstructor(
                settings.model, where, settings.precision, settings.refine
            )

    def all(self, rows: list[Row]) -> list[Row]:
        """A clip through all stages."""
        rows = self.reconstructor.reconstruct([self._tracked(row) for row in rows])
        return [write(row, self.settings) for row in rows]

    def track(self, rows: list[Row]) -> list[Row]:
        """The first stage; the row has the tracks' shape, too."""
        rows = [self._tracked(row) for row in rows]
        for row in rows:
            if "tracks" in row:
                row["shape"] = row["tracks"].visibility.shape
        return [self._put(row, "tracks") for row in rows]

    def reconstruct(self, rows: list[Row]) -> list[Row]:
        """The second stage; while one batch has the GPU, another is read or written."""
        rows = [self._taken(row, "tracks") for row in rows]
        rows = self._one.submit(self.reconstructor.reconstruct, rows).result()
        if any("status" in row for row in rows) and self.device != "cpu":
            _leave_a_broken_gpu(self.device)
        return [self._put(row, "reconstruction") for row in rows]

    def write(self, rows: list[Row]) -> list[Row]:
        """The third stage."""
        return [write(self._taken(row, "reconstruction"), self.settings) for row in rows]

    def _tracked(self, row: Row) -> Row:
        row = track(row, self.settings, self.device)
        return ended(row) if "status" in row else row

    def _put(self, row: Row, column: str) -> Row:
        """A row with the name of a file in place of what goes to another process."""
        if "status" in row:
            return ended(row)
        file = self.folder / f"{row['number']}-{column}"
        try:
            with open(file, "wb") as opened:
                pickle.dump(row[column], opened, protocol=5)
        except OSError as error:
            del row[column]
            return ended({**row, "status": "stopped", "error": f"temporary folder: {error}"})
        return {**row, column: str(file)}

    def _taken(self, row: Row, column: str) -> Row:
        with open(row[column], "rb") as opened:
            return {**row, column: pickle.load(opened)}


def _use(device: str) -> None:
    if device != "cpu":
        torch.cuda.set_device(device)


def _leave_a_broken_gpu(device: str) -> None:
    """End where CUDA refuses all further work; the clips are tried again in another process."""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        os._exit(1)


def main(handle: int) -> None:
    """Serve the connection of this number: of (task's number, its name, rows), (number, rows)."""
    connection = Connection(handle)
    settings, device, role, folder, threads = connection.recv()
    use_one_thread()
    sending = threading.Lock()

    def send(message: Any) -> None:
        try:
            with sending:
                connection.send(message)
        except OSError:  # the parent is dead
            os._exit(1)

    try:
        worker = _Worker(settings, device, role, folder)
    except InputError as error:
        send(("unfit", str(error)))
        return
    send(("ready", None))

    def serve(number: int, task: str, rows: list[Row]) -> None:
        try:
            send((number, getattr(worker, task)(rows)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    with ThreadPoolExecutor(threads) as pool:
        while True:
            try:
                task = connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            pool.submit(serve, *task)
