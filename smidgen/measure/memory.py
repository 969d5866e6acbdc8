"""The most memory this process has held, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

SCARCE = 3 << 30  # bytes of memory; with more the allocator keeps freed blocks, which is faster
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD of malloc.h
_MAPPED = 1 << 20  # bytes; larger blocks are pages of their own, and go back to the system when they are freed
_GROUPS = Path("/sys/fs/cgroup")
UNKNOWN = "this system does not tell a process its peak memory"


def peak_rss_bytes() -> int | None:
    """Peak resident memory of this process since it began, in bytes; it never goes down but for the kernel's rounding.

    On Linux VmHWM of ``/proc/self/status``, because ``ru_maxrss`` begins at the size of the process that started this
    one. Elsewhere ``getrusage``, which counts in KiB, on macOS in bytes; None where there is neither (`UNKNOWN`).

    >>> peak_rss_bytes() > 1_000_000
    True
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if found:
        return 1024 * int(found[1])
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release() -> None:
    """Give freed memory back to the system, where the C library can (glibc's ``malloc_trim``); else do nothing.

    The many sizes of a forward and backward pass leave holes that the next stage cannot use: 0.4 GB on MobileNetV2.

    >>> release()
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def spare() -> bool:
    """Have large blocks given back as soon as they are freed, where memory is scarce (below `SCARCE`) and glibc's.

    By default freed blocks of up to 32 MB stay with the process, and the holes between them fill 1 GB.

    Returns:
        Whether it was done.
    """
    if sys.platform != "linux" or not scarce():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _MAPPED))


def scarce() -> bool:
    """Whether this process may hold less than `SCARCE`: then what can be made again is not kept.

    >>> scarce() in (True, False)
    True
    """
    limit = memory_limit()
    return limit is not None and limit < SCARCE


def memory_limit() -> int | None:
    """Bytes this process may hold: the machine's memory, or less where a control group limits it; None if unknown.

    >>> memory_limit() is None or memory_limit() > 1_000_000
    True
    """
    known = [limit for group in _own_groups() if (limit := _limit(group)) is not None]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def _own_groups() -> list[Path]:
    """The control groups of this process and those around them, of version 2 and 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds in ("", "memory"):
            inner = (_GROUPS / kinds / place.lstrip("/")).resolve()
            groups += [inner, *(each for each in inner.parents if _GROUPS in each.parents)]
    return groups


def _limit(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / name).read_text())
        except (OSError, ValueError):  # there is none of this version, or it says "max"
            continue
    return None
