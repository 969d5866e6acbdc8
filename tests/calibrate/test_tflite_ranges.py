"""Ranges of several tensors of a TFLite file as one."""

from __future__ import annotations

from smidgen.calibrate.tflite_ranges import joined


def test_ranges_of_several_tensors_hold_zero() -> None:
    assert joined({}, [1]) is None
    assert joined({1: (2.0, 3.0)}, [1]) == (0.0, 3.0)
    assert joined({1: (2.0, 3.0), 2: (-1.0, 1.0)}, [1, 2, 3]) == (-1.0, 3.0)
