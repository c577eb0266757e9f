"""Point tracks of a casual video to camera poses and 4D points, in one forward pass.

`reconstruct` is the way in. Names are imported on first use, so that `import fasttracks`
loads neither torch nor triton.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasttracks.config import Config
    from fasttracks.engine import Engine
    from fasttracks.errors import InputError
    from fasttracks.network import TracksTo4D
    from fasttracks.pipeline import reconstruct
    from fasttracks.reconstruction import Reconstruction
    from fasttracks.stream.stream import Stream
    from fasttracks.trackers import track
    from fasttracks.tracks import Tracks
    from fasttracks.weights import load

__version__ = "0.2.0"

__all__ = [
    "Config",
    "Engine",
    "InputError",
    "Reconstruction",
    "Stream",
    "Tracks",
    "TracksTo4D",
    "load",
    "reconstruct",
    "track",
]

_HOME = {
    "Config": "config",
    "Engine": "engine",
    "InputError": "errors",
    "Reconstruction": "reconstruction",
    "Stream": "stream.stream",
    "Tracks": "tracks",
    "TracksTo4D": "network",
    "load": "weights",
    "reconstruct": "pipeline",
    "track": "trackers",
}


_MODULES = ("batch", "export", "trackers", "video", "viewers")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fasttracks.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fasttracks' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fasttracks.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__", "__doc__", "__all__"])
