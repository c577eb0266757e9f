"""Rows through the same stages as a pipeline of Ray Data, on one machine or on many.

All machines see the inputs, the weights and the output folder under the same paths.
"""

import pickle
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

from fasttracks.batch.index import Row
from fasttracks.batch.settings import Settings
from fasttracks.batch.stages import Reconstructor, track, use_one_thread, write
from fasttracks.errors import InputError

_AT_ONCE = 16  # clips that an actor is given
_BLOCKS = 32  # for each core


def run(
    rows: Sequence[Row], settings: Settings, address: str, gpu_share: float
) -> Generator[Row, None, None]:
    """Rows of clips at their end, as `local.run` yields them.

    Args:
        rows: of clips, which have a path and a name.
        settings: what is to be done.
        address: of a cluster as `ray.init` takes it: "auto", the one that runs here; "local", one
            that is started for this and ended.
        gpu_share: of a GPU, that each of the actors takes that reconstruct. Where no machine has
            one, they take a CPU each.

    Raises:
        InputError: Ray is not installed, or has no cluster there.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--ray: needs Ray: pip install 'fasttracks4d[ray]'") from None
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError) as error:
            raise InputError(f"--ray: no cluster at {address} ({error})") from None
    try:
        cores, gpus = (ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU"))
        actors = int(gpus / gpu_share) or max(1, int(cores) - 1)  # a core is for the other stages
        needs: dict[str, Any] = {"num_gpus": gpu_share} if gpus else {"num_cpus": 1}
        ray.data.DataContext.get_current().enable_progress_bars = False
        blocks = min(len(rows), _BLOCKS * int(cores))
        data = ray.data.from_items([_packed(row) for row in rows], override_num_blocks=blocks)
        data = data.map(partial(_track, settings=settings), num_cpus=1)
        data = data.map_batches(
            _Reconstruct,
            fn_constructor_args=(settings, "cuda" if gpus else "cpu"),
            batch_format="numpy",
            batch_size=_AT_ONCE if gpus else 1,
            concurrency=(1, actors),
            **needs,
        )
        data = data.map(partial(_write, settings=settings), num_cpus=1)
        for packed in data.iter_rows():
            yield _unpacked(packed)
    finally:
        if begun:
            ray.shutdown()


# Between the stages a row is one column of bytes, so that no block of rows has types of its own.


def _packed(row: Row) -> dict[str, bytes]:
    return {"row": pickle.dumps(row, protocol=5)}


def _unpacked(packed: dict[str, Any]) -> Row:
    row: Row = pickle.loads(packed["row"])
    return row


def _track(packed: dict[str, Any], settings: Settings) -> dict[str, bytes]:
    use_one_thread()
    return _packed(track(_unpacked(packed), settings))


def _write(packed: dict[str, Any], settings: Settings) -> dict[str, bytes]:
    use_one_thread()
    return _packed(write(_unpacked(packed), settings))


class _Reconstruct:
    """The actor's."""

    def __init__(self, settings: Settings, device: str) -> None:
        use_one_thread()
        self.reconstructor = Reconstructor(
            settings.model, device, settings.precision, settings.refine
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        rows = self.reconstructor.reconstruct([pickle.loads(row) for row in batch["row"]])
        return {"row": [_packed(row)["row"] for row in rows]}
