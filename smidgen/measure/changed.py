"""Which inputs a smaller network answers otherwise, the ones first of which the original was surest."""

from __future__ import annotations

from typing import Any

import numpy as np

from smidgen.measure.outputs import Outputs, as_classes

SHOWN = 24  # inputs that a report shows


def changed_answers(
    before: Outputs, after: Outputs, labels: np.ndarray | None, most: int = SHOWN
) -> dict[str, Any] | None:
    """The answers that changed.

    Args:
        before, after: outputs of both networks on the same inputs, one array [n, …] each.
        labels: class numbers [n], or None.
        most: inputs told one by one.

    Returns:
        ``count`` and ``of``, and under ``inputs`` their places and answers; None where there are no classes.

    >>> before, after = (np.eye(3),), (np.eye(3)[[0, 2, 2]],)
    >>> changed_answers(before, after, None)
    {'count': 1, 'of': 3, 'inputs': [{'place': 1, 'before': 1, 'after': 2, 'label': None}]}
    """
    first, second = as_classes(before, labels, None), as_classes(after, labels, before)
    if first is None or second is None or not len(first):
        return None
    old, new = first.argmax(axis=1), second.argmax(axis=1)
    places = np.flatnonzero(old != new)
    ordered = np.sort(first[places], axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if first.shape[1] > 1 else np.zeros(len(places))
    chosen = places[np.argsort(-margin, kind="stable")][:most].tolist()
    named = labels if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu" else None
    return {
        "count": len(places), "of": len(first),
        "inputs": [
            {"place": i, "before": int(old[i]), "after": int(new[i]), "label": None if named is None else int(named[i])}
            for i in chosen
        ],
    }  # fmt: skip
