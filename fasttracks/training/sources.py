"""Where training's clips come from: generated scenes, or recordings without truth."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fasttracks.evaluation.metrics import Truth
from fasttracks.graphs import capture
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.library import Library
from fasttracks.scenes.variety import Variety
from fasttracks.tracks import Tracks

Batch = tuple[Tensor, Truth | None]  # the network's input (B, T, N, 3), and the truth if known
Source = Callable[[tuple[int, int, int], int], Batch]  # clips of a shape (B, T, N) for a step


def scenes(
    library: Library,
    seed: int,
    varieties: Sequence[Variety] = (Variety(),),
    *,
    record: bool = False,
) -> Source:
    """Generated clips: the same for the same seed and step, wherever a run was stopped.

    Varieties take turns of 16 steps, so that every shape meets each of them. With `record`
    (CUDA) generation is a CUDA graph for each shape and variety, which leaves the host to the
    training.
    """
    recorded: dict[tuple[tuple[int, int, int], Variety], Callable[[int], Batch]] = {}

    def source(shape: tuple[int, int, int], step: int) -> Batch:
        variety = varieties[step // 16 % len(varieties)]
        key = (seed << 32) + step

        def make(generator: torch.Generator) -> Batch:
            clips = generate(*shape, library=library, generator=generator, variety=variety)
            return clips.tracks, clips.truth

        if not record:
            return make(seeded(key, library.split, library.device))
        if (shape, variety) not in recorded:
            recorded[shape, variety] = _record(make, library)
        return recorded[shape, variety](key)

    return source


def _record(make: Callable[[torch.Generator], Batch], library: Library) -> Callable[[int], Batch]:
    """A CUDA graph of `make`, run for a seed."""
    generator = seeded(0, library.split, library.device)
    graph, (tracks, truth) = capture(lambda: make(generator), generator=generator)
    assert truth is not None

    def replay(key: int) -> Batch:
        generator.manual_seed(seeded(key, library.split, "cpu").initial_seed())
        graph.replay()
        return tracks.clone(), Truth(*(value.clone() for value in truth if value is not None))

    return replay


def recordings(
    clips: Sequence[Tracks], seed: int, device: torch.device, assumed_focal: float = 1.0
) -> Source:
    """Pieces of tracked clips without truth, for the paper's loss.

    Where the focal length is unknown it is taken for `assumed_focal` longer sides.

    A piece is a run of frames and a choice of tracks; a clip that is too short or has too few
    is repeated there and back.
    """
    inputs = [clip.inputs(clip.camera(assumed_focal)).float() for clip in clips]

    def source(shape: tuple[int, int, int], step: int) -> Batch:
        draw = seeded((seed << 32) + step, "recordings", "cpu")
        batch, frames, tracks = shape
        pieces = []
        for _ in range(batch):
            clip = inputs[int(torch.randint(len(inputs), (), generator=draw))]
            length, count = clip.shape[:2]
            begin = torch.randint(max(1, length - frames + 1), (), generator=draw)
            time = (torch.arange(frames) + begin) % (2 * length - 2)
            time = length - 1 - (time - (length - 1)).abs()  # 0 .. length - 1 .. 0
            chosen = torch.cat(
                [torch.randperm(count, generator=draw) for _ in range(-(-tracks // count))]
            )
            pieces.append(clip[time][:, chosen[:tracks]])
        return torch.stack(pieces).to(device), None

    return source
