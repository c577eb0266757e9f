"""The network's sizes, kept in the header of every weights file."""

import json
from dataclasses import asdict, dataclass, fields

from fasttracks.errors import InputError

_LARGEST, _MOST_ROUNDS = 16384, 64  # that a file from anywhere may ask for


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
        """Read `to_json`'s form; InputError where a field is unknown or of another type."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"config: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise InputError(f"config: expected a JSON object, found {type(values).__name__}")
        types = {f.name: type(f.default) for f in fields(cls)}
        bad = [k for k, v in values.items() if k not in types or type(v) is not types[k]]
        if bad:
            raise InputError(
                f"config: unknown or mistyped {', '.join(bad)}; this version knows "
                f"{', '.join(types)}"
            )
        if any(not 1 <= v <= _LARGEST for v in values.values() if type(v) is int):
            raise InputError(f"config: expected sizes from 1 to {_LARGEST}, found {text}")
        if not 0.01 <= values.get("assumed_focal", 1.0) <= 100:
            raise InputError(f"config: expected an assumed_focal from 0.01 to 100, found {text}")
        if values.get("rounds", 1) > _MOST_ROUNDS:
            raise InputError(f"config: expected at most {_MOST_ROUNDS} rounds, found {text}")
        return cls(**values)
