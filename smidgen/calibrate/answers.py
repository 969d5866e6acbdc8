"""What a network's answers mean: scores of classes, or values; and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_PROBABILITY = 1e-9  # of networks that end in a softmax and answer with exact zeros
LEAST_VARIANCE = 1e-12


def outputs_of(answer: Any) -> list[Tensor]:
    """The outputs of a network as a list, one tensor or several; those of a dict in its order.

    >>> len(outputs_of(torch.zeros(1, 2))), len(outputs_of({"a": torch.zeros(1), "b": torch.zeros(1)}))
    (1, 2)
    """
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]


def is_classifier(outputs: Sequence[Tensor]) -> bool:
    """True for a single output with one score a class, ``[n, classes]`` or ``[n, classes, 1, 1]``.

    >>> is_classifier([torch.zeros(5, 10)]), is_classifier([torch.zeros(5, 1)])
    (True, False)
    """
    return len(outputs) == 1 and outputs[0].ndim >= 2 and outputs[0][0].numel() == outputs[0].shape[1] > 1


def as_logits(scores: Tensor) -> Tensor:
    """Scores as ``[n, classes]`` logits; logarithms where the network ends in a softmax.

    >>> as_logits(torch.tensor([[0.5, 0.5]])).exp().tolist()
    [[0.5, 0.5]]
    """
    rows = scores.flatten(1)
    seen = rows.detach()
    if bool((seen >= 0).all()) and torch.allclose(seen.sum(1), torch.ones(len(seen)).to(seen), atol=1e-3):
        return rows.clamp_min(LEAST_PROBABILITY).log()
    return rows


def true_loss(reference: Sequence[list[Tensor]], changed: Sequence[list[Tensor]]) -> float:
    """The loss that the curvature predicts: the mean of `true_losses`.

    Args:
        reference, changed: outputs of each batch.

    >>> x = [[torch.randn(4, 3)]]
    >>> true_loss(x, x)
    0.0
    """
    losses = true_losses(reference, changed)
    return float(losses.mean()) if len(losses) else 0.0


def true_losses(reference: Sequence[list[Tensor]], changed: Sequence[list[Tensor]]) -> Float[Tensor, " samples"]:
    """The loss of each sample.

    KL(original ‖ changed) in nats for a classifier; for other networks half the squared error of each output over its
    variance in the batch.

    Args:
        reference, changed: outputs of each batch.

    >>> true_losses([[torch.randn(4, 3)]], [[torch.randn(4, 3)]]).shape
    torch.Size([4])
    """
    found = [_batch_losses(before, after) for before, after in zip(reference, changed, strict=True)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _batch_losses(before: list[Tensor], after: list[Tensor]) -> Float[Tensor, " samples"]:
    if is_classifier(before):
        p, q = (as_logits(scores[0]).double().log_softmax(1) for scores in (before, after))
        return (p.exp() * (p - q)).sum(1)
    samples = len(before[0])
    total = torch.zeros(samples, dtype=torch.float64, device=before[0].device)
    for b, a in zip(before, after, strict=True):
        if b.is_floating_point():
            share = 0.5 * (a - b).double().square() / b.var().clamp_min(LEAST_VARIANCE)
            # An output that is not one a sample counts alike for all.
            total += share.reshape(samples, -1).mean(1) if len(b) == samples else share.mean()
    return total
