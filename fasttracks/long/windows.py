"""Windows of a long clip, as the network sees them, one after the other."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import Prediction
from fasttracks.inputs import hold

LENGTH, HOP = 50, 25  # frames of a window, and from one to the next
LEAST_SEEN = 2  # frames of a window that a track is seen in to be shown to the network

Network = Callable[[Tensor], Prediction]


class Window(NamedTuple):
    """Some frames, the tracks seen in them, and what is predicted from those."""

    frames: slice  # L of the clip's
    which: Tensor  # (n,) int64 of the clip's tracks; some twice, where sizes must be equal
    prediction: Prediction  # of one clip, B = 1, L frames and n tracks


def spans(frames: int, length: int = LENGTH, hop: int = HOP) -> list[slice]:
    """Windows that cover a clip; the last one begins where it still has its length."""
    last = max(frames - length, 0)
    return [slice(i, min(i + length, frames)) for i in [*range(0, last, hop), last]]


def seen_often(visibility: Tensor) -> Tensor:
    """Numbers (n,) of the tracks that a window's visibility (L, N) tells enough of.

    Where there is none, those few that are seen most: the network needs something to look at.
    """
    count = (visibility > 0).sum(0)
    often = torch.nonzero(count >= LEAST_SEEN)[:, 0]
    return often if len(often) else count.topk(min(8, len(count))).indices.sort().values


def look(predict: Network, tracks: Tensor, size: int | None = None) -> list[Window]:
    """Predictions for the windows of a clip's tracks (T, N, 3).

    size: give each window as many tracks as the largest has, by taking some twice, in steps of
    `size`: shapes that a GPU has no graph of yet cost seconds.
    """
    found = []
    parts = spans(len(tracks))
    chosen = [seen_often(tracks[part, :, 2]) for part in parts]
    if size is not None:
        most = -(-max(map(len, chosen)) // size) * size
        chosen = [which[torch.arange(most, device=which.device) % len(which)] for which in chosen]
    for part, which in zip(parts, chosen, strict=True):
        inputs = hold(tracks[part][:, which])
        found.append(Window(part, which, predict(inputs[None])))
    return found
