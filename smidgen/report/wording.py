"""Numbers as a reader wants them: bytes, counts, shares, losses, written alike in table and sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"
_MINUS = "−"


def size(nbytes: float | int | None) -> str:
    """Bytes with three digits and a decimal unit (kB = 1000 bytes).

    >>> size(3_253_851), size(512_000), size(999), size(None)
    ('3.25 MB', '512 kB', '999 B', '–')
    """
    if nbytes is None:
        return MISSING
    return _scaled(nbytes, (" B", " kB", " MB", " GB"))


def count(number: float | int | None) -> str:
    """A count with three digits and k, M or G.

    >>> count(813_100), count(6_079_200), count(42)
    ('813 k', '6.08 M', '42')
    """
    if number is None:
        return MISSING
    return _scaled(number, ("", " k", " M", " G"))


def share(fraction: float | int | None) -> str:
    """A fraction in percent with two decimals.

    >>> share(0.9921)
    '99.21 %'
    """
    return MISSING if fraction is None else f"{100 * fraction:.2f} %"


def signed(number: float | int, decimals: int = 2) -> str:
    """A number with a real minus sign, and none before a rounded zero.

    >>> signed(-0.051), signed(-0.0001), signed(0.19)
    ('−0.05', '0.00', '0.19')
    """
    if not math.isfinite(number):
        return "∞" if number > 0 else MISSING
    text = f"{abs(number):.{decimals}f}"
    return _MINUS + text if number < 0 and float(text) else text


def interval(limits: Sequence[float | int]) -> str:
    """Both ends of an interval.

    >>> interval([-0.05, 0.19])
    '−0.05 … 0.19'
    """
    low, high = limits
    return f"{signed(low)} … {signed(high)}"


def number(value: float | int | None) -> str:
    """Any number with three significant digits, powers of ten only for the very small.

    >>> number(0.00123), number(-2.5e-9), number(0.0), number(1234.5)
    ('0.00123', '−2.5e-09', '0', '1234')
    """
    if value is None:
        return MISSING
    text = f"{abs(value):.0f}" if abs(value) >= 1000 else f"{abs(value):.3g}"
    return _MINUS + text if value < 0 else text


def times(ratio: float | int | None) -> str:
    """A ratio to the digits that matter: 32 of 31.7, 6.4 of 6.36, but 1.03 of 1.034.

    >>> times(31.7), times(6.36), times(1.034)
    ('32×', '6.4×', '1.03×')
    """
    if ratio is None:
        return MISSING
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×" if ratio >= 1.1 else f"{ratio:.2f}×"


def _scaled(number: float | int, units: Sequence[str]) -> str:
    """Three significant digits and the unit that leaves one to three of them before the point."""
    for unit in units:
        # 999.5 would be written 1000: it belongs to the next unit.
        if abs(number) < 999.5 or unit == units[-1]:
            digits = 0 if unit == units[0] or abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2
            return f"{number:.{digits}f}{unit}"
        number /= 1000
    raise ValueError("there is no unit to write in")
