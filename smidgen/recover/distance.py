"""How far a network's answers are from the original's, and from the labels where there are some."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from smidgen.calibrate.answers import as_logits, is_classifier
from smidgen.recover.distil import Labels, label_loss, soft_loss, value_loss


def distance(
    original: Sequence[Tensor], answers: Sequence[Tensor], labels: Labels | None = None,
    share: float = 0.0, temperature: float = 1.0,
) -> Float[Tensor, ""]:  # fmt: skip
    """(1 − share) · T² KL(original ‖ answers) at temperature T + share · CE(labels, answers), to train by.

    At T = 1 in nats a sample.

    Where there are no classes: half the squared error of each output over its variance, as in `true_losses`.

    Args:
        original: outputs of the network that is imitated.
        answers: of the one that is trained; the gradient goes there.
        labels: classes, shares of them for mixed images, or None.
        share: of the labels.
        temperature: T (Hinton et al. 2015, arXiv:1503.02531).

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> float(distance([logits], [logits]))
    0.0
    """
    if not is_classifier(original):
        return value_loss(answers, original, [float(each.float().var()) for each in original])
    aim, found = (as_logits(each[0].float()) for each in (original, answers))
    apart = soft_loss(found, aim, temperature)
    return apart if labels is None or share == 0 else (1 - share) * apart + share * label_loss(found, labels)
