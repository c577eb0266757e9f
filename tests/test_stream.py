"""A stream of frames: the world stays put, memory is fixed, and hostile input ends in a word."""

import numpy as np
import pytest
import torch
from helpers import TINY, tiny_network
from seen_points import image, prediction, world
from test_long import moved, path_error

import fasttracks
from fasttracks import InputError, Stream
from fasttracks.geometry import exponential
from fasttracks.network import TracksTo4D
from fasttracks.refine.cameras import Scene
from fasttracks.stream.slots import Slots

DOUBLE = {"dtype": torch.float64}
CAMERA = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
WINDOW, SLOTS = 12, 24


class Knowing(TracksTo4D):
    """Says what is true of each window, in a world of its own each time."""

    def __init__(self, truth, seed=0):
        super().__init__(TINY)
        self.truth = truth
        self.draw = torch.Generator().manual_seed(seed)
        self.stream = None

    def forward(self, tracks):
        """Whatever the tracks are, the stream knows which frames and tracks these are."""
        count, ids = self.stream._count, self.stream._slots.ids
        part = slice(count - WINDOW, count)
        which = torch.from_numpy(ids).clamp(min=0)
        t = self.truth
        scene = Scene(t.rotation[:, part], t.position[:, part], t.log_focal, t.points[:, which])
        turn = exponential(0.5 * torch.randn(3, generator=self.draw, **DOUBLE))
        scale = 1 + 0.3 * torch.rand(1, generator=self.draw, **DOUBLE)
        scene = moved(scene, scale, turn, torch.randn(3, generator=self.draw, **DOUBLE))
        said = prediction(scene, motion=torch.full((1, len(which)), 0.004, **DOUBLE))
        return type(said)(*(value.float() for value in said))


def frames_of(truth, life=30, noise=0.0):
    """Ids and pixels of each frame; a track is seen for `life` frames."""
    _, positions = image(truth)
    frames, tracks = positions.shape[1:3]
    first = np.linspace(-life + 4, frames - 4, tracks).round()
    pixels = positions[0].numpy() * 500 + (320, 240)
    for t in range(frames):
        ids = np.flatnonzero((first <= t) & (t < first + life))
        yield ids, pixels[t, ids]


def run(stream, frames):
    """All updates, and the final cameras by frame."""
    updates = [stream.push(*frame) for frame in frames]
    final = [f for u in updates if u for f in u.final] + stream.finish()
    return [u for u in updates if u], final


def run_knowing(frames, hop):
    """The truth of a world, and what a stream says of it by a network that knows it."""
    truth, _ = world(frames, 60, turn=0.01, path=0.05)
    network = Knowing(truth)
    network.stream = Stream(network, WINDOW, hop, SLOTS, intrinsics=CAMERA)
    return truth, *run(network.stream, frames_of(truth))


def test_the_world_stays_put():
    truth, updates, final = run_knowing(80, hop=1)
    assert len(updates) == 80 - WINDOW + 1
    assert not any(u.reset for u in updates)
    assert np.concatenate([f.frames for f in final]).tolist() == list(range(80))
    poses = torch.from_numpy(np.concatenate([f.camera_to_world for f in final]))[None].double()
    found = Scene(poses[..., :3, :3], poses[..., :3, 3], truth.log_focal, truth.points)
    assert path_error(found, truth) < 1e-4
    # The newest cameras are those that become final, and points lie in the same world.
    last = final[-1].camera_to_world[-1]
    assert np.abs(updates[-1].camera_to_world - last).max() < 1e-5
    for u in updates[5:]:
        assert u.health.shared >= 8
        assert abs(u.health.scale - 1) < 0.35  # how much the windows' own scales differ
        in_camera = (u.points - u.camera_to_world[:3, 3]) @ u.camera_to_world[:3, :3]
        pixels = in_camera[:, :2] / in_camera[:, 2:] * 500 + (320, 240)
        seen = dict(zip(*list(frames_of(truth))[u.frame], strict=True))
        for number, (track, visible) in enumerate(zip(u.ids, u.visible, strict=True)):
            assert visible == (track in seen)
            if visible:
                assert np.abs(pixels[number] - seen[track]).max() < 1


def test_hops_say_all_frames_once():
    _, updates, final = run_knowing(41, hop=5)
    assert [u.frame for u in updates] == [11, 16, 21, 26, 31, 36]
    assert np.concatenate([f.frames for f in final]).tolist() == list(range(37))


def tiny_stream(**options):
    network = tiny_network(dtype=torch.float32)
    return Stream(network, WINDOW, 1, SLOTS, **({"intrinsics": CAMERA} | options))


def wander(frames, tracks=20, seed=0):
    g = np.random.default_rng(seed)
    places = g.uniform(100, 400, (tracks, 2)) + g.normal(0, 2, (frames, tracks, 2)).cumsum(0)
    return [(np.arange(tracks), p) for p in places]


def finite(updates, final):
    for u in updates:
        assert np.isfinite(u.points).all()
        assert np.isfinite(u.camera_to_world).all()
        assert all(np.isfinite(u.health))
    for f in final:
        assert np.isfinite(f.camera_to_world).all()
        np.testing.assert_allclose(np.linalg.det(f.camera_to_world[:, :3, :3]), 1, atol=1e-4)


def test_replay_is_bit_identical_and_memory_is_fixed():
    first, second = (run(tiny_stream(), wander(40)) for _ in range(2))
    for a, b in zip(first[0], second[0], strict=True):
        assert (a.camera_to_world == b.camera_to_world).all()
        assert (a.points == b.points).all()
    stream = tiny_stream()
    sizes = []
    for i in range(60):
        ids = np.arange(20) + 7 * i  # each track lives for three frames
        stream.push(ids, np.random.default_rng(i).uniform(0, 400, (20, 2)))
        sizes.append((len(stream._slots._slot), len(stream._pending)))
    assert max(sizes) <= (SLOTS, 4)


def test_an_answer_that_is_not_finite_leaves_nothing_behind(monkeypatch):
    stream = tiny_stream()
    run_on = [stream.push(*frame) for frame in wander(20)]
    assert run_on[-1] is not None
    usual = stream._model.forward
    monkeypatch.setattr(stream._model, "forward", lambda x: usual(x * torch.nan))
    assert stream.push(*wander(21)[-1]) is None
    monkeypatch.undo()
    updates, final = run(stream, wander(30, seed=1))
    assert updates[0].reset == "the network's answer is not finite"
    assert len(updates) > 10
    finite(updates, final)


@pytest.mark.parametrize("refine", ["none", pytest.param("bundle", marks=pytest.mark.slow)])
def test_hostile_streams_end_in_a_reset_and_recover(refine):
    usual = wander(30)
    nothing = (np.zeros(0, int), np.zeros((0, 2)))
    unseen = (np.arange(20), np.full((20, 2), np.nan))
    other = [(ids + 1000, places) for ids, places in wander(30, seed=1)]
    still = [(ids, usual[-1][1]) for ids, _ in usual]
    streams = {
        "a hand over the lens": [*usual, *[nothing] * 20, *other],
        "a blink": [*usual, *[unseen] * 3, *usual],
        "stands still": [*usual, *still],
        "never moves": usual[:1] * 20,
        "repeats": [frame for frame in usual for _ in range(2)],
        "one track, then all": [*[(ids[:1], places[:1]) for ids, places in usual], *usual],
        "far out": [(ids, 1e6 * places) for ids, places in usual],
        "a cut": [*usual, *other],
        "one track": [(ids[:1], places[:1]) for ids, places in usual],
        "no track": [nothing] * 20,
        "then some": [*[nothing] * 20, *usual],
        "two that swap": [*usual, *[(ids[::-1], places) for ids, places in usual]],
    }
    if refine == "bundle":  # each of whose pushes takes as long as ten
        streams = {name: streams[name] for name in ("a blink", "a cut", "one track", "no track")}
    for name, frames in streams.items():
        updates, final = run(tiny_stream(refine=refine), frames)
        finite(updates, final)
        numbers = np.concatenate([f.frames for f in final]) if final else np.zeros(0)
        assert (np.diff(numbers) > 0).all(), name
        if name == "no track":
            assert not updates
        else:
            assert updates[-1].frame == len(frames) - 1, name
        if name in ("a hand over the lens", "a cut"):
            assert any("track" in (u.reset or "") for u in updates), name
            assert updates[-1].segment > 0


def test_what_is_wrong_with_a_push_is_said_and_the_stream_goes_on():
    stream = tiny_stream()
    frames = wander(WINDOW)
    for t, frame in enumerate(frames[:-1]):
        stream.push(*frame, time=float(t))
    ids, places = frames[-1]
    for wrong, message in (
        ((ids, places, None, 3.0), "time: expected seconds, later than"),
        ((ids, places, None, float(WINDOW - 2)), "time: expected seconds, later than"),
        ((ids, places, None, float("nan")), "time: expected seconds"),
        ((ids[:-1], places), "positions: expected shape"),
        ((ids * 0, places), "ids: expected each once"),
        ((ids - 1, places), "ids: expected whole numbers"),
        ((ids + 0.5, places), "ids: expected whole numbers"),
        ((ids, places, np.ones(3)), "visibility: expected shape"),
    ):
        with pytest.raises(InputError, match=message):
            stream.push(*wrong)
    assert stream.push(ids, places, time=20.0) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "window: expected a whole number, 8 or more"),
        ({"hop": 0}, "hop: expected"),
        ({"hop": 50}, "hop: expected less than"),
        ({"max_tracks": 2}, "max_tracks: expected"),
        ({"refine": "finetune"}, "refine: expected"),
        ({"intrinsics": np.eye(4)}, "intrinsics: expected shape"),
        ({"intrinsics": None}, "intrinsics: expected them, or image_size"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        Stream(tiny_network(dtype=torch.float32), **({"intrinsics": CAMERA} | options))


def test_focal_length_is_settled_once():
    network = tiny_network(dtype=torch.float32)
    object.__setattr__(network.config, "predicts_focal", True)
    try:
        stream = Stream(network, WINDOW, 1, SLOTS, image_size=(480, 640))
        updates, _ = run(stream, wander(20))
    finally:
        object.__setattr__(network.config, "predicts_focal", False)
    focal = {u.intrinsics[0, 0] for u in updates}
    assert len(focal) == 1
    assert focal.pop() != 640


def test_slots_keep_long_lived_tracks_and_let_newborns_in():
    slots = Slots(8, 16)
    g = np.random.default_rng(0)
    for t in range(30):
        places = g.uniform(-1, 1, (40, 2))
        ids = np.concatenate([np.arange(10), 100 + 40 * t + np.arange(30)])
        slots.push(ids, places, slots.of(ids))
        assert len(set(slots.ids[slots.ids >= 0])) == (slots.ids >= 0).sum() == 16
        assert set(range(10)) <= set(slots.ids) or t < 20
        shown, own = slots.shown()
        window = slots.window[:, shown]
        assert window.shape == (8, 16, 3)
        assert (slots.seen == slots.window[:, :, 2].sum(0)).all()
        if t >= 20:
            assert own[np.isin(slots.ids, np.arange(10))].all()
            assert (window[:, :, 2].sum(0) >= 2).all()
    slots.clear()
    assert (slots.ids < 0).all()


def test_stream_is_a_public_name():
    assert fasttracks.Stream is Stream


def texture(width=240, height=160):
    """A wide image with corners everywhere, to be looked at through a window."""
    import cv2

    noise = np.random.default_rng(0).uniform(0, 255, (height, width, 3)).astype(np.float32)
    image = cv2.GaussianBlur(noise, (0, 0), 2)
    return ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


def test_online_klt_follows_a_pan_and_forgets():
    from fasttracks.trackers.online import OnlineKLT

    wide = texture()
    tracker = OnlineKLT(60)
    born, frames, off = {}, 30, []
    for t in range(frames):
        ids, positions = tracker.push(wide[:, 3 * t : 3 * t + 120])
        assert len(ids) == len(set(ids)) == len(positions)
        assert len(ids) >= 30
        for number, (x, y) in zip(ids, positions, strict=True):
            home = born.setdefault(number, (x + 3 * t, y))
            off.append(np.hypot(x + 3 * t - home[0], y - home[1]))
    assert np.median(off) < 0.2
    assert np.mean(np.array(off) > 2) < 0.02
    assert len(born) > 60
    assert len(tracker._ids) < 60 * 4
    with pytest.raises(InputError, match="image: expected \\(160, 120, 3\\) as before"):
        tracker.push(wide)
    with pytest.raises(InputError, match="uint8"):
        tracker.push(wide[:, :120].astype(float))


def test_push_frame_is_a_tracker_and_a_push():
    wide = texture()
    stream = tiny_stream(intrinsics=[[120, 0, 60], [0, 120, 80], [0, 0, 1]])
    updates = [stream.push_frame(wide[:, 2 * t : 2 * t + 120], t / 30) for t in range(WINDOW + 3)]
    assert [u is None for u in updates] == [True] * (WINDOW - 1) + [False] * 4
    assert updates[-1].visible.sum() > 10
    finite([u for u in updates if u], stream.finish())
    with pytest.raises(InputError, match="time"):
        stream.push_frame(wide[:, :120], 0.0)
