"""Folders of clips to folders of reconstructions: what `fasttracks batch` does.

A clip goes through four stages, and what is known of it is a row, a dict:

    find (`inputs`) ──▶ decode and track ──▶ reconstruct ──▶ write ──▶ a line of the index (`index`)

`stages` has them; `local` runs them in processes of this machine, `cluster` in a pipeline of Ray
Data. On GPUs, processes without one track and write, and one process a GPU reconstructs clips of
equal shape together. Without a GPU each process takes a clip through all stages, one process a
core, so that no core waits for another. Frames never leave the process that decoded them.

What holds whatever is killed, and wherever: a reconstruction has its name only when it is whole; a
clip counts as done only by its line in the index, which is written after that; what has no line is
done again.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasttracks.batch.stages import Reconstructor

__all__ = ["Reconstructor"]


def __getattr__(name: str) -> Any:
    if name != "Reconstructor":
        raise AttributeError(f"module 'fasttracks.batch' has no attribute {name!r}")
    from fasttracks.batch.stages import Reconstructor

    return Reconstructor
