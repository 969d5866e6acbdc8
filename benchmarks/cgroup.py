"""A process under a hard limit of memory and on one core: a control group of the kernel, of version 2 or 1."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limited:
    """A finished process.

    Args:
        code: its exit code; −9 where the kernel killed it at the limit.
        wall_s: from start to end.
        peak_nbytes: most memory of the group at once: resident pages, page cache and the kernel's own for it.
        version: of the control group.
        out, err: what it printed.
    """

    code: int
    wall_s: float
    peak_nbytes: int
    version: int
    out: str
    err: str


def run_limited(command: Sequence[str], nbytes: int, environment: Mapping[str, str], core: int = 0) -> Limited:
    """Run a command with at most so many bytes of memory, no swap, on one core.

    Raises:
        SystemExit: no control group can be made here.
    """
    version, group = _make(nbytes)

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
        os.sched_setaffinity(0, {core})

    try:
        started = time.perf_counter()
        done = subprocess.run(
            list(command), capture_output=True, text=True, env=dict(environment), preexec_fn=enter, check=False
        )
        wall = time.perf_counter() - started
        peak = int((group / ("memory.peak" if version == 2 else "memory.max_usage_in_bytes")).read_text())
        return Limited(done.returncode, wall, peak, version, done.stdout, done.stderr)
    finally:
        group.rmdir()


def _make(nbytes: int) -> tuple[int, Path]:
    """A group below this process' own of version 2, else one of version 1."""
    name = f"smidgen-{os.getpid()}"
    if "memory" in _text(ROOT / "cgroup.subtree_control").split():
        group, version, limits = ROOT / name, 2, {"memory.max": nbytes, "memory.swap.max": 0}
    elif (ROOT / "memory" / "memory.limit_in_bytes").exists():
        group, version = ROOT / "memory" / name, 1
        limits = {"memory.limit_in_bytes": nbytes, "memory.memsw.limit_in_bytes": nbytes}
    else:
        raise SystemExit("the kernel offers no control group for memory here; run it as root on Linux")
    try:
        group.mkdir()
        for file, value in limits.items():
            if (group / file).exists():
                (group / file).write_text(str(value))
    except OSError as error:
        raise SystemExit(f"a control group cannot be made here ({error}); run it as root") from None
    return version, group


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
