"""Times of layers, kept between runs: what was measured once on this machine is not measured again.

A share (a chain's time / the time of the layer it replaces, both measured in turns) is known by the shapes of both,
the thread count, the runtime's version and the processor. One JSON file, written in one step; a damaged one is left
out with one line, and written anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import onnxruntime

from smidgen.errors import one_line
from smidgen.forms import DIRECT, Stage

VERSION = 3  # of what is timed and how; another number starts an empty table
LARGEST_NBYTES = 64 << 20  # of the file; some 70 bytes an entry
FILE = "layer-times.json"


def cache_folder() -> Path:
    """Where times are kept: ``SMIDGEN_CACHE``, else the system's folder for what may be lost.

    >>> cache_folder().is_absolute()
    True
    """
    named = os.environ.get("SMIDGEN_CACHE")
    if named:
        return Path(named).absolute()
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "smidgen"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "smidgen" / "Cache"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else home / ".cache") / "smidgen"


@cache
def processor() -> str:
    """What the processor calls itself.

    >>> len(processor()) > 0
    True
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()})"
    return f"{platform.processor() or platform.machine() or 'unknown'} ({os.cpu_count()})"


def chain_key(chain: Sequence[Stage], threads: int) -> str:
    """What a chain's time depends on, as a short hash.

    Args:
        chain: from `smidgen.forms.stages`.
        threads: of the runtime.
    """
    told: list[object] = [[stage.geometry.to_dict() for stage in chain], threads, onnxruntime.__version__, processor()]
    fast = {i: stage.algorithm for i, stage in enumerate(chain) if stage.algorithm != DIRECT}
    told += [fast] if fast else []
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(eq=False)
class TimeTable:
    """Milliseconds by layer, and shares by layer and chain.

    Args:
        path: the file, None to keep nothing between runs.
        entries: what is known.
    """

    path: Path | None
    entries: dict[str, float] = field(default_factory=dict)
    _new: int = 0

    def get(self, layer: str, chain: str = "") -> float | None:
        """The milliseconds of a layer, or a chain's time as a share of its; None where it is not known."""
        return self.entries.get(f"{layer}:{chain}")

    def put(self, value: float, layer: str, chain: str = "") -> None:
        """Remember it."""
        self.entries[f"{layer}:{chain}"] = value
        self._new += 1

    def save(self) -> None:
        """Write the file where anything is new; a folder that cannot be written is no fault of the run."""
        if self.path is None or not self._new:
            return
        # Another run may have written since: its entries stay.
        told = {**_read(self.path, quiet=True), **self.entries}
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"version": VERSION, "entries": told}), encoding="utf-8")
            partial.replace(self.path)
            self._new = 0
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


_opened: dict[Path, TimeTable] = {}


def open_table(folder: Path | None = None) -> TimeTable:
    """The table of this machine, read once in a process.

    Args:
        folder: where its file lies; `cache_folder` when None.
    """
    path = (folder or cache_folder()) / FILE
    if path not in _opened:
        _opened[path] = TimeTable(path, _read(path))
    return _opened[path]


def _read(path: Path, quiet: bool = False) -> dict[str, float]:
    try:
        if path.stat().st_size > LARGEST_NBYTES:
            raise ValueError("it is too large")
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or not isinstance(stored.get("entries"), dict):
            raise ValueError("it holds no entries")
        entries = stored["entries"] if stored.get("version") == VERSION else {}
        if not all(type(v) in (int, float) and math.isfinite(v) and v > 0 for v in entries.values()):
            raise ValueError("a time in it is no positive number")
        return {name: float(value) for name, value in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as fault:
        if not quiet:
            reason = one_line(fault, 100)
            warnings.warn(f"times: '{path}' cannot be read ({reason}); layers are timed anew", stacklevel=3)
        return {}
