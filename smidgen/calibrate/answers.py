"""What a network's answers mean: scores of classes, or values; and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LEAST_PROBABILITY = 1e-9  # of networks that end in a softmax and answer with exact zeros
LEAST_VARIANCE = 1e-12


def outputs_of(answer: Any) -> list[Tensor]:
    """The outputs of a network as a list, one tensor or several.

    >>> len(outputs_of(torch.zeros(1, 2)))
    1
    """
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
    """The loss that the curvature predicts.

    KL(original ‖ changed) in nats a sample for a classifier; for other networks half the squared error of each output
    over its variance.

    Args:
        reference, changed: outputs of each batch.

    >>> x = [[torch.randn(4, 3)]]
    >>> true_loss(x, x)
    0.0
    """
    total, count = 0.0, 0
    for before, after in zip(reference, changed, strict=True):
        count += len(before[0])
        if is_classifier(before):
            p, q = (as_logits(scores[0]).double().log_softmax(1) for scores in (before, after))
            total += float((p.exp() * (p - q)).sum())
        else:
            pairs = [(b, a) for b, a in zip(before, after, strict=True) if b.is_floating_point()]
            for b, a in pairs:
                total += 0.5 * len(b) * float((a - b).square().mean() / b.var().clamp_min(LEAST_VARIANCE))
    return total / max(count, 1)
