"""The packs of recordings, from files as their sources publish them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "pack_recordings.py"
BVH = """HIERARCHY
ROOT hip
{
  OFFSET 0 1 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
  JOINT knee
  {
    OFFSET 0 -40 0
    CHANNELS 3 Xrotation Zrotation Yrotation
    JOINT foot
    {
      OFFSET 3 -45 0
      CHANNELS 3 Zrotation Yrotation Xrotation
      End Site
      {
        OFFSET 0 0 9
      }
    }
  }
}
MOTION
Frames: 8
Frame Time: 0.0083333
"""


def test_packs(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.uniform(-90, 90, (8, 12))
    (tmp_path / "dance").mkdir()
    rows = "\n".join(" ".join(map(repr, row)) for row in values.tolist())
    (tmp_path / "dance" / "01.bvh").write_text(BVH + rows + "\n")
    turns = Rotation.random(90, random_state=0)
    centers = rng.normal(size=(90, 3))
    times = 100 + np.arange(90) / 100
    tum = np.column_stack([times, centers, turns.as_quat()])
    np.savetxt(tmp_path / "groundtruth.txt", tum, header="timestamp tx ty tz qx qy qz qw")
    matrices = rng.normal(size=(31, 12))
    with open(tmp_path / "abc.txt", "w") as file:
        print("https://example.org/watch", file=file)
        np.savetxt(file, np.column_stack([np.arange(31), np.zeros((31, 6)), matrices]))

    packs = ("--bvh", tmp_path, "--tum", tmp_path / "groundtruth.txt", "--re10k")
    subprocess.run(
        [sys.executable, SCRIPT, "-o", tmp_path, *packs, tmp_path / "abc.txt"], check=True
    )

    people = np.load(tmp_path / "mocap_cmu.npz")
    assert people["names"].tolist() == ["hip", "knee", "foot"]
    assert people["parents"].tolist() == [-1, 0, 1]
    some = values[::4]  # 120 a second become 30
    hip = some[:, :3] + [0, 1, 0]
    first = Rotation.from_euler("ZYX", some[:, 3:6], degrees=True)
    knee = hip + first.apply([0, -40, 0])
    second = first * Rotation.from_euler("XZY", some[:, 6:9], degrees=True)
    foot = knee + second.apply([3, -45, 0])
    expected = 10 * np.stack([hip, knee, foot], axis=1)
    assert people["dance/01"].dtype == np.int16
    assert np.abs(people["dance/01"] - expected).max() < 0.51

    cameras = np.load(tmp_path / "camera_paths.npz")
    np.testing.assert_allclose(cameras["tum_fr1_xyz/t"], times[::3] - 100, atol=1e-6)
    np.testing.assert_allclose(cameras["tum_fr1_xyz/C"], centers[::3], atol=1e-6)
    np.testing.assert_allclose(cameras["tum_fr1_xyz/R_c2w"], turns.as_matrix()[::3], atol=1e-6)
    np.testing.assert_allclose(cameras["re10k/abc/P"].reshape(16, 12), matrices[::2], atol=1e-6)
