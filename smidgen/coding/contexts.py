"""The model of quantized weight matrices: what the adaptive coder knows about a weight before it codes it.

    |w| = 0?  ±  |w| = 1?  …  |w| = 8?  exponential Golomb of the rest      each answer coded by a mixture of
    e = row mean · column mean / overall mean                              the scale, learnt on the way
    ŵ = Σ_k a_k · (weights round w),   a += μ·(w − ŵ)·around/(‖around‖² + …)   normalised least mean squares

Contexts of a decision: the two weights before it; all eight neighbours; the column's mean size; e; a quick local mean;
the place within the kernel; e with |ŵ|/e. Where none has been seen yet, a Laplace prior of size e speaks (tables.py).
Signs are coded against ŵ and the neighbours' signs: kernels of a convolution are smooth, and on ResNet-20 this saves
five per cent. Neighbours are taken along the row, in the row above and at the same kernel place of the channel before.

Binarisation and the context of two previous weights: DeepCABAC, arXiv:1907.11900. Rank-one scales and the predictor are
this project's. This file is the plain twin of `_weights.h`: slower, and the same to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smidgen.coding.arithmetic import Damaged, Mixer, Range
from smidgen.coding.tables import EDGE, KINDS, LEAN, LEVELS, SHADES


class Shape(NamedTuple):
    """How a matrix is walked: period is the weights of one kernel, width those of one kernel's row.

    signs: whether signs are predicted, or take one bit each.
    """

    rows: int
    columns: int
    period: int = 1
    width: int = 1
    signs: bool = True


NODES, SIGN, UNARY, PREFIX, PREFIXES, MANTISSA, MANTISSAS = 64, 63, 8, 8, 24, 32, 17
MODELS, ROWS, SELECTORS, TAPS = 7, 256, 8, 10
# Observations after which the means of a row, a column and the neighbourhood forget; found on ResNet-20 and LeNet.
ROW_MEMORY, COLUMN_MEMORY, LOCAL_MEMORY = 1000, 60, 6


def code_weights(coder: Range, values: list[int], shapes: Sequence[Shape], *, rate: int) -> list[int]:
    """Code matrices one after another with one model; returns the values (those given, when encoding).

    Args:
        coder: encodes `values`, or decodes into as many.
        values: of all matrices, row by row.
        shapes: of the matrices; the model goes on from one to the next.
        rate: learning rate of the mixture.

    Raises:
        Damaged: the stream decodes to what no encoder writes.
    """
    model = _Weights(coder, rate=rate)
    start = 0
    for shape in shapes:
        model.matrix(values, start, shape)
        start += shape.rows * shape.columns
    return values


def logarithm(value: int) -> int:
    """16·log2(value), linear between powers of two.

    >>> [logarithm(v) for v in (1, 2, 3, 1024)]
    [0, 16, 24, 160]
    """
    bit = value.bit_length() - 1
    return bit << 4 | ((value << 4 >> bit) & 15)


def _bucket(size: int) -> int:
    if size < 4:
        return size
    bit = size.bit_length() - 1
    return min(2 * bit + (size >> (bit - 1) & 1), 15)


def _side(value: int) -> int:
    return 2 if value > 0 else int(value < 0)


class _Mean:
    """An adaptive mean of sizes in 1/65536."""

    __slots__ = ("limit", "seen", "value")

    def __init__(self, value: int, seen: int, limit: int) -> None:
        self.value, self.seen, self.limit = value, seen, limit

    def learn(self, size: int, share: list[int]) -> None:
        self.value += ((min(size, 1048576) << 16) - self.value) * share[self.seen] >> 16
        if self.seen < self.limit:
            self.seen += 1

    def log(self) -> int:
        return logarithm((self.value >> 4) + 1)


class _Weights:
    def __init__(self, coder: Range, *, rate: int) -> None:
        self._mixer = Mixer(
            coder,
            slots=MODELS * ROWS * NODES,
            sets=SELECTORS * NODES,
            models=MODELS,
            extra=4,
            first=2000,
            rest=6000,
            rate=rate,
            fresh=1,
        )
        self._coder, self._signs = coder, True
        self._overall = _Mean(1 << 14, 0, ROW_MEMORY)
        self._taps = [[0] * TAPS for _ in range(ROWS)]

    def matrix(self, values: list[int], start: int, shape: Shape) -> None:
        rows, columns, period, width, self._signs = shape
        share, overall = self._mixer.share, self._overall
        scales: list[_Mean | None] = [None] * columns
        above, above2 = [0] * columns, [0] * columns
        for row in range(rows):
            begin = start + row * columns
            current = values[begin : begin + columns]
            means = _Mean(overall.value, 2, ROW_MEMORY), _Mean(overall.value, 2, LOCAL_MEMORY)
            for at in range(columns):
                column = scales[at] = scales[at] or _Mean(overall.value, 2, COLUMN_MEMORY)
                around = _around(current, above, above2, at, period, width)
                value = self._weight(around, at % period % ROWS, means[0], column, means[1], current[at])
                current[at] = value
                for mean in (means[0], column, overall, means[1]):
                    mean.learn(abs(value), share)
            values[begin : begin + columns] = current
            above2, above = above, current

    def _weight(self, around: list[int], position: int, row: _Mean, column: _Mean, local: _Mean, value: int) -> int:
        taps = self._taps[position]
        row_log, column_log = row.log(), column.log()
        scale = min(max(row_log + column_log - self._overall.log(), 0), 4 * LEVELS - 1)
        predicted = lean = shade = 0
        near = [min(max(each, -32767), 32767) for each in around[:TAPS]]
        if self._signs:
            predicted = sum(map(int.__mul__, taps, near)) >> 4
            lean = (predicted > 0) - (predicted < 0)
            shade = min(max(logarithm(abs(predicted) + 1) - scale + 72 >> 3, 0), SHADES - 1)
        selector = (shade >= 3) + (shade >= 6) + (shade >= 8)
        base, given = self._contexts(around, position, scale, row_log, column_log, local.log(), shade)
        size = self._size(base, given, selector, abs(value))
        if size > 1 << 31:
            raise Damaged("a weight beyond 32 bits")
        negative = int(value < 0)
        if size:
            negative = (
                self._sign(around, position, lean, shade, selector, negative)
                if self._signs
                else self._coder.bit(32768, negative)
            )
        if size == 1 << 31 and not negative:
            raise Damaged("a weight beyond 32 bits")
        value = -size if negative else size
        if self._signs:
            self._learn(taps, near, predicted, value)
        return value

    def _contexts(
        self, around: list[int], position: int, scale: int, row_log: int, column_log: int, local_log: int, shade: int
    ) -> tuple[list[int], list[int]]:
        """Where the counters of this weight lie, and where its three priors."""
        left, left2, over, over2, before, before2, *_, over_left, over_right = map(abs, around)
        total = 2 * left + left2 + 2 * over + over2 + before + before2 + over_left + over_right
        level, local_level = scale >> 2, min(local_log >> 2, LEVELS - 1)
        contexts = (
            _bucket(left) * 16 + _bucket(left2),
            min(logarithm((total << 9) + 1) >> 2, ROWS - 1),
            min(column_log >> 2, LEVELS - 1),
            level,
            local_level,
            position,
            (level >> 1 & 15) << 4 | shade,
        )
        base = [(i * ROWS + context) * NODES for i, context in enumerate(contexts)]
        return base, [level * KINDS, local_level * KINDS, min(row_log >> 2, LEVELS - 1) * KINDS]

    def _size(self, base: list[int], rows: list[int], selector: int, size: int) -> int:
        for step in range(UNARY):
            if not self._bit(base, rows, selector, step, int(step > 0), int(size > step)):
                return step
        rest, digits = size - UNARY, 0
        while digits < 32:
            node = PREFIX + min(digits, PREFIXES - 1)
            if not self._bit(base, rows, selector, node, 2 + digits, int(rest >= (2 << digits) - 1)):
                break
            digits += 1
        if digits == 32:
            raise Damaged("a weight beyond 32 bits")
        offset, got = rest - ((1 << digits) - 1), 0
        for i in range(digits - 1, -1, -1):
            bit = offset >> i & 1
            if i == digits - 1 and digits < MANTISSAS:
                bit = self._bit(base, rows, selector, MANTISSA + digits, 34 + i, bit)
            else:
                bit = self._coder.bit(self._mixer.squash[self._mixer.prior[rows[0] + 34 + i] + EDGE], bit)
            got |= bit << i
        return UNARY + got + (1 << digits) - 1

    def _bit(self, base: list[int], rows: list[int], selector: int, node: int, kind: int, bit: int) -> int:
        prior = self._mixer.prior
        given = (prior[rows[0] + kind], prior[rows[1] + kind], prior[rows[2] + kind], 256)
        return self._mixer.bit([each + node for each in base], given, given[0], selector * NODES + node, bit)

    def _sign(self, around: list[int], position: int, lean: int, shade: int, selector: int, negative: int) -> int:
        sides = [_side(each) for each in around]
        left, left2, over, before, before2, upper, upper2 = (sides[i] for i in (0, 1, 2, 4, 5, 6, 9))
        contexts = (
            left * 3 + left2 + 9 * over,
            before * 9 + before2 * 3 + over,
            upper * 27 + over * 9 + left * 3 + before,
            16 + lean * shade,
            upper * 3 + upper2,
            position,
            position % 64 * 3 + lean + 1,
        )
        slots = [(i * ROWS + context) * NODES + SIGN for i, context in enumerate(contexts)]
        given = (0, -lean * LEAN[shade], 0, 256)
        return self._mixer.bit(slots, given, 0, (selector + 4) * NODES + SIGN, negative)

    def _learn(self, taps: list[int], near: list[int], predicted: int, value: int) -> None:
        """One step of normalised least mean squares, of size 8000/4096 of the classical one, in 1/65536."""
        error = min(max(value, -32767), 32767) * 4096 - predicted
        floor = (self._overall.value >> 16) + 1
        energy = sum(map(int.__mul__, near, near)) + TAPS * floor * floor
        size = abs(error) * (8000 * 256) // (4096 * energy)
        step = -size if error < 0 else size
        for i, each in enumerate(near):
            taps[i] = min(max(taps[i] + (step * each >> 8), -262144), 262144)


def _around(current: list[int], above: list[int], above2: list[int], at: int, period: int, width: int) -> list[int]:
    """The predictor's ten neighbours, then the two diagonal ones above; zero where there is none."""
    return [
        current[at - 1] if at >= 1 else 0,
        current[at - 2] if at >= 2 else 0,
        above[at],
        above2[at],
        current[at - period] if at >= period else 0,
        current[at - 2 * period] if at >= 2 * period else 0,
        current[at - width] if at >= width else 0,
        current[at - width - 1] if at >= width + 1 else 0,
        current[at - width + 1] if width > 1 and at >= width - 1 else 0,
        current[at - 2 * width] if at >= 2 * width else 0,
        above[at - 1] if at >= 1 else 0,
        above[at + 1] if at + 1 < len(above) else 0,
    ]
