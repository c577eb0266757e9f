"""glTF 2.0, binary: the points as one mesh whose morph targets are the basis clouds.

A reconstruction is low-rank, points = coefficients · basis, and so is a mesh with morph targets:
the basis is stored once and only the coefficients are animated. Viewers draw bare points as
single pixels, or not at all (Blender's renderer), so each point is a small octahedron.
glTF's axes are x right, y up, z backward, in the world as for cameras.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fasttracks.checks import LARGEST, as_numbers
from fasttracks.errors import InputError
from fasttracks.export.rotations import quaternions
from fasttracks.files import replacing
from fasttracks.reconstruction_data import ReconstructionData

_AXES = np.array([1.0, -1.0, -1.0])  # of the reconstruction in glTF's, and back
_CORNERS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
_FACES = np.array(
    [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
)
_FPS = 24.0  # Blender's, for a clip that doesn't know its times


def write(rec: ReconstructionData, path: Path, radius: float | None) -> None:
    """See `Reconstruction.to_gltf`."""
    if radius is None:
        radius = 0.006 * _depth(rec)
    value = as_numbers(radius, "radius")
    if value.shape != () or not 0 < value <= LARGEST:
        raise InputError(f"radius: expected a number above 0 in world units, found {radius}")
    file = _File()
    file.add_points(rec, float(value))
    file.add_camera(rec)
    file.add_animation(rec)
    with replacing(path) as temporary:
        temporary.write_bytes(file.to_bytes())


class _File:
    """A scene of two nodes, 0 the points and 1 the camera, and the buffer that it refers to."""

    def __init__(self) -> None:
        self.buffer = b""
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "fasttracks"},
            "scene": 0,
            "scenes": [{"nodes": [0, 1]}],
            "nodes": [{"name": "points", "mesh": 0}, {"name": "camera", "camera": 0}],
            "bufferViews": [],
            "accessors": [],
        }

    def accessor(
        self, array: np.ndarray, *, bounds: bool = False, target: int | None = None
    ) -> int:
        """The number of a new accessor to a float32, uint16 (as 0..1) or uint32 array."""
        component = {"f": 5126, "u2": 5123, "u4": 5125}
        kind = component[array.dtype.str[1:] if array.dtype.kind == "u" else "f"]
        data = np.ascontiguousarray(array, "<f4" if kind == 5126 else None)
        view = {"buffer": 0, "byteOffset": len(self.buffer), "byteLength": data.nbytes}
        self.json["bufferViews"].append(view | ({"target": target} if target else {}))
        self.buffer += data.tobytes()
        width = data.shape[1] if data.ndim == 2 else 1
        accessor: dict[str, Any] = {
            "bufferView": len(self.json["bufferViews"]) - 1,
            "componentType": kind,
            "count": len(data),
            "type": "SCALAR" if width == 1 else f"VEC{width}",
        }
        if kind == 5123:
            accessor["normalized"] = True
        if bounds:
            accessor["min"] = np.atleast_1d(data.min(0)).tolist()
            accessor["max"] = np.atleast_1d(data.max(0)).tolist()
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def add_points(self, rec: ReconstructionData, radius: float) -> None:
        basis = rec.basis.astype(np.float64) * _AXES
        low, span = _weight_range(rec)
        start = basis[0] + np.einsum("k,knc->nc", low, basis[1:])
        corners = start[:, None] + radius * _CORNERS
        faces = _FACES + len(_CORNERS) * np.arange(len(corners))[:, None, None]
        shifts = np.repeat(basis[1:] * span[:, None, None], len(_CORNERS), axis=1)
        mesh = {
            "name": "points",
            "primitives": [
                {
                    "attributes": {
                        "POSITION": self.accessor(
                            corners.reshape(-1, 3), bounds=True, target=34962
                        ),
                        "COLOR_0": self.accessor(_linear_colors(rec), target=34962),
                    },
                    "indices": self.accessor(faces.reshape(-1).astype("<u4"), target=34963),
                    "material": 0,
                    "targets": [
                        {"POSITION": self.accessor(shift, bounds=True, target=34962)}
                        for shift in shifts
                    ],
                }
            ],
            "weights": ((rec.coefficients[0, 1:] - low) / span).tolist(),
        }
        self.json["meshes"] = [mesh]
        self.json["materials"] = [
            {"name": "points", "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}
        ]

    def add_camera(self, rec: ReconstructionData) -> None:
        fx, fy, cx, cy = np.median(rec.intrinsics, axis=0)[(0, 1, 0, 1), (0, 1, 2, 2)].tolist()
        height, width = rec.image_size or (2 * cy + 1, 2 * cx + 1)
        self.json["cameras"] = [
            {
                "type": "perspective",
                "perspective": {
                    "yfov": 2 * float(np.arctan(height / 2 / fy)),
                    "aspectRatio": (width / fx) / (height / fy),
                    "znear": 0.01 * _depth(rec),
                },
            }
        ]

    def add_animation(self, rec: ReconstructionData) -> None:
        times = np.arange(len(rec.points)) / _FPS if rec.times is None else rec.times
        times = (times - times[0]).astype(np.float32)
        rising = np.diff(times, prepend=-1) > 0
        poses = rec.camera_to_world[rising].astype(np.float64)
        rotation = poses[:, :3, :3] * _AXES[:, None] * _AXES
        low, span = _weight_range(rec)
        values = {
            (0, "weights"): ((rec.coefficients[rising, 1:] - low) / span).reshape(-1),
            (1, "translation"): poses[:, :3, 3] * _AXES,
            (1, "rotation"): np.roll(quaternions(rotation), -1, axis=1),  # x y z w
        }
        start = self.accessor(times[rising], bounds=True)
        outputs = [self.accessor(value) for value in values.values()]
        self.json["animations"] = [
            {
                "name": "clip",
                "samplers": [{"input": start, "output": output} for output in outputs],
                "channels": [
                    {"sampler": i, "target": {"node": node, "path": path}}
                    for i, (node, path) in enumerate(values)
                ],
            }
        ]

    def to_bytes(self) -> bytes:
        self.json["buffers"] = [{"byteLength": len(self.buffer)}]
        text = json.dumps(self.json, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        data = self.buffer + b"\0" * (-len(self.buffer) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(data), b"BIN\0") + data
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _depth(rec: ReconstructionData) -> float:
    """The median, above 0."""
    return max(1e-6, float(np.median(np.abs(rec.depth))))


def _weight_range(rec: ReconstructionData) -> tuple[np.ndarray, np.ndarray]:
    """(K - 1,) least coefficients and their spans, for weights of 0..1, to which Blender clips."""
    coefficients = rec.coefficients[:, 1:].astype(np.float64)
    return coefficients.min(0), np.maximum(np.ptp(coefficients, axis=0), 1e-6)


def _linear_colors(rec: ReconstructionData) -> np.ndarray:
    """(6 N, 4) uint16 of each corner, grey where colours aren't known; glTF's are linear."""
    colors = np.full((len(rec.motion), 3), 128) if rec.colors is None else rec.colors
    encoded = colors / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    opaque = np.concatenate([linear, np.ones_like(linear[:, :1])], 1)
    return np.repeat(np.rint(opaque * 65535).astype("<u2"), len(_CORNERS), axis=0)
