"""Windows of a long clip, as the network sees them, one after the other."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.geometry import Prediction
from fasttracks.inputs import hold

LONGEST = 160  # frames of a clip that the network takes at once
LENGTH, HOP = 50, 25  # frames of a window, and from one to the next
LEAST_SEEN = 2  # frames of a window that a track is seen in to be shown to the network
FOCAL_TRACKS = 128  # whose focal length is nearly that of a thousand
_FOCAL_WINDOWS = 8  # of a long clip, that tell it
_FEW = 8  # tracks of a window that sees none: the network needs something to look at

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


def choose(visibility: Tensor, parts: list[slice]) -> list[Tensor]:
    """Numbers (n,) of the tracks that each window is shown, by a clip's visibility (T, N).

    Those seen in two of its frames or more. One that no window sees so often is shown to the one
    that sees it most. Where a window would be left with none it takes the first few.
    """
    counts = torch.stack([(visibility[part] > 0).sum(0) for part in parts])
    shown = counts >= LEAST_SEEN
    most = counts.argmax(0, keepdim=True)
    shown.scatter_(0, most, True)
    found = [torch.nonzero(row)[:, 0] for row in shown]
    few = torch.arange(min(_FEW, counts.shape[1]), device=counts.device)
    return [which if len(which) else few for which in found]


def look(predict: Network, tracks: Tensor, size: int | None = None) -> list[Window]:
    """Predictions for the windows of a clip's tracks (T, N, 3).

    size: give each window as many tracks as the largest has, by taking some twice, in steps of
    `size`: shapes that a GPU has no graph of yet cost seconds.
    """
    found = []
    parts = spans(len(tracks))
    chosen = choose(tracks[..., 2], parts)
    if size is not None:
        most = -(-max(map(len, chosen)) // size) * size
        chosen = [which[torch.arange(most, device=which.device) % len(which)] for which in chosen]
    for part, which in zip(parts, chosen, strict=True):
        inputs = hold(tracks[part][:, which])
        found.append(Window(part, which, predict(inputs[None])))
    return found


def focal_correction(predict: Network, tracks: Tensor) -> Tensor:
    """The factor () on the focal length that windows of tracks (T, N, 3) tell, in the median."""
    parts = spans(len(tracks))
    told = []
    for part in parts[:: -(-len(parts) // _FOCAL_WINDOWS)]:
        seen = (tracks[part, :, 2] > 0).sum(0)
        best = seen.topk(min(FOCAL_TRACKS, len(seen))).indices.sort().values
        told.append(predict(hold(tracks[part][:, best])[None]).focal.mean())
    return torch.stack(told).median()


def shown(visibility: Tensor) -> int:
    """How many positions of a clip's visibility (T, N) the network is shown, in all windows."""
    parts = spans(len(visibility))
    chosen = choose(visibility, parts)
    return sum((p.stop - p.start) * len(which) for p, which in zip(parts, chosen, strict=True))
