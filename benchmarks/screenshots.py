"""Make the README's pictures of pages: `python benchmarks/screenshots.py cat.mp4 bear.mp4`.

Needs Chromium. The bundled clip is shown with its video, others with their points alone. What
`fasttracks reconstruct` wrote for a video earlier is used where it lies in the folder `--of`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fasttracks import Reconstruction, Tracks, reconstruct, track
from fasttracks.performance.sample import CLIP
from fasttracks.video import read_video
from fasttracks.viewers import page as viewer
from fasttracks.viewers.page import write_page

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Browser

FOLDER = Path(viewer.__file__).parent / "web" / "screenshots"
SHARE = 0.64  # of the clip, at which it is shown


def shoot(rec: Reconstruction, name: str, frames: np.ndarray | None) -> None:
    """A page of a clip as it opens, at one frame, as FOLDER/name.png."""
    import cv2

    with tempfile.TemporaryDirectory() as folder, Browser(1280, 720) as browser:
        page = Path(folder) / f"{name}.html"
        write_page(rec, page, frames)
        browser.open(page)
        if frames is not None:
            browser.run("Promise.all(fasttracks.clip.images.map((image) => image.decode()))")
        browser.run(f"fasttracks.play(false); fasttracks.seek({int(SHARE * len(rec))})")
        time.sleep(1)
        image = cv2.imdecode(np.frombuffer(browser.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    FOLDER.mkdir(exist_ok=True)
    cv2.imwrite(str(FOLDER / f"{name}.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{name}.png: {(FOLDER / f'{name}.png').stat().st_size / 1e3:.0f} kB, {rec!r}")


def main() -> None:
    """The bundled clip and those given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--of", type=Path, default=Path(), metavar="FOLDER")
    options = parser.parse_args()
    for video in [CLIP.with_suffix(".mp4"), *map(Path, options.videos)]:
        bundled = video.parent == CLIP.parent
        known = options.of / f"{video.stem}-reconstruction.npz"
        if known.exists():
            rec = Reconstruction.load(known)
        else:
            tracks = Tracks.load(CLIP) if bundled else track(video)
            rec = reconstruct(tracks, refine="bundle")
        shoot(rec, video.stem, read_video(video, times=rec.times).frames if bundled else None)


if __name__ == "__main__":
    main()
