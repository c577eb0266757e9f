"""Whether arrays from outside are what they are taken for: kinds, shapes and values, by rules."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fasttracks.errors import InputError

FARTHEST = 1e7  # pixels from the image's corner that a position may be
LARGEST = 1e12  # that a number may be; squares and products of few stay within float32


def as_numbers(value: Any, name: str) -> np.ndarray:
    """A numpy array from numpy, torch or lists; InputError, naming the argument, otherwise.

    Half precision becomes float32, what is wider than float64 becomes that; what is masked, NaN.
    """
    try:
        array = _as_array(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        ragged = isinstance(value, list | tuple) and isinstance(error, ValueError)
        found = "ragged lists" if ragged else _kind(value)
        raise InputError(f"{name}: expected one array of numbers, found {found}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers, found {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        with np.errstate(over="ignore"):
            array = array.astype(np.float32 if array.dtype.itemsize == 2 else np.float64)
    return array


def as_array(value: Any, name: str) -> Any:
    """`as_numbers`, or a tensor of numbers that is on a GPU as it is, to be left there."""
    strided = getattr(value, "is_cuda", False) and str(value.layout) == "torch.strided"
    if strided and not (value.is_quantized or value.is_nested or value.is_complex()):
        return value
    return as_numbers(value, name)


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "biuf":
        return np.ma.filled(value.astype(np.float64), np.nan)
    if not hasattr(value, "detach"):
        return np.asarray(value)
    # A torch tensor; torch need not be here for those without.
    if type(value).__name__ == "MaskedTensor" or value.is_quantized or value.is_nested:
        raise TypeError
    if value.is_floating_point() and value.element_size() < 4:
        value = value.float()
    return value.numpy(force=True)


def _kind(value: Any) -> str:
    """What a value is, in words."""
    about = [getattr(value, name, "") for name in ("layout", "device", "dtype")]
    return " ".join(map(str, [type(value).__name__, *filter(None, about)]))


def check_arrays(
    arrays: Mapping[str, np.ndarray],
    rules: Mapping[str, str],
    sizes: Mapping[str, int],
    where: str,
) -> dict[str, np.ndarray]:
    """Those of the arrays that `rules` name, as float32 or bool, once each is what it should be.

    Args:
        arrays: by name; those that are not there are left out.
        rules: by name, the axes and the rule for values: "T44 poses". Axes are sizes themselves
            or letters.
        sizes: of the letters.
        where: how the message begins, such as "clip: FILE".

    Raises:
        InputError: one has another shape or other values.
    """
    checked = {}
    for name, rule in rules.items():
        if name not in arrays:
            continue
        axes, kind = rule.split()
        shape = tuple(sizes[axis] if axis in sizes else int(axis) for axis in axes)
        array, (expected, holds) = as_numbers(arrays[name], name), _RULES[kind]
        if array.shape != shape:
            raise InputError(f"{where} has {name} of shape {array.shape}, expected {shape}")
        if (array.dtype.kind != "f" and kind != "flags") or not np.all(holds(array)):
            raise InputError(f"{where} has {name} of {array.dtype} that are not {expected}")
        checked[name] = array.astype(bool if kind == "flags" else np.float32)
    return checked


def _are_rigid(poses: np.ndarray) -> bool:
    if not (np.abs(poses) <= LARGEST).all() or (poses[..., 3, :] != (0, 0, 0, 1)).any():
        return False
    rotation = poses[..., :3, :3].astype(np.float64)
    if (np.abs(rotation) > 2).any():
        return False
    off = np.abs(rotation @ rotation.swapaxes(-1, -2) - np.eye(3)).max()
    return bool(off < 1e-3 and (np.linalg.det(rotation) > 0).all())


def intrinsics_fault(cameras: np.ndarray) -> str | None:
    """What is wrong with intrinsics (..., 3, 3), in words; None: nothing is."""
    if not np.isfinite(cameras).all():
        return "expected finite numbers, found NaN or infinity"
    if (cameras[..., 2, :] != (0, 0, 1)).any() or (cameras[..., 1, 0] != 0).any():
        return "expected rows (fx, skew, cx), (0, fy, cy), (0, 0, 1)"
    focal = cameras[..., (0, 1), (0, 1)]
    if (focal <= 0).any():
        return "expected focal lengths above 0, or the matrix is singular"
    if (focal < 1e-6).any() or (np.abs(cameras) > 1e9).any():
        return "expected pixels, found numbers below 1e-6 or beyond 1e9"
    return None


# By name of a rule: what it expects in words, and whether an array meets it.
_RULES: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "finite": (f"numbers within ±{LARGEST:g}", lambda x: np.abs(x) <= LARGEST),
    "positive": (f"numbers above 0, at most {LARGEST:g}", lambda x: (x > 0) & (x <= LARGEST)),
    "flags": ("booleans, or 0 and 1", lambda x: (x == 0) | (x == 1)),
    "poses": ("rigid camera poses", _are_rigid),
    "cameras": ("intrinsics in pixels", lambda x: intrinsics_fault(x) is None),
}
