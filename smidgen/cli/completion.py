"""``smidgen completion``: a script that completes commands, options and files in bash, zsh or fish.

Written from the parser itself, so a new option is completed without a word here.
"""

from __future__ import annotations

import argparse

from smidgen.cli.parser import COMMANDS, commands

DONE = 0


def completion(options: argparse.Namespace) -> int:
    """``smidgen completion``."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[options.shell](commands(), COMMANDS), end="")
    return DONE


Commands = dict[str, argparse.ArgumentParser]


def options_of(parser: argparse.ArgumentParser) -> dict[str, tuple[str, bool]]:
    """Long options of a command: what each is for, and whether a value follows."""
    found = {}
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--") and action.help != argparse.SUPPRESS:
                found[name] = ((action.help or "").replace("%%", "%"), action.nargs != 0)
    return found


def bash(commands: Commands, told: dict[str, str]) -> str:
    """The script for bash."""
    lines = [f"    {name}) words='{' '.join(options_of(parser))}' ;;" for name, parser in commands.items()]
    return "\n".join([
        "# smidgen completion bash >> ~/.bashrc",
        "_smidgen() {",
        "  local words current=${COMP_WORDS[COMP_CWORD]}",
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"    COMPREPLY=($(compgen -W '{' '.join(told)} --help --version' -- \"$current\"))",
        "    return",
        "  fi",
        '  case "${COMP_WORDS[1]}" in',
        *lines,
        "  esac",
        "  # Anything but an option is a file: bash's own completion does those.",
        '  case "$current" in -*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;; esac',
        "}",
        "complete -o default -F _smidgen smidgen",
        "",
    ])  # fmt: skip


def zsh(commands: Commands, told: dict[str, str]) -> str:
    """The script for zsh."""
    names = " ".join(f"'{name}:{_plain(text)}'" for name, text in told.items())
    cases = []
    for name, parser in commands.items():
        each = [
            f"'{option}[{_plain(text)}]{':value:_files' if value else ''}'"
            for option, (text, value) in options_of(parser).items()
        ]
        cases.append(f"    {name}) _arguments {' '.join(each)} '*:file:_files' ;;")
    return "\n".join([
        "#compdef smidgen",
        "# smidgen completion zsh >> ~/.zshrc (after compinit)",
        "_smidgen() {",
        "  local -a names",
        f"  names=({names})",
        "  if (( CURRENT == 2 )); then _describe command names; return; fi",
        "  local name=$words[2]",
        "  shift words; (( CURRENT-- ))",
        '  case "$name" in',
        *cases,
        "  esac",
        "}",
        "compdef _smidgen smidgen",
        "",
    ])  # fmt: skip


def fish(commands: Commands, told: dict[str, str]) -> str:
    """The script for fish."""
    lines = ["# smidgen completion fish > ~/.config/fish/completions/smidgen.fish"]
    for name, text in told.items():
        lines.append(f"complete -c smidgen -n __fish_use_subcommand -f -a {name} -d '{_plain(text)}'")
    for name, parser in commands.items():
        for option, (text, value) in options_of(parser).items():
            needs = " -r" if value else ""
            seen = f"'__fish_seen_subcommand_from {name}'"
            lines.append(f"complete -c smidgen -n {seen} -l {option[2:]}{needs} -d '{_plain(text)}'")
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Without what any of the shells would read as its own."""
    return "".join(" " if c in "'\"\\[]:`$\n" else c for c in text).strip()[:100]
