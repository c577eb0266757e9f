"""Reading checkpoints from anywhere: tensors by name, and nothing else."""

import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from fasttracks.errors import InputError
from fasttracks.files import existing_file

# Of unpickling, far beyond any checkpoint of use: a released TracksTo4D one takes some 5,000.
_MOST_STEPS = 200_000


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt file by name, read as plain tensors and values, never as code.

    It is a state dict, or has one as 'model_state_dict'.

    Raises:
        InputError: it is anything else, or holds what could be code or is beyond any use.
    """
    existing_file(path, "checkpoint", "a .pt file")
    checkpoint = read_plain(path)
    # A bare state dict, or one saved from DataParallel, is as good.
    state = checkpoint.get("model_state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(map(_is_plain, state.items())):
        raise InputError(
            f"checkpoint: {path} has no 'model_state_dict' of tensors, as a released TracksTo4D "
            "checkpoint does"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def read_plain(path: Path, largest: int = 2**30) -> Any:
    """What a torch file holds, read as plain tensors and values; the numbers may stay on disk.

    Raises:
        InputError: it is damaged, holds what could be code, or more than `largest` bytes.
    """
    try:
        _check_size(path, largest)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles; what matters is said below
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:
        raise InputError(
            f"checkpoint: {path} is not a torch file of tensors and plain values; anything else "
            "could run code when read and is refused"
        ) from None
    except Exception as error:  # a damaged file makes torch raise whatever there is
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"checkpoint: {path} is not a whole torch file ({first})") from None


def _is_plain(item: tuple[Any, Any]) -> bool:
    name, value = item
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_quantized)
    )


def _check_size(path: Path, largest: int) -> None:
    """ValueError where unpickling would build far more than tensors and their names."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # by which torch tells its formats apart, too
            file.seek(0)
            for _ in range(5):  # two numbers, the system, the checkpoint, its storages
                _check_pickle(file)
            return
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > largest:
                raise ValueError(f"more than {largest / 1e9:.0f} GB")
            for member in archive.infolist():
                if member.filename.endswith(".pkl"):
                    with archive.open(member) as stream:
                        _check_pickle(stream)


def _check_pickle(file: IO[bytes]) -> None:
    steps = pickletools.genops(file)
    for _ in range(_MOST_STEPS):
        try:
            _, argument, _ = next(steps)
        except (ValueError, StopIteration):  # torch says what is wrong with it, if anything is
            return
        if isinstance(argument, str) and argument.endswith("bytearray"):  # of any size
            raise ValueError("a bytearray")
    raise ValueError(f"a pickle of more than {_MOST_STEPS} steps")
