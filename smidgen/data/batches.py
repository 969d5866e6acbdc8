"""Inputs given in Python: arrays, tensors, loaders and any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smidgen.data.dataset import Dataset
from smidgen.data.preprocess import Preprocess
from smidgen.data.reading import MAX_NBYTES
from smidgen.data.sources import array_items, as_labels
from smidgen.errors import DataError


def as_dataset(data: Any, *, preprocess: Preprocess | None = None, max_nbytes: int = MAX_NBYTES) -> Dataset:
    """A set from what a Python user has at hand.

    Args:
        data: a Dataset (returned as it is); one array or tensor (N, …); a tuple (x, y) of two; a mapping with "x" and
            perhaps "y"; or an iterable of batches, each an array, a pair (x, y) or such a mapping. A pair whose y is a
            single number is one input without batch axis. Floats are taken as the network's inputs, uint8 as images.
            A single array is used in place, not copied.
        preprocess: applies to uint8 images; None for none.
        max_nbytes: an iterable that gives more is refused rather than filling the memory.

    Raises:
        DataError: not such data, batches that differ, labels on some only, NaN, or too much.

    >>> as_dataset([(np.zeros((2, 3)), np.array([0, 1])), (np.ones((1, 3)), np.array([1]))]).labels.tolist()
    [0, 1, 1]
    """
    if isinstance(data, Dataset):
        return data
    if _is_array(data):
        x, y = _to_numpy(data), None
    elif isinstance(data, tuple) and len(data) == 2 and all(_is_array(part) for part in data):
        x, y = _to_numpy(data[0]), _to_numpy(data[1])
    elif isinstance(data, Mapping):
        x, y = _split_batch(data, 0)
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        x, y = _joined(data, max_nbytes)
    else:
        raise DataError(f"data: {type(data).__name__} is not inputs; give arrays, tensors, or batches of them")
    if x.ndim == 0 or len(x) == 0:
        raise DataError("data: there are no inputs; give at least one")
    items = array_items(x, "array", preprocess or Preprocess())
    labels = None if y is None else as_labels(y, len(x), "array")
    return Dataset(items, np.arange(len(x), dtype=np.int64), labels, "array")


def _is_array(value: object) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, Dataset)


def _to_numpy(value: Any) -> NDArray[Any]:
    # Tensors by duck typing: detached from the graph and brought to the host before NumPy sees them.
    for step in ("detach", "cpu"):
        value = getattr(value, step)() if hasattr(value, step) else value
    if str(getattr(value, "dtype", "")).endswith("bfloat16"):
        value = value.float()  # NumPy has no bfloat16
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"data: {type(value).__name__} does not convert to an array ({error}); give arrays") from error
    if array.dtype.hasobject:
        raise DataError("data: the inputs are Python objects or of unequal lengths; give arrays of numbers")
    return array


def _split_batch(batch: Any, number: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Inputs and labels of one batch."""
    y: Any = None
    if isinstance(batch, Mapping):
        if "x" not in batch:
            raise DataError(f"data: batch {number} has the keys {sorted(map(str, batch))[:8]}; name the inputs 'x'")
        x, y = batch["x"], batch.get("y")
    elif isinstance(batch, tuple | list) and len(batch) in (1, 2):
        x, y = batch[0], batch[1] if len(batch) == 2 else None
    else:
        x = batch
    if not _is_array(x):
        raise DataError(
            f"data: batch {number} is {type(x).__name__}; give arrays, (x, y) pairs or mappings with 'x' and 'y'"
        )
    inputs, labels = _to_numpy(x), None if y is None else _to_numpy(y)
    if labels is not None and labels.ndim == 0:  # one input of a map-style set, not a batch
        inputs, labels = inputs[None], labels[None]
    shown = None if labels is None else labels.shape
    if inputs.ndim == 0 or (labels is not None and len(labels) != len(inputs)):
        raise DataError(f"data: batch {number} has inputs {inputs.shape} and labels {shown}; give one label each")
    return inputs, labels


def _joined(batches: Iterable[Any], max_nbytes: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    inputs: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    nbytes = 0
    for number, batch in enumerate(batches):
        x, y = _split_batch(batch, number)
        if inputs and (x.shape[1:] != inputs[0].shape[1:] or x.dtype != inputs[0].dtype):
            raise DataError(
                f"data: batch {number} is {x.dtype}{list(x.shape[1:])} and batch 0 is {inputs[0].dtype}"
                f"{list(inputs[0].shape[1:])} for each input; make all alike"
            )
        if (y is not None) != bool(labels) and inputs:
            raise DataError(
                f"data: batch {number} {'has' if y is not None else 'lacks'} labels, unlike batch 0; give all or none"
            )
        nbytes += x.nbytes
        if nbytes > max_nbytes:
            raise DataError(
                f"data: batches hold more than {max_nbytes} bytes by batch {number}; give fewer or a folder of images"
            )
        # Copied: some loaders fill one buffer again for every batch.
        inputs.append(x.copy())
        if y is not None:
            labels.append(y.copy())
    if not inputs:
        raise DataError("data: there are no batches; give at least one (an iterator can be read only once)")
    return np.concatenate(inputs), np.concatenate(labels) if labels else None
