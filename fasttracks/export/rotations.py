"""Rotations as quaternions."""

import numpy as np


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """(T, 4) unit quaternions w x y z, float64, of rotations (T, 3, 3).

    Neighbours lie in the same half of the sphere, so that they can be interpolated. Each is
    the eigenvector nearest to its rotation: Bar-Itzhack, "New method for extracting the
    quaternion from a rotation matrix", 2000.
    """
    r = np.asarray(rotations, np.float64)
    matrix = np.empty((len(r), 4, 4))
    trace = np.trace(r, axis1=1, axis2=2)
    matrix[:, 0, 0] = trace
    matrix[:, 1:, 1:] = r + r.swapaxes(1, 2) - trace[:, None, None] * np.eye(3)
    skew = [r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]]
    matrix[:, 0, 1:] = matrix[:, 1:, 0] = np.stack(skew, -1)
    q = np.linalg.eigh(matrix)[1][..., -1]
    q[0] *= np.sign(q[0, 0]) or 1
    flips = np.sign((q[1:] * q[:-1]).sum(-1))
    q[1:] *= np.cumprod(np.where(flips < 0, -1, 1))[:, None]
    return q
