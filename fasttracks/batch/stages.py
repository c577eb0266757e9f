"""The stages that a clip goes through, each from rows to rows; they run in any process.

A row has the columns of the index, as far as they are known, and between two stages one more:
`tracks` after the first, `reconstruction` after the second. A stage leaves a row alone that has a
`status`, for then it is at its end: "failed", or "stopped" where the disk is full, which is not the
clip's fault.
"""

import errno
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch

import fasttracks
from fasttracks.batch.index import Row
from fasttracks.batch.settings import Settings
from fasttracks.errors import InputError, printable
from fasttracks.export import FORMATS
from fasttracks.plausible import check
from fasttracks.reconstruction import Reconstruction
from fasttracks.summary import numbers
from fasttracks.track_files import is_track_file
from fasttracks.trackers import Tracker, configured, read_whole, to_tracks
from fasttracks.tracks import Tracks, focal_camera
from fasttracks.video import read_video

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NUMBERS = ("frames", "tracks", "seen", "moving", "reprojection_error_median",
            "reprojection_error_90th_percentile", "parallax_degrees", "refinement")  # fmt: skip


def use_one_thread() -> None:
    """In this process: several share the cores, and bits depend on the number of threads."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def track(row: Row, settings: Settings, device: str = "cpu") -> Row:
    """Decode a video and follow points through it, or read a track file: adds `tracks`."""
    row = dict(row)
    with _noted(row, "decode"):
        if is_track_file(row["path"]):
            row["tracks"] = Tracks.load(row["path"])
        else:
            video = read_whole(
                row["path"],
                start=settings.start,
                frames=settings.frames,
                every=settings.every,
                max_size=settings.max_size,
            )
            if settings.mask is not None:
                video = replace(video, content=None)  # which the mask's pixels don't know of
    if "status" in row:
        return row
    with _noted(row, "track"):
        tracks = row.pop("tracks", None)
        if tracks is None:
            tracks = to_tracks(video, _tracker(settings, device), every=settings.every)
        row["tracks"] = _looked_at(tracks, settings.focal)
    return row


class Reconstructor:
    """A model in memory that reconstructs batches of clips, for pipelines such as Ray Data's.

    `dataset.map_batches(Reconstructor, batch_format="numpy", ...)` gives each actor one.

    Args:
        model, device, precision, refine: as `fasttracks.reconstruct` takes them.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "base",
        device: str = "auto",
        precision: str = "auto",
        refine: str = "none",
    ) -> None:
        self.model = fasttracks.load(model, device=device, precision=precision)
        self.refine = refine
        place = self.model.points.weight.device
        self.device = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same columns and new ones; each is a sequence with a value for each clip.

        Args:
            batch: `tracks`, of `Tracks`; None where a clip failed earlier. Other columns, of
                whatever there is, are handed on.

        Returns:
            All columns but `tracks`, and `reconstruction`, a `Reconstruction` or None; `error`, why
            there is none, else None; `status`, "failed" where there is an error, else None;
            `seconds_reconstruct`, a clip's share of the time; `device`.
        """
        columns = {name: list(values) for name, values in batch.items()}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        rows = self.reconstruct(rows)
        added = ("reconstruction", "error", "status", "seconds_reconstruct", "device")
        names = [*(name for name in columns if name != "tracks"), *added]
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(names)}

    def reconstruct(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of clips as dicts in place of columns: `tracks` becomes `reconstruction`."""
        rows = [dict(row) for row in rows]
        clips = {
            i: row.pop("tracks") for i, row in enumerate(rows) if row.get("tracks") is not None
        }
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `track` has told them, clip by clip
            found = self._reconstructed(list(clips.values())) if clips else []
        seconds = (time.perf_counter() - start) / max(1, len(clips))
        for i, result in zip(clips, found, strict=True):
            rows[i].update(seconds_reconstruct=seconds, device=self.device)
            if isinstance(result, str):
                rows[i].update(status="failed", error=result)
            else:
                rows[i]["reconstruction"] = result
        return rows

    def _reconstructed(self, clips: Sequence[Tracks]) -> list[Any]:
        """A reconstruction of each clip, or what was wrong with it."""
        several: Any = list(clips)
        try:
            if len(several) > 1:
                return list(fasttracks.reconstruct(several, model=self.model, refine=self.refine))
            return [fasttracks.reconstruct(*several, model=self.model, refine=self.refine)]
        except Exception as error:
            if len(several) == 1:
                return [_line(error)]
        # One is at fault, or they are too large for the memory together.
        return [result for clip in clips for result in self._reconstructed([clip])]


def write(row: Row, settings: Settings) -> Row:
    """Write the reconstruction and its exports, whole or not at all; the row is then the index's.

    Its exports get their names first: where NAME.npz is new they are too.
    """
    row = dict(row)
    result = row.pop("reconstruction", None)
    if row.get("status"):
        return ended(row)
    with _noted(row, "write"), TemporaryDirectory(dir=settings.unfinished) as scratch:
        target = Path(settings.output, row["name"])
        target.parent.mkdir(parents=True, exist_ok=True)
        made = []
        for form in (FORMATS[name] for name in settings.export):
            frames = _frames(row["path"], result) if form.needs_video else ()
            made.append(Path(scratch, target.name + form.ending))
            getattr(result, form.method)(made[-1], *frames, **form.options)
        made.append(Path(scratch, f"{target.name}.npz"))
        result.save(made[-1])
        for file in made:
            _move(file, target.parent / file.name)
        known = numbers(result)
        row.update({name: known[name] for name in _NUMBERS}, status="done")
    return ended(row)


def ended(row: Row) -> Row:
    """A row at its end, with when that was and by what."""
    versions = {"version": fasttracks.__version__, "torch": torch.__version__}
    return {"finished": time.time(), **versions, **row}


@contextmanager
def _noted(row: Row, stage: str) -> Iterator[None]:
    """Note in a row how long a stage takes, what it warns of and what goes wrong in it."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in _FULL
            row.update(status="stopped" if full else "failed", error=_line(error))
    row[f"seconds_{stage}"] = time.perf_counter() - start
    said = dict.fromkeys(printable(str(warning.message)) for warning in caught)
    if said:
        row["warning"] = "; ".join(filter(None, [row.get("warning"), *said]))


def _line(error: Exception) -> str:
    """What went wrong, in a line."""
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return printable(text)


def _looked_at(tracks: Tracks, focal: float | None) -> Tracks:
    """A clip's tracks, with the camera of the focal length if that is given.

    What can't be reconstructed is found here, and its warnings come here, where they are of one
    clip.
    """
    if focal is None:
        tracks.camera()  # which warns of a guess
    else:
        tracks = replace(tracks, intrinsics=focal_camera(tracks, focal))
    check(tracks)
    return tracks


@lru_cache(maxsize=1)
def _tracker(settings: Settings, device: str) -> Tracker:
    return configured(
        settings.tracker,
        checkpoint=settings.checkpoint,
        device=device,
        grid=settings.grid,
        mask=settings.mask,
    )


def _frames(path: str, result: Reconstruction) -> list[np.ndarray]:
    if is_track_file(path):
        raise InputError("--export splat: expected a video, as it has the frames")
    return [read_video(path, times=result.times).frames]


def _move(made: Path, target: Path) -> None:
    """Give a file or a folder the name of another, which it replaces."""
    if made.is_dir() and target.is_dir():
        shutil.rmtree(target)
    os.replace(made, target)
