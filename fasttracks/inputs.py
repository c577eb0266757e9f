"""What the network sees of tracks where they were not seen."""

import torch
from torch import Tensor


def hold(tracks: Tensor) -> Tensor:
    """Tracks (..., T, N, 3) of u, v and visibility with unseen positions replaced.

    Each becomes the track's last seen position before, else its first seen after, else (0, 0):
    what a tracker guesses of a hidden point must not change the answer.
    """
    seen = tracks[..., 2:] > 0
    frame = torch.arange(tracks.shape[-3], device=tracks.device)[:, None, None]
    last = torch.where(seen, frame, -1).cummax(-3).values
    first = seen.int().argmax(-3, keepdim=True)
    source = torch.where(last < 0, first, last)
    held = tracks[..., :2].gather(-3, source.expand(*source.shape[:-1], 2))
    held = torch.where(seen.any(-3, keepdim=True), held, 0.0)
    return torch.cat([held, tracks[..., 2:]], -1)
