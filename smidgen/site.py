"""A place in a network whose weight can be stored in another form, and how much the loss bends there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.forms import Dense, Form, Geometry, Quantized


@dataclass(frozen=True, eq=False)
class Site:
    """One layer with a weight.

    Args:
        name: dotted module path.
        geometry: window and sizes.
        weight: ``[out, inp, *kernel]`` as the layer stores it.
        bias: ``[out]`` or None.
        refusal: why no method may touch it, or None.
    """

    name: str
    geometry: Geometry
    weight: np.ndarray
    bias: np.ndarray | None = None
    refusal: str | None = None

    @property
    def matrix(self) -> np.ndarray:
        """The weight as im2col rows, ``[out, inp·kernel]``."""
        return self.weight.reshape(self.weight.shape[0], -1)


@dataclass(frozen=True, eq=False)
class Moment:
    """A second moment ``E[x xᵀ]``, whole or as rows: ``M = BᵀB + diag(d)``.

    Args:
        matrix: ``[groups, n, n]``, or None when only rows are kept.
        rows: ``[groups, k, n]``, or None. A count sketch of the samples, exact while there are fewer samples than rows.
        diagonal: d, ``[groups, n]``, beside rows; zero when None.
        mean: ``[groups, n]`` mean of x over samples and positions.
        noise: ``[groups]`` share by which what lies off the diagonal was shrunk; none when None.
    """

    matrix: Float[Tensor, "groups n n"] | None = None
    rows: Float[Tensor, "groups k n"] | None = None
    diagonal: Float[Tensor, "groups n"] | None = None
    mean: Float[Tensor, "groups n"] | None = None
    noise: Float[Tensor, " groups"] | None = None

    def between(self, left: Float[Tensor, "groups p n"], right: Float[Tensor, "groups q n"]) -> Tensor:
        """``left · M · rightᵀ`` for each group; identity when the moment is empty.

        >>> import torch
        >>> Moment().between(torch.ones(1, 2, 3), torch.ones(1, 2, 3))[0, 0, 0].item()
        3.0
        """
        if self.matrix is not None:
            return left @ self.matrix.to(left) @ right.mT
        if self.rows is not None:
            rows = self.rows.to(left)
            seen = (left @ rows.mT) @ (right @ rows.mT).mT
            return seen if self.diagonal is None else seen + (left * self.diagonal.to(left)[:, None]) @ right.mT
        return left @ right.mT


@dataclass(frozen=True, eq=False)
class Curvature:
    """Kronecker-factored curvature at a site: ``Δloss ≈ ½ tr(G ΔW A ΔWᵀ)`` (arXiv:1503.05671, 1602.01407).

    Args:
        inputs: A, mean over samples of the sum over positions of x xᵀ (im2col columns, for each group).
        outputs: G, mean over samples and positions of g gᵀ, ``[groups, out, out]``; the identity when empty.
        source: ``calibration`` (nats), ``norm statistics`` (A from BatchNorms, G the identity, scaled to the energy of
            the output) or ``no data`` (both identities, scaled to the energy of the weight).
        samples: number of inputs it was estimated from.
        scale: factor on every prediction; in the ``no data`` case it makes the loss the relative squared error.
    """

    inputs: Moment = field(default_factory=Moment)
    outputs: Moment = field(default_factory=Moment)
    source: Literal["calibration", "norm statistics", "no data"] = "no data"
    samples: int = 0
    scale: float = 1.0

    def loss(self, change: Float[Tensor, "groups out n"]) -> float:
        """Predicted rise of the loss when the weight changes by ``change``."""
        gram = self.inputs.between(change, change)
        if self.outputs.matrix is not None:
            gram = gram * self.outputs.matrix.to(gram)
            return 0.5 * self.scale * float(gram.sum())
        return 0.5 * self.scale * float(torch.diagonal(gram, dim1=1, dim2=2).sum())

    def loss_as_stored(self, change: np.ndarray, geometry: Geometry) -> float:
        """`loss` of a change shaped as the layer stores its weight.

        A transposed convolution stores ``[in, out / groups, *kernel]`` and A holds single input positions: every tap of
        its window counts as a dense layer of its own. That is exact where windows do not overlap (stride ≥ kernel).

        >>> up = Geometry("conv_transpose", 2, 3, (2,), (2,), (0,), (1,), in_size=(4,), out_size=(8,))
        >>> Curvature().loss_as_stored(np.ones((2, 3, 2)), up)
        6.0
        """
        if geometry.kind != "conv_transpose":
            return self.loss(torch.as_tensor(grouped(change, geometry.groups), dtype=torch.float64))
        inp, out = (channels // geometry.groups for channels in (geometry.in_channels, geometry.out_channels))
        taps = torch.as_tensor(change, dtype=torch.float64).reshape(geometry.groups, inp, out, -1)
        return sum(self.loss(tap.mT) for tap in taps.unbind(-1))


@dataclass(frozen=True, eq=False)
class Stored:
    """A site as realised.

    Args:
        form: of its weight.
        bias: ``[out]`` or None.
        bias_form: the bias as integers, where it is stored so; ``bias`` is its value then.
    """

    form: Form
    bias: np.ndarray | None = None
    bias_form: Quantized | None = None


def grouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """The im2col rows split by group, ``[groups, out / groups, inp·kernel]``.

    >>> import numpy as np
    >>> grouped(np.zeros((8, 2, 3, 3)), 2).shape
    (2, 4, 18)
    """
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def stacked(weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """All rows of a weight that are multiplied with the same inputs, ``[groups, rows, n]``.

    `grouped`, but for a transposed convolution: its weight is ``[in, out / groups, *kernel]``, A holds single input
    positions, and every tap of the window is a dense layer of its own: rows are taps, then outputs.

    >>> up = Geometry("conv_transpose", 4, 6, (2, 2), (2, 2), (0, 0), (1, 1), 2, (3, 3), (6, 6))
    >>> stacked(np.zeros((4, 3, 2, 2)), up).shape
    (2, 12, 2)
    """
    if geometry.kind != "conv_transpose":
        return grouped(weight, geometry.groups)
    groups, inp = geometry.groups, geometry.in_channels // geometry.groups
    return weight.reshape(groups, inp, weight.shape[1], -1).transpose(0, 3, 2, 1).reshape(groups, -1, inp)


def unstacked(rows: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The weight as the layer stores it, from `stacked`.

    >>> up = Geometry("conv_transpose", 4, 6, (2, 2), (2, 2), (0, 0), (1, 1), 2, (3, 3), (6, 6))
    >>> weight = np.arange(48.0).reshape(4, 3, 2, 2)
    >>> bool((unstacked(stacked(weight, up), up) == weight).all())
    True
    """
    if geometry.kind != "conv_transpose":
        return rows.reshape(geometry.out_channels, -1, *geometry.kernel)
    groups, out = geometry.groups, geometry.out_channels // geometry.groups
    taps = rows.reshape(groups, -1, out, rows.shape[-1]).transpose(0, 3, 2, 1)
    return taps.reshape(geometry.in_channels, out, *geometry.kernel)


def untouched(site: Site) -> Stored:
    """The site left as it is."""
    return Stored(Dense(site.weight), site.bias)


@dataclass(frozen=True, eq=False)
class ChannelLayer:
    """A layer, and which channel each of its inputs and outputs is.

    Args:
        name: of the layer, as of its `Site`.
        inputs, outputs: the channel of each, ``[in_channels]`` and ``[out_channels]``; −1 for what is never cut.
        groups: of a convolution.
        taps: positions of its kernel.
        positions: output positions of one input (input positions of a transposed convolution).
    """

    name: str
    inputs: np.ndarray
    outputs: np.ndarray
    groups: int = 1
    taps: int = 1
    positions: int = 1

    @property
    def depthwise(self) -> bool:
        """Whether each input has outputs of its own: it passes channels on."""
        return self.groups > 1 and self.groups == len(self.inputs)

    def weights(self, inputs: float, outputs: float) -> float:
        """Weights that are left with so many inputs and outputs."""
        return self.taps * outputs * (1 if self.depthwise else inputs / self.groups)


@dataclass(frozen=True, eq=False)
class Channels:
    """All channels of a network that can be cut, each through every layer that it runs through.

    Args:
        count: how many there are.
        layers: in running order.
        classes: channels that stand in the same tensors and are cut alike, by number.
        groups: numbers of the classes that share a tensor, directly or through others.
        left: why the outputs of a layer are never cut, by its name; layers with some that are cut are not there.
    """

    count: int
    layers: tuple[ChannelLayer, ...]
    classes: tuple[np.ndarray, ...]
    groups: tuple[tuple[int, ...], ...]
    left: dict[str, str]

    def macs(self, keep: np.ndarray) -> int:
        """Multiply-accumulates of one input with the channels that are kept, ``[count]``."""
        return round(sum(layer.positions * self._weights(layer, keep) for layer in self.layers))

    def weights(self, keep: np.ndarray) -> int:
        """Weights that are left, without biases."""
        return round(sum(self._weights(layer, keep) for layer in self.layers))

    @staticmethod
    def _weights(layer: ChannelLayer, keep: np.ndarray) -> float:
        left = [float(np.append(keep, True)[each].sum()) for each in (layer.inputs, layer.outputs)]
        return layer.weights(*left)
