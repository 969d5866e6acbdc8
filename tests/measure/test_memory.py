"""Peak memory, in a process of its own: that of the tests has a past."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

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
