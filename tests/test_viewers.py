"""The page in a real browser, the picture, the recording, the notebook."""

import hashlib
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import PROGRAM, Browser

from fasttracks import InputError, Reconstruction
from fasttracks.viewers import page as page_module
from fasttracks.viewers import rerun
from fasttracks.viewers.page import page, write_page
from fasttracks.viewers.picture import draw

WEB = Path(page_module.__file__).parent / "web"


def clip(frames: int = 12, tracks: int = 60, size: tuple[int, int] = (120, 160)) -> Reconstruction:
    """A wall of points, the first five of which fly across it, before a camera that walks by."""
    rng = np.random.default_rng(0)
    basis = np.zeros((2, tracks, 3))
    basis[0] = rng.uniform((-4, -3, -0.5), (4, 3, 0.5), (tracks, 3))
    basis[1, :5] = (2, 0, 0)
    coefficients = np.stack([np.ones(frames), np.linspace(-1, 1, frames)], 1)
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, 0, 3], pose[:, 2, 3] = np.linspace(-1, 1, frames), -10
    points = np.einsum("tk,knc->tnc", coefficients, basis)
    local = points - pose[:, None, :3, 3]
    height, width = size
    camera = np.array([[width, 0.5, width / 2 - 1], [0, width * 1.1, height / 2], [0, 0, 1]])
    projected = local @ camera.T
    reprojection = projected[..., :2] / projected[..., 2:]
    arrays = {
        "points": points,
        "points_camera": local,
        "camera_to_world": pose,
        "intrinsics": np.tile(camera, (frames, 1, 1)),
        "reprojection": reprojection,
        "basis": basis,
        "coefficients": coefficients,
        "motion": np.r_[np.full(5, 0.3), rng.uniform(0.004, 0.006, tracks - 5)],
        "tracks": reprojection + rng.normal(0, 1, reprojection.shape),
    }
    return Reconstruction(
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        visibility=rng.random((frames, tracks)) < 0.8,
        image_size=size,
        times=np.arange(frames) / 20,
        colors=rng.integers(0, 256, (tracks, 3), dtype=np.uint8),
    )


def video_of(rec: Reconstruction) -> np.ndarray:
    """Frames of one colour each, red to blue."""
    assert rec.image_size is not None
    frames = np.zeros((len(rec.points), *rec.image_size, 3), np.uint8)
    frames[..., 0] = np.linspace(250, 0, len(frames))[:, None, None]
    frames[..., 2] = 250 - frames[..., 0]
    return frames


@pytest.fixture(scope="module")
def browser():
    if PROGRAM is None:
        pytest.skip("Chromium is not installed")
    with Browser() as browser:
        yield browser
        assert browser.problems == []


def settle(browser: Browser) -> None:
    """Until two more frames are drawn."""
    browser.run("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")


def show(browser: Browser, script: str) -> np.ndarray:
    """The 3D view after a script, (H, W, 3) uint8."""
    import cv2

    browser.run(script)
    settle(browser)
    box = browser.run(
        "JSON.parse(JSON.stringify(document.querySelector('main').getBoundingClientRect()))"
    )
    area = {**{k: box[k] for k in ("x", "y", "width", "height")}, "scale": 1}
    data = browser.screenshot(clip=area)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[70:-100]


def test_page_is_built_from_its_sources():
    """`npm install --no-package-lock && npm run build` in viewers/web makes it anew."""
    (names,) = re.findall(r"const SOURCES = \[(.*?)\]", (WEB / "build.js").read_text(), re.DOTALL)
    text = "".join((WEB / name).read_text() for name in re.findall(r'"(.*?)"', names))
    built = (WEB.parent / "page.html").read_text()
    assert hashlib.sha256(text.encode()).hexdigest() in built
    assert "Permission is hereby granted, free of charge" in built  # three.js's licence


def test_a_large_clip_is_written_quickly_and_small(tmp_path):
    rec = clip(200, 1000)
    start = time.perf_counter()
    write_page(rec, tmp_path / "large.html")
    assert time.perf_counter() - start < 3
    assert (tmp_path / "large.html").stat().st_size < 3e6


def test_page_holds_no_markup_from_outside():
    text = page(clip(), name="</script><b>&")
    assert "</script><b>" not in text
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in text


def test_page_unpacks_what_went_in(browser, tmp_path):
    rec = clip()
    write_page(rec, tmp_path / "wall.html", video_of(rec))
    browser.open(tmp_path / "wall.html")
    assert browser.run("document.querySelector('h1').textContent") == "wall"
    unpacked = {
        name: np.array(browser.run(f"Array.from(fasttracks.clip.{name})"), float)
        for name in ("positions", "reprojection", "tracks", "motion", "colors")
    }
    np.testing.assert_allclose(unpacked["positions"], rec.points.ravel(), atol=1e-5)
    np.testing.assert_allclose(unpacked["reprojection"], rec.reprojection.ravel(), atol=1e-3)
    seen = np.repeat(rec.visibility.ravel(), 2)
    assert np.isnan(unpacked["tracks"][~seen]).all()
    np.testing.assert_allclose(unpacked["tracks"][seen], rec.tracks.ravel()[seen], atol=0.006)
    np.testing.assert_array_equal(unpacked["colors"], rec.colors.ravel())
    threshold = browser.run("fasttracks.clip.threshold")
    np.testing.assert_array_equal(unpacked["motion"] >= threshold, rec.moving)


def test_playing_moves_the_points(browser, tmp_path):
    rec = clip()
    write_page(rec, tmp_path / "wall.html")
    browser.open(tmp_path / "wall.html")
    first = browser.run("fasttracks.state.frame")
    browser.run(
        "new Promise(function wait(done) {"
        f"fasttracks.state.frame == {first} ? requestAnimationFrame(() => wait(done)) : done() }})"
    )
    early, late = (
        show(
            browser,
            f"fasttracks.play(false); fasttracks.seek({t});"
            "fasttracks.change({trail: 0, ground: false})",
        )
        for t in (0, 11)
    )
    hot = [
        image[..., 2].astype(int) - image[..., 0] > 120 for image in (early, late)
    ]  # red, moving
    assert all(50 < mask.sum() < 20_000 for mask in hot)
    assert np.nonzero(hot[1])[1].mean() > np.nonzero(hot[0])[1].mean() + 50  # they fly right
    still = show(browser, "fasttracks.change({show: 'still'})")
    assert (still[..., 2].astype(int) - still[..., 0] > 120).sum() == 0
    assert (still.max(-1) > 80).sum() > 500
    trails = show(browser, "fasttracks.change({show: 'all', trail: 11})")
    assert (np.abs(trails.astype(int) - late).max(-1) > 20).sum() > 300


def test_keys_and_controls(browser, tmp_path):
    write_page(clip(), tmp_path / "wall.html")
    browser.open(tmp_path / "wall.html")
    state = "({...fasttracks.state, ...fasttracks.playback})"
    browser.key(" ")
    browser.key("Home")
    settle(browser)
    assert browser.run(state)["playing"] is False
    browser.key("ArrowRight")
    settle(browser)
    assert browser.run(state)["frame"] == 1
    for key in "vscl":
        browser.key(key)
    settle(browser)
    after = browser.run(state)
    assert (after["view"], after["show"], after["colour"]) == ("follow", "still", "video")
    assert after["loop"] is False
    assert browser.run("document.querySelector('[data-value=follow]').ariaPressed") == "true"
    browser.run("document.querySelector('[data-value=through]').click()")
    assert browser.run(state)["view"] == "through"
    browser.run("fasttracks.play(true); fasttracks.playback.speed = 50")
    time.sleep(0.5)
    assert (browser.run(state)["frame"], browser.run(state)["playing"]) == (11, False)


def mouse(browser: Browser, kind: str, x: float, y: float, **options) -> None:
    browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)


def test_home_fills_the_canvas_and_comes_back(browser, tmp_path):
    write_page(clip(), tmp_path / "wall.html")
    browser.open(tmp_path / "wall.html")
    view = "fasttracks.play(false); fasttracks.change({ground: false, show: 'still', trail: 0})"
    first = show(browser, view)
    rows, columns = np.nonzero(first.max(-1) > 80)
    height, width = first.shape[:2]
    filled = max(np.ptp(columns) / width, np.ptp(rows) / height)
    assert 0.8 < filled <= 1
    assert columns.min() > 5
    assert columns.max() < width - 5
    mouse(browser, "mouseWheel", 300, 300, deltaX=0, deltaY=-600)
    nearer = show(browser, "1")
    assert (nearer != first).any(-1).sum() > 1000
    browser.key("r")
    again = show(browser, "1")
    assert (again != first).any(-1).sum() < 50


def test_double_click_turns_about_a_point_and_scrolling_zooms_to_the_pointer(browser, tmp_path):
    write_page(clip(), tmp_path / "wall.html")
    browser.open(tmp_path / "wall.html")
    image = show(browser, "fasttracks.play(false); fasttracks.change({ground: false, trail: 0})")
    hot = image[..., 2].astype(int) - image[..., 0] > 120
    y, x = (int(v) for v in np.argwhere(hot)[0])
    target = "fasttracks.scene.controls.target.toArray()"
    before = browser.run(target)
    for count in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            mouse(browser, kind, x, y + 70, button="left", clickCount=count)
    settle(browser)
    assert browser.run(target) != before
    turned = show(browser, "1")  # what was meant is in the middle now
    middle = browser.run("document.getElementById('scene').clientHeight") // 2 - 70
    near = turned[middle - 12 : middle + 12, turned.shape[1] // 2 - 12 :][:, :24].astype(int)
    assert (near[..., 2] - near[..., 0] > 120).any()


def test_help_lists_the_keys(browser, tmp_path):
    write_page(clip(), tmp_path / "wall.html")
    browser.open(tmp_path / "wall.html")
    browser.run("fasttracks.play(false)")
    browser.key("?")
    assert browser.run("document.getElementById('keys').open")
    browser.key("?")
    assert not browser.run("document.getElementById('keys').open")
    browser.key("g")
    assert browser.run("fasttracks.state.ground") is False


def test_the_page_says_what_is_known(browser, tmp_path):
    rec = replace(clip(), refinement="converged, no parallax, depths are the network's")
    write_page(rec, tmp_path / "wall.html")
    browser.open(tmp_path / "wall.html")
    settle(browser)
    facts = browser.run("document.getElementById('facts').innerText")
    for known in ("160 px, 53° across", "no parallax", "free", "× the median depth"):
        assert known in facts
    assert browser.run("document.getElementById('moving').textContent") == "5 of 60 are moving"


def test_through_the_camera_points_lie_on_the_video(browser, tmp_path):
    """The camera's view shows the frame upright and each point where it reprojects."""
    rec = clip()
    rec = replace(rec, visibility=np.ones_like(rec.visibility))
    assert rec.image_size is not None
    frames = np.zeros((len(rec.points), *rec.image_size, 3), np.uint8)
    frames[:, :60, :80] = (0, 255, 0)  # green at the top left
    write_page(rec, tmp_path / "wall.html", frames)
    browser.open(tmp_path / "wall.html")
    browser.run("Promise.all(fasttracks.clip.images.map((image) => image.decode()))")
    image = show(
        browser,
        "fasttracks.play(false); fasttracks.seek(6);"
        "fasttracks.change({view: 'through', show: 'moving', trail: 0, size: -1.5})",
    ).astype(int)
    green = (image[..., 1] > 50) & (image[..., 1] > 3 * image[..., 2])
    rows, columns = np.nonzero(green)
    scale = np.array([np.ptp(columns) / 80, np.ptp(rows) / 60])
    assert scale[0] / scale[1] == pytest.approx(1.1, rel=0.03)  # as the focal lengths are
    origin = np.array([columns.min(), rows.min()])
    hot = image[..., 2] - image[..., 0] > 120
    for x, y in origin + (rec.reprojection[6, :5] + 0.5) * scale:
        near = hot[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7]
        assert near.any(), (x, y)


def test_on_a_phone(browser, tmp_path):
    write_page(clip(), tmp_path / "wall.html")
    try:
        browser.resize(390, 844, mobile=True, ratio=2)
        browser.open(tmp_path / "wall.html")
        settle(browser)
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run("document.getElementById('scene').clientHeight") > 350
    finally:
        browser.resize(1280, 720)


def test_a_clip_that_knows_little(browser, tmp_path):
    rec = replace(clip(), times=None, colors=None, image_size=None, visibility=np.eye(12, 60) > 0)
    write_page(rec, tmp_path / "bare.html")
    browser.open(tmp_path / "bare.html")
    settle(browser)
    assert browser.run("document.querySelector('#colour [data-value=video]').disabled")
    assert browser.run("document.getElementById('message').hidden")
    draw(rec, tmp_path / "bare.png")


@pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")
def test_page_reaches_nothing_outside(tmp_path):
    """By its content security policy: no request, and no code but its own."""
    write_page(clip(), tmp_path / "page.html")
    with Browser() as browser:  # of its own, as it complains of what it refuses
        browser.open(tmp_path / "page.html")
        settle(browser)
        assert browser.problems == []
        said = "fetch('data:,x').then(() => 'let through', () => 'refused')"
        assert browser.run(said) == "refused"
        assert browser.run("document.getElementById('message').hidden")


def test_notebook():
    rec = clip()
    assert rec._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    torch = pytest.importorskip("torch")
    moving = replace(rec, motion=torch.tensor(rec.motion)).moving
    assert moving.dtype == torch.bool
    assert moving.tolist() == rec.moving.tolist()


def test_rerun_recording(tmp_path):
    pytest.importorskip("rerun")
    rec = clip()
    rerun.save(rec, tmp_path / "clip.rrd", video_of(rec))
    command = [sys.executable, "-m", "rerun", "rrd", "print", tmp_path / "clip.rrd"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for entity in ("points", "static", "camera/image", "camera/image/tracks"):
        assert f"/world/{entity}" in printed


def test_rerun_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(InputError, match="pip install rerun-sdk"):
        rerun.save(clip(), tmp_path / "clip.rrd")
    assert not list(tmp_path.iterdir())
