"""Inputs as small PNG images, as they were before they were prepared for the network."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from smidgen.data import Dataset

SIDE = 72  # pixels; 24 images of it weigh less than half a megabyte


def thumbnails(data: Dataset, places: Iterable[int]) -> dict[int, bytes]:
    """PNG images of some inputs; empty where they are none.

    Args:
        data: the inputs.
        places: in the set.

    >>> data = Dataset.from_array(np.zeros((3, 1, 8, 8), np.float32))
    >>> [image[1:4] for image in thumbnails(data, [2]).values()]
    [b'PNG']
    """
    if len(data.shape) != 3:
        return {}
    declared = data.items.declared()
    found = {}
    for place in places:
        if 0 <= place < len(data):
            image = _png(np.asarray(data.take([place]))[0], declared)
            if image is not None:
                found[place] = image
    return found


def _png(x: np.ndarray, declared: Mapping[str, Any] | None) -> bytes | None:
    from PIL import Image

    pixels = _pixels(x, declared)
    if pixels is None:
        return None
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _pixels(x: np.ndarray, declared: Mapping[str, Any] | None) -> np.ndarray | None:
    """[H, W, C] of 0..255: the preprocessing undone, or the values' own range where none is known."""
    told = dict(declared or {})
    first = told.get("layout", "nchw") == "nchw" if declared else x.shape[0] in (1, 3)
    x = np.moveaxis(x, 0, -1) if first else x
    if x.shape[2] not in (1, 3):
        return None
    values = x.astype(np.float64)
    if declared:
        mean, std = (np.array(told.get(name) or default, float) for name, default in (("mean", [0.0]), ("std", [1.0])))
        values = (values * std + mean) / (told.get("scale") or 1.0)
        values = values[:, :, ::-1] if told.get("channels") == "bgr" else values
    else:
        low, high = float(values.min()), float(values.max())
        values = (values - low) * (255.0 / (high - low) if high > low else 0.0)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
