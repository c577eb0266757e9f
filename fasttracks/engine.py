"""`Engine`: a network made ready for many calls that must be quick; and the graphs of any."""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from threading import Lock
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fasttracks.errors import InputError
from fasttracks.geometry import Prediction
from fasttracks.graphs import GraphCache, capture
from fasttracks.network import TracksTo4D

Shape = tuple[int, int, int]  # B clips, T frames, N tracks
Result = TypeVar("Result")

# Of models without an engine: graphs that are kept, and calls that are remembered.
_MOST_GRAPHS, _MOST_MET = 16, 256
MOST_TOKENS = 1 << 16  # up to which launches one by one take longer than the GPU's work


class Work(NamedTuple):
    """What a call does on the GPU, from some memory to a tensor, so that a graph can repeat it."""

    key: Hashable  # calls of one key differ only in what `fill` writes
    shape: Shape
    room: Callable[[], Any]  # memory for what is given
    fill: Callable[[Any], Any]  # writes there what is given this time
    do: Callable[[Any], tuple[Tensor, Any]]  # the answer, and how it is laid out
    pays: bool = True  # whether its launches one by one take longer than the GPU's work


class _Graph(NamedTuple):
    """The work of one key, ready to be replayed."""

    graph: torch.cuda.CUDAGraph
    given: Any  # what it reads
    flat: Tensor  # what it writes
    layout: Any  # of that
    done: torch.cuda.Event  # after the last call


class _Replays:
    """CUDA graphs of a network's work by key, which share memory and take turns.

    Calls may come from several threads and streams. The network itself is not kept here.
    """

    def __init__(self, model: TracksTo4D, size: int) -> None:
        device = model.points.weight.device
        self.lock = Lock()
        self._graphs: GraphCache[_Graph] = GraphCache(size)
        self._device = device
        with torch.cuda.device(device):
            self._weights = [p.detach() for p in model.parameters()]  # that graphs point into
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()
            self._done = torch.cuda.Event()  # what the last caller's stream had to do
        self._caller: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, key: Hashable) -> _Graph | None:
        """The graph of a key, if it was captured; the lock is held."""
        return self._graphs.get(key)

    def ready(self, work: Work) -> _Graph:
        """The work's graph, captured now if there is none; the lock is held."""

        def captured() -> _Graph:
            given = work.room()
            work.fill(given)
            self._stream.wait_event(self._done)
            with torch.no_grad():
                graph, (flat, layout) = capture(
                    lambda: work.do(given), pool=self._pool, stream=self._stream
                )
            return _Graph(graph, given, flat, layout, self._done)

        with torch.cuda.device(self._device):
            return self.get(work.key) or self._graphs.add(work.key, captured)

    def replay(
        self, ready: _Graph, fill: Callable[[Any], Any], take: Callable[[Tensor, Any], Result]
    ) -> Result:
        """What `take` makes of the answer, before others overwrite it; the lock is held."""
        # As Triton's launcher finds it: a `torch.cuda.Stream` takes ten times as long.
        number = torch._C._cuda_getCurrentRawStream(self._device.index)
        if self._caller is None or self._caller.cuda_stream != number:
            self._caller = torch.cuda.current_stream(self._device)
            self._caller.wait_event(self._done)
        fill(ready.given)
        ready.graph.replay()  # on its own device's current stream, as is all of this
        result = take(ready.flat, ready.layout)
        self._done.record(self._caller)
        return result


class Engine:
    """Calls a network at the least latency that its GPU allows, within limits that are known.

    On CUDA each shape is captured as a CUDA graph at its first use, or ahead by `warm_up`; from
    then on a call is a copy of the input and one launch, without waiting for the GPU. Memory is
    taken once, for the largest shape, and shared by all. The network has no masks, so shapes are
    exact: nothing is padded. On the CPU the network just runs.

    `reconstruct` keeps graphs for any model; an engine is for those who want none captured, and no
    memory taken, while they serve: they have it called once with each shape ahead.

    Calls may come from several threads and CUDA streams: they take turns. The weights are those
    that the network has now; don't move it to another device or dtype.
    """

    def __init__(
        self,
        model: TracksTo4D,
        *,
        max_tracks: int,
        max_frames: int,
        max_clips: int = 1,
        max_graphs: int = 32,
    ) -> None:
        """Take all memory and compile, by running the largest shape.

        Args:
            model: from `fasttracks.load`, on its device and in its precision.
            max_tracks: N of the largest clip.
            max_frames: T of the longest clip.
            max_clips: B of the largest batch.
            max_graphs: shapes that are kept; the one not used for longest goes first.

        Raises:
            InputError: a limit below 1.
        """
        limits = {"max_clips": max_clips, "max_frames": max_frames, "max_tracks": max_tracks}
        for name, value in {**limits, "max_graphs": max_graphs}.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        self.model = model
        self.limits: Shape = (max_clips, max_frames, max_tracks)
        heads = model.points.weight
        self._replays = _Replays(model, max_graphs) if heads.is_cuda else None
        self._input = heads.new_zeros(3 * math.prod(self.limits) if heads.is_cuda else 0)
        if heads.is_cuda:
            self.warm_up([self.limits])

    def warm_up(self, shapes: Iterable[Shape]) -> None:
        """Get (clips, frames, tracks) ready ahead of their first call; nothing to do on the CPU."""
        for shape in shapes:
            self.check((*shape, 3))
            if self._replays:
                with self._replays.lock:
                    self._ready(self._replays, (*shape, 3))

    def __call__(self, tracks: Tensor, *, copy: bool = True) -> Prediction:
        """The network's prediction for tracks (B, T, N, 3), as `TracksTo4D.forward` takes them.

        On CUDA it is ready in the order of the current stream, like that of any torch function.

        Args:
            tracks: up to the engine's limits, best on the model's device: from elsewhere, the
                call waits for the copy.
            copy: False returns views of the engine's own memory, which the next call or
                `warm_up` overwrites; for one thread that is done with a prediction before it
                asks for the next.

        Raises:
            InputError: a shape that is none, or beyond the limits.
        """
        shape = tracks.shape
        replays = self._replays
        if replays is None:
            self.check(shape)
            with torch.no_grad():
                return self.model(tracks.to(self.model.points.weight))
        with replays.lock:
            ready = replays.get(shape)
            if ready is None:
                self.check(shape)
                ready = self._ready(replays, shape)
            # Detached, else gradients' history would grow call by call.
            return replays.replay(
                ready, lambda given: given.copy_(tracks.detach()), _copied if copy else _shared
            )

    def do(self, work: Work, take: Callable[[Tensor, Any], Result]) -> Result:
        """What `take` makes of the answer to some work, by a graph from its first call on."""
        self.check((*work.shape, 3))
        if self._replays is None:
            return at_once(work, take)
        with self._replays.lock:
            return self._replays.replay(self._replays.ready(work), work.fill, take)

    def check(self, shape: tuple[int, ...]) -> None:
        """InputError where a shape (B, T, N, 3) is none, or beyond the limits."""
        if len(shape) != 4 or shape[3] != 3:
            raise InputError(f"tracks: expected shape (B, T, N, 3), found {tuple(shape)}")
        if any(not 1 <= n <= most for n, most in zip(shape, self.limits, strict=False)):
            raise InputError(
                f"tracks: expected up to {self.limits} (clips, frames, tracks), "
                f"found {tuple(shape[:3])}"
            )

    def _ready(self, replays: _Replays, shape: tuple[int, ...]) -> _Graph:
        given = self._input[: math.prod(shape)].view(shape)
        return replays.ready(_forward(self.model, given, lambda: given))


class _Kept:
    """Graphs of a network for the work that comes back, as long as its weights are where they are.

    Work is captured at its second call: clips of ever other sizes capture nothing.
    """

    def __init__(self, model: TracksTo4D) -> None:
        self._replays = _Replays(model, _MOST_GRAPHS)
        self._met: OrderedDict[Hashable, None] = OrderedDict()
        self._backend = model.backend
        self._places = [
            (module._parameters, name, parameter, parameter.data_ptr())
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    def fits(self, model: TracksTo4D) -> bool:
        """Whether the graphs still read the model's own weights."""
        return self._backend is model.backend and all(
            owner.get(name) is parameter and parameter.data_ptr() == place
            for owner, name, parameter, place in self._places
        )

    def do(self, work: Work, take: Callable[[Tensor, Any], Result]) -> Result:
        with self._replays.lock:
            ready = self._replays.get(work.key)
            if ready is None and work.key in self._met:
                ready = self._replays.ready(work)
            if ready is not None:
                return self._replays.replay(ready, work.fill, take)
            self._met[work.key] = None
            if len(self._met) > _MOST_MET:
                self._met.popitem(last=False)
        return at_once(work, take)


_kept: "WeakKeyDictionary[TracksTo4D, _Kept]" = WeakKeyDictionary()
_keeping = Lock()


def do(model: TracksTo4D | Engine, work: Work, take: Callable[[Tensor, Any], Result]) -> Result:
    """What `take` makes of the answer to some work, by a CUDA graph where one pays; no gradients.

    The answer is overwritten by later calls: `take` copies it, without waiting.
    """
    if isinstance(model, Engine):
        return model.do(work, take)
    if not (model.points.weight.is_cuda and work.pays):
        return at_once(work, take)
    with _keeping:
        kept = _kept.get(model) or _kept.setdefault(model, _Kept(model))
    result = kept.do(work, take)
    if kept.fits(model):  # looked at while the GPU works
        return result
    with _keeping:
        kept = _kept[model] = _Kept(model)
    return kept.do(work, take)


def run(model: TracksTo4D | Engine, tracks: Tensor) -> Prediction:
    """A model's or an engine's prediction, by a CUDA graph where one pays; without gradients."""
    if isinstance(model, Engine):
        return model(tracks)
    if model.points.weight.is_cuda and tracks.shape[:-1].numel() <= MOST_TOKENS:
        return do(model, _forward(model, tracks, lambda: torch.empty_like(tracks)), _copied)
    with torch.no_grad():
        return model(tracks)


def _forward(model: TracksTo4D, tracks: Tensor, room: Callable[[], Tensor]) -> Work:
    """The network alone, for `tracks`."""

    def forward(given: Tensor) -> tuple[Tensor, Prediction]:
        parts = [field.contiguous() for field in model(given)]
        flat = torch.cat([part.view(-1) for part in parts])
        return flat, _fields(flat, parts)

    return Work(
        tracks.shape,
        (tracks.shape[0], tracks.shape[1], tracks.shape[2]),
        room,
        lambda given: given.copy_(tracks.detach()),
        forward,
    )


def at_once(work: Work, take: Callable[[Tensor, Any], Result]) -> Result:
    """What `take` makes of the answer to some work, without a graph."""
    given = work.room()
    work.fill(given)
    with torch.no_grad():
        return take(*work.do(given))


def _copied(flat: Tensor, prediction: Prediction) -> Prediction:
    return _fields(flat.clone(), prediction)


def _shared(flat: Tensor, prediction: Prediction) -> Prediction:
    return prediction


def _fields(flat: Tensor, like: Sequence[Tensor]) -> Prediction:
    """A prediction as views of a flat tensor, shaped like some other's fields."""
    return Prediction(*torch._utils._unflatten_dense_tensors(flat, like))  # one call, not nine
