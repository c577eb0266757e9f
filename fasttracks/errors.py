"""The one error a caller can mend, and warnings that point at the caller."""

import sys
import warnings

_LONGEST = 1000  # characters of a message


class InputError(ValueError):
    """What was given can't be used.

    The message is one printable line: which argument, what was found, what was expected.
    The command line prints it and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def warn(message: str) -> None:
    """A warning of the line that called into this package, however deep it was found."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("fasttracks."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def printable(text: str) -> str:
    """One line without control characters, of no more than a screen's length.

    Whatever a file's names and values hold: of a longer text the middle is left out.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
