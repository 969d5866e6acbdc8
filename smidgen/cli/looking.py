"""``smidgen glimpse``: two small stages before a network, so that it reads a whole image only when it must."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from smidgen.budget import Budget
from smidgen.cli.commands import common
from smidgen.cli.inputs import read_budget
from smidgen.cli.training import run_training
from smidgen.cli.training_options import read_training
from smidgen.data.reading import read_npy
from smidgen.errors import DataError, UserError, one_line

OF_STAGES = ("ratio", "tradeoff")  # budgets of each stage; --max-drop is that of all together
LARGEST_NBYTES = 64 << 20  # of a file of boxes: five million of them


def glimpse(options: argparse.Namespace) -> int:
    """``smidgen glimpse``."""
    from smidgen.pipeline.glimpse import glimpse as run
    from smidgen.pipeline.glimpse_stages import check_target

    settings, training, budget = common(options), read_training(options), read_budget(options, OF_STAGES)
    side, points = read_side(options.side), _points(options.max_drop)
    check_target(options.target, budget, fallback=not options.no_fallback)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    given = (options.model, options.classifier, options.weights, options.boxes)
    return run_training(options, given, lambda data, held, progress: run(
        options.model, data, side, classifier=options.classifier, boxes=boxes, fallback=not options.no_fallback,
        max_drop=points, target=options.target, budget=budget, labels=options.label_share, training=training, **held,
        weights=options.weights, metric=options.metric, checkpoint=options.checkpoint, progress=progress, **settings,
    ))  # fmt: skip


def read_side(text: str) -> tuple[int, int]:
    """Rows and columns of a crop.

    >>> read_side("36"), read_side("32x28")
    ((36, 36), (32, 28))
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UserError(f"glimpse: --side {text!r} is no size in pixels; give 36 or 32x28 (rows, columns)")
    return int(parts[0]), int(parts[-1])


def _points(text: str) -> float:
    points = Budget(max_drop=text).points
    assert points is not None
    return points


def read_boxes(name: str) -> np.ndarray:
    """Boxes from a ``.npy`` file, or from a ``.csv`` of three columns: x, y and side.

    Raises:
        DataError: it cannot be read as that.
    """
    path = Path(name)
    try:
        if path.stat().st_size > LARGEST_NBYTES:
            raise DataError(f"it is larger than {LARGEST_NBYTES >> 20} MiB; these are no boxes")
        if path.suffix == ".npy":
            found = read_npy(path, LARGEST_NBYTES)
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            found = np.array([line.split(",") for line in lines if line.strip()], dtype=np.float64)
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"glimpse: boxes cannot be read from '{name}': {one_line(error)}") from None
    if found.dtype.kind not in "fiu" or found.ndim != 2 or found.shape[1] != 3:
        raise DataError(
            f"glimpse: '{name}' holds {found.dtype} {list(found.shape)}, not three numbers an input: x, y of the "
            "centre from -1 to 1, and the side as a share of the image's"
        )
    return found.astype(np.float32)
