"""Peak memory, in a process of its own: that of the tests has a past."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from smidgen.measure import memory

_PROGRAM = """
from smidgen.measure.memory import peak_rss_bytes
peaks = [peak_rss_bytes()]
held = bytearray(b"1") * 100_000_000
peaks.append(peak_rss_bytes())
del held
peaks.append(peak_rss_bytes())
print(*peaks)
"""


def test_peak_grows_with_what_is_held_stays_and_ignores_the_parent() -> None:
    # The parent's own peak is above everything the child holds before.
    assert np.ones(40_000_000).nbytes == 320_000_000
    answer = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    before, holding, after = map(int, answer.stdout.split())
    assert before < 100_000_000
    assert 95_000_000 < holding - before < 150_000_000
    # The kernel sums its counters lazily: some hundred kB to and fro.
    assert after > holding - 2_000_000


def test_where_a_system_does_not_tell_there_is_none_and_a_reason(monkeypatch) -> None:
    """Windows has neither /proc nor the module ``resource``."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    try:
        importlib.reload(memory)
        assert memory.peak_rss_bytes() is None
        assert memory.UNKNOWN
    finally:
        monkeypatch.undo()
        importlib.reload(memory)
    assert memory.peak_rss_bytes() > 1_000_000


HOLES = """
import numpy as np
from smidgen.measure import memory
memory.memory_limit = lambda: {limit}
done = memory.spare()
def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])
for _ in range(3):  # so that the allocator has learned to keep such blocks
    blocks = [np.ones(2_000_000) for _ in range(12)]
    del blocks
before = resident()
blocks = [np.ones(2_000_000) for _ in range(24)]
kept = blocks[1::2]
del blocks
print(done, (resident() - before) // 16_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc's threshold is glibc's")
def test_where_memory_is_scarce_freed_blocks_go_back() -> None:
    def told(limit: int) -> list[str]:
        code = HOLES.format(limit=limit)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert told(1 << 30) == ["True", "12"]
    assert told(1 << 40)[0] == "False"


def test_the_least_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.memory_limit()
    inner, outer = tmp_path / "a" / "b", tmp_path / "a"
    inner.mkdir(parents=True)
    monkeypatch.setattr(memory, "_own_groups", lambda: [inner, outer, tmp_path / "none"])
    (inner / "memory.max").write_text("max\n")
    assert memory.memory_limit() == whole
    (outer / "memory.max").write_text("700000000\n")
    (inner / "memory.limit_in_bytes").write_text("900000000\n")
    assert memory.memory_limit() == 700_000_000
