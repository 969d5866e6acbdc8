"""A form as the chain of plain layers that computes it.

Everything that must agree on what a form *runs* reads this one function: the torch modules, the ONNX nodes, the
counts of weights and multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from smidgen.forms.geometry import Geometry
from smidgen.forms.rebuild import dense, shape
from smidgen.forms.types import CP, DIRECT, Codebook, Dense, Form, LowRank, Masked, Quantized, Spatial, Tucker2


@dataclass(frozen=True, eq=False)
class Stage:
    """One plain layer of the chain.

    Args:
        weight: the form that holds this layer's weight, shaped as the layer stores it once `values` is asked.
        geometry: its own window and sizes.
    """

    weight: Form
    geometry: Geometry

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as its layer stores it, ``[out, inp, *kernel]``."""
        g = self.geometry
        if g.kind == "conv_transpose":
            return g.in_channels, g.out_channels // g.groups, *g.kernel
        return g.out_channels, g.in_channels // g.groups, *g.kernel

    @property
    def values(self) -> np.ndarray:
        """The layer's weight in its storage shape."""
        return dense(self.weight).reshape(self.shape)

    @property
    def algorithm(self) -> str:
        """By which it is computed; see `Dense`."""
        return self.weight.algorithm if isinstance(self.weight, Dense) else DIRECT

    @property
    def params(self) -> int:
        """Number of weights, bias left out."""
        g = self.geometry
        return g.out_channels * g.in_channels // g.groups * prod(g.kernel)

    @property
    def macs(self) -> int:
        """Multiplications for one sample."""
        g = self.geometry
        return self.params * prod(g.in_size if g.kind == "conv_transpose" else g.out_size)


def stages(form: Form, geometry: Geometry) -> tuple[Stage, ...]:
    """The chain of plain layers that computes a form; the bias belongs to the last.

    Args:
        form: how the weight is stored.
        geometry: the layer the form replaces.

    >>> import numpy as np
    >>> g = Geometry("linear", 30, 20, in_size=(), out_size=())
    >>> chain = stages(LowRank(v=Dense(np.zeros((4, 30))), u=Dense(np.zeros((20, 4)))), g)
    >>> [(s.geometry.in_channels, s.geometry.out_channels) for s in chain]
    [(30, 4), (4, 20)]
    """
    match form:
        case LowRank():
            return _low_rank(form, geometry)
        case CP():
            return _cp(form, geometry)
        case Spatial():
            return _spatial(form, geometry)
        case Tucker2():
            return _tucker2(form, geometry)
        case Dense() | Quantized() | Codebook() | Masked():
            return (Stage(form, geometry),)


def _low_rank(form: LowRank, g: Geometry) -> tuple[Stage, ...]:
    inner = shape(form.v)[0]  # rank of all groups together
    if g.kind == "conv_transpose":
        before = _pointwise(g.with_(kind="conv", out_channels=inner, output_padding=()), g.in_size)
        return Stage(form.v, before), Stage(form.u, g.with_(in_channels=inner))
    after = _pointwise(g.with_(in_channels=inner), g.out_size)
    chain = [Stage(form.v, g.with_(out_channels=inner))]
    if form.core is not None:
        chain.append(Stage(form.core, after.with_(out_channels=inner)))
    chain.append(Stage(form.u, after))
    return tuple(chain)


def _spatial(form: Spatial, g: Geometry) -> tuple[Stage, ...]:
    inner, window = shape(form.v)[0], shape(form.v)[2:]
    first = next((axis for axis, (one, all_) in enumerate(zip(window, g.kernel, strict=True)) if one == all_ > 1), 0)
    sizes = enumerate(zip(g.in_size, g.out_size, strict=True))
    middle = tuple(after if axis == first else before for axis, (before, after) in sizes)
    return (
        Stage(form.v, _along(g.with_(out_channels=inner), (first,), g.in_size, middle)),
        Stage(form.u, _along(g.with_(in_channels=inner), tuple({0, 1} - {first}), middle, g.out_size)),
    )


def _tucker2(form: Tucker2, g: Geometry) -> tuple[Stage, ...]:
    before, after = shape(form.inp)[0], shape(form.core)[0]
    return (
        Stage(form.inp, _pointwise(g.with_(out_channels=before), g.in_size)),
        Stage(form.core, g.with_(in_channels=before, out_channels=after)),
        Stage(form.out, _pointwise(g.with_(in_channels=after), g.out_size)),
    )


def _cp(form: CP, g: Geometry) -> tuple[Stage, ...]:
    inner = shape(form.inp)[0]
    chain = [Stage(form.inp, _pointwise(g.with_(out_channels=inner), g.in_size))]
    size = list(g.in_size)
    for axis, bank in enumerate(form.kernel):
        before = tuple(size)
        size[axis] = g.out_size[axis]
        chain.append(Stage(bank, _depthwise(g, axis, inner, before, tuple(size))))
    chain.append(Stage(form.out, _pointwise(g.with_(in_channels=inner), g.out_size)))
    return tuple(chain)


def _pointwise(g: Geometry, size: tuple[int, ...]) -> Geometry:
    ones, zeros = (1,) * len(g.kernel), (0,) * len(g.kernel)
    return g.with_(kernel=ones, stride=ones, padding=zeros, dilation=ones, in_size=size, out_size=size)


def _depthwise(g: Geometry, axis: int, channels: int, before: tuple[int, ...], after: tuple[int, ...]) -> Geometry:
    bank = g.with_(in_channels=channels, out_channels=channels, groups=channels)
    return _along(bank, (axis,), before, after)


def _along(g: Geometry, axes: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]) -> Geometry:
    """The layer with its window over some axes alone."""

    def only(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(v if i in axes else neutral for i, v in enumerate(values))

    return g.with_(
        kernel=only(g.kernel, 1),
        stride=only(g.stride, 1),
        padding=only(g.padding, 0),
        dilation=only(g.dilation, 1),
        in_size=before,
        out_size=after,
    )
