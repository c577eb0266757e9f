"""The bundled clip, at any size, as input for accuracy checks and timings."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttracks.tracks import Tracks

CLIP = Path(__file__).parents[1] / "data" / "sheep.npz"
SIZES = ((100, 20), (100, 50), (256, 50), (675, 21), (1000, 50), (2048, 50), (4096, 50))
FOCAL = 525.0  # px, at which noise and reprojection errors are stated


def sample_clip(tracks: int, frames: int) -> Tracks:
    """A real clip's tracks at some size, in pixels.

    From 900 tracks of 50 frames: more tracks repeat with half a pixel of noise, more frames run
    back and forth.
    """
    source = Tracks.load(CLIP)
    assert source.visibility is not None
    rng = np.random.default_rng(0)
    length, count = source.tracks.shape[:2]
    rows = rng.permutation(count)[np.arange(tracks) % count]
    there_and_back = np.abs((np.arange(frames) + length - 1) % (2 * length - 2) - (length - 1))
    positions = source.tracks[there_and_back][:, rows]
    positions[:, count:] += rng.normal(0, 0.5, (frames, max(0, tracks - count), 2))
    return Tracks(
        positions, source.visibility[there_and_back][:, rows], image_size=source.image_size
    )


def sample_inputs(tracks: int, frames: int, device: torch.device | str) -> Tensor:
    """`sample_clip` as the network takes it: (1, T, N, 3), float32."""
    clip = sample_clip(tracks, max(2, frames))
    return clip.inputs()[:frames].float()[None].to(device)
