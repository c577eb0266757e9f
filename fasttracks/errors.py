"""The one error a caller can mend."""


class InputError(ValueError):
    """What was given can't be used.

    The message is one line: which argument, what was found, what was expected.
    The command line prints it and exits with 2.
    """
