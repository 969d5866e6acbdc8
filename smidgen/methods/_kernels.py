"""What methods that split a convolution share: kernel and metric group by group, and what a form loses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.errors import Refusal
from smidgen.forms import Dense, Form, dense
from smidgen.site import Curvature, Site, grouped


@dataclass(frozen=True, eq=False)
class Kernels:
    """A convolution's kernel, group by group, with A and G where they are whole.

    Args:
        weight: float64.
        inputs: A of each group; None for the identity.
        outputs: G of each group; None for the identity.
    """

    weight: Float[Tensor, "groups out inp *kernel"]
    inputs: Float[Tensor, "groups n n"] | None
    outputs: Float[Tensor, "groups out out"] | None

    @classmethod
    def of(cls, name: str, site: Site, curvature: Curvature, device: str) -> Kernels:
        """The kernels of a site.

        Args:
            name: of the method, for reasons.
            site: the layer.
            curvature: its A and G; a layer too wide for a whole A is fitted in the plain norm.
            device: where to compute.

        Raises:
            Refusal: for a layer that is no convolution with a window, or a depthwise one.
        """
        g = site.geometry
        if g.kind != "conv":
            raise Refusal(f"{name}: only convolutions have this form")
        if g.depthwise:
            raise Refusal(f"{name}: a depthwise layer has one input channel a group: nothing to factor")
        if prod(g.kernel) == 1:
            raise Refusal(f"{name}: a 1x1 window is a matrix; use svd")
        rows = torch.as_tensor(grouped(site.weight, g.groups), dtype=torch.float64, device=device)
        weight = rows.reshape(*rows.shape[:2], *site.weight.shape[1:])
        whole = curvature.inputs.matrix is not None
        return cls(weight, curvature.inputs.matrix, curvature.outputs.matrix if whole else None)

    def each(self, damp: float) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Weight, A and G of each group, damped by a share of their mean diagonals."""
        for i, weight in enumerate(self.weight):
            a, g = (None if m is None else _damped(m[i].to(weight), damp) for m in (self.inputs, self.outputs))
            yield weight, a, g


def _damped(moment: Float[Tensor, "n n"], damp: float) -> Tensor | None:
    """None for a moment of zeros: dead inputs tell nothing."""
    mean = moment.diagonal().mean()
    return None if float(mean) <= 0 else moment + damp * mean * torch.eye(len(moment)).to(moment)


def residual_loss(site: Site, curvature: Curvature, form: Form) -> float:
    """Predicted loss of a form, from what it leaves out."""
    change = site.weight.astype("f8") - dense(form).astype("f8")
    return curvature.loss_as_stored(change, site.geometry)


def leaf(values: Tensor) -> Dense:
    """A factor as the file will hold it."""
    return Dense(values.to(torch.float32).contiguous().cpu().numpy())
