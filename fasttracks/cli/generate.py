"""`fasttracks generate`: held-out scenes as clip files with truth, which `evaluate` reads."""

import argparse
import sys

import numpy as np
from tqdm import tqdm

from fasttracks.cli.console import check_writable, claim, say
from fasttracks.errors import InputError
from fasttracks.evaluation.clips import save_clip
from fasttracks.evaluation.metrics import Truth
from fasttracks.files import as_path
from fasttracks.scenes.generator import Clips, seeded
from fasttracks.scenes.generator import generate as generate_clips
from fasttracks.scenes.held_out import VALIDATION, kind
from fasttracks.scenes.library import load as load_library
from fasttracks.tracks import Tracks


def generate(options: argparse.Namespace) -> None:
    """Write clips of one kind, from creatures, recordings and camera paths kept from training."""
    variety = kind(options.kind, options.frames)
    if variety is None:
        known = ", ".join([*VALIDATION, "long"])
        raise InputError(f"--kind: expected one of {known}, found {options.kind!r}")
    for name, least in (("clips", 1), ("frames", 2), ("tracks", 1)):
        value = getattr(options, name)
        if value < least:
            raise InputError(f"--{name}: expected {least} or more, found {value}")
    folder = as_path(options.output, "-o")
    check_writable(folder / f"{options.kind}-000.npz")
    claim(folder)
    library = load_library(options.data, "validation", "cpu")
    hidden = not sys.stderr.isatty()
    for i in tqdm(range(options.clips), desc="generate", unit="clip", disable=hidden):
        clip = generate_clips(
            1,
            options.frames,
            options.tracks,
            library=library,
            generator=seeded((options.seed << 32) + i, library.split, "cpu"),
            variety=variety,
        )
        save_clip(folder / f"{options.kind}-{i:03}.npz", *in_pixels(clip))
    count = f"{options.clips} clips" if options.clips > 1 else "1 clip"
    say(f"wrote {count} to {folder}; judge a model on them by 'fasttracks evaluate {folder}'")


def in_pixels(clip: Clips) -> tuple[Tracks, Truth, np.ndarray]:
    """Tracks in pixels, truth and true intrinsics (3, 3) of the first of a batch of clips."""
    pixels, focal = float(clip.pixels[0]), float(clip.focal[0])
    width, height = np.rint(2 * clip.extent[0].cpu().numpy() * pixels).astype(int)
    centre = np.array([width - 1, height - 1]) / 2
    camera = np.array([[pixels, 0, centre[0]], [0, pixels, centre[1]], [0, 0, 1]])
    found = clip.tracks[0].cpu().numpy()
    tracks = Tracks(
        found[..., :2] * pixels + centre,
        found[..., 2],
        camera if focal == 1 else None,
        (height, width),
    )
    return tracks, clip.truth, camera * [[focal, 1, 1], [1, focal, 1], [1, 1, 1]]
