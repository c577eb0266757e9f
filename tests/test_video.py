"""Reading video files. The frames' mean red value tells which frame one is."""

import os
import struct
import subprocess
import sys
import time
import warnings
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from fasttracks.errors import InputError
from fasttracks.trackers import to_tracks
from fasttracks.video import Video, probe, read_video

RATE = 10


def write_video(
    path: Path,
    *,
    count: int = 30,
    size: tuple[int, int] = (48, 64),
    pts: list[int] | None = None,
    rotation: int = 0,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    aspect: Fraction | None = None,
    b_frames: int = 0,
    margins: tuple[int, int] = (0, 0),
) -> Path:
    """Key frames every 10 frames; frame i is 8 i red, below a green bar and over blue noise."""
    noise = np.random.default_rng(0)
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        options = {"g": "10", "crf": "1", "bf": str(b_frames)}
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.bit_rate = 4_000_000
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(count):
            image = np.zeros((*size, 3), np.uint8)
            image[..., 0] = 8 * i
            image[: size[0] // 3, :, 1] = 255
            image[-size[0] // 3 :, :, 2] = noise.integers(0, 256, (-(-size[0] // 3), size[1]))
            image[:, : margins[0]] = image[:, size[1] - margins[1] :] = 0
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts[i] if pts else i * 100 // RATE
            frame.time_base = Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(video: Video) -> list[int]:
    """Which of `write_video`'s frames these are."""
    return np.rint(video.frames[..., 0].mean((1, 2)) / 8).astype(int).tolist()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


def test_whole(clip: Path) -> None:
    video = read_video(clip)
    assert video.frames.shape == (30, 48, 64, 3)
    assert video.frames.dtype == np.uint8
    assert numbers(video) == list(range(30))
    np.testing.assert_allclose(video.times, np.arange(30) / RATE)
    assert video.fps == pytest.approx(RATE)
    assert video.image_size == (48, 64)


def test_colours_are_rgb(clip: Path) -> None:
    first = read_video(clip, frames=1).frames[0].astype(int)
    assert abs(first[:12] - (0, 255, 0)).max() < 12
    assert abs(first[18:30]).max() < 12


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 1.2}, range(12, 30)),  # between key frames
        ({"start": 1.25, "frames": 3}, range(13, 16)),
        ({"start": 2.9}, [29]),
        ({"every": 7}, range(0, 30, 7)),
        ({"start": 0.5, "every": 10, "frames": 2}, [5, 15]),
        ({"frames": 100}, range(30)),
    ],
)
def test_range_and_stride(clip: Path, options: dict, expected: list[int]) -> None:
    video = read_video(clip, **options)
    assert numbers(video) == list(expected)
    np.testing.assert_allclose(video.times, np.array(expected) / RATE)


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi", ".mov"])
def test_seeking_in_other_containers(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}", codec="mpeg4" if suffix == ".avi" else "libx264")
    video = read_video(path, start=1.2, frames=2)
    np.testing.assert_allclose(video.times, [1.2, 1.3], atol=1e-3)
    assert numbers(video) == [12, 13]


def test_raw_stream_has_no_time_stamps(tmp_path: Path) -> None:
    video = read_video(write_video(tmp_path / "clip.h264"), start=0.4)
    assert video.times[0] == pytest.approx(0.4)
    assert numbers(video)[-1] == 29


def test_variable_frame_rate(tmp_path: Path) -> None:
    pts = [0, 4, 8, 12, 40, 44, 48, 90]
    video = read_video(write_video(tmp_path / "vfr.mp4", count=8, pts=pts))
    np.testing.assert_allclose(video.times, np.array(pts) / 100)
    assert video.fps == pytest.approx(25)


@pytest.mark.skipif(
    not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV can't write rotations"
)
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_flag(tmp_path: Path, rotation: int) -> None:
    video = read_video(write_video(tmp_path / "phone.mp4", count=3, rotation=rotation))
    height, width = video.frames.shape[1:3]
    assert video.image_size == (height, width) == ((48, 64) if rotation == 180 else (64, 48))
    bar = {90: np.s_[:, :12], 180: np.s_[-12:], -90: np.s_[:, -12:]}[rotation]
    green = video.frames[0, ..., 1]
    assert green[bar].min() > 240
    assert np.count_nonzero(green > 128) == 48 * 64 // 3


@pytest.mark.parametrize("pixels", ["yuv444p", "yuv420p10le", "gray"])
def test_odd_sizes_and_pixel_formats(tmp_path: Path, pixels: str) -> None:
    size = (48, 64) if "420" in pixels else (35, 51)
    path = write_video(tmp_path / "odd.mkv", size=size, pixels=pixels, count=2)
    assert read_video(path).frames.shape == (2, *size, 3)


@pytest.mark.parametrize(
    ("max_size", "expected"), [(32, (24, 32)), (33, (25, 33)), (64, (48, 64)), (1, (1, 1))]
)
def test_max_size(clip: Path, max_size: int, expected: tuple[int, int]) -> None:
    video = read_video(clip, max_size=max_size, frames=2)
    assert video.frames.shape[1:3] == expected
    assert video.image_size == (48, 64)


def test_4k(tmp_path: Path) -> None:
    path = write_video(tmp_path / "4k.mp4", size=(2160, 3840), count=2)
    video = read_video(path, max_size=1024)
    assert video.frames.shape == (2, 576, 1024, 3)
    assert video.image_size == (2160, 3840)


def test_frames_at_times(clip: Path, tmp_path: Path) -> None:
    """Those that another reading told, by its times or, a little off, by a frame rate."""
    earlier = read_video(clip, start=0.3, every=4, frames=5)
    assert numbers(read_video(clip, times=earlier.times)) == numbers(earlier)
    assert numbers(read_video(clip, times=np.arange(0.2, 0.6, 0.1) + 4e-4)) == [2, 3, 4, 5]
    pts = [0, 4, 8, 12, 40, 44, 48, 90]
    video = read_video(write_video(tmp_path / "vfr.mp4", count=8, pts=pts), times=[0.08, 0.4, 0.9])
    assert numbers(video) == [2, 4, 7]


def test_shrinking_averages(tmp_path: Path) -> None:
    path = tmp_path / "noise.mkv"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="gray")))
        container.mux(stream.encode(None))
    small = read_video(path, max_size=8).frames[0, ..., 0].astype(float)
    mean = noise.reshape(8, 8, 8, 8).mean((1, 3))
    assert abs(small - mean).max() < 2


@pytest.mark.parametrize("name", ["два котика.mp4", "a:b.mp4", "100%03d.mp4"])
def test_file_names(clip: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(read_video(name, frames=2).frames) == 2


def test_breaking_off(clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    with pytest.warns(UserWarning, match=r"cut\.mp4 breaks off after \d+ frames") as caught:
        video = read_video(cut)
    assert len(caught) == 1
    assert 10 < len(video.frames) < 30
    assert numbers(video) == list(range(len(video.frames)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was asked for is whole
        read_video(cut, frames=5)


def test_ending_early(tmp_path: Path) -> None:
    """Matroska's reader takes a file that is cut off for one that ends."""
    whole = write_video(tmp_path / "whole.mkv").read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"the last frame is at 1\.\d s of 3 s"):
        assert len(read_video(cut).frames) < 20


def bad_file(kind: str, clip: Path, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a video\n" * 100)
    elif kind == "header":
        path.write_bytes(clip.read_bytes()[:600])
    elif kind == "codec":
        path.write_bytes(clip.read_bytes().replace(b"avc1", b"zzzz"))
    elif kind == "picture":
        cv2 = pytest.importorskip("cv2")
        path = path.with_suffix(".png")
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    elif kind == "audio":
        path = path.with_suffix(".wav")
        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(8000))
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no file"),
        ("directory", "has no images"),
        ("empty", "is empty"),
        ("text", "can't be decoded"),
        ("header", "can't be decoded"),
        ("codec", "can't be decoded"),
        ("picture", "is a picture"),
        ("audio", "holds audio but no video"),
    ],
)
def test_bad_files(
    clip: Path, tmp_path: Path, kind: str, says: str, capfd: pytest.CaptureFixture
) -> None:
    path = bad_file(kind, clip, tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        read_video(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options",
    [
        {"start": -1},
        {"start": float("nan")},
        {"start": float("inf")},
        {"frames": 0},
        {"frames": 2.5},
        {"every": 0},
        {"every": -2},
        {"max_size": 0},
    ],
)
def test_bad_options(clip: Path, options: dict) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"^{name}: expected"):
        read_video(clip, **options)


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_start_past_the_end(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}")
    with pytest.raises(InputError, match=r"^start: 3\.5 s is past the last frame .* at 2\.9 s$"):
        read_video(path, start=3.5)


def test_libav_is_silent(clip: Path, tmp_path: Path) -> None:
    """In a process of its own, since libav writes past Python's streams."""
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    code = "import sys; from fasttracks.video import read_video; read_video(sys.argv[1])"
    command = [sys.executable, "-W", "ignore", "-c", code, str(cut)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2, 1), 128), (Fraction(8, 9), 57)])
def test_pixels_that_are_not_square(tmp_path: Path, aspect: Fraction, width: int) -> None:
    video = read_video(write_video(tmp_path / "wide.mp4", count=2, aspect=aspect))
    assert video.image_size == (48, width)
    assert video.frames.shape[1:3] == (48, width)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_that_avi_keeps_out_of_order(tmp_path: Path, codec: str) -> None:
    path = write_video(tmp_path / "clip.avi", codec=codec, b_frames=2)
    video = read_video(path)
    assert numbers(video) == list(range(30))
    np.testing.assert_allclose(video.times, np.arange(30) / RATE)
    assert numbers(read_video(path, start=1.2, frames=3)) == [12, 13, 14]
    assert numbers(read_video(path, times=[0.5, 0.6, 2.1])) == [5, 6, 21]


@pytest.mark.parametrize(
    ("matrix", "bar"),
    [
        ((-1, 0, 0, 1), np.s_[:16]),
        ((1, 0, 0, -1), np.s_[-16:]),
        ((0, 1, 1, 0), np.s_[:, :16]),
        ((0, -1, -1, 0), np.s_[:, -16:]),
        ((0, 1, -1, 0), np.s_[:, -16:]),
    ],
)
def test_mirrored_display(
    clip: Path, tmp_path: Path, matrix: tuple[int, ...], bar: tuple[slice, ...]
) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    whole = clip.read_bytes()
    same = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = whole.index(same, whole.index(b"tkhd"))
    path = tmp_path / "mirrored.mp4"
    shown = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(whole[:at] + shown + whole[at + 36 :])
    video = read_video(path, frames=2)
    green = video.frames[0, ..., 1]
    assert video.image_size == green.shape == ((64, 48) if matrix[0] == 0 else (48, 64))
    assert green[bar].min() > 200
    assert np.count_nonzero(green > 128) == 48 * 64 // 3


def test_black_bars(clip: Path, tmp_path: Path) -> None:
    assert read_video(clip).content is None
    path = write_video(tmp_path / "bars.mp4", margins=(20, 20))
    video = read_video(path)
    assert video.content == (0, 20, 48, 44)
    assert read_video(path, max_size=32).content == (0, 20, 48, 44)
    assert read_video(write_video(tmp_path / "night.mp4", margins=(20, 0))).content is None

    class Grid:
        def __call__(self, frames: np.ndarray, *, progress: bool = False) -> tuple:
            self.shape = frames.shape
            tracks = np.zeros((len(frames), 1, 2), np.float32)
            return tracks, np.ones((len(frames), 1), bool)

    tracks = to_tracks(video, tracker := Grid())
    assert tracker.shape == (30, 48, 24, 3)
    assert (tracks.tracks == (20, 0)).all()
    assert tracks.image_size == (48, 64)
    assert tracks.camera()[0, 0, 0] == 48


def test_frames_of_one_time_have_no_rate() -> None:
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    assert np.isnan(Video(frames, np.zeros(3), (2, 2)).fps)
    assert Video(frames, np.array([0, 0, 0.002]), (2, 2)).fps == pytest.approx(1000)


@pytest.mark.parametrize("name", ["a.m3u8", "a.ffconcat", "a.sdp", "a.mpd"])
def test_playlists_are_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = {
        "a.m3u8": f"#EXTM3U\n#EXTINF:1,\n{path}\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile '{name}'\n",
        "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n",
        "a.mpd": '<?xml version="1.0"?><MPD><Period/></MPD>',
    }
    path.write_text(texts[name])
    began = time.monotonic()
    with pytest.raises(InputError, match="can't be decoded"):
        read_video(path)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "name",
    [
        *("a.mp4", "a.mov", "a.m4v", "a.3gp", "a.mkv", "a.webm", "a.avi", "a.ts", "a.mpg"),
        *("a.flv", "a.wmv", "a.ogv", "a.gif", "a.mxf", "a.nut", "a.ivf", "a.h264", "a.y4m"),
    ],
)
def test_formats_that_are_read(tmp_path: Path, name: str) -> None:
    codecs = {
        ".webm": "libvpx",
        ".ivf": "libvpx",
        ".mpg": "mpeg2video",
        ".mxf": "mpeg2video",
        ".wmv": "wmv2",
        ".ogv": "libvpx",
        ".gif": "gif",
        ".y4m": "rawvideo",
        ".flv": "flv",
    }
    codec = codecs.get(Path(name).suffix, "libx264")
    path, rate = tmp_path / name, 25
    with av.open(str(path), "w", format={"a.m4v": "mp4"}.get(name)) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = 48, 64
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for i in range(10):
            image = np.full((48, 64, 3), 10 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    video = read_video(path)
    assert len(video.frames) == 10
    np.testing.assert_allclose(video.times, np.arange(10) / rate, atol=2e-3)


def test_a_stream_without_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fasttracks.video._PATIENCE", 2**23)
    path = tmp_path / "zeros.h264"
    path.touch()
    os.truncate(path, 10**11)
    began = time.monotonic()
    with pytest.raises(InputError, match="can't be decoded"):
        read_video(path)
    assert time.monotonic() - began < 10


def test_frames_beyond_any_use(tmp_path: Path) -> None:
    path = tmp_path / "large.gif"
    screen = struct.pack("<2H3B", 16_000, 16_000, 0x80, 0, 0) + bytes(6)
    picture = b"\x2c" + struct.pack("<4HB", 0, 0, 16_000, 16_000, 0) + b"\x02\x02\x44\x01\x00"
    path.write_bytes(b"GIF89a" + screen + picture * 3 + b";")
    with pytest.raises(InputError, match="more than 67 million pixels"):
        read_video(path)


def test_images(tmp_path: Path) -> None:
    """A folder, and a name with a number, in the order of the numbers."""
    import cv2

    for i in (0, 2, 10, 11):
        image = np.full((24, 32, 3), (10 * i, 0, 200), np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    (tmp_path / "notes.txt").write_text("not an image")
    for name in (tmp_path, tmp_path / "%d.png"):
        video = read_video(name)
        assert video.frames[:, 0, 0].tolist() == [[200, 0, 10 * i] for i in (0, 2, 10, 11)]
        np.testing.assert_allclose(video.times, np.arange(4) / 25)
    video = read_video(tmp_path, start=0.04, every=2, max_size=16)
    assert video.frames.shape == (2, 12, 16, 3)
    assert video.image_size == (24, 32)
    again = read_video(tmp_path, times=video.times, max_size=16)
    np.testing.assert_array_equal(again.frames, video.frames)
    assert probe(tmp_path)["frames"] == 4
    cv2.imwrite(str(tmp_path / "3.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(InputError, match="images of one size"):
        read_video(tmp_path)
    with pytest.raises(InputError, match="no images"):
        read_video(tmp_path / "%d.jpg")


def test_a_longer_sound_track_is_no_damage(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for i in range(40):
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            noise.sample_rate, noise.pts = 8000, 800 * i
            container.mux(sound.encode(noise))
        container.mux(sound.encode())
    assert len(read_video(path).frames) == 10
    assert not recwarn.list


def test_a_song_with_its_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
        container.mux(cover.encode(picture))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        for packet in (*cover.encode(), *sound.encode(silence), *sound.encode()):
            container.mux(packet)
    with pytest.raises(InputError, match="holds audio and a cover picture but no video"):
        read_video(path)


def test_probe(clip: Path) -> None:
    known = probe(clip)
    video = read_video(clip)
    assert known["image_size"] == video.image_size
    assert known["frames"] == len(video.frames)
