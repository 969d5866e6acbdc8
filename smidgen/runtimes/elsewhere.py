"""A file tried in a process of its own: some runtimes end theirs on a damaged file, where they should refuse it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from smidgen.errors import LoadError

TRY_SECONDS = 120


def run_elsewhere(
    script: str, content: bytes, runtime: str, path: Path, *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a few lines of Python, with the packages that are importable here, on a file's content.

    Args:
        script: reads the content from its standard input.
        content: of the file.
        runtime, path: what runs which file, for the message.
        arguments: of the script.

    Returns:
        The ended process; its return code is negative where a signal ended it.

    Raises:
        LoadError: it takes too long.

    >>> run_elsewhere("import sys; print(len(sys.stdin.buffer.read()))", b"abc", "Python", Path("abc")).stdout.split()
    [b'3']
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    try:
        return subprocess.run(
            [sys.executable, "-c", script, *arguments], input=content, capture_output=True, timeout=TRY_SECONDS,
            env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LoadError(f"runtime: {runtime} takes more than {TRY_SECONDS} s for one input of '{path}'") from None


def check_survives(script: str, content: bytes, runtime: str, path: Path, sound: set[bytes]) -> None:
    """LoadError where a runtime ends the process, or never ends, on a file.

    Args:
        script, content, runtime, path: see `run_elsewhere`.
        sound: SHA-256 digests of files that are known to do no harm; a new one is added.
    """
    digest = hashlib.sha256(content).digest()
    if digest in sound:
        return
    done = run_elsewhere(script, content, runtime, path)
    if done.returncode < 0:
        raise LoadError(f"runtime: {runtime} crashes on '{path}' (signal {-done.returncode}); the file is damaged")
    sound.add(digest)  # what is wrong otherwise the runtime tells, here as there
