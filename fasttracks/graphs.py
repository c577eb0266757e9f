"""Work captured as CUDA graphs, whose many small kernels cost one launch."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST = 8  # graphs that are kept; the one not used for longest goes first

Function = Callable[..., tuple[Tensor, ...]]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]
    done: torch.cuda.Event  # after the last call has read its outputs


_graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
_lock = Lock()


def capture(
    work: Callable[[], Any],
    *,
    warm: bool = False,
    pool: Any = None,
    stream: torch.cuda.Stream | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of some work, and what that returned: memory that each replay fills anew.

    Other threads may go on with their own CUDA work meanwhile.

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
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
        result = work()
    return graph, result


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
        ready = _graphs.get(key) or _new(key, function, inputs)
        _graphs.move_to_end(key)
        stream.wait_event(ready.done)
        for place, value in zip(ready.inputs, inputs, strict=True):
            place.copy_(value)
        ready.graph.replay()
        outputs = tuple(value.clone() for value in ready.outputs)
        ready.done.record(stream)
    return outputs


def _new(key: Hashable, function: Function, inputs: tuple[Tensor, ...]) -> _Graph:
    while len(_graphs) >= _MOST:
        _, old = _graphs.popitem(last=False)
        old.done.synchronize()  # it may be running
        old.graph.reset()
    kept = [value.detach().clone() for value in inputs]
    graph, outputs = capture(lambda: function(*kept))
    _graphs[key] = _Graph(graph, kept, outputs, torch.cuda.Event())
    return _graphs[key]
