"""How a network's outputs are read: as classes where they are classes, and fitting the labels they are held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from smidgen.errors import DataError

Outputs = tuple[np.ndarray, ...]


def as_classes(
    outputs: Outputs, labels: np.ndarray | None, reference: Outputs | None
) -> Float[np.ndarray, "n k"] | None:
    """The one output as [n, k] logits or probabilities, None where the network is no classifier."""
    if len(outputs) != 1:
        return None
    rows = outputs[0].astype(np.float64)
    while rows.ndim > 2 and rows.shape[-1] == 1:
        rows = rows[..., 0]
    if rows.ndim == 2 and rows.shape[1] >= 2:
        return rows
    if rows.size != len(rows) or labels is None or labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        return None
    # Whether the values are probabilities is the original's to say, so that both are read alike.
    original = (outputs if reference is None else reference)[0]
    column = rows.reshape(-1, 1)
    rest = 1 - column if ((original >= 0) & (original <= 1)).all() else np.zeros_like(column)
    return np.concatenate([rest, column], axis=1)


def class_numbers(labels: np.ndarray | None, size: int) -> Int64[np.ndarray, " n"] | None:
    """Labels as class numbers, checked against the number of classes."""
    if labels is None:
        return None
    wrong = None
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        wrong = f"labels have shape {list(labels.shape)} and type {labels.dtype}"
    else:
        misfits = labels[~((labels >= 0) & (labels < size) & (labels == np.floor(labels)))]
        if len(misfits):
            wrong = f"a label is {misfits[0]}"
    if wrong:
        raise DataError(f"measure: {wrong}, the network has classes 0…{size - 1}; give class numbers, or a metric")
    return labels.astype(np.int64)


def check_outputs(outputs: Outputs, names: Sequence[str], reference: Outputs | None, labels: np.ndarray | None) -> None:
    """DataError where the counts or the shapes do not fit each other."""
    if not outputs or len(outputs) != len(names) or (reference is not None and len(reference) != len(outputs)):
        raise DataError(f"measure: {len(outputs)} outputs for the names {list(names)}; give one array for each")
    for name, each in zip(names, outputs, strict=True):
        if each.ndim == 0:
            raise DataError(f"measure: output '{name}' is a lone number; give one answer a sample")
    count = len(outputs[0])
    if not count or any(len(each) != count for each in outputs):
        raise DataError(f"measure: outputs hold {[len(each) for each in outputs]} samples; give the same, one or more")
    if labels is not None and len(labels) != count:
        raise DataError(f"measure: {len(labels)} labels for {count} samples; give one label a sample")
    for name, mine, original in zip(names, outputs, outputs if reference is None else reference, strict=True):
        if mine.shape != original.shape:
            raise DataError(
                f"measure: output '{name}' has shape {list(mine.shape)}, the original's {list(original.shape)}; "
                "run both on the same samples"
            )


def why_no_classes(outputs: Outputs) -> str:
    """The reason for what ``as_classes`` declines."""
    if len(outputs) > 1:
        return f"the network has {len(outputs)} outputs: judged by their error"
    axes = ", ".join(["n", *map(str, next(iter(outputs)).shape[1:])])
    return f"the output [{axes}] is no list of classes: judged by its error"
