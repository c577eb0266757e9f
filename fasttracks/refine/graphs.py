"""Functions of tensors replayed as CUDA graphs, for what is made of many small kernels."""

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
        ready = _graphs.get(key) or _capture(key, function, inputs)
        _graphs.move_to_end(key)
        stream.wait_event(ready.done)
        for place, value in zip(ready.inputs, inputs, strict=True):
            place.copy_(value)
        ready.graph.replay()
        outputs = tuple(value.clone() for value in ready.outputs)
        ready.done.record(stream)
    return outputs


def _capture(key: Hashable, function: Function, inputs: tuple[Tensor, ...]) -> _Graph:
    while len(_graphs) >= _MOST:
        _, old = _graphs.popitem(last=False)
        old.done.synchronize()  # it may be running
        old.graph.reset()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph, kept = torch.cuda.CUDAGraph(), [value.detach().clone() for value in inputs]
    with torch.cuda.stream(side):
        function(*kept)  # compiles, and lets libraries take their workspaces
    side.synchronize()
    # Other threads may go on with their own CUDA work meanwhile.
    modes: dict[str, Any] = {"stream": side, "capture_error_mode": "thread_local"}
    with torch.cuda.graph(graph, **modes):
        outputs = function(*kept)
    _graphs[key] = _Graph(graph, kept, outputs, torch.cuda.Event())
    return _graphs[key]
