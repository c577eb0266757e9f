"""How fast the page is: `python benchmarks/viewer.py`, with Chromium installed.

Writes a page of 1000 tracks × 200 frames, plays it in headless Chromium and times its frames.
Prints and writes results/viewer.json.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser  # noqa: E402
from test_viewers import clip, video_of  # noqa: E402

from fasttracks.viewers.page import write_page  # noqa: E402

FRAMES, TRACKS = 200, 1000
SECONDS = 8
# Plays for a while; gives the times between drawn frames, and of the page's own work in each.
PLAY = """new Promise(done => {
  const gaps = [], work = [];
  for (const part of ["scene", "panel"]) {
    const render = fasttracks[part].render.bind(fasttracks[part]);
    fasttracks[part].render = (...a) => {
      const start = performance.now(); render(...a); work.push(performance.now() - start);
    };
  }
  fasttracks.play(true);
  let last = performance.now(), end = last + SECONDS * 1000;
  const tick = now => {
    gaps.push(now - last); last = now;
    now < end ? requestAnimationFrame(tick) : done([gaps.slice(5), work]);
  };
  requestAnimationFrame(tick);
})"""


def main() -> None:
    """Measure with and without the video in the page."""
    rec = clip(FRAMES, TRACKS)
    rows = []
    for video in (None, video_of(rec)):
        with tempfile.TemporaryDirectory() as folder, Browser() as browser:
            page = Path(folder) / "page.html"
            start = time.perf_counter()
            write_page(rec, page, video)
            written = time.perf_counter() - start
            browser.open(page)
            gaps, work = browser.run(PLAY.replace("SECONDS", str(SECONDS)))
            assert browser.problems == []
            row: dict[str, Any] = {
                "video": video is not None,
                "written s": round(written, 2),
                "MB": round(page.stat().st_size / 1e6, 2),
                "frames a second": round(1000 / float(np.mean(gaps)), 1),
                "median gap ms": round(float(np.median(gaps)), 1),
                "p95 gap ms": round(float(np.percentile(gaps, 95)), 1),
                "own work, median ms": round(float(np.median(work)), 2),
            }
        print(row, flush=True)
        rows.append(row)
    record = {**machine.describe("cpu"), "tracks": TRACKS, "frames": FRAMES, "pages": rows}
    (ROOT / "benchmarks/results/viewer.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
