"""Run the command line in a process of its own and tell what it took."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A finished process.

    Args:
        code: its exit code.
        wall_s: from start to end, importing included.
        cpu_s: processor time, user and system; what the run would take on a machine with nothing else to do.
        record: its result.json; its peak_rss_bytes is the process's own.
        note: what it said on stderr.
    """

    code: int
    wall_s: float
    cpu_s: float
    record: dict[str, Any]
    note: str


def compress(arguments: Sequence[str], threads: int, keep: Path | None = None, target: str = "archive") -> Run:
    """``smidgen compress`` with these arguments.

    Args:
        arguments: without the output folder and thread count.
        threads: for torch, the runtime and every library below them.
        keep: where a written file goes.
        target: the kind of that file.

    Raises:
        SystemExit: the run failed; with its message.
    """
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))}
    start = [sys.executable, "-c", "import sys; from smidgen.cli import main; sys.exit(main())", "compress"]
    with tempfile.TemporaryDirectory() as folder:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [*start, *arguments, "--threads", str(threads), "--quiet", "-o", folder],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode not in (0, 3):
            raise SystemExit(f"smidgen compress ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        record = json.loads(Path(folder, "result.json").read_text())
        if keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder, record["files"][target]["path"]), keep)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(done.returncode, wall, cpu, record, done.stderr.strip())
