"""Make the clip that `fasttracks demo` shows: `python benchmarks/demo_clip.py sheep.mp4`.

Writes its tracks, without those seen in a single frame, and its frames as a small video, to
fasttracks/data. `--video-only` leaves the tracks as they are.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from fasttracks import track
from fasttracks.files import replacing
from fasttracks.performance.sample import CLIP
from fasttracks.video import Video, read_video

FRAMES = 50


def write_video(video: Video, path: Path) -> None:
    """H.264 at a quality that shows a page well, in some 0.2 MB."""
    height, width = (side // 2 * 2 for side in video.frames.shape[1:3])  # as its chroma needs
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=round(video.fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "29", "preset": "veryslow"}
        for image in video.frames[:, :height, :width]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    """Both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("--video-only", action="store_true")
    options = parser.parse_args()
    write_video(read_video(options.video, frames=FRAMES), CLIP.with_suffix(".mp4"))
    if options.video_only:
        return
    tracks = track(options.video, frames=FRAMES, progress=True)
    assert tracks.visibility is not None
    assert tracks.colors is not None
    often = tracks.visibility.sum(0) > 1
    colors = tracks.colors[often]
    tracks = replace(
        tracks,
        tracks=tracks.tracks[:, often],
        visibility=tracks.visibility[:, often],
        colors=colors,
    )
    tracks.save(CLIP)
    print(repr(tracks))


if __name__ == "__main__":
    main()
