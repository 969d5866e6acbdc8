"""Convolution through transforms of tiles, Winograd's and the discrete Fourier one: four matrices and a product.

    V_p = (L X Rᵀ)_p,    M_p = V_p U_p,    Y = L' M R'ᵀ                                                            (1)

X is a window of the input, p a point of both axes (a Winograd point, or a frequency), U_p [inp, out] the kernel at that
point. A map larger than one window is cut into windows that overlap by the kernel, each giving a block of outputs that
stand side by side (overlap-save). Everything but the product is a matrix along an axis, zero padding included, so it
runs in any runtime that multiplies matrices; complex numbers are pairs of real ones that the matrices know how to join.
In ONNX Runtime 1.31 the two products take a half to a hundredth of the time of its DFT operator (64 maps of 64×64: 13.6
against 33 ms, of 42×42: 1.25 against 148 ms), and need no power of two.

Channels are the last axis of everything in between: what is moved from one product to the next are then whole runs of
channels. With the columns last, moving single numbers took a half of Fourier's time and a quarter of Winograd's.

Lavin and Gray, arXiv:1509.09308; Mathieu, Henaff and LeCun, "Fast training of convolutional networks through FFTs",
arXiv:1312.5851. Differs from them: one matrix transforms a whole window of many Winograd tiles, since runtimes multiply
matrices of 30 rows fast and of 4 slowly; Fourier transforms are matrices too, of any length, for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import ceil

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from smidgen.numerics.winograd import cook_toom, floats

# Outputs of one window along an axis, at most: transforms cost as much for each output as a window is long, short ones
# are small products and many nodes. F(4, 3) of 64 channels in ONNX Runtime with 8, 16, 28 and 56 outputs: 3.5, 4.3, 3.8
# and 4.4 ms on 56×56, 14.4, 16.7, 16.9 and 20.1 ms on 112×112; of 32 on 224×224: 37.3, 37.1, 37.4 and 43.1 ms.
BLOCK = 28
FETCH = 16  # multiplications that take about as long as a number that comes from memory, where lengths are compared


@dataclass(frozen=True)
class Line:
    """One axis of a map, cut into windows.

    Args:
        size, out, kernel, padding: of the axis, without what is added here.
        step: outputs of a window.
        window: inputs of it.
        points: of the transform.
        tiles: Winograd tiles in a window; a Fourier transform takes it whole.
    """

    size: int
    out: int
    kernel: int
    padding: int
    step: int
    window: int
    points: int
    tiles: int = 1

    @property
    def blocks(self) -> int:
        """Windows along the axis."""
        return ceil(self.out / self.step)

    @property
    def zeros(self) -> tuple[int, int]:
        """Zeros before and after, none where one window takes the map: its matrix knows of the padding."""
        if self.blocks == 1:
            return 0, 0
        return self.padding, (self.blocks - 1) * self.step + self.window - self.padding - self.size

    @property
    def starts(self) -> tuple[int, ...]:
        """First input of each window."""
        return tuple(range(0, self.blocks * self.step, self.step))


@dataclass(frozen=True, eq=False)
class Bilinear:
    """An algorithm (1) for one size of map.

    Args:
        rows, cols: both axes.
        parts: 2 where points are complex, else 1.
        left, right: L [points·tiles·parts, window] and R [points·tiles·parts, parts·window].
        left_out, right_out: L' [step, points·tiles·parts] and R' [parts·step, points·tiles·parts²].
        kernel_rows, kernel_cols: what takes a kernel's taps to the points of an axis, perhaps complex.
    """

    rows: Line
    cols: Line
    parts: int
    left: np.ndarray
    right: np.ndarray
    left_out: np.ndarray
    right_out: np.ndarray
    kernel_rows: np.ndarray
    kernel_cols: np.ndarray

    @property
    def points(self) -> int:
        """Of both axes together."""
        return self.rows.points * self.cols.points

    @property
    def windows(self) -> int:
        """Windows of a map."""
        return self.rows.blocks * self.cols.blocks

    @property
    def growth(self) -> float:
        """Stored numbers for each tap of the kernel."""
        return self.parts * self.points / (self.rows.kernel * self.cols.kernel)

    def macs(self, inp: int, out: int) -> int:
        """Multiplications for one sample.

        Args:
            inp, out: channels.
        """
        rows, cols = self.rows, self.cols
        ways = rows.points * rows.tiles
        forward = self.left.size * (cols.size + sum(cols.zeros)) / cols.blocks + ways * self.right.size
        back = ways * self.right_out.size + self.left_out.size * cols.step
        joined = self.parts**2 * ways * cols.points * cols.tiles * inp * out
        return round(self.windows * (forward * inp + back * out + joined))

    @property
    def along(self) -> tuple[np.ndarray, ...]:
        """L, R, R', L': in the order in which they are multiplied by."""
        return self.left, self.right, self.right_out, self.left_out

    @cached_property
    def plain(self) -> tuple[bool, ...]:
        """Which of `along` are identities, which nobody need multiply by."""
        return tuple(m.shape[0] == m.shape[1] and np.array_equal(m, np.eye(len(m))) for m in self.along)


def winograd(
    size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], outputs: int, block: int = BLOCK
) -> Bilinear:
    """F(m × m, kernel), along axes where the kernel has more than one tap.

    Args:
        size: of the map, rows and columns.
        kernel: its taps.
        padding: zeros on each side.
        outputs: m.
        block: outputs of a window along an axis, at most.

    Raises:
        ValueError: nothing comes out of such a map, or there are too few points for F(m, r).

    Paper: arXiv:1509.09308.

    >>> found = winograd((14, 14), (3, 3), (1, 1), 4)
    >>> found.points, found.growth, found.left.shape
    (36, 4.0, (24, 14))
    """
    cut = [_winograd_line(*axis, outputs, block) for axis in zip(size, kernel, padding, strict=True)]
    rows, cols = (each[0] for each in cut)
    (left, left_out), (right, right_out) = ((into, back) for _, into, back in cut)
    kernels = [floats(cook_toom(outputs if r > 1 else 1, r).kernel) for r in kernel]
    return Bilinear(rows, cols, 1, left, right, left_out, right_out, *kernels)


def fourier(
    size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int], channels: tuple[int, int]
) -> Bilinear:
    """Fourier transforms, of the window length that costs least.

    Args:
        size, kernel, padding: as for `winograd`.
        channels: in and out; the more there are, the less the transforms cost beside the product.

    Raises:
        ValueError: nothing comes out of such a map.

    Paper: arXiv:1312.5851.

    >>> found = fourier((28, 28), (31, 31), (15, 15), (64, 64))
    >>> found.cols.blocks, found.cols.window, found.cols.points
    (1, 28, 55)
    """
    rows, cols = (list(_fourier_lines(*axis)) for axis in zip(size, kernel, padding, strict=True))
    return _fourier(*min(product(rows, cols), key=lambda cut: _fourier_cost(*cut, *channels)))


def transform_kernel(plan: Bilinear, weight: Float[Tensor, "out inp y x"]) -> Float[Tensor, "points inp columns"]:
    """U, computed in float64.

    Args:
        plan: from `winograd` or `fourier`.
        weight: the kernel.

    Returns:
        U, [points, inp, parts·out], in the weight's dtype; real parts before imaginary ones.
    """
    complex_ = torch.complex128 if plan.parts == 2 else torch.float64
    rows, cols = (torch.from_numpy(m).to(weight.device, complex_) for m in (plan.kernel_rows, plan.kernel_cols))
    found = torch.einsum("aq,kcqr,br->abck", rows, weight.to(complex_), cols).flatten(0, 1)
    if plan.parts == 2:
        found = torch.cat([found.real, found.imag], dim=2)
    return found.to(weight.dtype).contiguous()


def matrices(plan: Bilinear, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrices `along` both axes as tensors.

    Args:
        plan: the algorithm.
        like: whose dtype and device they take.
    """
    left, right, right_out, left_out = (torch.from_numpy(m).to(like.device, like.dtype) for m in plan.along)
    return left, right, right_out, left_out


def convolve(
    x: Float[Tensor, "n inp h w"], kernel: Float[Tensor, "points inp columns"], plan: Bilinear,
    given: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> Float[Tensor, "n out h2 w2"]:  # fmt: skip
    """(1) on a batch of maps.

    Args:
        x: maps of the size that the plan is for.
        kernel: from `transform_kernel`.
        plan: from `winograd` or `fourier`.
        given: the plan's `matrices`, where they are at hand.

    Returns:
        What ``conv2d`` gives with the plain kernel, up to rounding.

    >>> x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
    >>> plan = winograd((9, 9), (3, 3), (1, 1), 2)
    >>> y = convolve(x, transform_kernel(plan, weight), plan)
    >>> torch.allclose(y, F.conv2d(x, weight, padding=1), atol=1e-4)
    True
    """
    left, right, right_out, left_out = given or matrices(plan, x)
    rows, cols, parts = plan.rows, plan.cols, plan.parts
    skip = plan.plain
    inp, out = kernel.shape[1], kernel.shape[2] // parts
    v = _cut(_last(x, plan), rows, 1).flatten(2)  # [n·blocks, rows of a window, columns·inp]
    v = v if skip[0] else left @ v
    v = _cut(v.reshape(-1, parts, cols.size + sum(cols.zeros), inp), cols, 2).flatten(1, 2)
    v = v if skip[1] else right @ v
    v = v.reshape(-1, rows.points, rows.tiles * cols.blocks, cols.points, cols.tiles * parts * inp)
    m = v.permute(1, 3, 0, 2, 4).reshape(plan.points, -1, inp) @ kernel
    m = m.reshape(rows.points, cols.points, -1, rows.tiles, cols.blocks, cols.tiles * parts**2 * out)
    m = m.permute(2, 4, 0, 3, 1, 5).reshape(-1, cols.points * cols.tiles * parts**2, out)
    y = m if skip[2] else right_out @ m
    y = y.reshape(-1, rows.points * rows.tiles * parts, cols.step * out)
    y = y if skip[3] else left_out @ y
    y = y.reshape(-1, cols.blocks, rows.step, cols.step * out).transpose(1, 2)
    y = y.reshape(-1, rows.blocks * rows.step, cols.blocks * cols.step, out).permute(0, 3, 1, 2)
    return y[:, :, : rows.out, : cols.out]


def _last(x: Tensor, plan: Bilinear) -> Tensor:
    """[n, rows, columns, inp] with the zeros that windows need."""
    return F.pad(x, (*plan.cols.zeros, *plan.rows.zeros)).permute(0, 2, 3, 1)


def _cut(x: Tensor, line: Line, axis: int) -> Tensor:
    """[n·windows, …]: the windows of an axis; the axes between it and the first stay with each."""
    cut = torch.stack([x.narrow(axis, start, line.window) for start in line.starts], dim=1)
    return cut.flatten(0, 1)


def _out(size: int, kernel: int, padding: int) -> int:
    out = size + 2 * padding - kernel + 1
    if out < 1:
        raise ValueError(f"a kernel of {kernel} taps does not fit {size} inputs with {padding} zeros on each side")
    return out


def _winograd_line(
    size: int, kernel: int, padding: int, outputs: int, block: int
) -> tuple[Line, np.ndarray, np.ndarray]:
    """The axis, what takes a window to (points, tiles), and (points, tiles) to outputs."""
    out = _out(size, kernel, padding)
    if kernel == 1:
        outputs = 1
    step = ceil(out / ceil(out / block) / outputs) * outputs
    tiles, transforms = step // outputs, cook_toom(outputs, kernel)
    whole = ceil(out / step) == 1
    window = size if whole else step + kernel - 1
    # What the last tile gives beyond a map's edge is left out of the matrix where one window takes the map.
    kept = out if whole else step
    line = Line(size, out, kernel, padding, kept, window, transforms.points, tiles)
    inputs, back = floats(transforms.inputs), floats(transforms.outputs)
    into = np.zeros((transforms.points, tiles, padding + max(window, step + kernel - 1)))
    outward = np.zeros((tiles, outputs, transforms.points, tiles))
    for tile in range(tiles):
        into[:, tile, tile * outputs : tile * outputs + transforms.points] = inputs
        outward[tile, :, :, tile] = back
    first = padding if whole else 0
    into = into[:, :, first : first + window]
    return line, into.reshape(-1, window), outward.reshape(step, -1)[:kept].copy()


def _fourier_lines(size: int, kernel: int, padding: int) -> Iterator[Line]:
    """The axis cut into one window, two, …; ``points`` are the length of the transform."""
    out = _out(size, kernel, padding)
    # Taps that no output finds an input under are left out, so that small maps need no more than both lengths.
    yield Line(size, out, kernel, padding, out, size, min(out + kernel - 1, size + out - 1))
    for step in sorted({ceil(out / blocks) for blocks in range(2, out // max(4, kernel) + 2)} - {out}):
        yield Line(size, out, kernel, padding, step, step + kernel - 1, step + kernel - 1)


def _fourier_cost(rows: Line, cols: Line, inp: int, out: int) -> int:
    """Multiplications, and as many for each stored number as one takes to be fetched from memory."""
    half = rows.points // 2 + 1
    forward = 2 * half * cols.window * (rows.window + 2 * cols.points)
    back = 2 * half * cols.step * (4 * cols.points + rows.step)
    joined = 4 * half * cols.points * inp * out
    windows = rows.blocks * cols.blocks
    return windows * (forward * inp + back * out + joined) + FETCH * 2 * half * cols.points * inp * out


def _fourier(rows: Line, cols: Line) -> Bilinear:
    half = rows.points // 2 + 1
    # Rows: real numbers in, (frequency, part) out; the columns then join (part, input) to (frequency, part).
    down = _wave(rows.points, range(half), range(rows.window), -1)
    left = np.stack([np.real(down), np.imag(down)], axis=1).reshape(-1, rows.window)
    across = _wave(cols.points, range(cols.points), range(cols.window), -1)
    cosine, sine = np.real(across), np.imag(across)
    right = np.stack([np.hstack([cosine, -sine]), np.hstack([sine, cosine])], axis=1).reshape(-1, 2 * cols.window)
    # Back: of the four products (input's part, kernel's part) re·re − im·im is real, re·im + im·re imaginary.
    along = _wave(cols.points, range(cols.step), range(cols.points), 1) / cols.points
    re, im = np.real(along), np.imag(along)
    joined = [np.stack(four, axis=2) for four in ([re, -im, -im, -re], [im, re, re, -im])]
    right_out = np.concatenate(joined).reshape(2 * cols.step, -1)
    # What is real has frequencies in pairs of which one is kept; the first, and for even lengths the last, have none.
    twice = np.array([1 if f == 0 or 2 * f == rows.points else 2 for f in range(half)])
    up = _wave(rows.points, range(rows.step), range(half), 1) * twice / rows.points
    left_out = np.stack([np.real(up), -np.imag(up)], axis=2).reshape(rows.step, -1)
    kernels = _taps(rows, half), _taps(cols, cols.points)
    return Bilinear(replace(rows, points=half), cols, 2, left, right, left_out, right_out, *kernels)


def _taps(line: Line, frequencies: int) -> np.ndarray:
    """What takes a kernel's taps to frequencies, [frequencies, kernel]; a filter is a product with the conjugate."""
    length = line.points
    if line.blocks > 1:
        return _wave(length, range(frequencies), range(line.kernel), 1)
    shifts = np.arange(line.kernel) - line.padding
    found = _wave(length, range(frequencies), shifts, 1)
    return np.where((shifts > -line.out) & (shifts < line.size), found, 0)


def _wave(length: int, one: range, other: range | np.ndarray, sign: int) -> np.ndarray:
    # Reduced in integers first: the cosine of a large angle is less exact.
    turns = np.outer(np.asarray(one), np.asarray(other)) % length
    return np.exp(sign * 2j * np.pi * turns / length)
