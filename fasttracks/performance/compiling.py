"""All kernels that reconstruction and streams launch, compiled ahead."""

from typing import Any

import torch

from fasttracks.backends import triton
from fasttracks.network import TracksTo4D, runnable

# (frames, tracks) between which kernels and launches differ: long and short sequences along each
# axis, few and many tokens; the last is that of the pass that finds the focal length.
_STREAM = (50, 256)  # of a window of usual length
_SIZES = ((50, 100), (20, 8), (300, 16), (50, 256), (50, 1000), (50, 4096), (50, 128))


def compile_all(network: TracksTo4D, dtype: torch.dtype) -> int:
    """Compile what a network needs on its device, by any way into `reconstruct`, or in a stream.

    The network's blocks are put into `dtype`, as `load` does. Returns how many kernels, those that
    were in Triton's cache too.
    """
    from fasttracks.kernels.ahead import compile_ahead
    from fasttracks.kernels.prepare import count, prepare
    from fasttracks.refine.bundle import bundle_tensors
    from fasttracks.stream.world import World

    heads = network.points.weight
    device = heads.device
    blocks: Any = network.blocks.to(dtype)
    blocks[-1].norm.float()
    for weight in network.parameters():  # as memory of a GPU is aligned, unlike that of a file
        weight.data = weight.data.clone()
    run = runnable(triton(), torch.device("cuda"), dtype, grad=False)

    def work() -> None:
        for positions in (torch.float32, torch.float64):
            for visible in (torch.uint8, torch.float64):
                frames, tracks = _SIZES[0]
                count(
                    prepare(
                        torch.zeros(1, frames, tracks, 2, dtype=positions, device=device),
                        torch.zeros(1, frames, tracks, dtype=visible, device=device),
                        torch.zeros(1, frames, 3, 3, dtype=torch.float64, device=device),
                        torch.zeros(1, 4, dtype=torch.float64, device=device),
                    )
                )
        for frames, tracks in _SIZES:
            inputs = torch.zeros(1, frames, tracks, 3, device=device)
            prediction = network.by(inputs, run)
            if (frames, tracks) == _SIZES[0]:
                known = torch.ones(1, dtype=torch.bool, device=device)
                bundle_tensors(*prediction, inputs, known)
        World(network, *_STREAM, 1, False).by_kernels(lambda tracks: network.by(tracks, run))

    with torch.no_grad():
        return compile_ahead(work, device)
