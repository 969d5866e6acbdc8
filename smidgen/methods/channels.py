"""How much each channel is worth: the criteria that `smidgen prune` chooses by, one function each.

    curvature     ½ tr(G ΔW A ΔWᵀ) of every layer that reads it, refitted without it       smidgen.planning.channels
    l1, l2        Σ|w|, √Σw² of the filter that makes it (arXiv:1608.08710)
    magnitude     √Σw² over the mean of its layer, compared across layers
    activation    mean |a| where it is read (arXiv:1611.06440)
    apoz          1 − share of zeros where it is read (arXiv:1607.03250)
    cosine        1 − largest |cos| with another filter of the layer
    correlation   the same of filters less their mean
    median        Σ_j ‖w − w_j‖ over the filters of the layer: least is nearest the geometric median (arXiv:1811.00250)
    taylor        ½ E[(Σ a · ∂loss/∂a)²] where it is read, in nats (arXiv:1906.10771)
    batchnorm     |γ| of the BatchNorm behind it (arXiv:1708.06519)

The lowest goes first. Criteria in units of a layer's own take the same share of every layer; others compare across
layers. A channel that several layers make or read has the mean of what they say.

Helps: when the network has to become faster everywhere with no special runtime: what is left is an ordinary, narrower
network. Wide layers with more channels than their task needs, and networks that will be trained again.

Does not help: bytes at a given loss: ranks and bits alone were better on LeNet and ResNet-20 at each budget that was
tried; narrow residual networks, whose sums tie the channels of many layers together and leave no slack.

Records: pruning_structured, pruning_joint.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from smidgen.errors import UserError

CURVATURE = "curvature"
Scores = Float[np.ndarray, " units"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of channels that are cut alike.

    Args:
        filters: the weights that make each channel, one array ``[units, weights]`` for each layer that does.
        sizes: mean size of all filters of each of those layers, in the order of ``filters``.
        activation: mean of \\|a\\| where the channels are read, one array ``[units]`` for each layer that does.
        zeros: share of zeros there.
        taylor: ½ E[(Σ a · ∂loss/∂a)²] there.
        gains: \\|γ\\| of the BatchNorm behind each layer that makes them, where there is one.
    """

    filters: tuple[np.ndarray, ...] = ()
    sizes: tuple[float, ...] = ()
    activation: tuple[np.ndarray, ...] = ()
    zeros: tuple[np.ndarray, ...] = ()
    taylor: tuple[np.ndarray, ...] = ()
    gains: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Criterion:
    """A way to tell which channels matter least.

    Args:
        name: what the user types.
        score: of each channel; the lowest goes first. None for the curvature, which prices them together.
        needs: weights alone, inputs to run, or BatchNorms.
        across: whether scores of different layers compare; else each loses the same share.
    """

    name: str
    score: Callable[[Evidence], Scores] | None
    needs: Literal["weights", "inputs", "norms"] = "weights"
    across: bool = False


def l1(evidence: Evidence) -> Scores:
    """Σ|w|.

    >>> l1(Evidence(filters=(np.array([[1.0, -2.0], [0.5, 0.0]]),))).tolist()
    [3.0, 0.5]
    """
    return _mean([np.abs(w).sum(1) for w in evidence.filters])


def l2(evidence: Evidence) -> Scores:
    """√Σw²."""
    return _mean([np.linalg.norm(w, axis=1) for w in evidence.filters])


def magnitude(evidence: Evidence) -> Scores:
    """√Σw² over the mean of the layer."""
    sizes = [max(size, np.finfo(float).tiny) for size in evidence.sizes]
    return _mean([np.linalg.norm(w, axis=1) / size for w, size in zip(evidence.filters, sizes, strict=True)])


def activation(evidence: Evidence) -> Scores:
    """Mean |a|."""
    return _mean(evidence.activation)


def apoz(evidence: Evidence) -> Scores:
    """1 − share of zeros."""
    return 1 - _mean(evidence.zeros)


def cosine(evidence: Evidence) -> Scores:
    """1 − largest |cos| with another filter.

    >>> cosine(Evidence(filters=(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]),))).tolist()
    [0.0, 0.0, 1.0]
    """
    return _mean([_unlike(w) for w in evidence.filters])


def correlation(evidence: Evidence) -> Scores:
    """1 − largest |correlation| with another filter."""
    return _mean([_unlike(w - w.mean(1, keepdims=True)) for w in evidence.filters])


def median(evidence: Evidence) -> Scores:
    """Σ_j ‖w − w_j‖."""
    return _mean([np.linalg.norm(w[:, None] - w[None], axis=2).sum(1) for w in evidence.filters])


def taylor(evidence: Evidence) -> Scores:
    """½ E[(Σ a · ∂loss/∂a)²]."""
    return np.sum(evidence.taylor, axis=0) if evidence.taylor else np.zeros(0)


def batchnorm(evidence: Evidence) -> Scores:
    """|γ|."""
    return _mean(evidence.gains)


def _mean(parts: list[np.ndarray] | tuple[np.ndarray, ...]) -> Scores:
    return np.mean(parts, axis=0) if parts else np.zeros(0)


def _unlike(w: np.ndarray) -> np.ndarray:
    sizes = np.maximum(np.linalg.norm(w, axis=1, keepdims=True), np.finfo(float).tiny)
    alike = np.abs((w / sizes) @ (w / sizes).T)
    np.fill_diagonal(alike, 0.0)
    return 1 - alike.max(1)


_ALL = (
    Criterion(CURVATURE, None, across=True),
    Criterion("l1", l1),
    Criterion("l2", l2),
    Criterion("magnitude", magnitude, across=True),
    Criterion("activation", activation, "inputs"),
    Criterion("apoz", apoz, "inputs"),
    Criterion("cosine", cosine),
    Criterion("correlation", correlation),
    Criterion("median", median),
    Criterion("taylor", taylor, "inputs", across=True),
    Criterion("batchnorm", batchnorm, "norms", across=True),
)
CRITERIA = {criterion.name: criterion for criterion in _ALL}


def choose_criterion(name: str) -> Criterion:
    """The criterion of a name.

    Raises:
        UserError: there is none of that name; the nearest is offered.

    >>> choose_criterion("taylor").across
    True
    """
    if name not in CRITERIA:
        near = difflib.get_close_matches(name, CRITERIA, n=1)
        meant = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"prune: there is no criterion '{name}'{meant}. There are: {', '.join(CRITERIA)}")
    return CRITERIA[name]
