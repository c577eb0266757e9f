"""`fasttracks completion`: scripts that complete commands, options and their choices."""

import argparse
from collections.abc import Iterator

from fasttracks.cli.console import say
from fasttracks.cli.options import parser
from fasttracks.export import FORMATS

_BASH = """_fasttracks() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words
    case "${{COMP_WORDS[1]}} $before" in
{choices}
        *) case "${{COMP_WORDS[1]}}" in
{options}
        esac ;;
    esac
    [ "$COMP_CWORD" = 1 ] && words="{commands}"
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _fasttracks fasttracks"""


def completion(options: argparse.Namespace) -> None:
    """The script of a shell."""
    say({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell]())


def _commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def _options(command: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action, list[str]]]:
    """Of each option: its long name, itself, and the values it may have, if they are known."""
    for action in command._actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        if names:
            yield names[0], action, [str(choice) for choice in action.choices or ()]


def _values(command: argparse.ArgumentParser) -> list[str]:
    """What stands for a positional argument, where that is known."""
    found = [str(c) for a in command._actions if not a.option_strings for c in a.choices or ()]
    is_export = any(action.dest == "format" for action in command._actions)
    return found + (list(FORMATS) if is_export else [])


def _bash() -> str:
    commands = _commands()
    choices, options = [], []
    for name, command in commands.items():
        known = list(_options(command))
        for option, _, values in known:
            if values:
                choices.append(f'        "{name} {option}") words="{" ".join(values)}" ;;')
        words = [*(option for option, _, _ in known), *_values(command)]
        options.append(f'            {name}) words="{" ".join(words)}" ;;')
    return _BASH.format(
        choices="\n".join(choices), options="\n".join(options), commands=" ".join(commands)
    )


def _zsh() -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    none = f"__fish_seen_subcommand_from {' '.join(_commands())}"
    lines = []
    for name, command in _commands().items():
        text = (command.description or "").replace("'", "\\'")
        lines.append(f"complete -c fasttracks -n 'not {none}' -a {name} -d '{text}'")
        here = f"complete -c fasttracks -n '__fish_seen_subcommand_from {name}'"
        for option, action, values in _options(command):
            takes = f" -r -a '{' '.join(values)}'" if values else "" if action.nargs == 0 else " -r"
            lines.append(f"{here} -l {option[2:]}{takes}")
        if values := _values(command):
            lines.append(f"{here} -a '{' '.join(values)}'")
    return "\n".join(lines)
