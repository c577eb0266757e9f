"""The recordings that training reads, from their public sources: `pack_recordings.py -o FOLDER`.

Writes FOLDER/mocap_cmu.npz from BVH files (`--bvh FOLDER`: the "Daz-friendly" BVH conversion of
CMU's motion capture, free for all uses; the shipped weights saw its indian, martial and salsa
clips), and FOLDER/camera_paths.npz from TUM RGB-D's `freiburg1_xyz/groundtruth.txt` (`--tum`) and
RealEstate10K's camera files (`--re10k FILE ...`), both CC BY 4.0. fasttracks/scenes/README.md
says what is in both.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fasttracks.errors import InputError
from fasttracks.files import write_npz

RATE = 30  # frames a second
SAMPLES = 16  # of a RealEstate10K path


def read_bvh(path: Path) -> tuple[list[str], list[int], np.ndarray]:
    """Names (J), parents (J; -1 for the root) and positions (T, J, 3) at 30 frames a second.

    In the file's unit. End sites are left out.
    """
    words = iter(path.read_text().split())
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    _hierarchy(words, -1, names, parents, offsets, channels)
    header = [next(words) for _ in range(5)]  # MOTION Frames: T Frame Time:
    if [header[0], header[1], header[3]] != ["MOTION", "Frames:", "Frame"]:
        raise InputError(f"{path}: expected MOTION after the hierarchy, found {' '.join(header)}")
    count, seconds = int(header[2]), float(next(words))
    values = np.array(list(words), float).reshape(count, -1)
    values = values[:: max(1, round(1 / (RATE * seconds)))]
    return names, parents, _positions(values, parents, offsets, channels)


def _hierarchy(
    words: Iterator[str],
    parent: int,
    names: list[str],
    parents: list[int],
    offsets: list[list[float]],
    channels: list[list[str]],
) -> None:
    """Read joints up to the brace that closes the parent, or the root; end sites aren't kept."""
    for word in words:
        if word == "}":
            return
        if word == "End":
            while next(words) != "}":
                pass
        elif word in ("ROOT", "JOINT"):
            own = len(names)
            names.append(next(words))
            parents.append(parent)
            assert [next(words), next(words)] == ["{", "OFFSET"]
            offsets.append([float(next(words)) for _ in range(3)])
            assert next(words) == "CHANNELS"
            channels.append([next(words) for _ in range(int(next(words)))])
            _hierarchy(words, own, names, parents, offsets, channels)
            if parent < 0:
                return


def _positions(
    values: np.ndarray, parents: list[int], offsets: list[list[float]], channels: list[list[str]]
) -> np.ndarray:
    """Positions (T, J, 3): forward kinematics of channel values (T, C)."""
    turns = np.zeros((len(values), len(parents), 3, 3))
    places = np.zeros((len(values), len(parents), 3))
    column = 0
    for joint, parent in enumerate(parents):
        turn = np.broadcast_to(np.eye(3), (len(values), 3, 3))
        step = np.broadcast_to(np.array(offsets[joint]), (len(values), 3)).copy()
        for channel in channels[joint]:
            axis, value = "XYZ".index(channel[0]), values[:, column]
            if channel[1:] == "position":
                step[:, axis] += value
            else:
                turn = turn @ _about(axis, np.deg2rad(value))
            column += 1
        if parent < 0:
            places[:, joint], turns[:, joint] = step, turn
        else:
            places[:, joint] = places[:, parent] + (turns[:, parent] @ step[..., None])[..., 0]
            turns[:, joint] = turns[:, parent] @ turn
    return places


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) about the x, y or z axis."""
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, first, first] = matrix[:, second, second] = np.cos(angle)
    matrix[:, second, first] = np.sin(angle)
    matrix[:, first, second] = -np.sin(angle)
    return matrix


def read_tum(path: Path) -> dict[str, np.ndarray]:
    """Seconds t (T), centres C (T, 3), camera-to-world rotations R_c2w (T, 3, 3); 30 a second."""
    rows = np.loadtxt(path)
    step = max(1, round(1 / (RATE * np.median(np.diff(rows[:, 0])))))
    rows = rows[::step]
    x, y, z, w = (rows[:, 4:] / np.linalg.norm(rows[:, 4:], axis=1, keepdims=True)).T
    rotation = np.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        ],
        axis=-1,
    ).reshape(-1, 3, 3)
    return {
        "t": rows[:, 0] - rows[0, 0],
        "C": rows[:, 1:4].astype(np.float32),
        "R_c2w": rotation.astype(np.float32),
    }


def read_re10k(path: Path) -> np.ndarray:
    """World-to-camera matrices (16, 3, 4), evenly along a clip; its first line is the address."""
    rows = np.loadtxt(path, skiprows=1, ndmin=2)
    if len(rows) < SAMPLES or rows.shape[1] != 19:
        raise InputError(f"{path}: expected {SAMPLES} or more rows of 19, found {rows.shape}")
    some = np.linspace(0, len(rows) - 1, SAMPLES).round().astype(int)
    return rows[some, 7:].reshape(SAMPLES, 3, 4).astype(np.float32)


def pack_people(folder: Path, millimetres: float) -> dict[str, np.ndarray]:
    """All BVH files of a folder, by the path from there; they must share one skeleton."""
    found: dict[str, np.ndarray] = {}
    skeleton = None
    for path in sorted(folder.rglob("*.bvh")):
        names, parents, positions = read_bvh(path)
        if skeleton not in (None, (names, parents)):
            raise InputError(f"{path}: expected the joints of the files before it")
        skeleton = names, parents
        name = path.relative_to(folder).with_suffix("").as_posix()
        found[name] = np.rint(millimetres * positions).astype(np.int16)
    if skeleton is None:
        raise InputError(f"{folder}: expected .bvh files, found none")
    return {**found, "names": np.array(skeleton[0]), "parents": np.array(skeleton[1])}


def main() -> None:
    """Write the packs whose sources are given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--bvh", type=Path, metavar="FOLDER")
    parser.add_argument("--unit", type=float, default=10, help="of the BVH files, in millimetres")
    parser.add_argument("--tum", type=Path, metavar="FILE")
    parser.add_argument("--re10k", type=Path, nargs="*", default=[], metavar="FILE")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.bvh:
        write_npz(options.output / "mocap_cmu.npz", pack_people(options.bvh, options.unit))
    paths = {f"re10k/{path.stem}/P": read_re10k(path) for path in options.re10k}
    if options.tum:
        paths |= {f"tum_fr1_xyz/{name}": a for name, a in read_tum(options.tum).items()}
    if paths:
        write_npz(options.output / "camera_paths.npz", paths)


if __name__ == "__main__":
    main()
