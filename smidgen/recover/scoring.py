"""How a network that is being trained does on inputs it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from smidgen.calibrate.answers import as_logits, outputs_of
from smidgen.data import Dataset


def answers(model: nn.Module, inputs: Dataset) -> list[Tensor]:
    """Outputs for all inputs in float32, ``[inputs, …]`` on the host; the network's mode stays as it is.

    Args:
        model: run where it lies.
        inputs: in order.
    """
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        parts = [outputs_of(model(torch.from_numpy(part).to(device))) for part in inputs.batches()]
    return [torch.cat(each).float().cpu() for each in zip(*parts, strict=True)]


def class_score(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> float:
    """Wrong answers, and among equally many the lower cross-entropy; lower is better.

    Args:
        logits: of each input.
        labels: its class.

    >>> sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> right = torch.tensor([0])
    >>> class_score(sure, right) < class_score(unsure, right) < class_score(-sure, right)
    True
    """
    return ordered(logits.argmax(1) != labels, F.cross_entropy(logits, labels))


def ordered(wrong: Bool[Tensor, " n"], loss: Float[Tensor, ""]) -> float:
    """One number that orders by wrong answers first and by the loss, from 0, after: (wrong + l/(1 + l)) / n.

    >>> ordered(torch.tensor([True, False]), torch.tensor(1.0))
    0.75
    """
    # Of a loss beyond all bounds the share is 1: no worse than one more wrong answer.
    share = 1 - 1 / (1 + float(loss.clamp_min(0)))
    return (int(wrong.sum()) + share) / len(wrong) if share == share else float("nan")


def exactly(score: float) -> float:
    """For `smidgen.recover.loop.fit`: no other score is as good as the lowest.

    >>> exactly(0.25)
    0.0
    """
    return 0.0


def indistinct(count: int) -> Callable[[float], float]:
    """For `smidgen.recover.loop.fit`: how far above a score that orders by wrong answers first another is as good.

        SE = √(p (1 − p) / n),  p = (score · n + 1) / (n + 2)

    Of forty inputs the fewest wrong answers in a training are an early epoch's by luck; of the epochs within one
    standard error the last is taken, when the rate is lowest (as Breiman et al. 1984 choose among trees, "1 SE"; p
    after Agresti and Coull 1998, doi:10.1080/00031305.1998.10480550, so that no error at all is not taken for certain).

    Args:
        count: n, inputs that were scored.

    >>> [round(indistinct(count)(0.25), 3) for count in (40, 400, 5000)]
    [0.07, 0.022, 0.006]
    """

    def error(score: float) -> float:
        share = (min(max(score, 0.0), 1.0) * count + 1) / (count + 2)
        return math.sqrt(share * (1 - share) / count)

    return error


def labelled_score(model: nn.Module, inputs: Dataset) -> float:
    """Of a classifier on labelled inputs; see `class_score`."""
    assert inputs.labels is not None  # asked for before anything began
    return class_score(as_logits(answers(model, inputs)[0]), torch.from_numpy(inputs.labels.copy()))
