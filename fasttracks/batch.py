"""What clips of one shape go through together: inputs, the network, refinement, results.

On a GPU with kernels the clips' arrays go there as they are, and everything that needs their values
is done there, so that one copy up and one copy back are all that the host waits for. Counts that
come back with the answer tell whether a clip is in order; only where they leave a doubt does the
host look at the values, to say in words what is wrong. Elsewhere the host looks first.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttracks.backends import TORCH
from fasttracks.engine import Engine, run
from fasttracks.errors import InputError
from fasttracks.geometry import Prediction
from fasttracks.long.windows import LONGEST, focal_correction
from fasttracks.network import TracksTo4D, runnable
from fasttracks.plausible import Counts, check, unremarkable
from fasttracks.reconstruction import Reconstruction
from fasttracks.tracks import Tracks, guessed_camera

_FOCAL_TRACKS = 128  # whose focal length is nearly that of a thousand
_ALIGNED = 16  # bytes, as kernels expect it of what they read

Array = np.ndarray | Tensor


class Clip(NamedTuple):
    """What was given of a clip: numpy arrays or a GPU's tensors, whose values nobody looked at."""

    tracks: Any  # (T, N, 2)
    visibility: Any = None
    intrinsics: Any = None
    image_size: Any = None
    whole: Tracks | None = None  # where a `Tracks` was given, which has the above

    @classmethod
    def of(cls, whole: Tracks) -> "Clip":
        return cls(whole.tracks, whole.visibility, whole.intrinsics, whole.image_size, whole)

    def checked(self) -> Tracks:
        """As a `Tracks` that can be pixels of its image; on the host."""
        clip = self.whole
        if clip is None:
            tracks, seen, cameras = map(_on_host, (self.tracks, self.visibility, self.intrinsics))
            clip = Tracks(tracks, seen, cameras, self.image_size)
        check(clip)
        return clip

    def is_plain(self) -> bool:
        """Whether its shapes are as they should be, and its camera can be told without its values.

        Of others `checked` says what is wrong, or has a guess.
        """
        shape = tuple(self.tracks.shape)
        if len(shape) != 3 or shape[2] != 2 or shape[0] < 2 or shape[1] < 1:
            return False
        if self.visibility is not None and tuple(self.visibility.shape) != shape[:2]:
            return False
        if self.intrinsics is None:
            return self.image_size is not None
        return tuple(self.intrinsics.shape) in ((3, 3), (shape[0], 3, 3))


class _Inputs(NamedTuple):
    """Clips as the network takes them, on its device."""

    inputs: Tensor  # (B, T, N, 3) in the heads' dtype
    cameras: Tensor  # (B, T, 3, 3) float64
    known: Tensor  # (B,) bool, whether these were given
    tracks: Tensor | None = None  # (B, T, N, 2) float32, complete; None: those of `Tracks`
    seen: Tensor | None = None  # (B, at least T N) uint8
    counted: Callable[[], Tensor] | None = None  # for `Counts`, (B, 16)
    raw: tuple[Tensor, ...] = ()  # what `tracks` were made from


class Started(NamedTuple):
    """Clips on their way: all is queued on the GPU, and nothing was waited for."""

    clips: Sequence[Clip]
    known: Sequence[bool]
    wholes: list[Tracks] | None  # where the host has looked at them
    fields: list[Tensor]  # (B, ...) each: those of `_fields`, then tracks and what was seen
    numbers: Tensor  # (B, n) float64: whether the prediction is finite, `Counts`, how it went
    outcome: Sequence[str | None]  # of refinement, as far as the host knows it
    raw: tuple[Tensor, ...]
    back: tuple[Tensor, torch.cuda.Event | None] | None = None  # all on its way to the host


def start(
    clips: Sequence[Clip], model: TracksTo4D | Engine, refine: str, home: torch.device | None
) -> Started:
    """Queue all work for clips of one shape; results shall be on a device, or None: numpy's."""
    network = model.model if isinstance(model, Engine) else model
    wholes = None
    if _has_kernels(network) and all(clip.is_plain() for clip in clips):
        given = _on_device(clips, network, refine == "bundle")
    else:
        wholes = [clip.checked() for clip in clips]
        clips = [Clip.of(whole) for whole in wholes]
        given = _from_host(wholes, network)
    known = [clip.intrinsics is not None for clip in clips]
    inputs, cameras = given.inputs, given.cameras
    if network.config.predicts_focal and not all(known):
        factor = torch.where(given.known, 1.0, _focal_correction(model, inputs))
        inputs[..., :2] /= factor[:, None, None, None]
        cameras = cameras.clone()
        cameras[..., :2] *= factor.double()[:, None, None, None]
    prediction, how, outcome = _predict(model, inputs, given.known, refine)
    numbers = [torch.isfinite(prediction.projection).flatten(1).all(1)[:, None].double()]
    numbers += [given.counted()] if given.counted else []
    numbers += [] if how is None else [how]
    fields = _fields(prediction, cameras)
    if given.tracks is not None and given.seen is not None:
        fields += [given.tracks, given.seen]
    started = Started(clips, known, wholes, fields, torch.cat(numbers, 1), outcome, given.raw)
    if _is_host(home):
        started = started._replace(back=_sent_back(started))
    return started


def finish(started: Started, home: torch.device | None) -> list[Reconstruction]:
    """Results, with numpy's arrays or torch tensors on `home`.

    On a GPU they are there in the order of its current stream, and nothing is waited for; what
    their values alone tell is raised by the first of their methods that looks at them.
    """
    count = len(started.clips)
    rows: list[list[Any]]
    numbers: Any
    if started.back is None:
        rows = [[] for _ in range(count)]
        for field in started.fields:
            for row, value in zip(rows, field.to(home), strict=True):
                row.append(value)
        numbers = started.numbers
    else:
        flat, event = started.back
        if event:
            event.synchronize()
        rows, numbers = _unpacked(flat.numpy(), started.fields, started.numbers.shape[1])
        if home is not None:
            rows = [[torch.from_numpy(value) for value in row] for row in rows]

    def look() -> list[list[float]]:
        values: list[list[float]] = numbers.tolist()
        for i, row in enumerate(values):
            _judge(started, i, row)
        return values

    outcome = started.outcome
    waits = _is_host(home) or not outcome  # bundle adjustment's is yet to be read
    if waits:
        values = look()
        if not outcome:
            from fasttracks.refine.bundle import outcome as words

            outcome = [words(row[-7:]) for row in values]
    results = [_result(started, i, rows[i], outcome[i], home) for i in range(count)]
    if not waits:
        for result in results:
            result.__dict__["_unchecked"] = look
    return results


def _has_kernels(network: TracksTo4D) -> bool:
    heads = network.points.weight
    return heads.is_cuda and heads.dtype == torch.float32 and network.backend is not TORCH


def _is_host(home: torch.device | None) -> bool:
    return home is None or home.type == "cpu"


def _judge(started: Started, i: int, numbers: Sequence[float]) -> None:
    """Raise or warn of what is wrong with a clip, or with what the network made of it."""
    clip = started.clips[i]
    if started.wholes is None:
        counts = Counts(*numbers[1 : 1 + len(Counts._fields)])
        frames, tracks = clip.tracks.shape[:2]
        if not unremarkable(counts, frames, tracks, clip.image_size, started.known[i]):
            positions, visible, cameras = (part[i].cpu().numpy() for part in started.raw)
            if visible.dtype == np.uint8:
                visible = visible.astype(bool)
            intrinsics = cameras if started.known[i] else None
            check(Tracks(positions, visible, intrinsics, clip.image_size))
    if not numbers[0]:
        raise InputError("model: its prediction is not finite; the weights or intrinsics are off")


def _on_host(value: Any) -> Any:
    return value.numpy(force=True) if isinstance(value, Tensor) else value


def _from_host(clips: Sequence[Tracks], network: TracksTo4D) -> _Inputs:
    heads = network.points.weight
    cameras = [clip.camera(network.config.assumed_focal) for clip in clips]
    inputs = torch.stack([clip.inputs(k) for clip, k in zip(clips, cameras, strict=True)])
    return _Inputs(
        inputs.to(heads.device, heads.dtype),
        torch.from_numpy(np.stack(cameras)).to(heads.device),
        torch.tensor([clip.intrinsics is not None for clip in clips], device=heads.device),
    )


def _on_device(clips: Sequence[Clip], network: TracksTo4D, bundled: bool) -> _Inputs:
    """Clips by one copy of what the host has, and those of what is on a GPU already."""
    from fasttracks.kernels.prepare import count, prepare

    device, assumed_focal = network.points.weight.device, network.config.assumed_focal
    batch, (frames, tracks) = len(clips), clips[0].tracks.shape[:2]
    wide = any(_is_wide(clip.tracks) for clip in clips)
    scores = any(v is not None and _is_scores(v) for v in (clip.visibility for clip in clips))
    kinds = (  # of parts of one buffer: shape and dtype
        ((batch, 4), torch.float64),
        ((batch, frames, 3, 3), torch.float64),
        ((batch, frames, tracks), torch.float64 if scores else torch.uint8),
        ((batch, frames, tracks, 2), torch.float64 if wide else torch.float32),
    )
    places, end = [], 0
    for shape, dtype in kinds:
        places.append((end, end + math.prod(shape) * dtype.itemsize))
        end = -(-places[-1][1] // _ALIGNED) * _ALIGNED
    there = torch.empty(end, dtype=torch.uint8, device=device)
    here = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    about, cameras, visible, positions = (
        there[a:b].view(dtype).view(shape)
        for (a, b), (shape, dtype) in zip(places, kinds, strict=True)
    )
    staged = [
        here[a:b].view(dtype).view(shape).numpy()
        for (a, b), (shape, dtype) in zip(places, kinds, strict=True)
    ]
    later: list[tuple[Tensor, Tensor | float]] = []  # what is not copied from the host
    sent = places[0][1]
    for i, clip in enumerate(clips):
        height, width = clip.image_size or (0, 0)
        staged[0][i] = width, height, clip.intrinsics is not None, 0
        camera = clip.intrinsics
        if camera is None:
            content = clip.whole.content if clip.whole else None
            camera = guessed_camera(assumed_focal, clip.image_size, content)
        for j, (value, to) in enumerate(
            ((camera, cameras), (clip.visibility, visible), (clip.tracks, positions)), 1
        ):
            if isinstance(value, Tensor):
                later.append((to[i], value.detach()))
            elif value is None and isinstance(clip.tracks, Tensor):
                later.append((to[i], 1))
            else:
                staged[j][i] = 1 if value is None else value
                sent = max(sent, places[j][1])
    there[:sent].copy_(here[:sent], non_blocking=True)
    for to, value in later:
        to.copy_(value) if isinstance(value, Tensor) else to.fill_(value)
    _compile((positions, visible, cameras, about), network, bundled)
    found = prepare(positions, visible, cameras, about)
    return _Inputs(
        found.inputs,
        cameras,
        about[:, 2] > 0,
        found.tracks,
        found.seen,
        lambda: count(found),
        (positions, visible, cameras),
    )


_compiled: set[tuple[torch.device, torch.dtype, bool]] = set()


def _compile(raw: tuple[Tensor, ...], network: TracksTo4D, bundled: bool) -> None:
    """Once, have Triton compile side by side what a call needs, rather than one after the other."""
    block: Any = network.blocks[0]
    device, dtype = raw[0].device, block.qkv.weight.dtype
    if device.type != "cuda" or (device, dtype, bundled) in _compiled:
        return
    raw = (*(part[:, :LONGEST] for part in raw[:3]), raw[3])
    from fasttracks.kernels.ahead import compile_ahead
    from fasttracks.kernels.prepare import count, prepare

    def work() -> None:
        found = prepare(*raw)
        count(found)
        prediction = network.by(found.inputs, runnable(network.backend, device, dtype, grad=False))
        if bundled:
            from fasttracks.refine.bundle import bundle_tensors

            bundle_tensors(*prediction, found.inputs, raw[3][:, 2] > 0)

    with torch.no_grad():
        compile_ahead(work, device)
    _compiled.add((device, dtype, bundled))


def _is_wide(value: Array) -> bool:
    """Whether float32 doesn't hold all of its values."""
    return value.dtype not in (np.float32, torch.float32, torch.float16, torch.bfloat16)


def _is_scores(value: Array) -> bool:
    return value.dtype not in (np.bool_, torch.bool)


def _focal_correction(model: TracksTo4D | Engine, inputs: Tensor) -> Tensor:
    """Factors (B,) of focal lengths, as the model corrects them from some of the tracks.

    What it then sees through the corrected ones is closer to what it was trained on than what it
    says of a lens while guessing it.
    """
    if inputs.shape[1] > LONGEST:
        each = torch.stack([focal_correction(partial(run, model), clip) for clip in inputs])
        return each.clamp(0.1, 10).to(inputs.dtype)
    some = inputs[:, :, :: -(-inputs.shape[2] // _FOCAL_TRACKS)].contiguous()
    return run(model, some).focal.mean(1).clamp(0.1, 10).to(inputs.dtype)


def _predict(
    model: TracksTo4D | Engine, inputs: Tensor, known_focal: Tensor, refine: str
) -> tuple[Prediction, Tensor | None, Sequence[str | None]]:
    """The prediction for B clips, refined; how that went, in numbers (B, 7) or in words."""
    if refine == "finetune":
        from fasttracks.refine.finetune import finetune

        prediction, tuning = finetune(model.model if isinstance(model, Engine) else model, inputs)
        return _single(prediction), None, tuning.outcome
    if inputs.shape[1] > LONGEST:
        from fasttracks.long.assemble import predict

        prediction, found = predict(partial(run, model), inputs, known_focal, refine == "bundle")
        return _single(prediction), None, found
    prediction = run(model, inputs)
    if refine == "none":
        return _single(prediction), None, [None] * len(inputs)
    from fasttracks.refine.bundle import adjust_all

    with torch.no_grad():
        prediction, _, _, how = adjust_all(prediction, inputs, known_focal)
    return _single(prediction), how, []


def _single(prediction: Prediction) -> Prediction:
    return Prediction(*(field.float() for field in prediction))


def _fields(prediction: Prediction, cameras: Tensor) -> list[Tensor]:
    """The first fields of B reconstructions, in their order, float32; cameras (B, T, 3, 3)."""
    p, k = prediction, cameras.float()
    intrinsics = k.clone()
    intrinsics[..., :2, :2] *= p.focal[..., None, None]
    pose = torch.cat([p.rotation, p.position[..., None]], -1)
    pose = torch.nn.functional.pad(pose, (0, 0, 0, 1))
    pose[..., 3, 3] = 1
    # The projection carries the focal correction already, so it takes the uncorrected camera.
    reprojection = (p.projection[..., None, :] * k[..., None, :2, :2]).sum(-1)
    reprojection += k[..., None, :2, 2]
    return [
        p.points,
        p.points_camera,
        pose,
        intrinsics,
        reprojection,
        p.basis.contiguous(),
        p.coefficients,
        p.motion,
    ]


def _sent_back(started: Started) -> tuple[Tensor, torch.cuda.Event | None]:
    """Fields and numbers as one float32 (B, n) on the host, once the event, if any, is over."""
    parts = [*started.fields, started.numbers]
    flat = torch.cat([p.reshape(len(p), -1).view(torch.float32) for p in parts], 1)
    if not flat.is_cuda:
        return flat, None
    here = torch.empty(flat.shape, pin_memory=True)
    here.copy_(flat, non_blocking=True)
    with torch.cuda.device(flat.device):
        event = torch.cuda.Event()
        event.record()
    return here, event


def _unpacked(
    flat: np.ndarray, fields: Sequence[Tensor], numbers: int
) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """What `_sent_back` put together: arrays by clip and field, and the numbers (B, n)."""
    places, end = [], 0
    for field in fields:
        begin, end = end, end + field[0].numel() * field.element_size() // 4
        dtype = np.uint8 if field.dtype == torch.uint8 else np.float32
        places.append((begin, end, dtype, tuple(field.shape[1:])))
    rows = []
    for row in flat:
        kept = row[:end].copy()  # not pinned, as results may be kept for long
        rows.append([kept[a:b].view(dtype).reshape(shape) for a, b, dtype, shape in places])
    return rows, flat[:, end : end + 2 * numbers].copy().view(np.float64)


def _result(
    started: Started, i: int, fields: list[Any], outcome: str | None, home: torch.device | None
) -> Reconstruction:
    def there(value: np.ndarray | None) -> Any:
        return value if value is None or home is None else torch.from_numpy(value).to(home)

    clip = started.clips[i]
    if started.wholes is None:
        *fields, seen = fields
        shape = clip.tracks.shape[:2]
        seen = seen[: math.prod(shape)]
        kind = torch.bool if isinstance(seen, Tensor) else np.bool_
        fields += [seen.view(kind).reshape(shape)]
    else:
        whole = started.wholes[i]
        fields = [*fields, there(whole.tracks), there(whole.visibility)]
    times, colors = (
        (there(clip.whole.times), there(clip.whole.colors)) if clip.whole else (None, None)
    )
    values: list[Any] = [*fields, clip.image_size, times, colors, outcome]
    return Reconstruction(*values)
