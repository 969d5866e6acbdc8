"""The command line: one thin function a subcommand, over the public API.

Exit codes: 0 done, 1 a fault of smidgen's own, 2 something given is wrong, 3 the budget was not met (the best found is
kept), 130 stopped with Ctrl-C. Nothing here imports torch before a command needs it, so ``--help`` is instant.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from smidgen.cli.parser import parse
from smidgen.errors import SmidgenError, UserError

# Commands that live in a module of their own; unpack runs without what the others import.
_HOMES = {
    "unpack": "unpacking", "downsample": "downsampling", "prune": "pruning", "serve": "serving", "bench": "benching",
    "bundle": "bundling", "sweep": "sweeping", "report": "reporting", "completion": "completion",
    "distil": "training", "transfer": "training", "fastconv": "fast", "glimpse": "looking",
}  # fmt: skip
DONE, FAULT, USER_ERROR, NOT_MET, STOPPED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit code.

    >>> main(["compress", "no-such.onnx", "--size", "10 kB"])
    2
    """
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # notices of other packages, nothing a user can act on
                warnings.filterwarnings("always", message="times: ")  # our own
                warnings.showwarning = _noted
            options = parse(sys.argv[1:] if argv is None else argv)
            home = _HOMES.get(options.command, "commands")
            command = getattr(importlib.import_module(f"smidgen.cli.{home}"), options.command)
            code = command(options)
            sys.stdout.flush()  # here, where a closed pipe can still be handled
            return code
    except KeyboardInterrupt:
        return _told("stopped; nothing was left half-written", STOPPED)
    except BrokenPipeError:
        # The reader (head, less) has gone: what is left goes nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except SmidgenError as error:
        if debug:
            traceback.print_exc()
        return _told(f"error: {error}", USER_ERROR if isinstance(error, UserError) else FAULT)
    except Exception as error:
        if debug:
            traceback.print_exc()
        kind = f"{type(error).__name__}: {error}"
        return _told(f"error: internal: {kind}; please report it, with what --debug prints", FAULT)


def _noted(message: Warning | str, *_: object, **__: object) -> None:
    print(f"smidgen: {message}", file=sys.stderr)


def _told(message: str, code: int) -> int:
    """One line on stderr, whatever the message holds."""
    print(f"smidgen: {' '.join(message.split())}", file=sys.stderr)
    return code
