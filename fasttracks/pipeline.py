"""`reconstruct`: tracks in, cameras and points out."""

import ctypes
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from threading import Thread
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fasttracks.checks import as_array
from fasttracks.clips import Clip, finish, start
from fasttracks.engine import Engine
from fasttracks.errors import InputError
from fasttracks.network import TracksTo4D
from fasttracks.reconstruction import Reconstruction
from fasttracks.tracks import Tracks, check_image_size
from fasttracks.weights import SHIPPED, find, load, resolve_device

REFINEMENTS = ("none", "bundle", "finetune")
_TOKENS_AT_ONCE = 1 << 17  # of a batch on a GPU, which more keep no busier

_Model = str | os.PathLike[str] | TracksTo4D | Engine


@overload
def reconstruct(
    tracks: Tracks,
    visibility: None = ...,
    *,
    intrinsics: Any = ...,
    image_size: Sequence[int] | None = ...,
    model: _Model = ...,
    device: str | torch.device = ...,
    precision: str = ...,
    refine: str = ...,
) -> Reconstruction[np.ndarray]: ...


# A type doesn't tell a batch from one clip: "| Any" lets either be used without a cast.
@overload
def reconstruct(
    tracks: Tensor,
    visibility: Any = ...,
    *,
    intrinsics: Any = ...,
    image_size: Sequence[int] | None = ...,
    model: _Model = ...,
    device: str | torch.device = ...,
    precision: str = ...,
    refine: str = ...,
) -> Reconstruction[Tensor] | Any: ...


@overload
def reconstruct(
    tracks: ArrayLike,
    visibility: Any = ...,
    *,
    intrinsics: Any = ...,
    image_size: Sequence[int] | None = ...,
    model: _Model = ...,
    device: str | torch.device = ...,
    precision: str = ...,
    refine: str = ...,
) -> Reconstruction[np.ndarray] | Any: ...


def reconstruct(
    tracks: Any,
    visibility: Any = None,
    *,
    intrinsics: Any = None,
    image_size: Sequence[int] | None = None,
    model: _Model = "base",
    device: str | torch.device = "auto",
    precision: str = "auto",
    refine: str = "none",
) -> Any:
    """Camera poses and the 3D position of every track in every frame, from point tracks.

    Arrays may be numpy or torch, on any device; results are numpy unless `tracks` is a
    torch tensor, then torch on its device. The same input gives the same output, bit for
    bit, on the same device, with the same precision and, on a CPU, number of threads.

    On a GPU a shape that comes back is a CUDA graph from its second call on; up to 16 are kept for
    each model. Tensors that are on the GPU stay there, and nothing waits for them: what only their
    values tell, such as pixels of another image, is raised or warned of by the first method of the
    result that looks at them (`numpy`, `save`, `repr`, ...), or by its `check`. It does wait where
    `refine` is given, and where neither intrinsics nor image_size are.

    Args:
        tracks: (T, N, 2) pixels, as CoTracker and KLT give them, NaN where unseen; or a
            `Tracks`, which brings its own visibility, intrinsics and image size; or for a
            list of B results (B, T, N, 2), or a list of arrays or `Tracks` of any sizes.
        visibility: (T, N) or (B, T, N) bool, or a list; None: every finite position was seen.
        intrinsics: (3, 3), (T, 3, 3) or, for a batch, (B, T, 3, 3) pixels, or a list; None: a guess
            from `image_size`, corrected by a model that predicts the focal length, in a first
            pass over at most 128 of the tracks.
        image_size: (height, width) pixels; None with no intrinsics: taken from the extent
            of the tracks, with a warning.
        model: a shipped name, a path to .safetensors, or a loaded model, which then
            stays on its device and in its precision; or an `Engine` around one, which is
            ready ahead.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: "auto", "fp32", "fp16" or "bf16".
        refine: "bundle" adjusts cameras and points to the tracks, in about the time of the
            network; "finetune" tunes a copy of the network to each clip first, in minutes.
            The result's `refinement` says how it went.

    Returns:
        A Reconstruction, or a list of them for a batch.

    Raises:
        InputError: one line naming the argument, what was found and what was expected.
    """
    if not isinstance(refine, str) or refine not in REFINEMENTS:
        raise InputError(f"refine: expected one of {', '.join(REFINEMENTS)}, found {refine!r}")
    if isinstance(tracks, str | os.PathLike):
        raise InputError(
            "tracks: expected an array or Tracks, found a path; fasttracks.track(path) follows "
            "points through a video, fasttracks.Tracks.load(path) reads a track file"
        )
    clips, batch = _clips(tracks, visibility, intrinsics, image_size)
    run = model
    if not isinstance(run, TracksTo4D | Engine):
        if refine == "bundle" and torch.cuda.is_available():
            _begin_adjusting(str(device))
        run = _load_once(run, device, precision)
    heads = (run.model if isinstance(run, Engine) else run).points.weight
    first = tracks[0] if isinstance(tracks, list | tuple) and batch else tracks
    home = first.device if isinstance(first, Tensor) else None
    groups = [
        (part, start([clips[i] for i in part], run, refine, home))
        for part in _groups(clips, run, heads.is_cuda)
    ]
    found = [
        (i, result)
        for part, started in groups
        for i, result in zip(part, finish(started, home), strict=True)
    ]
    results = [result for _, result in sorted(found, key=lambda pair: pair[0])]
    if heads.device.type == "cpu":
        _malloc_trim()(0)
    return results if batch else results[0]


def _groups(clips: Sequence[Clip], model: TracksTo4D | Engine, on_gpu: bool) -> Iterator[list[int]]:
    """Which clips go together: those of one shape; on a GPU a few at a time.

    While it is at some, the host takes what comes of those before.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, clip in enumerate(clips):
        by_shape.setdefault(tuple(clip.tracks.shape[:2]), []).append(i)
    for shape, members in by_shape.items():
        most = len(members)
        if on_gpu:
            most = max(1, _TOKENS_AT_ONCE // max(1, math.prod(shape)))
        if isinstance(model, Engine):
            most = min(most, model.limits[0])
        size = -(-len(members) // -(-len(members) // most))
        yield from (members[i : i + size] for i in range(0, len(members), size))


@cache
def _malloc_trim() -> Callable[[int], Any]:
    """glibc's, which gives freed memory back to the system; else a stand-in.

    Without it, calls of ever other shapes leave ever more of the heap in pieces.
    """
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda pad: 0


def _clips(
    tracks: Any, visibility: Any, intrinsics: Any, image_size: Any
) -> tuple[list[Clip], bool]:
    """What was given of each clip, and whether that was a batch; only shapes are checked."""
    several = isinstance(tracks, list | tuple) and len(tracks) > 0
    if several and all(isinstance(t, Tracks) or getattr(t, "ndim", 0) == 3 for t in tracks):
        count = len(tracks)
        seen, cameras = (
            _each(value, count, name, ndim)
            for value, name, ndim in ((visibility, "visibility", 3), (intrinsics, "intrinsics", 4))
        )
        rows = zip(tracks, seen, cameras, strict=True)
        return [_clip(t, v, k, image_size) for t, v, k in rows], True
    if isinstance(tracks, Tracks):
        return [_clip(tracks, visibility, intrinsics, image_size)], False
    clip = _clip(tracks, visibility, intrinsics, image_size)
    shape = tuple(clip.tracks.shape)
    if len(shape) != 4:
        return [clip], False
    if shape[0] == 0:
        raise InputError(f"tracks: expected at least one clip, found shape {shape}")
    seen, cameras = clip.visibility, _each(clip.intrinsics, shape[0], "intrinsics", 4)
    if seen is None:
        seen = [None] * shape[0]
    elif tuple(seen.shape) != shape[:3]:
        raise InputError(
            f"visibility: expected shape {shape[:3]} as tracks have, found {tuple(seen.shape)}"
        )
    rows = zip(clip.tracks, seen, cameras, strict=True)
    return [Clip(t, v, k, clip.image_size) for t, v, k in rows], True


def _each(value: Any, count: int, name: str, ndim: int) -> list[Any]:
    """One value a clip: rows of an array of `ndim` axes, or a list of arrays; else all the same."""
    by_clip = isinstance(value, list | tuple) and any(hasattr(v, "ndim") for v in value)
    if not by_clip and getattr(value, "ndim", 0) != ndim:
        return [value] * count
    if len(value) != count:
        raise InputError(f"{name}: expected {count} clips as tracks have, found {len(value)}")
    return list(value)


def _clip(tracks: Any, visibility: Any, intrinsics: Any, image_size: Any) -> Clip:
    if isinstance(tracks, Tracks):
        if visibility is not None:
            raise InputError("visibility: expected None, as the given Tracks bring their own")
        given = {"intrinsics": intrinsics, "image_size": image_size}
        given = {name: value for name, value in given.items() if value is not None}
        return Clip.of(replace(tracks, **given) if given else tracks)
    return Clip(
        as_array(tracks, "tracks"),
        None if visibility is None else as_array(visibility, "visibility"),
        None if intrinsics is None else as_array(intrinsics, "intrinsics"),
        _image_size(image_size),
    )


def _image_size(value: Any) -> tuple[int, int] | None:
    """`check_image_size`, which takes longer than all else that is checked, once for each."""
    whole = type(value) is tuple and all(type(n) is int for n in value)
    return _known_size(value) if whole else check_image_size(value)


_known_size = lru_cache(maxsize=64)(check_image_size)


@cache
def _begin_adjusting(device: str) -> None:
    """Have torch load what bundle adjustment needs of its libraries, in 0.3 s, beside the model."""

    def reach(device: torch.device) -> None:
        with suppress(RuntimeError):  # which the adjustment raises again
            x = torch.ones(1, 9, 9, device=device)
            torch.quantile(x @ x, 0.5, dim=-1)
            torch.baddbmm(x.double(), x.double(), x.double())

    resolved = resolve_device(device)
    if resolved.type == "cuda":
        Thread(target=reach, args=(resolved,), daemon=True).start()


@lru_cache(maxsize=4)
def _load_cached(path: str, modified: float, device: str, precision: str) -> TracksTo4D:
    return load(path, device=device, precision=precision)


def _load_once(
    model: str | os.PathLike[str], device: str | torch.device, precision: str
) -> TracksTo4D:
    """`load`, once for each state of the file."""
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model: expected a name, a path or a TracksTo4D, found {type(model)}")
    if isinstance(model, str) and model in SHIPPED:  # whose files stay as they are
        return _load_cached(os.fspath(SHIPPED[model]), 0.0, str(device), precision)
    path = os.fspath(find(model))
    try:
        modified = os.stat(path).st_mtime
    except OSError:  # which `load` puts into words
        modified = 0.0
    return _load_cached(path, modified, str(device), precision)
