"""`fasttracks batch`: a folder of clips to a folder of reconstructions."""

import argparse
import math
import os
import shutil
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from fasttracks.batch import index
from fasttracks.batch.index import Index, Row
from fasttracks.batch.inputs import find, in_shard
from fasttracks.batch.settings import Settings
from fasttracks.cli.console import check_writable, claim, say
from fasttracks.cli.reconstruct import check_focal, set_video_options, tracker_of
from fasttracks.errors import InputError
from fasttracks.export import FORMATS, check_folder
from fasttracks.files import existing_file
from fasttracks.video import check_count
from fasttracks.weights import find as find_weights
from fasttracks.weights import resolve_device

_STAGES = ("decode", "track", "reconstruct", "write")
_TRACKERS_A_GPU = 2


def batch(options: argparse.Namespace) -> None:
    """Reconstruct each clip that has not been, or make one index of several."""
    if options.merge:
        folder = check_folder(options.input, "INPUT")
        count = index.merge(folder)
        return say(f"wrote {folder / 'index.jsonl'}, {count} clips")
    output, shard = _output(options), _shard(options.shard)
    unfinished = output / f".unfinished-{index.name(shard)}"
    settings, gpus = _settings(options, unfinished), _gpus(options.device)
    clips = find(options.input, output)
    clips = [clip for clip in clips if shard is None or in_shard(clip, shard)]
    claim(output / index.name(shard))
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    with Index(output, shard) as rows:
        known = index.read(output) if options.resume else {}
        todo = []
        for clip in clips:
            row = {**clip._asdict(), "fingerprint": settings.fingerprint(clip.path)}
            if not _is_done(known.get(clip.path, {}), row, output):
                todo.append(row)
        say(f"{len(clips)} clips, {len(clips) - len(todo)} of which are done")
        try:
            failed = _run(todo, rows, settings, options, gpus) if todo else 0
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        rows.finish()
    say(f"wrote {len(todo) - failed} reconstructions and {rows.path}; {failed} clips failed")
    if failed and options.strict:
        raise InputError(f"--strict: {failed} of {len(clips)} clips failed; {rows.path} says why")


def _run(
    todo: list[Row],
    rows: Index,
    settings: Settings,
    options: argparse.Namespace,
    gpus: list[str],
) -> int:
    """Add a row of each clip to the index; how many failed."""
    # A tracker that is a network is on the GPUs too, and some keep one busy.
    usual = _TRACKERS_A_GPU * len(gpus) if gpus and options.tracker != "klt" else _cores()
    workers = options.workers or usual
    if options.ray is None:
        from fasttracks.batch import local

        finished: Generator[Row, None, None] = local.run(
            todo, settings, gpus, min(workers, len(todo))
        )
    else:
        from fasttracks.batch import cluster

        finished = cluster.run(todo, settings, options.ray, options.gpu_share)
    failed = 0
    with closing(finished), _Bar(len(todo), workers, len(gpus)) as bar:
        for row in finished:
            if row["status"] == "stopped":
                raise InputError(
                    f"output: {row['error']}; the same command goes on where it stopped once that "
                    "is mended"
                )
            rows.add(row)
            failed += row["status"] == "failed"
            bar.show(row, failed)
    return failed


class _Bar:
    """Shows on a terminal how many clips are done a second, and which stage the others wait for."""

    def __init__(self, total: int, workers: int, gpus: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc="batch", unit="clip", disable=None)
        self.workers, self.gpus = workers, gpus
        self.seconds = dict.fromkeys(_STAGES, 0.0)

    def show(self, row: Row, failed: int) -> None:
        """Take in a clip that is at its end."""
        for stage in _STAGES:
            self.seconds[stage] += row.get(f"seconds_{stage}") or 0.0
        self.bar.set_postfix(failed=failed, limit=self._limit(), refresh=False)
        self.bar.update()

    def _limit(self) -> str:
        """The stage that takes longest, of those whose processes have most to do."""
        stages = dict(self.seconds)
        if self.gpus:
            on_gpus = stages.pop("reconstruct") / self.gpus
            if on_gpus > sum(stages.values()) / self.workers:
                return "reconstruct"
        return max(stages, key=lambda stage: stages[stage])

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def _is_done(known: Row, row: Row, output: Path) -> bool:
    """Whether a clip's row in the index is of the same input, options, weights and version."""
    same = all(known.get(column) == row[column] for column in ("name", "fingerprint"))
    return same and known.get("status") == "done" and (output / f"{row['name']}.npz").is_file()


def _output(options: argparse.Namespace) -> Path:
    if options.output is None:
        raise InputError("OUTPUT: expected a folder to write to")
    output = check_folder(options.output, "OUTPUT")
    if not index.is_ours(output):
        raise InputError(
            f"OUTPUT: {output} has files and no index of 'batch'; expected a new or empty folder, "
            "or one that 'batch' wrote to"
        )
    check_writable(output / index.name(None))
    return output


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise InputError(f"--shard: expected i/n with i from 0 to n - 1, found {text}")
    return int(first), int(count)


def _settings(options: argparse.Namespace, unfinished: Path) -> Settings:
    """What the options ask for; InputError where one is at fault, before any clip is looked at."""
    set_video_options(options)
    tracker_of(options)
    for name in ("frames", "every", "max_size", "workers"):
        check_count(f"--{name.replace('_', '-')}", getattr(options, name))
    if not 0 <= options.start < math.inf:
        raise InputError(f"--start: expected seconds, 0 or more, found {options.start:g}")
    if not 0 < options.gpu_share <= 1:
        raise InputError(f"--gpu-share: expected more than 0, up to 1, found {options.gpu_share:g}")
    if options.focal is not None:
        check_focal(options.focal)
    export = tuple(dict.fromkeys(filter(None, (options.export or "").split(","))))
    for name in export:
        if name not in FORMATS:
            raise InputError(f"--export: expected some of {', '.join(FORMATS)}, found {name!r}")
    files = {"model": str(find_weights(options.model)), "checkpoint": options.checkpoint}
    files["mask"] = options.mask
    known = {name: file and os.path.abspath(file) for name, file in files.items()}
    existing_file(known["model"], "model", "a weights file")
    names = ("precision", "refine", "focal", "tracker", "grid", "start", "frames", "every",
             "max_size")  # fmt: skip
    values: dict[str, Any] = {name: getattr(options, name) for name in names}
    folders = {"output": os.path.abspath(options.output), "unfinished": os.path.abspath(unfinished)}
    return Settings(**folders, export=export, **known, **values)


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(device: str) -> list[str]:
    """All of them, unless one or the CPU is asked for."""
    found = resolve_device(device)
    if found.type == "cpu":
        return []
    if found.index is not None:
        return [str(found)]
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
