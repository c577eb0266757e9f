"""The network's sizes, kept in the header of every weights file."""

import json
from dataclasses import asdict, dataclass, fields

from fasttracks.errors import InputError

# Far beyond any network of use, as a file from anywhere may ask for it:
_LARGEST, MOST_ROUNDS, _MOST_PARAMETERS = 16384, 64, 2**30


@dataclass(frozen=True)
class Config:
    """Sizes of a TracksTo4D network; the defaults are the paper's (arXiv 2404.07097)."""

    width: int = 256
    heads: int = 16
    head_width: int = 64
    mlp_width: int = 2048
    rounds: int = 3  # of one time block and one track block
    frequencies: int = 12  # of the Fourier features
    bases: int = 12  # K; the first is the static scene
    camera_kernel: int = 31  # frames the camera head sees
    predicts_focal: bool = False  # a focal length correction per frame
    # In longer sides of the image, the focal length that is assumed where it is unknown.
    assumed_focal: float = 1.0

    def __post_init__(self) -> None:
        sizes = asdict(self)
        bad = [f.name for f in fields(self) if type(sizes[f.name]) is not type(f.default)]
        if bad:
            raise InputError(f"config: mistyped {', '.join(bad)}; expected their default's type")
        if any(not 1 <= size <= _LARGEST for size in sizes.values() if type(size) is int):
            raise InputError(f"config: expected sizes from 1 to {_LARGEST}, found {sizes}")
        if not 0.01 <= self.assumed_focal <= 100:
            raise InputError(f"config: expected an assumed_focal from 0.01 to 100, found {sizes}")
        if self.rounds > MOST_ROUNDS:
            raise InputError(f"config: expected at most {MOST_ROUNDS} rounds, found {self.rounds}")
        block = self.width * (4 * self.heads * self.head_width + 2 * self.mlp_width)
        heads = self.width * (self.features + 3 * self.bases + 10 * self.camera_kernel)
        if 2 * self.rounds * block + heads > _MOST_PARAMETERS:
            raise InputError(f"config: expected at most {_MOST_PARAMETERS} parameters of {sizes}")

    @property
    def features(self) -> int:
        """Channels of the embedding's input: u, v, o, their sines and cosines, and 1."""
        return 3 + 6 * self.frequencies + 1

    @property
    def camera_channels(self) -> tuple[int, int, int, int]:
        """Sizes of position, focal correction, coefficients 1..K-1 and 6-D rotation."""
        return 3, 1, self.bases - 1, 6

    def to_json(self) -> str:
        """The form kept in a weights file's header."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read `to_json`'s form; InputError where a field is unknown or out of bounds."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"config: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise InputError(f"config: expected a JSON object, found {type(values).__name__}")
        known = [f.name for f in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise InputError(
                f"config: unknown {', '.join(unknown)}; this version knows {', '.join(known)}"
            )
        return cls(**values)
