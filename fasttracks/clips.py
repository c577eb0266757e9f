"""What clips of one shape go through together: inputs, the network, refinement, results.

On a GPU with kernels the clips' arrays go there as they are, and everything that needs their values
is done there, so that one copy up and one copy back are all that the host waits for. Counts that
come back with the answer tell whether a clip is in order; only where they leave a doubt does the
host look at the values, to say in words what is wrong. Elsewhere the host looks first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttracks.backends import TORCH
from fasttracks.engine import MOST_TOKENS, Engine, Work, at_once, do, run
from fasttracks.errors import InputError
from fasttracks.geometry import Prediction
from fasttracks.graphs import meanwhile
from fasttracks.long.windows import FOCAL_TRACKS, LONGEST, focal_correction
from fasttracks.network import TracksTo4D
from fasttracks.plausible import Counts, check, unremarkable
from fasttracks.reconstruction import Reconstruction
from fasttracks.tracks import Tracks, guessed_camera

_ALIGNED = 16  # bytes, as kernels expect it of what they read

_NUMPY = {torch.uint8: np.uint8, torch.float32: np.float32, torch.float64: np.float64}

Array = np.ndarray | Tensor
_Forward = Callable[[Tensor], Prediction]


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


@dataclass
class _Given:
    """Memory for what is given of clips, on the network's device."""

    there: Tensor  # (n,) bytes
    places: list[Tensor]  # its parts
    about: Any = None  # what was last written of images


class _Inputs(NamedTuple):
    """Clips as the network takes them, on its device."""

    inputs: Tensor  # (B, T, N, 3) in the heads' dtype
    cameras: Tensor  # (B, T, 3, 3) float64
    known: Tensor  # (B,) bool, whether these were given


class _Part(NamedTuple):
    """A part of a buffer."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class _Layout(NamedTuple):
    """What an answer (B, n) holds, in float32's places, one after the other."""

    parts: Sequence[_Part]  # a clip's: those of `_answer`; tracks and what was seen, of a GPU's
    # In float32: of numbers in float64 (the largest, `Counts` if a GPU counted, how adjustment
    # went), then of each part.
    sizes: Sequence[int]
    outcome: Sequence[str | None]  # of refinement, as far as the host knows it


class Started(NamedTuple):
    """Clips on their way: all is queued on the GPU, and nothing was waited for."""

    clips: Sequence[Clip]
    looked_at: Sequence[Tracks] | None  # where the host has
    answer: Tensor  # (B, n) float32; on the host, if results shall be there
    arrived: torch.cuda.Event | None  # after which it is there
    layout: _Layout


def start(
    clips: Sequence[Clip], model: TracksTo4D | Engine, refine: str, home: torch.device | None
) -> Started:
    """Queue all work for clips of one shape; results shall be on a device, or None: numpy's."""
    network = model.model if isinstance(model, Engine) else model
    take = _sent_back if _is_host(home) else _copied
    if _has_kernels(network) and all(clip.is_plain() for clip in clips):
        whole = clips[0].tracks.shape[0] <= LONGEST and refine != "finetune"
        work = _on_device(clips, model, refine, whole)
        return Started(clips, None, *(do(model, work, take) if whole else at_once(work, take)))
    looked_at = [clip.checked() for clip in clips]
    known = all(clip.intrinsics is not None for clip in looked_at)
    answer = _answer(_from_host(looked_at, network), known, model, refine, whole=False)
    return Started([Clip.of(clip) for clip in looked_at], looked_at, *take(*answer))


def finish(started: Started, home: torch.device | None) -> list[Reconstruction]:
    """Results, with numpy's arrays or torch tensors on `home`.

    On a GPU they are there in the order of its current stream, and nothing is waited for; what
    their values alone tell is raised by the first of their methods that looks at them.
    """
    layout, answer = started.layout, started.answer
    if _is_host(home):
        if started.arrived:
            started.arrived.synchronize()
        # Copied, as results may be kept for long, and pinned memory is dear.
        rows = [_unpacked(row.copy(), layout) for row in answer.numpy()]
        if home is not None:
            rows = [[torch.from_numpy(value) for value in row] for row in rows]
    else:
        rows = [_unpacked(row, layout) for row in answer.to(home)]

    def look() -> list[list[float]]:
        flat = answer[:, : layout.sizes[0]].reshape(-1).view(torch.float64)
        numbers: list[list[float]] = flat.view(len(answer), -1).tolist()
        for i, row in enumerate(numbers):
            _judge(started, i, row)
        return numbers

    outcome = layout.outcome
    waits = _is_host(home) or not outcome  # bundle adjustment's is yet to be read
    if waits:
        numbers = look()
        if not outcome:
            from fasttracks.refine.bundle import outcome as words

            outcome = [words(row[-7:]) for row in numbers]
    results = [_result(started, i, row, outcome[i], home) for i, row in enumerate(rows)]
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
    if started.looked_at is None:
        counts = Counts(*numbers[1 : 1 + len(Counts._fields)])
        frames, tracks = clip.tracks.shape[:2]
        known = clip.intrinsics is not None
        if not unremarkable(counts, frames, tracks, clip.image_size, known):
            clip.checked()
    if not math.isfinite(numbers[0]):
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


def _on_device(clips: Sequence[Clip], model: TracksTo4D | Engine, refine: str, whole: bool) -> Work:
    """All that a GPU does for clips. Their arrays go there by one copy, but for those there.

    `whole`: a graph may repeat all of it.
    """
    network = model.model if isinstance(model, Engine) else model
    batch, (frames, tracks) = len(clips), clips[0].tracks.shape[:2]
    wide = any(_is_wide(clip.tracks) for clip in clips)
    scores = any(v is not None and _is_scores(v) for v in (clip.visibility for clip in clips))
    known = all(clip.intrinsics is not None for clip in clips)
    device = network.points.weight.device
    begins, parts, size = _places(batch, frames, tracks, wide, scores)
    about = [(*reversed(clip.image_size or (0, 0)), clip.intrinsics is not None) for clip in clips]
    on_host: list[tuple[int, int, Any]] = []
    later: list[tuple[int, int, Tensor | int]] = []  # what is not copied from the host
    for i, clip in enumerate(clips):
        camera = clip.intrinsics
        if camera is None:
            content = clip.whole.content if clip.whole else None
            camera = guessed_camera(network.config.assumed_focal, clip.image_size, content)
        for j, value in enumerate((camera, clip.visibility, clip.tracks), 1):
            if isinstance(value, Tensor):
                later.append((j, i, value.detach()))
            elif value is None and isinstance(clip.tracks, Tensor):
                later.append((j, i, 1))
            else:
                on_host.append((j, i, 1 if value is None else value))

    def send(there: Tensor) -> None:
        """Copy what is on the host, which the first bytes hold."""
        here = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        places = _views(here.numpy(), begins, parts)
        places[0][:, :3], places[0][:, 3] = about, 0
        for j, i, value in on_host:
            places[j][i] = value
        last = max((j for j, _, _ in on_host), default=0)
        end = begins[last] + parts[last].size
        there[:end].copy_(here[:end], non_blocking=True)

    def room() -> _Given:
        there = torch.empty(size, dtype=torch.uint8, device=device)
        return _Given(there, _views(there, begins, parts))

    def fill(given: _Given) -> None:
        if on_host or given.about != about:
            send(given.there)
            given.about = about
        for j, i, value in later:
            to = given.places[j] if batch == 1 else given.places[j][i]
            to.copy_(value) if isinstance(value, Tensor) else to.fill_(value)

    def work(given: _Given) -> tuple[Tensor, _Layout]:
        images, cameras, visible, positions = given.places
        raw = (positions, visible, cameras, images)
        _compile(raw, known, network, refine == "bundle")
        return _answer_to(raw, known, model, refine, whole)

    return Work(
        ("reconstruct", batch, frames, tracks, wide, scores, known, refine),
        (batch, frames, tracks),
        room,
        fill,
        work,
        refine == "bundle" or batch * frames * tracks <= MOST_TOKENS,
    )


@lru_cache(maxsize=64)
def _places(
    batch: int, frames: int, tracks: int, wide: bool, scores: bool
) -> tuple[list[int], tuple[_Part, ...], int]:
    """Where what is given of clips lies in memory: where its parts begin, these, and all bytes."""
    parts = (  # width, height and whether the camera is known; cameras; visibility; positions
        _Part((batch, 4), torch.float64),
        _Part((batch, frames, 3, 3), torch.float64),
        _Part((batch, frames, tracks), torch.float64 if scores else torch.uint8),
        _Part((batch, frames, tracks, 2), torch.float64 if wide else torch.float32),
    )
    *begins, size = accumulate((-(-p.size // _ALIGNED) * _ALIGNED for p in parts), initial=0)
    return begins, parts, size


def _views(buffer: Any, begins: Sequence[int], parts: Sequence[_Part]) -> list[Any]:
    """Parts of a buffer of bytes, a tensor or numpy's."""
    kinds = [_NUMPY[part.dtype] if isinstance(buffer, np.ndarray) else part.dtype for part in parts]
    return [
        buffer[begin : begin + part.size].view(kind).reshape(part.shape)
        for begin, part, kind in zip(begins, parts, kinds, strict=True)
    ]


def _answer_to(
    raw: Sequence[Tensor], all_known: bool, model: TracksTo4D | Engine, refine: str, whole: bool
) -> tuple[Tensor, _Layout]:
    """The answer to clips as they were given, on a GPU; `raw` is what `prepare` takes."""
    from fasttracks.kernels.prepare import count, prepare

    found = prepare(*raw)
    counted = meanwhile(found.inputs.device, partial(count, found))
    given = _Inputs(found.inputs, raw[2], raw[3][:, 2] > 0)
    more = (found.tracks, found.seen)
    return _answer(given, all_known, model, refine, whole, counted, more)


def _answer(
    given: _Inputs,
    all_known: bool,
    model: TracksTo4D | Engine,
    refine: str,
    whole: bool,
    counted: Callable[[], Tensor] | None = None,
    more: Sequence[Tensor] = (),
) -> tuple[Tensor, _Layout]:
    """The answer to clips (B, n), with `more` fields at its end.

    `whole`: a graph may repeat all of it, so that nothing in it may be one.
    """
    network = model.model if isinstance(model, Engine) else model
    forward = network if whole else partial(run, model)
    if network.config.predicts_focal and not all_known:
        factor = torch.where(given.known, 1.0, _focal_correction(forward, given.inputs))
        given.inputs[..., :2] /= factor[:, None, None, None]
        cameras = given.cameras.clone()
        cameras[..., :2] *= factor.double()[:, None, None, None]
        given = given._replace(cameras=cameras)
    device = given.inputs.device
    fixed = meanwhile(device, lambda: _fixed(given.cameras))
    with torch.no_grad():
        prediction, how, outcome = _predict(forward, whole, network, given, refine)
    cameras, intrinsics, pose = fixed()
    completed = meanwhile(device, lambda: _completed(prediction, intrinsics, pose))
    reprojection = _reprojection(prediction.projection, cameras)
    largest = completed()
    p = prediction
    fields = [p.points, p.points_camera, pose, intrinsics, reprojection]
    fields += [p.basis, p.coefficients, p.motion, *more]
    numbers = [largest, *([counted()] if counted else []), *([] if how is None else [how])]
    flat = [part.reshape(len(part), -1).view(torch.float32) for part in (*numbers, *fields)]
    parts = [_Part(tuple(field.shape[1:]), field.dtype) for field in fields]
    widths = [part.shape[1] for part in flat]
    sizes = [sum(widths[: len(numbers)]), *widths[len(numbers) :]]
    return torch.cat(flat, 1), _Layout(parts, sizes, outcome)


_compiled: set[tuple[torch.device, torch.dtype, bool]] = set()


def _compile(raw: tuple[Tensor, ...], all_known: bool, network: TracksTo4D, bundled: bool) -> None:
    """Once, have Triton compile side by side what a call needs, rather than one after the other."""
    block: Any = network.blocks[0]
    device, dtype = raw[0].device, block.qkv.weight.dtype
    if device.type != "cuda" or (device, dtype, bundled) in _compiled:
        return
    raw = (*(part[:, :LONGEST] for part in raw[:3]), raw[3])
    from fasttracks.kernels.ahead import compile_ahead

    # All of a call, as torch takes time, too, to load what it runs for the first time.
    refine = "bundle" if bundled else "none"
    compile_ahead(partial(_answer_to, raw, all_known, network, refine, whole=True), device)
    _compiled.add((device, dtype, bundled))


def _is_wide(value: Array) -> bool:
    """Whether float32 doesn't hold all of its values."""
    return value.dtype not in (np.float32, torch.float32, torch.float16, torch.bfloat16)


def _is_scores(value: Array) -> bool:
    return value.dtype not in (np.bool_, torch.bool)


def _focal_correction(forward: _Forward, inputs: Tensor) -> Tensor:
    """Factors (B,) of focal lengths, as the model corrects them from some of the tracks.

    What it then sees through the corrected ones is closer to what it was trained on than what it
    says of a lens while guessing it.
    """
    if inputs.shape[1] > LONGEST:
        each = torch.stack([focal_correction(forward, clip) for clip in inputs])
        return each.clamp(0.1, 10).to(inputs.dtype)
    some = inputs[:, :, :: -(-inputs.shape[2] // FOCAL_TRACKS)].contiguous()
    return forward(some).focal.mean(1).clamp(0.1, 10).to(inputs.dtype)


def _predict(
    forward: _Forward, whole: bool, network: TracksTo4D, given: _Inputs, refine: str
) -> tuple[Prediction, Tensor | None, Sequence[str | None]]:
    """The prediction for B clips, refined; how that went, in numbers (B, 7) or in words."""
    inputs, known = given.inputs, given.known
    if refine == "finetune":
        from fasttracks.refine.finetune import finetune

        with torch.enable_grad():
            prediction, tuning = finetune(network, inputs, known)
        return _single(prediction), None, tuning.outcome
    if inputs.shape[1] > LONGEST:
        from fasttracks.long.assemble import predict

        prediction, found = predict(forward, inputs, known, refine == "bundle")
        return _single(prediction), None, found
    prediction = forward(inputs)
    if refine == "none":
        return _single(prediction), None, [None] * len(inputs)
    from fasttracks.refine.bundle import adjust_all, bundle_tensors

    adjust = bundle_tensors if whole else adjust_all
    *fields, _, _, how = adjust(*prediction, inputs, known)
    return _single(Prediction(*fields)), how, []


def _single(prediction: Prediction) -> Prediction:
    return Prediction(*(field.float() for field in prediction))


def _fixed(cameras: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What needs no network: cameras (B, T, 3, 3) in float32, twice, and poses' last rows."""
    k = cameras.float()
    pose = k.new_zeros(*k.shape[:2], 4, 4)
    pose[..., 3, 3] = 1
    return k, k.clone(), pose


def _completed(prediction: Prediction, intrinsics: Tensor, pose: Tensor) -> Tensor:
    """Write a prediction's cameras into what `_fixed` left.

    Returns the largest number of each clip's projections (B, 1), float64: finite if all is.
    """
    pose[..., :3, :3] = prediction.rotation
    pose[..., :3, 3] = prediction.position
    intrinsics[..., :2, :2] *= prediction.focal[..., None, None]
    return torch.linalg.vector_norm(prediction.projection.flatten(1), torch.inf, 1, True).double()


def _reprojection(projection: Tensor, cameras: Tensor) -> Tensor:
    """Projections (B, T, N, 2) in pixels.

    They carry the focal correction already, so they take the uncorrected cameras.
    """
    product = projection[..., None, :] * cameras[..., None, :2, :2]
    pixels = product[..., 0] + product[..., 1]
    return pixels.add_(cameras[..., None, :2, 2])


def _sent_back(answer: Tensor, layout: _Layout) -> tuple[Tensor, torch.cuda.Event | None, _Layout]:
    """The answer on the host, once the event, if any, is over."""
    if not answer.is_cuda:
        return answer, None, layout
    here = torch.empty(answer.shape, pin_memory=True)
    here.copy_(answer, non_blocking=True)
    with torch.cuda.device(answer.device):
        event = torch.cuda.Event()
        event.record()
    return here, event, layout


def _copied(answer: Tensor, layout: _Layout) -> tuple[Tensor, None, _Layout]:
    return answer.clone(), None, layout


def _unpacked(row: Any, layout: _Layout) -> list[Any]:
    """A clip's fields, views of its answer (n,)."""
    kinds: list[Any] = [part.dtype for part in layout.parts]
    pieces: list[Any]
    if isinstance(row, Tensor):
        _, *pieces = row.split_with_sizes(layout.sizes)
    else:
        ends = accumulate(layout.sizes)
        _, *pieces = [row[end - n : end] for n, end in zip(layout.sizes, ends, strict=True)]
        kinds = [_NUMPY[kind] for kind in kinds]
    return [
        piece.view(kind).reshape(part.shape)
        for piece, kind, part in zip(pieces, kinds, layout.parts, strict=True)
    ]


def _result(
    started: Started, i: int, fields: list[Any], outcome: str | None, home: torch.device | None
) -> Reconstruction:
    def there(value: np.ndarray | None) -> Any:
        return value if value is None or home is None else torch.from_numpy(value).to(home)

    clip = started.clips[i]
    if started.looked_at is None:
        *fields, seen = fields
        shape = clip.tracks.shape[:2]
        seen = seen[: math.prod(shape)]
        kind = torch.bool if isinstance(seen, Tensor) else np.bool_
        fields += [seen.view(kind).reshape(shape)]
    else:
        whole = started.looked_at[i]
        fields = [*fields, there(whole.tracks), there(whole.visibility)]
    times, colors = (
        (there(clip.whole.times), there(clip.whole.colors)) if clip.whole else (None, None)
    )
    values: list[Any] = [*fields, clip.image_size, times, colors, outcome]
    return Reconstruction(*values)
