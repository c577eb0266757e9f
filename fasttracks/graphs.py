"""Work captured as CUDA graphs, whose many small kernels cost one launch."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from threading import Lock
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


class Captured(Protocol):
    """What a `GraphCache` keeps: a graph, and the event after which it no longer runs."""

    @property
    def graph(self) -> torch.cuda.CUDAGraph: ...

    @property
    def done(self) -> torch.cuda.Event: ...


Entry = TypeVar("Entry", bound=Captured)
Result = TypeVar("Result")


class GraphCache(Generic[Entry]):
    """CUDA graphs by key, at most `size` of them: the least recently used is freed first.

    It has no lock of its own: callers in several threads hold theirs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Entry | None:
        """The entry of a key, which becomes the most recently used; None if there is none."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def add(self, key: Hashable, make: Callable[[], Entry]) -> Entry:
        """Free what is too much, then keep what `make` captures."""
        while len(self._entries) >= self.size:
            _, old = self._entries.popitem(last=False)
            old.done.synchronize()
            old.graph.reset()
        entry = self._entries[key] = make()
        return entry


class _Replay(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    done: torch.cuda.Event  # after the last call has read its outputs


_replays: GraphCache[_Replay] = GraphCache(8)
_lock, _capturing = Lock(), Lock()


def capture(
    work: Callable[[], Any],
    *,
    warm: bool = False,
    pool: Any = None,
    stream: torch.cuda.Stream | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of some work, and what that returned: memory that each replay fills anew.

    Other threads may go on with their own CUDA work meanwhile, but for captures, which take turns.

    Args:
        work: queues kernels and must not wait for the GPU.
        warm: it has run before. If not it runs once first: Triton compiles, libraries take their
            workspaces, and constants reach the GPU.
        pool: from `torch.cuda.graph_pool_handle`, whose memory the graph shares.
        stream: to capture on, by default a new one.
        generator: whose random numbers the work draws, other ones at each replay.
    """
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    if not warm:
        with torch.cuda.stream(stream):
            work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with _capturing, torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
        result = work()
    return graph, result


def meanwhile(device: torch.device, work: Callable[[], Result]) -> Callable[[], Result]:
    """What `work` returns, to be asked for: a captured graph does it beside what is queued before.

    What it reads must be kept as long.
    """
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return work
    beside, main = _beside(device), torch.cuda.current_stream()
    beside.wait_stream(main)
    with torch.cuda.stream(beside):
        result = work()

    def done() -> Result:
        main.wait_stream(beside)
        return result

    return done


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """A stream for what graphs do beside the rest; of a priority that callers hardly use."""
    return torch.cuda.Stream(device, priority=-1)


def replayed(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """`function(*inputs)`, captured as a CUDA graph at the first call with such shapes.

    Further calls cost copies and one launch. The function must not wait for the GPU, nor depend
    on anything but its inputs. The graphs of at most 8 shapes are kept, each with its memory.
    Calls may come from several threads and streams: they take turns.
    """
    device = inputs[0].device
    shapes = tuple((value.shape, value.dtype) for value in inputs)
    key = (function, device, shapes)
    with _lock, torch.cuda.device(device), torch.no_grad():
        stream = torch.cuda.current_stream()
        ready = _replays.get(key) or _replays.add(key, lambda: _capture(function, inputs))
        stream.wait_event(ready.done)
        for place, value in zip(ready.inputs, inputs, strict=True):
            place.copy_(value)
        ready.graph.replay()
        outputs = tuple(value.clone() for value in ready.outputs)
        ready.done.record(stream)
    return outputs


def _capture(function: Function, inputs: tuple[Tensor, ...]) -> _Replay:
    kept = [value.detach().clone() for value in inputs]
    graph, outputs = capture(lambda: function(*kept))
    return _Replay(graph, kept, outputs, torch.cuda.Event())
