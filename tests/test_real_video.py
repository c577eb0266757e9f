"""Figures from real videos: the geometry and the metrics on clips made to be known."""

from types import SimpleNamespace

import numpy as np
import pytest
import real_video
import stereo4d
from scipy.spatial.transform import Rotation

FRAMES, STILL, MOVERS = 24, 30, 12


def project(points: np.ndarray, rotation: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(T, N, 3) in each frame's camera; pixels are `stereo4d.FOCAL` · x / z + `CENTER`."""
    return np.einsum("tji,tnj->tni", rotation, points - position[:, None])


def pixels(camera: np.ndarray) -> np.ndarray:
    return stereo4d.FOCAL * camera[..., :2] / camera[..., 2:] + stereo4d.CENTER


@pytest.fixture
def clip(tmp_path):
    """A camera that walks forwards on a bend, still points and others that move sideways."""
    random = np.random.default_rng(0)
    time = np.arange(FRAMES)
    position = np.stack([0.3 * np.sin(time / 6), 0 * time, 0.05 * time], -1)
    rotation = Rotation.from_rotvec(np.sin(time / 9)[:, None] * [0, 0.02, 0]).as_matrix()
    still = random.uniform([-3, -1, 5], [3, 1, 15], (STILL, 3))
    body = random.uniform([-0.3, -0.8, 6], [0.3, 0.8, 6.4], (MOVERS, 3))
    moving = body + time[:, None, None] * [0.04, 0, 0.01]
    points = np.concatenate([np.tile(still, (FRAMES, 1, 1)), moving], axis=1)
    camera = project(points, rotation, position)
    moved = pixels(camera[:, STILL:])
    np.savez(
        tmp_path / "clip.npz",
        pts3d=moving.swapaxes(0, 1),
        vis3d=np.ones((MOVERS, FRAMES), bool),
        tracks2d=moved + 0.5,
        vis2d=np.ones((FRAMES, MOVERS), bool),
        cam_pos=position,
        cam_fwd=rotation[:, :, 2],
    )
    truth = stereo4d.Truth.load(tmp_path / "clip.npz", time)
    np.testing.assert_allclose(truth.rotation, rotation, atol=1e-6)
    np.testing.assert_allclose(truth.depth, camera[:, STILL:, 2], atol=1e-6)
    return truth, pixels(camera), camera[..., 2]


def reconstruction(truth, tracks, depth, scale=2.0, moving=None):
    """As `fasttracks.Reconstruction`, in another frame and scale."""
    pose = np.tile(np.eye(4), (len(tracks), 1, 1))
    turn = Rotation.from_euler("xyz", (0.3, -0.2, 0.1)).as_matrix()
    pose[:, :3, :3] = turn @ truth.rotation
    pose[:, :3, 3] = scale * truth.position @ turn.T + [1, 2, 3]
    return SimpleNamespace(
        camera_to_world=pose,
        tracks=tracks,
        visibility=np.ones(tracks.shape[:2], bool),
        depth=scale * depth,
        intrinsics=np.tile(stereo4d.INTRINSICS, (len(tracks), 1, 1)),
        moving=np.arange(tracks.shape[1]) >= STILL if moving is None else moving,
        median_reprojection_error=0.0,
    )


def test_truth_judges_itself(clip):
    truth, tracks, depth = clip
    partner, far = stereo4d.partners(tracks, np.ones(tracks.shape[:2], bool), truth)
    np.testing.assert_array_equal(partner[STILL:], np.arange(MOVERS))
    far[:STILL] |= True  # some cross a moving point's way
    figures = stereo4d.judge(reconstruction(truth, tracks, depth), truth, partner, far)
    for name in ("ate", "rpe_rotation", "rpe_position", "clip", "frame", "cameras", "still",
                 "still_cameras", "px", "px_true", "alarm"):  # fmt: skip
        assert figures[name] == pytest.approx(0, abs=1e-3), name
    assert figures["focal"] == pytest.approx(1)
    assert figures["recall"] == 100
    assert figures["movers"] == MOVERS
    assert figures["still_tracks"] > STILL / 2
    assert figures["line"] > figures["parabola"] > 1
    assert figures["still_flat"] > 10 > figures["clip_flat"] > 0.5


def test_errors_show_where_they_are(clip):
    truth, tracks, depth = clip
    depth = depth.copy()
    depth[:, STILL:] *= 1.2  # as a whole too far
    depth[:, STILL : STILL + 3] *= 1.1
    partner = np.append(np.full(STILL, -1), np.arange(MOVERS))
    rec = reconstruction(truth, tracks, depth, moving=np.zeros(STILL + MOVERS, bool))
    rec.camera_to_world[10, :3, 3] += 2.0 * 0.01
    figures = stereo4d.judge(rec, truth, partner, partner < 0)
    assert figures["frame"] == pytest.approx(100 * 0.1 * 3 / 12, rel=1e-3)
    assert figures["cameras"] == pytest.approx(100 * (0.32 * 3 + 0.2 * 9) / 12, rel=0.02)
    assert figures["recall"] == 0
    apart = 0.01 * 3**0.5 * (1 - 1 / FRAMES) ** 0.5 / FRAMES**0.5
    assert figures["ate"] == pytest.approx(100 * apart / truth.path, rel=0.1)


def test_partners_are_near_and_single(clip):
    truth, tracks, _ = clip
    ours = np.concatenate([tracks[:, STILL:] + [2, 0], tracks[:, STILL:] + [0, 1]], axis=1)
    partner, far = stereo4d.partners(ours, np.ones(ours.shape[:2], bool), truth)
    assert (partner[MOVERS:] == np.arange(MOVERS)).mean() > 0.8
    assert len(set(partner[partner >= 0])) == (partner >= 0).sum()
    assert not far.any()
    partner, _ = stereo4d.partners(ours + 9e3, np.ones(ours.shape[:2], bool), truth)
    assert (partner == -1).all()


def test_triangulation_holds_outliers_back(clip):
    truth, tracks, depth = clip
    spoiled = tracks.copy()
    spoiled[5:7] += 30
    visible = np.ones(tracks.shape[:2], bool)
    visible[8:, 0] = False
    found, error, spread = stereo4d.triangulate(spoiled, visible, truth.rotation, truth.position)
    told = spread[1:STILL] > 1
    assert told.sum() > STILL / 2
    np.testing.assert_allclose(found[:, 1:STILL][:, told], depth[:, 1:STILL][:, told], rtol=0.02)
    assert error[0] == np.inf  # seen in too few frames
    assert (error[1:STILL] < 0.1).all()


def test_tracker_is_judged_where_the_truth_sees(clip):
    truth, _, _ = clip
    truth.visible[:4, 3:] = False

    def tracker(frames, queries):
        """Starts on the truth, is then 3 px off, and loses everything half way."""
        np.testing.assert_array_equal(queries[:, 0], [0, 0, 0, *[8] * (MOVERS - 3)])
        tracks = np.repeat(truth.tracks, 2, axis=0) + np.array([3, 0])
        alive = np.arange(2 * FRAMES)[:, None] < FRAMES
        return tracks, np.tile(alive, (1, MOVERS))

    figures = stereo4d.judge_tracker(
        tracker, np.zeros((2 * FRAMES, 4, 4, 3)), truth, np.arange(MOVERS), stride=2
    )
    due = 3 * (FRAMES - 1) + (MOVERS - 3) * (FRAMES - 5)
    alive = 3 * (FRAMES // 2 - 1) + (MOVERS - 3) * (FRAMES // 2 - 5)
    assert figures["alive"] == pytest.approx(100 * alive / due)
    assert figures["within_4"] == figures["alive"]
    assert figures["within_2"] == 0
    assert figures["error"] == pytest.approx(3)


def test_medians_leave_out_what_is_not_known():
    rows = [{"a": 1.0, "b": np.nan}, {"a": 3.0, "b": np.nan}, {"a": np.nan, "b": 5.0}]
    assert real_video.summary(rows) == {"a": 2, "b": 5}
    table = real_video.show("figures", rows).splitlines()
    assert len(table) == 6
    assert table[-1].split() == ["median", "2", "5"]


def test_tracks_on_what_moves_come_first():
    visible = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]], bool)
    partner = np.array([-1, 4, -1, 7])
    assert real_video.choose(visible, partner, 3, oracle=False).tolist() == [3, 1, 2]
    assert real_video.choose(visible, partner, None, oracle=True).tolist() == [2, 0]
