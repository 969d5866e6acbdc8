"""The forms themselves: frozen, numpy only, nested by construction.

Axis letters used in this package: ``out`` output channels, ``inp`` input channels of one group, ``rank`` the inner
dimension, ``kernel`` one axis per spatial dimension (none for a dense layer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np

DIRECT = "direct"  # the algorithm that every runtime has


@dataclass(frozen=True, eq=False)
class Dense:
    """The array itself.

    Args:
        values: the weight as its layer stores it, ``[out, inp, *kernel]``.
        algorithm: by which its convolution is computed; see `smidgen.forms.fastconv`. An ONNX file of floats holds the
            kernel that it needs; everything else holds the weight, and computes directly.

    >>> import numpy as np
    >>> Dense(np.zeros((4, 3), np.float32)).values.shape
    (4, 3)
    """

    values: np.ndarray
    algorithm: str = DIRECT


@dataclass(frozen=True, eq=False)
class Quantized:
    """Integers times a scale a row and a scale a column, all scales on the grid 2^(k / per_octave).

    ``W[i, j] = (z[i, j] · s[⌊j c / n⌋]) · r[i]``,   j over the n im2col columns, c of which have a scale of their own

    Args:
        integers: z, int32, shaped as the layer stores its weight, ``[out, inp, *kernel]``.
        row: exponents k of r, int32 ``[out]``.
        column: exponents of s, int32 ``[c]``; c divides n, so a scale may cover one column or several neighbours.
        per_octave: scales an octave: 1, 2, 4, 8, 16 or 1024.
    """

    integers: np.ndarray
    row: np.ndarray
    column: np.ndarray
    per_octave: int = 4


@dataclass(frozen=True, eq=False)
class Codebook:
    """Weights that share a few values: ``W[i] = values[indices[i]]`` (Han et al. 2016, arXiv:1510.00149).

    Args:
        indices: uint8, shaped as the layer stores its weight, ``[out, inp, *kernel]``; each below k.
        values: float32 ``[k]``, rising, 1 ≤ k ≤ 256.

    >>> import numpy as np
    >>> Codebook(np.array([[0, 1, 1]], np.uint8), np.array([-0.5, 0.25], np.float32)).bits
    1
    """

    indices: np.ndarray
    values: np.ndarray

    @property
    def bits(self) -> int:
        """Of an index."""
        return max(1, (len(self.values) - 1).bit_length())

    @property
    def centre(self) -> int:
        """The index whose value is nearest to zero: the likeliest one of a trained weight."""
        return int(np.abs(self.values).argmin())


@dataclass(frozen=True, eq=False)
class Masked:
    """Floats most of which were removed: zero where a weight is gone.

    A leaf, and of floats alone: of integers a zero is one like the others, in a codebook it is a value.

    Args:
        values: float32 ``[out, inp, *kernel]``, 0 where removed.

    >>> form = Masked(np.array([[0.0, 1.5, 0.0, 0.0]], np.float32))
    >>> form.survivors, form.sparsity, form.kept.tolist()
    (1, 0.75, [[False, True, False, False]])
    """

    values: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Which weights are there still."""
        return self.values != 0

    @property
    def survivors(self) -> int:
        """How many are."""
        return int(np.count_nonzero(self.values))

    @property
    def sparsity(self) -> float:
        """Share of the weights that is gone."""
        return 1 - self.survivors / max(self.values.size, 1)


@dataclass(frozen=True, eq=False)
class LowRank:
    """A product of two factors, or of three: ``W = U · V`` or ``W = U · C · V`` in each group.

    Args:
        v: first layer, ``[groups * rank, inp, *kernel]``; ``[groups * rank, inp]`` of a transposed convolution, whose
            window stays with the last layer.
        u: last layer, ``[out, rank]``; of a transposed convolution ``[groups * rank, out, *kernel]``.
        core: optional middle layer ``[groups * rank, rank]`` (the three-factor shape N×K, K×K, K×M).
        groups: groups of the convolution it replaces.
    """

    v: Form
    u: Form
    core: Form | None = None
    groups: int = 1


@dataclass(frozen=True, eq=False)
class CP:
    """A sum of rank-1 kernels, one convolution as four (Lebedev et al. 2015, arXiv:1412.6553).

    ``W[t, s, y, x] = Σ_r out[t, r] · inp[r, s] · kernel₀[r, y] · kernel₁[r, x]``

    Args:
        inp: 1x1 layer ``[rank, inp]``.
        kernel: one depthwise filter bank ``[rank, d]`` for each spatial axis.
        out: 1x1 layer ``[out, rank]``.
    """

    inp: Form
    kernel: tuple[Form, ...]
    out: Form


@dataclass(frozen=True, eq=False)
class Spatial:
    """A convolution with a window over two axes as two with a window over one each, in each group.

    ``W[t, s, y, x] = Σ_r u[t, r, x] · v[r, s, y]``, or with y and x in each other's place (Jaderberg et al. 2014,
    arXiv:1405.3866).

    Args:
        v: first layer, ``[groups * rank, inp, d, 1]``, or ``[groups * rank, inp, 1, d]``.
        u: last layer, ``[out, rank, 1, d]``, or ``[out, rank, d, 1]``.
        groups: groups of the convolution it replaces.
    """

    v: Form
    u: Form
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Tucker2:
    """A small convolution between two 1x1 layers, in each group (Kim et al. 2016, arXiv:1511.06530).

    ``W[t, s, k] = Σ_ab out[t, b] · core[b, a, k] · inp[a, s]``

    Args:
        inp: 1x1 layer ``[groups * a, inp]``.
        core: convolution with the layer's window ``[groups * b, a, *kernel]``.
        out: 1x1 layer ``[out, b]``.
        groups: groups of the convolution it replaces.
    """

    inp: Form
    core: Form
    out: Form
    groups: int = 1


Form = Union[Dense, Quantized, Codebook, Masked, LowRank, CP, Spatial, Tucker2]  # noqa: UP007 - the runtime type checker resolves the recursive name from here

# What holds numbers; all other forms are made of these.
Leaf = Dense | Quantized | Codebook | Masked


def hollow(*shape: int) -> np.ndarray:
    """An array of a shape that takes no memory: for forms whose cost is asked, not their values.

    >>> hollow(1000, 1000).strides
    (0, 0)
    """
    return np.broadcast_to(np.float32(0), shape)
