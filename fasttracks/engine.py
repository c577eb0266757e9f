"""`Engine`: a network made ready for many calls that must be quick."""

import math
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from fasttracks.errors import InputError
from fasttracks.geometry import Prediction
from fasttracks.graphs import GraphCache, capture
from fasttracks.network import TracksTo4D

Shape = tuple[int, int, int]  # B clips, T frames, N tracks


class _Graph(NamedTuple):
    """The whole forward of one shape, ready to be replayed."""

    graph: torch.cuda.CUDAGraph
    tracks: Tensor  # what it reads
    flat: Tensor  # what it writes: all fields of the prediction, one after the other
    prediction: Prediction  # the fields, views of `flat`
    done: torch.cuda.Event  # after the engine's last call


class Engine:
    """Calls a network at the least latency that its GPU allows.

    On CUDA each shape is captured as a CUDA graph at its first use, or ahead by `warm_up`; from
    then on a call is a copy of the input and one launch, without waiting for the GPU. Memory is
    taken once, for the largest shape, and shared by all. The network has no masks, so shapes are
    exact: nothing is padded. On the CPU the network just runs.

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
        self._heads = model.points.weight
        self._lock = Lock()
        self._graphs: GraphCache[_Graph] = GraphCache(max_graphs)  # by (B, T, N, 3)
        self._device = self._heads.device if self._heads.is_cuda else None
        if self._device:
            with torch.cuda.device(self._device):
                self._weights = [p.detach() for p in model.parameters()]  # that graphs point into
                self._input = self._heads.new_zeros(3 * max_clips * max_frames * max_tracks)
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream()
                self._done = torch.cuda.Event()  # what the last caller's stream had to do
                self._caller: torch.cuda.Stream | None = None
                self.warm_up([self.limits])

    def warm_up(self, shapes: Iterable[Shape]) -> None:
        """Get (clips, frames, tracks) ready ahead of their first call; nothing to do on the CPU."""
        for shape in shapes:
            self._check((*shape, 3))
            if self._device:
                with self._lock, torch.cuda.device(self._device):
                    self._ready((*shape, 3))

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
        if self._device is None:
            self._check(shape)
            with torch.no_grad():
                return self.model(tracks.to(self._heads))
        with self._lock:
            ready = self._graphs.get(shape)
            if ready is None:
                self._check(shape)
                with torch.cuda.device(self._device):
                    ready = self._ready(shape)
            # As Triton's launcher finds it: a `torch.cuda.Stream` takes ten times as long.
            number = torch._C._cuda_getCurrentRawStream(self._device.index)
            if self._caller is None or self._caller.cuda_stream != number:
                self._caller = torch.cuda.current_stream(self._device)
                self._caller.wait_event(self._done)
            ready.tracks.copy_(tracks.detach())  # else gradients' history would grow call by call
            ready.graph.replay()  # on its own device's current stream, as is all of this
            flat = ready.flat.clone() if copy else None
            self._done.record(self._caller)
        return ready.prediction if flat is None else _fields(flat, ready.prediction)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or shape[3] != 3:
            raise InputError(f"tracks: expected shape (B, T, N, 3), found {tuple(shape)}")
        if any(not 1 <= n <= most for n, most in zip(shape, self.limits, strict=False)):
            raise InputError(
                f"tracks: expected up to {self.limits} (clips, frames, tracks), "
                f"found {tuple(shape[:3])}"
            )

    def _ready(self, shape: tuple[int, ...]) -> _Graph:
        """The shape's graph, captured now if it isn't there; the lock is held."""
        return self._graphs.get(shape) or self._graphs.add(shape, lambda: self._capture(shape))

    def _capture(self, shape: tuple[int, ...]) -> _Graph:
        inputs = self._input[: math.prod(shape)].view(shape)

        def forward() -> tuple[list[Tensor], Tensor]:
            parts = [field.contiguous() for field in self.model(inputs)]
            return parts, torch.cat([part.view(-1) for part in parts])

        self._stream.wait_event(self._done)
        with torch.no_grad():
            graph, (parts, flat) = capture(forward, pool=self._pool, stream=self._stream)
        return _Graph(graph, inputs, flat, _fields(flat, parts), self._done)


def _fields(flat: Tensor, like: Sequence[Tensor]) -> Prediction:
    """A prediction as views of a flat tensor, shaped like some other's fields."""
    return Prediction(*torch._utils._unflatten_dense_tensors(flat, like))  # one call, not nine
