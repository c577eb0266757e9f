"""Held-out scenes: the kinds that training validates on and benchmarks measure."""

from dataclasses import replace

from torch import Tensor

from fasttracks.evaluation.metrics import Truth
from fasttracks.scenes.generator import generate, seeded
from fasttracks.scenes.library import Library
from fasttracks.scenes.variety import ASSUMED_FOCAL, CASUAL, LONG, WALK, Variety

# All that happens around a subject; casual clips; the hardest check of whether training carries
# over: one subject, a known lens, recorded camera paths; and what people film while they walk.
VALIDATION = {
    "all": Variety(),
    "casual": CASUAL,
    "handheld": replace(
        CASUAL, unknown_focal=0, cameras=(0, 0, 0, 0, 0, 0, 1.0), company=(0, 1, 0, 0)
    ),
    "walk": WALK,
}
VALIDATION_FRAMES, VALIDATION_TRACKS = 50, 256
_RATE = 30  # frames a second of a long take
_AT_ONCE = 16  # clips of a validation batch


def kind(name: str, frames: int) -> Variety | None:
    """What clips of a kind vary in; "long" ones last as long as so many frames do."""
    if name == "long":
        return replace(LONG, span=(0.8 * frames / _RATE, 1.2 * frames / _RATE))
    return VALIDATION.get(name)


def validation(
    library: Library, clips: int, assumed_focal: float = ASSUMED_FOCAL, seed: int = 1
) -> dict[str, list[tuple[Tensor, Truth | None]]]:
    """Batches of tracks and truth, so many clips of each kind, the same every time.

    assumed_focal: what the network to be judged is given for unknown focal lengths.
    """
    sizes = [min(_AT_ONCE, clips - begin) for begin in range(0, clips, _AT_ONCE)]
    found: dict[str, list[tuple[Tensor, Truth | None]]] = {}
    for name, variety in VALIDATION.items():
        found[name] = []
        for i, size in enumerate(sizes):
            made = generate(
                size,
                VALIDATION_FRAMES,
                VALIDATION_TRACKS,
                library=library,
                generator=seeded((seed << 32) + i, library.split, library.device),
                variety=replace(variety, assumed_focal=assumed_focal),
            )
            found[name].append((made.tracks, made.truth))
    return found
