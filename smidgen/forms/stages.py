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
from smidgen.forms.types import CP, Form, LowRank


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
    >>> from smidgen.forms import Dense
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
        case _:
            return (Stage(form, geometry),)


def _low_rank(form: LowRank, g: Geometry) -> tuple[Stage, ...]:
    inner = shape(form.v)[0]  # rank of all groups together
    after = _pointwise(g.with_(in_channels=inner), g.out_size)
    chain = [Stage(form.v, g.with_(out_channels=inner))]
    if form.core is not None:
        chain.append(Stage(form.core, after.with_(out_channels=inner)))
    chain.append(Stage(form.u, after))
    return tuple(chain)


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
    def only(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(v if i == axis else neutral for i, v in enumerate(values))

    return g.with_(
        in_channels=channels,
        out_channels=channels,
        groups=channels,
        kernel=only(g.kernel, 1),
        stride=only(g.stride, 1),
        padding=only(g.padding, 0),
        dilation=only(g.dilation, 1),
        in_size=before,
        out_size=after,
    )
