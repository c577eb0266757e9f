"""`reconstruct`: tracks in, cameras and points out."""

import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fasttracks.engine import Engine
from fasttracks.errors import InputError
from fasttracks.geometry import Prediction
from fasttracks.long.windows import LONGEST, focal_correction
from fasttracks.network import TracksTo4D
from fasttracks.plausible import check
from fasttracks.reconstruction import Reconstruction
from fasttracks.tracks import Tracks, as_numbers
from fasttracks.weights import find, load

REFINEMENTS = ("none", "bundle", "finetune")
_FOCAL_TRACKS = 128  # whose focal length is nearly that of a thousand

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

    Args:
        tracks: (T, N, 2) pixels, as CoTracker and KLT give them, NaN where unseen; or a
            `Tracks`, which brings its own visibility, intrinsics and image size; or
            (B, T, N, 2), for which a list of B results is returned.
        visibility: (T, N) or (B, T, N) bool; None: every finite position was seen.
        intrinsics: (3, 3), (T, 3, 3) or, for a batch, (B, T, 3, 3) pixels; None: a guess
            from `image_size`, corrected by a model that predicts the focal length, in a first
            pass over at most 128 of the tracks.
        image_size: (height, width) pixels; None with no intrinsics: taken from the extent
            of the tracks, with a warning.
        model: a shipped name, a path to .safetensors, or a loaded model, which then
            stays on its device and in its precision; or an `Engine` around one, for many
            calls on a GPU.
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
    given = tracks if isinstance(tracks, Tracks) else as_numbers(tracks, "tracks")
    batch = not isinstance(given, Tracks) and given.ndim == 4
    clips = _clips(given, visibility, intrinsics, image_size)
    for clip in clips:
        check(clip)
    run = model
    if not isinstance(run, TracksTo4D | Engine):
        run = _load_once(run, device, precision)
    network = run.model if isinstance(run, Engine) else run
    heads = network.points.weight
    cameras = [clip.camera(network.config.assumed_focal) for clip in clips]
    inputs = torch.stack([clip.inputs(k) for clip, k in zip(clips, cameras, strict=True)])
    inputs = inputs.to(heads.device, heads.dtype)
    known_focal = torch.tensor(
        [clip.intrinsics is not None for clip in clips], device=inputs.device
    )
    if network.config.predicts_focal and not known_focal.all():
        factor = torch.where(known_focal, 1.0, _focal_correction(run, inputs))
        inputs[..., :2] /= factor[:, None, None, None]
        cameras = [
            k @ np.diag([by, by, 1.0]) for k, by in zip(cameras, factor.tolist(), strict=True)
        ]
    prediction, outcomes = _predict(run, inputs, known_focal, refine)
    if not torch.isfinite(prediction.projection).all():
        raise InputError("model: its prediction is not finite; the weights or intrinsics are off")

    home = tracks.device if isinstance(tracks, Tensor) else torch.device("cpu")
    prediction = Prediction(*(t.to(home, torch.float32) for t in prediction))
    results = [
        _reconstruction(
            Prediction(*(t[i] for t in prediction)), clip, torch.tensor(k, device=home), outcomes[i]
        )
        for i, (clip, k) in enumerate(zip(clips, cameras, strict=True))
    ]
    if not isinstance(tracks, Tensor):
        results = [result.numpy() for result in results]
    if heads.device.type == "cpu":
        _malloc_trim()(0)
    return results if batch else results[0]


@cache
def _malloc_trim() -> Callable[[int], Any]:
    """glibc's, which gives freed memory back to the system; else a stand-in.

    Without it, calls of ever other shapes leave ever more of the heap in pieces.
    """
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda pad: 0


def _focal_correction(run: TracksTo4D | Engine, inputs: Tensor) -> Tensor:
    """Factors (B,) of focal lengths, as the model corrects them from some of the tracks.

    What it then sees through the corrected ones is closer to what it was trained on than what it
    says of a lens while guessing it.
    """
    if inputs.shape[1] > LONGEST:
        with torch.no_grad():
            each = torch.stack([focal_correction(run, clip) for clip in inputs])
        return each.clamp(0.1, 10).to(inputs.dtype)
    some = inputs[:, :, :: -(-inputs.shape[2] // _FOCAL_TRACKS)].contiguous()
    with torch.no_grad():
        return run(some).focal.mean(1).clamp(0.1, 10).to(inputs.dtype)


def _predict(
    run: TracksTo4D | Engine, inputs: Tensor, known_focal: Tensor, refine: str
) -> tuple[Prediction, Sequence[str | None]]:
    """The prediction for B clips, refined, and for each how that went."""
    if refine == "finetune":
        from fasttracks.refine.finetune import finetune

        prediction, tuning = finetune(run.model if isinstance(run, Engine) else run, inputs)
        return prediction, tuning.outcome
    if inputs.shape[1] > LONGEST:
        from fasttracks.long.assemble import predict

        return predict(run, inputs, known_focal, refine == "bundle")
    with torch.no_grad():
        prediction = run(inputs)
        if refine == "none":
            return prediction, [None] * len(inputs)
        from fasttracks.refine.bundle import bundle

        prediction, adjustment = bundle(prediction, inputs, known_focal)
        return prediction, adjustment.outcome


def _clips(
    tracks: Tracks | np.ndarray, visibility: Any, intrinsics: Any, image_size: Any
) -> list[Tracks]:
    """One checked Tracks a clip."""
    visibility, intrinsics = (
        None if value is None else as_numbers(value, name)
        for name, value in (("visibility", visibility), ("intrinsics", intrinsics))
    )
    if isinstance(tracks, Tracks):
        if visibility is not None:
            raise InputError("visibility: expected None, as the given Tracks bring their own")
        given = {"intrinsics": intrinsics, "image_size": image_size}
        return [replace(tracks, **{k: v for k, v in given.items() if v is not None})]
    if tracks.ndim != 4:
        return [Tracks(tracks, visibility, intrinsics, image_size)]
    if len(tracks) == 0:
        raise InputError(f"tracks: expected at least one clip, found shape {tracks.shape}")
    if visibility is not None and visibility.shape != tracks.shape[:3]:
        raise InputError(
            f"visibility: expected shape {tracks.shape[:3]} as tracks have, found "
            f"{visibility.shape}"
        )
    if np.ndim(intrinsics) == 4 and len(intrinsics) != len(tracks):
        raise InputError(
            f"intrinsics: expected {len(tracks)} clips as tracks have, found {len(intrinsics)}"
        )
    return [
        Tracks(
            clip,
            None if visibility is None else visibility[i],
            intrinsics[i] if np.ndim(intrinsics) == 4 else intrinsics,
            image_size,
        )
        for i, clip in enumerate(tracks)
    ]


@lru_cache(maxsize=4)
def _load_cached(path: str, modified: float, device: str, precision: str) -> TracksTo4D:
    return load(path, device=device, precision=precision)


def _load_once(
    model: str | os.PathLike[str], device: str | torch.device, precision: str
) -> TracksTo4D:
    """`load`, once for each state of the file."""
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model: expected a name, a path or a TracksTo4D, found {type(model)}")
    path = os.fspath(find(model))
    modified = os.path.getmtime(path) if os.path.exists(path) else 0.0
    return _load_cached(path, modified, str(device), precision)


def _reconstruction(
    prediction: Prediction, clip: Tracks, camera: Tensor, refinement: str | None
) -> Reconstruction:
    """A result from one clip's prediction; all tensors on the prediction's device."""
    p = prediction
    home = p.points.device
    intrinsics = camera.float()
    intrinsics[:, :2, :2] *= p.focal[:, None, None]
    camera_to_world = torch.eye(4, device=home).repeat(len(p.rotation), 1, 1)
    camera_to_world[:, :3, :3] = p.rotation
    camera_to_world[:, :3, 3] = p.position
    # The projection carries the focal correction already, so it takes the uncorrected camera.
    reprojection = p.projection @ camera[:, :2, :2].mT.float() + camera[:, None, :2, 2].float()
    return Reconstruction(
        points=p.points,
        points_camera=p.points_camera,
        camera_to_world=camera_to_world,
        intrinsics=intrinsics,
        reprojection=reprojection,
        basis=p.basis.contiguous(),
        coefficients=p.coefficients,
        motion=p.motion,
        tracks=torch.from_numpy(clip.tracks).to(home),
        visibility=torch.from_numpy(clip.visibility).to(home),
        image_size=clip.image_size,
        times=None if clip.times is None else torch.from_numpy(clip.times).to(home),
        colors=None if clip.colors is None else torch.from_numpy(clip.colors).to(home),
        refinement=refinement,
    )
