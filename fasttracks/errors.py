"""The one error a caller can mend."""


class InputError(ValueError):
    """What was given can't be used.

    The message is one printable line: which argument, what was found, what was expected.
    The command line prints it and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """One line without control characters, whatever a file's names and values hold."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
