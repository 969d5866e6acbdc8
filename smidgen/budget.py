"""What the user asks for: a budget, the files it is for, and sizes such as "200 kB" (kB = 1000, KiB = 1024)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Literal, cast, get_args

from smidgen.errors import BudgetError

Target = Literal[
    "archive", "onnx", "onnx-fp16", "onnx-w8", "onnx-w4", "onnx-shared", "onnx-sparse", "onnx-int8", "tflite",
    "tflite-fp16", "tflite-int8", "mcu", "executorch", "executorch-int8",
]  # fmt: skip
TARGETS: tuple[str, ...] = get_args(Target)
# What the file of each target is called, of those that this version writes.
FILES = {
    "onnx": "model.onnx", "onnx-fp16": "model.fp16.onnx", "archive": "model.smidgen", "onnx-w8": "model.w8.onnx",
    "onnx-w4": "model.w4.onnx", "onnx-int8": "model.int8.onnx", "onnx-shared": "model.shared.onnx",
    "onnx-sparse": "model.sparse.onnx", "tflite": "model.tflite", "tflite-fp16": "model.fp16.tflite",
    "tflite-int8": "model.int8.tflite", "mcu": "model.mcu.tflite", "executorch": "model.pte",
    "executorch-int8": "model.int8.pte",
}  # fmt: skip

Kind = Literal["size", "ratio", "max_drop", "tradeoff", "macs", "speedup", "latency", "default"]

# Keys are lower case: "KB", "kB" and "kb" are all written for 1000 bytes, and none is written for bits.
_UNITS = {
    "": 1,
    "b": 1,
    "byte": 1,
    "bytes": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
# Milliseconds in a unit of time; both signs that are read as micro (U+00B5 and U+03BC).
_TIME_UNITS = {
    "": Fraction(1),
    "us": Fraction(1, 1000),
    "\u00b5s": Fraction(1, 1000),
    "\u03bcs": Fraction(1, 1000),
    "ms": Fraction(1),
    "s": Fraction(1000),
    "sec": Fraction(1000),
}
# No exponent: "1e999999999 kB" would be an integer of a thousand million digits.
_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*([^\d\s.].*)?", re.ASCII)
_LONGEST_TEXT = 40  # characters; no sensible budget needs more, and int() of long text is slow
_LARGEST_NBYTES = 10**15  # a petabyte: beyond any network, so surely a slip
_LARGEST_RATIO = 10**6  # one byte of every megabyte: beyond any method, so surely a slip
_LARGEST_SPEEDUP = 1000  # beyond any method: what is left is the call of the runtime itself
_LONGEST_MS = 3_600_000  # an hour for one answer: surely a slip

_EXAMPLES = {
    "size": 'size=200_000 or size="200 kB"',
    "ratio": 'ratio=6 or ratio="6x"',
    "max_drop": 'max_drop=0.5 or max_drop="0.5%", in percentage points',
    "tradeoff": "tradeoff=0.5, from 0 (accuracy) to 1 (size)",
    "macs": 'macs=0.4 or macs="40%", the share of the multiply-accumulates that is left',
    "speedup": 'speedup=2 or speedup="2x", times faster than the original',
    "latency": 'latency="5 ms" or latency=5, in milliseconds',
}


def parse_size(text: str) -> int:
    """Bytes in a size as people write it.

    Args:
        text: a number with B, kB, MB, GB (powers of 1000) or KiB, MiB, GiB (powers of 1024); bare numbers are bytes.
            Upper and lower case are alike.

    Returns:
        Whole bytes, rounded to the nearest.

    Raises:
        BudgetError: not a size, not positive, or beyond a petabyte.

    >>> parse_size("200 kB"), parse_size("1.5MB"), parse_size("64 KiB")
    (200000, 1500000, 65536)
    """
    number, unit = _split_number("size", text)
    if unit.lower() not in _UNITS:
        raise _wrong("size", text, f"has the unknown unit {unit!r}; use B, kB, MB, GB, KiB, MiB or GiB")
    return _checked_nbytes(math.floor(number * _UNITS[unit.lower()] + Fraction(1, 2)), text)


def parse_latency(text: str) -> float:
    """Milliseconds in a time as people write it.

    Args:
        text: a number with us, µs, ms or s; bare numbers are milliseconds. Upper and lower case are alike.

    Returns:
        Milliseconds.

    Raises:
        BudgetError: not a time, not positive, or beyond an hour.

    >>> parse_latency("5 ms"), parse_latency("250us"), parse_latency("0.02 s")
    (5.0, 0.25, 20.0)
    """
    number, unit = _split_number("latency", text)
    if unit.lower() not in _TIME_UNITS:
        raise _wrong("latency", text, f"has the unknown unit {unit!r}; use us, µs, ms or s")
    return _checked_ms(float(number * _TIME_UNITS[unit.lower()]), text)


def share_of(given: object) -> float | None:
    """A share of what there is: a number between 0 and 1, or text such as "35%"; None for anything else.

    >>> share_of("35%"), share_of(0.5), share_of("0.5"), share_of("3x"), share_of(1)
    (0.35, 0.5, 0.5, None, None)
    """
    if isinstance(given, bool) or not isinstance(given, int | float | str) or len(str(given)) > _LONGEST_TEXT:
        return None
    text = str(given).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return share if 0 < share < 1 else None


def format_size(nbytes: int) -> str:
    """A size for people: one decimal and a unit of 1000.

    Args:
        nbytes: bytes; a negative number (a saving that is a growth) keeps its sign.

    Returns:
        Text that `parse_size` reads back to within half of its last digit.

    >>> format_size(200_000), format_size(999), format_size(999_950), format_size(-1500)
    ('200.0 kB', '999 B', '1.0 MB', '-1.5 kB')
    """
    sign, magnitude = ("-" if nbytes < 0 else ""), abs(nbytes)
    if magnitude < 1000:
        return f"{sign}{magnitude} B"
    for unit, name in ((10**3, "kB"), (10**6, "MB"), (10**9, "GB")):
        tenths = (magnitude * 10 + unit // 2) // unit  # in integers, so that no size prints as "1000.0 kB"
        if tenths < 10_000 or name == "GB":
            return f"{sign}{tenths // 10}.{tenths % 10} {name}"
    raise AssertionError("the last unit takes every size")


def parse_target(name: str) -> Target:
    """The target of this name.

    Args:
        name: one of `TARGETS`; case and surrounding spaces do not matter.

    Returns:
        The name as `TARGETS` spells it.

    Raises:
        BudgetError: no such target; the message lists the nearest.

    >>> parse_target("ONNX-int8")
    'onnx-int8'
    """
    wanted = name.strip().lower()
    if wanted in TARGETS:
        return cast(Target, wanted)
    near = difflib.get_close_matches(wanted, TARGETS, n=3, cutoff=0.5)
    raise BudgetError(
        f"target: {_clip(name)} is not one of {', '.join(TARGETS)}"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
    )


@dataclass(frozen=True)
class Budget:
    """What the written file may cost; one of these, or none for the default trade.

    Args:
        size: bytes of the written file, or text such as "200 kB".
        ratio: original bytes / written bytes, above 1; text such as "6x" too.
        max_drop: absolute percentage points of the metric that may be lost: 0.5, "0.5" and "0.5%" mean half a point.
        tradeoff: from 0 (keep accuracy) to 1 (save bytes).
        macs: share of the multiply-accumulates that is left at most, 0.4 or text such as "40%".
        speedup: the original's time / the written file's, above 1, both measured here; text such as "2x" too.
        latency: milliseconds that the written file may take for one input here, or text such as "5 ms", "250 us".

    Raises:
        BudgetError: more than one given, or a value that cannot be meant.

    >>> Budget(size="200 kB").nbytes, Budget(ratio="6x").times, Budget(max_drop="0.5%").points, Budget().kind
    (200000, 6.0, 0.5, 'default')
    >>> Budget(size=1000, ratio=6)
    Traceback (most recent call last):
    smidgen.errors.BudgetError: budget: size=1000 and ratio=6 are both given; give one of them
    """

    size: int | str | None = None
    ratio: float | int | str | None = None
    max_drop: float | int | str | None = None
    tradeoff: float | int | None = None
    macs: float | int | str | None = None
    speedup: float | int | str | None = None
    latency: float | int | str | None = None

    def __post_init__(self) -> None:
        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        if len(given) > 1:
            named = " and ".join(f"{name}={value!r}" for name, value in given.items())
            fault = f"budget: {named} are {'both' if len(given) == 2 else 'all'} given; give one of them"
            timed = {"speedup", "latency"} & given.keys()
            raise BudgetError(fault + (": time is not budgeted together with anything else yet" if timed else ""))
        # Stored normalised, so budgets that mean the same compare equal and serialise alike.
        for name, value in given.items():
            object.__setattr__(self, name, _NORMALISE[name](value))

    @property
    def kind(self) -> Kind:
        """Which of them was given, or "default"."""
        for field in fields(self):
            if getattr(self, field.name) is not None:
                return cast(Kind, field.name)
        return "default"

    @property
    def nbytes(self) -> int | None:
        """The size in bytes, where a size was given."""
        return None if self.size is None else int(self.size)

    @property
    def times(self) -> float | None:
        """The ratio as a number, where a ratio was given."""
        return None if self.ratio is None else float(self.ratio)

    @property
    def points(self) -> float | None:
        """The permitted drop in percentage points, where one was given."""
        return None if self.max_drop is None else float(self.max_drop)

    @property
    def share(self) -> float | None:
        """The share of the multiply-accumulates, where one was given."""
        return None if self.macs is None else float(self.macs)

    @property
    def faster(self) -> float | None:
        """The speedup as a number, where one was given."""
        return None if self.speedup is None else float(self.speedup)

    @property
    def latency_ms(self) -> float | None:
        """The permitted time in milliseconds, where one was given."""
        return None if self.latency is None else float(self.latency)

    @property
    def timed(self) -> bool:
        """Whether time is what is budgeted."""
        return self.kind in ("speedup", "latency")

    def to_dict(self) -> dict[str, int | float]:
        """What was given, as JSON holds it.

        >>> Budget(size="64 KiB").to_dict(), Budget().to_dict()
        ({'size': 65536}, {})
        """
        return {} if self.kind == "default" else {self.kind: getattr(self, self.kind)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> Budget:
        """The budget that `to_dict` wrote.

        Args:
            stored: a parsed JSON object; text forms such as {"size": "200 kB"} are read too.

        Raises:
            BudgetError: unknown names or values that cannot be meant.

        >>> Budget.from_dict({"ratio": 6.0}) == Budget(ratio="6x")
        True
        """
        known = [field.name for field in fields(cls)]
        for name, value in stored.items():
            if name not in known:
                raise BudgetError(f"budget: {_clip(name)} is not one of {', '.join(known)}")
            if isinstance(value, bool) or not isinstance(value, int | float | str | None):
                raise _wrong(name, value, "is not a number or text")
        return cls(**{name: cast("int | None", value) for name, value in stored.items()})


def _clip(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_TEXT + 2 else shown[:_LONGEST_TEXT] + "…"


def _wrong(name: str, value: object, reason: str) -> BudgetError:
    return BudgetError(f"budget: {name}={_clip(value)} {reason}; for example {_EXAMPLES[name]}")


def _split_number(name: str, text: str) -> tuple[Fraction, str]:
    stripped = text.strip().replace("_", "")
    match = _NUMBER.fullmatch(stripped) if len(stripped) <= _LONGEST_TEXT else None
    if match is None:
        raise _wrong(name, text, "is not a number with a unit" if name in ("size", "latency") else "is not a number")
    return Fraction(match[1]), (match[2] or "").strip()


def _checked_nbytes(nbytes: int, given: object) -> int:
    if nbytes < 1:
        raise _wrong("size", given, "is not positive")
    if nbytes > _LARGEST_NBYTES:
        raise _wrong("size", given, "is beyond a petabyte")
    return nbytes


def _number(name: str, value: object, suffixes: tuple[str, ...] = ()) -> float:
    """The value as a finite float; text may carry one of the suffixes."""
    if isinstance(value, str):
        number, suffix = _split_number(name, value)
        if suffix.lower() not in ("", *suffixes):
            raise _wrong(name, value, f"ends in {suffix!r}")
        return float(number)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "is not a number")
    # Before float(): an int too large for a float raises there.
    if isinstance(value, int) and abs(value) > _LARGEST_NBYTES:
        raise _wrong(name, value, "is far too large")
    if not math.isfinite(value):
        raise _wrong(name, value, "is not finite")
    return float(value)


def _size(value: object) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong("size", value, "is not a whole number of bytes")
    return _checked_nbytes(value, value)


def _ratio(value: object) -> float:
    ratio = _number("ratio", value, ("x", "×"))
    if not 1 < ratio <= _LARGEST_RATIO:
        raise _wrong("ratio", value, "is not above 1" if ratio <= 1 else "is beyond a million")
    return ratio


def _max_drop(value: object) -> float:
    points = _number("max_drop", value, ("%",))
    if not 0 < points < 100:
        raise _wrong("max_drop", value, "is not positive" if points <= 0 else "would permit losing everything")
    return points


def _tradeoff(value: object) -> float:
    tradeoff = _number("tradeoff", value)
    if not 0 <= tradeoff <= 1:
        raise _wrong("tradeoff", value, "is outside 0 to 1")
    return tradeoff


def _macs(value: object) -> float:
    share = share_of(value)
    if share is None:
        raise _wrong("macs", value, "is no share between 0 and 1")
    return share


def _speedup(value: object) -> float:
    speedup = _number("speedup", value, ("x", "×"))
    if not 1 < speedup <= _LARGEST_SPEEDUP:
        raise _wrong("speedup", value, "is not above 1" if speedup <= 1 else "is beyond a thousand")
    return speedup


def _latency(value: object) -> float:
    return parse_latency(value) if isinstance(value, str) else _checked_ms(_number("latency", value), value)


def _checked_ms(ms: float, given: object) -> float:
    if not 0 < ms <= _LONGEST_MS:
        raise _wrong("latency", given, "is not positive" if ms <= 0 else "is beyond an hour")
    return ms


_NORMALISE = {
    "size": _size, "ratio": _ratio, "max_drop": _max_drop, "tradeoff": _tradeoff,
    "macs": _macs, "speedup": _speedup, "latency": _latency,
}  # fmt: skip
