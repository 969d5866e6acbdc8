"""Weights trained as integers times a learned step, with a price on the bits that an archive takes for them.

    answer   w → Δ·round(w/Δ), the gradient passed straight through;   ∂/∂ln Δ = Σ g·Δ·(round(w/Δ) − w/Δ)
    rate     E_u[−log₂ p(round(w/Δ + u))], u ~ U(−½, ½)  =  code lengths interpolated linearly at |w/Δ|
    loss     distance from the original's answers + λ/8 · rate        λ in nats of one input's loss a byte

After Oktay et al. 2020 (Scalable model compression by entropy penalized reparameterization, arXiv:1906.06624); the
step's gradient is that of LSQ (arXiv:1902.08153, without its scale, which Adam does not see).

Differs from the paper: p is not learned by gradient. It is a histogram of sizes for each class of the scale
row mean · column mean / mean, the very model by which the planner prices integers (`smidgen.coding.cost_model`),
counted anew every few steps; a density at its optimum has no gradient of its own. So what is rare in a row or a column
is dear there, and whole neurons, channels and pixels fall silent. The expectation over u is taken in closed form: with
dither a weight is rounded up with the probability of its fraction. Biases are integers too, with one scale for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smidgen.coding import cost_model, pack_many
from smidgen.errors import PlanError
from smidgen.forms import Quantized
from smidgen.model.sites import FORWARD

# The first step of a tensor in its standard deviations: fine enough that rounding costs little yet, in most networks.
FIRST_STEP = 0.5
# Nats that the first rounding may cost, of all tensors, and of one where all cost more. ResNet-20 begins with 0.2 to
# 0.4 and soon answers as before; MobileNetV2 began with 2 to 5 for two classes and never left chance: eight small
# tensors of depthwise layers and of biases, where folded norms left large and small channels together, cost 0.05 and
# more each.
TOGETHER, ALONE = 0.5, 0.02
MOST_HALVINGS = 10
# Scales an octave of the steps written: the finest grid there is, so that writing moves nothing.
PER_OCTAVE = 1024
Kind = Literal["weight", "bias"]


class _Straight(torch.autograd.Function):
    """Δ·round(w/Δ): the weight's gradient as if it were not rounded, the step's as in the module's docstring."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_step: Tensor) -> Tensor:
        step = log_step.exp()
        scaled = weight / step
        rounded = scaled.round()
        ctx.save_for_backward(scaled, rounded, step)
        return rounded * step

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        scaled, rounded, step = ctx.saved_tensors
        (gradient,) = gradients
        return gradient, ((rounded - scaled) * gradient).sum() * step


class Stepped(nn.Module):
    """The parametrization of one tensor: what its layer computes with are integers times a step.

    Args:
        tensor: as trained so far.
        step: the first; `FIRST_STEP` of its standard deviation when None.

    >>> weight = torch.tensor([[0.0, 1.0], [3.0, -1.2]])
    >>> Stepped(weight, step=1.0).integers(weight).tolist()
    [[0, 1], [3, -1]]
    """

    # Bits more for each tensor's next step away from zero; a buffer, so that a resumed run goes on with the same.
    prices: Tensor

    def __init__(self, tensor: Tensor, step: float | None = None) -> None:
        super().__init__()
        spread = float(tensor.detach().double().square().mean().sqrt())
        first = FIRST_STEP * spread if step is None else step
        self.log_step = nn.Parameter(torch.tensor(math.log(first) if first > 0 else 0.0))
        self.register_buffer("prices", torch.zeros_like(tensor))
        self.rounds = True  # False while others are looked at

    def forward(self, weight: Tensor) -> Tensor:
        if not self.rounds:
            return weight
        return _Straight.apply(weight, self.log_step)  # type: ignore[no-any-return]

    def scaled(self, weight: Tensor) -> Tensor:
        """w/Δ."""
        return weight.detach() / self.log_step.detach().exp()

    def integers(self, weight: Tensor) -> Tensor:
        """round(w/Δ), int32."""
        return self.scaled(weight).round().to(torch.int32)

    @property
    def exponent(self) -> int:
        """k of the nearest step 2^(k / PER_OCTAVE)."""
        return round(float(self.log_step.detach()) / math.log(2) * PER_OCTAVE)


@dataclass(frozen=True, eq=False)
class _Coded:
    """One tensor that is trained as integers."""

    layer: str
    kind: Kind
    weight: nn.Parameter
    how: Stepped

    def refresh(self) -> float:
        """Count sizes anew; what the integers take now, in bits."""
        scaled = self.how.scaled(self.weight).cpu().numpy()
        sizes = scaled.reshape(len(scaled), -1)
        values = np.rint(sizes).astype(np.int32)
        model = cost_model(values, even=self.kind == "bias")
        # From each size in the table to the next; beyond it the tail's.
        rises = np.concatenate([np.diff(model.table, axis=1), model.slope[:, None]], axis=1)
        below = np.minimum(np.abs(sizes).astype(np.int64), rises.shape[1] - 1)
        prices = np.maximum(rises[model.classes, below], 0.0).astype(np.float32)
        self.how.prices.copy_(torch.from_numpy(prices.reshape(scaled.shape)))
        return float(model.bits(values, model.classes).sum())

    def rate(self) -> Tensor:
        """Bits, up to what does not change with the weight, between two counts."""
        return (self.weight.abs() * self.how.prices).sum() / self.how.log_step.exp()


class Entropy:
    """A network whose weights and biases are trained as integers, changed in place.

    Args:
        model: its named layers get parametrizations (`torch.nn.utils.parametrize`); any loop can train it then.
        layers: names of layers with a ``weight`` and perhaps a ``bias``; all dense and convolutional ones when None.
        steps: the first step of tensors by name, such as ``"fc1.weight"``; see `Stepped` for the others.
        shapes: in which the coder sees weights, by layer, where that is not their own.

    Raises:
        PlanError: there is no layer.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> coded = Entropy(net)
    >>> bits = coded.refresh()
    >>> bits > 0 and coded.rate().requires_grad
    True
    >>> forms = coded.remove()
    >>> forms["0"][0].integers.shape, type(net[0]).__name__
    ((3, 4), 'Linear')
    """

    def __init__(
        self, model: nn.Module, layers: Iterable[str] | None = None, steps: Mapping[str, float] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.shapes = model, dict(shapes or {})
        found = _layers(model) if layers is None else list(layers)
        if not found:
            raise PlanError("entropy: there is no dense or convolutional layer to train; give a network with one")
        self.tensors = [each for name in found for each in self._coded(name, steps or {})]

    def _coded(self, name: str, steps: Mapping[str, float]) -> Iterator[_Coded]:
        layer = self.model.get_submodule(name)
        kinds: tuple[Kind, ...] = ("weight", "bias")
        for kind in kinds:
            tensor = getattr(layer, kind, None)
            if tensor is not None:
                how = Stepped(tensor, steps.get(f"{name}.{kind}"))
                parametrize.register_parametrization(layer, kind, how)
                yield _Coded(name, kind, layer.parametrizations[kind].original, how)  # type: ignore[index,union-attr]

    def rate(self) -> Float[Tensor, ""]:
        """Bits as the loss sees them: with the right gradient, and without what is constant between two counts."""
        return torch.stack([each.rate() for each in self.tensors]).sum()

    def refresh(self) -> float:
        """Count sizes anew, which sets the prices that `rate` uses; the bits that the integers take now, predicted."""
        with torch.no_grad():
            return sum(each.refresh() for each in self.tensors)

    def integers(self) -> list[np.ndarray]:
        """Of each tensor, int32, weights first, as an archive codes them."""
        ordered = sorted(self.tensors, key=lambda each: each.weight.ndim < 2)
        return [self._seen(each, each.how.integers(each.weight).cpu().numpy()) for each in ordered]

    def _seen(self, one: _Coded, integers: np.ndarray) -> np.ndarray:
        return integers.reshape(self.shapes.get(one.layer, integers.shape)) if one.kind == "weight" else integers

    def nbytes(self) -> int:
        """What the archive's coder makes of the integers."""
        return len(pack_many(self.integers()))

    def groups(self, step_scale: float = 1.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: all that is not a step, and the steps with their share of the rate."""
        steps = [each.how.log_step for each in self.tensors]
        known = {id(each) for each in steps}
        rest = [each for each in self.model.parameters() if each.requires_grad and id(each) not in known]
        return [{"params": rest}, {"params": steps, "lr_scale": step_scale, "weight_decay": 0.0}]

    def steps(self) -> dict[str, float]:
        """The steps now, by tensor."""
        return {f"{each.layer}.{each.kind}": float(each.how.log_step.detach().exp()) for each in self.tensors}

    def masters(self) -> dict[str, dict[Kind, np.ndarray]]:
        """The weights and biases behind the integers, not rounded."""
        found: dict[str, dict[Kind, np.ndarray]] = {}
        for each in self.tensors:
            found.setdefault(each.layer, {})[each.kind] = each.weight.detach().cpu().numpy().copy()
        return found

    def forms(self) -> dict[str, dict[Kind, Quantized]]:
        """What each layer's weight and bias are, as an archive stores them: one scale a tensor."""
        found: dict[str, dict[Kind, Quantized]] = {}
        for each in self.tensors:
            integers = each.how.integers(each.weight).cpu().numpy()
            scale = np.array([each.how.exponent if integers.any() else 0], np.int32)
            form = Quantized(integers, np.zeros(len(integers), np.int32), scale, PER_OCTAVE)
            found.setdefault(each.layer, {})[each.kind] = form
        return found

    def remove(self) -> dict[str, tuple[Quantized, Quantized | None]]:
        """Take the parametrizations off, the rounded values left in the layers; weight and bias of each."""
        forms = self.forms()
        for each in self.tensors:
            parametrize.remove_parametrizations(self.model.get_submodule(each.layer), each.kind)
        self.tensors = []
        return {name: (one["weight"], one.get("bias")) for name, one in forms.items()}


def refine(entropy: Entropy, apart: Callable[[], float]) -> None:
    """Make the first steps finer where rounding moves the answers too far to come back from.

    Where all tensors together cost more than `TOGETHER`, the step of each that costs more than `ALONE`, when it alone
    is rounded, is halved until it does not; then all are, until they do not.

    Args:
        entropy: its steps are changed.
        apart: how far the answers are from the original's now, in nats.

    >>> net, weight = nn.Sequential(nn.Linear(2, 2, bias=False)), torch.tensor([[8.0, 0.0], [0.0, 1.0]])
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(weight)
    >>> coded, apart = Entropy(net), lambda: float((net(torch.eye(2)) - weight).detach().abs().sum())
    >>> round(apart(), 2)  # the small channel is rounded to nothing
    1.06
    >>> refine(coded, apart)
    >>> round(apart(), 2)
    0.01
    """
    with torch.no_grad():
        before = apart()
        if before <= TOGETHER:
            return
        parts = [each.how for each in entropy.tensors]
        first = [each.log_step.clone() for each in parts]
        for each in parts:
            each.rounds = False
        for each in parts:
            each.rounds = True
            _halve([each], apart, ALONE)
            each.rounds = False
        for each in parts:
            each.rounds = True
        _halve(parts, apart, TOGETHER)
        after = apart()
        if not after <= TOGETHER and not after < before:  # nothing helped
            for each, step in zip(parts, first, strict=True):
                each.log_step.copy_(step)


def _halve(parts: list[Stepped], apart: Callable[[], float], most: float) -> None:
    for _ in range(MOST_HALVINGS):
        if apart() <= most:
            return
        for each in parts:
            each.log_step.sub_(math.log(2))


def _layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, FORWARD)]
