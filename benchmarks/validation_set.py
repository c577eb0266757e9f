"""Write held-out clips with truth: `python benchmarks/validation_set.py --data DATA -o FOLDER`.

`fasttracks evaluate FOLDER` judges a model on them. They are the clips that training validates
on, from creatures, recordings and camera paths that it never sees.
"""

import argparse
from pathlib import Path

import numpy as np

from fasttracks import Tracks
from fasttracks.evaluation import save_clip
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.held_out import VALIDATION, VALIDATION_FRAMES, VALIDATION_TRACKS
from fasttracks.scenes.library import load as load_library


def main() -> None:
    """Write so many clips of one kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with mocap_cmu.npz and camera_paths.npz")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kind", choices=VALIDATION, default="casual")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=VALIDATION_FRAMES)
    parser.add_argument("--tracks", type=int, default=VALIDATION_TRACKS)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()

    library = load_library(options.data, "validation", "cpu")
    for i in range(options.clips):
        clip = generate(
            1,
            options.frames,
            options.tracks,
            library=library,
            generator=seeded((options.seed << 32) + i, "validation", "cpu"),
            variety=VALIDATION[options.kind],
        )
        pixels, focal = float(clip.pixels[0]), float(clip.focal[0])
        width, height = np.rint(2 * clip.extent[0].numpy() * pixels).astype(int)
        centre = np.array([width - 1, height - 1]) / 2
        camera = np.array([[pixels, 0, centre[0]], [0, pixels, centre[1]], [0, 0, 1]])
        tracks = Tracks(
            clip.tracks[0, ..., :2].numpy() * pixels + centre,
            clip.tracks[0, ..., 2].numpy(),
            camera if focal == 1 else None,
            (height, width),
        )
        true_camera = camera * [[focal, 1, 1], [1, focal, 1], [1, 1, 1]]
        path = options.output / f"{options.kind}-{i:03}.npz"
        save_clip(path, tracks, clip.truth, true_camera)


if __name__ == "__main__":
    main()
