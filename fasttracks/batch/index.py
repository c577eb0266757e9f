"""The index of an output folder: a row a clip, in JSON lines and, where pyarrow is, in Parquet."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fasttracks.errors import InputError
from fasttracks.files import replacing

Row = dict[str, Any]

# A row's columns, by name: their kind in Parquet, and what they hold.
COLUMNS = {
    "path": ("string", "of the clip, absolute"),
    "name": ("string", "of its results, below the output folder, without a suffix"),
    "status": ("string", "done or failed"),
    "error": ("string", "why it failed, in a line"),
    "warning": ("string", "what was said of it"),
    "frames": ("int64", "that were reconstructed"),
    "tracks": ("int64", "that were followed through them"),
    "seen": ("float64", "share of their positions that were seen"),
    "moving": ("int64", "tracks that move on their own"),
    "reprojection_error_median": ("float64", "pixels"),
    "reprojection_error_90th_percentile": ("float64", "pixels"),
    "parallax_degrees": ("float64", "that views of a still point are spread over"),
    "refinement": ("string", "how it went"),
    "seconds_decode": ("float64", "or to read a track file"),
    "seconds_track": ("float64", ""),
    "seconds_reconstruct": ("float64", "a clip's share of those of a batch"),
    "seconds_write": ("float64", ""),
    "finished": ("float64", "seconds since 1970"),
    "device": ("string", "that reconstructed it"),
    "version": ("string", "of fasttracks"),
    "torch": ("string", "its version"),
    "fingerprint": ("string", "of the input's size and time, options, weights and version"),
}
# Of the same work done twice these differ.
TIMES = ("seconds_decode", "seconds_track", "seconds_reconstruct", "seconds_write", "finished")


class Index:
    """The index of one run, or of one shard, to which rows are added as clips are finished.

    A row is a line; of several lines of one clip the last finished counts. `finish` leaves one a
    clip.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] | None = None) -> None:
        self.path = folder / name(shard)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        _cut_torn_line(self.path)

    def add(self, row: Row) -> None:
        """Append a row; OSError, and nothing, where the disk is full."""
        line = json.dumps({column: row.get(column) for column in COLUMNS}).encode() + b"\n"
        end = self.path.stat().st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            os.truncate(self.path, end)
            raise

    def finish(self) -> None:
        """Sort the rows by path, one a clip, and write the same in Parquet."""
        self._file.close()
        _write(_latest(_read(self.path)), self.path)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def name(shard: tuple[int, int] | None) -> str:
    """An index's file, of the i-th of n shards if there are any."""
    return f"index-{shard[0]}-of-{shard[1]}.jsonl" if shard else "index.jsonl"


def read(folder: Path) -> dict[str, Row]:
    """The last row of each clip by its path, of all indexes in a folder."""
    files = _indexes(folder)
    return {row["path"]: row for row in _latest(row for file in files for row in _read(file))}


def merge(folder: Path) -> int:
    """Make one index of those of all shards, which stay; the number of its rows."""
    if not _indexes(folder):
        raise InputError(f"--merge: {folder} has no index; expected a folder that 'batch' wrote to")
    rows = list(read(folder).values())
    _write(rows, folder / "index.jsonl")
    return len(rows)


def is_ours(folder: Path) -> bool:
    """Whether results may be written to a folder: it is new, empty, or has an index already."""
    if not folder.is_dir():
        return not folder.exists()
    visible = any(not entry.name.startswith(".") for entry in os.scandir(folder))
    return not visible or bool(_indexes(folder))


def _indexes(folder: Path) -> list[Path]:
    return sorted([*folder.glob("index.jsonl"), *folder.glob("index-*-of-*.jsonl")])


def _read(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:  # torn, as by a power cut
                continue
            if isinstance(row, dict) and isinstance(row.get("path"), str):
                yield row


def _latest(rows: Iterable[Row]) -> list[Row]:
    """The last finished row of each clip, sorted by path."""
    found: dict[str, Row] = {}
    for row in rows:
        other = found.get(row["path"])
        if other is None or (row.get("finished") or 0) >= (other.get("finished") or 0):
            found[row["path"]] = row
    return [found[path] for path in sorted(found)]


def _write(rows: list[Row], path: Path) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="ascii") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return
    schema = pyarrow.schema([(column, kind) for column, (kind, _) in COLUMNS.items()])
    plain = [{column: _unicode(row.get(column)) for column in COLUMNS} for row in rows]
    with replacing(path.with_suffix(".parquet")) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(plain, schema), temporary)


def _unicode(value: Any) -> Any:
    """A file's name that is no text in UTF-8 has "?" in Parquet, which holds nothing else."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _cut_torn_line(path: Path) -> None:
    """Cut off what follows the last end of a line."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 65536)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                file.truncate(begin + newline + 1)
                return
            end = begin
        file.truncate(0)
