"""The program `fasttracks`: finds the command, and says in one line what was wrong."""

import io
import sys
import warnings
from importlib import import_module
from typing import Any

from fasttracks.cli.console import claims, complain
from fasttracks.cli.options import parser
from fasttracks.errors import InputError

# By command, the module of this package that has the function of that name.
MODULES = {
    "demo": "reconstruct",
    "track": "reconstruct",
    "reconstruct": "reconstruct",
    "batch": "batch",
    "live": "live",
    "view": "view",
    "export": "view",
    "export-program": "models",
    "convert": "models",
    "train": "train",
    "generate": "generate",
    "evaluate": "models",
    "info": "describe",
    "bench": "bench",
    "tune": "tune",
    "compile": "compile",
    "env": "describe",
    "completion": "completion",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 with one line on stderr if the input was at fault."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # "×" on a terminal that has only ASCII
    try:
        options = parser().parse_args(arguments)
        module = import_module(f"fasttracks.cli.{MODULES[options.command]}")
        with warnings.catch_warnings(), claims:
            warnings.showwarning = _show_warning
            getattr(module, options.command.replace("-", "_"))(options)
    except (InputError, OSError) as error:
        return complain(f"error: {error}", 2)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    complain(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
