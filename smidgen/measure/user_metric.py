"""A metric of the user's own: loaded from a file, called with care, its faults told in one line."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.errors import UserError

Metric = Callable[[Any, Any], Any]


def load_metric(named: str) -> Metric:
    """Your own metric from ``"file.py:function"``: function(outputs, labels) → one finite number, higher is better.

    It gets the output [n, …] (a tuple of them where the network has several) and the labels (None without). The file is
    run: name only files you trust. UserError when the file or the function is missing or the file fails.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = pathlib.Path(folder, "mine.py").write_text("def ones(outputs, labels):\\n    return outputs.mean()")
    ...     load_metric(folder + "/mine.py:ones")(np.ones((2, 2)), None)
    np.float64(1.0)
    """
    file, _, function = named.rpartition(":")
    if not file or not function:
        raise UserError(f"metric: '{named}' names no function; give file.py:function")
    if not Path(file).is_file():
        raise UserError(f"metric: no file '{file}'; check the path")
    spec = importlib.util.spec_from_file_location(f"smidgen_metric_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"metric: '{file}' is not a Python file; give file.py:function")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling inside the file look their module up here.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        raise UserError(f"metric: '{file}' fails when loaded: {_told(fault)}") from None
    metric = getattr(module, function, None)
    if not callable(metric):
        raise UserError(f"metric: '{file}' has no function '{function}'; give file.py:function(outputs, labels)")
    return metric


def apply_metric(metric: Metric, outputs: tuple[np.ndarray, ...], labels: np.ndarray | None) -> float:
    """The metric's value, or UserError in one line."""
    try:
        value = float(metric(outputs[0] if len(outputs) == 1 else outputs, labels))
    except Exception as fault:
        raise UserError(f"metric: '{metric_name(metric)}' raised {_told(fault)}") from None
    if not math.isfinite(value):
        raise UserError(
            f"metric: '{metric_name(metric)}' gave {value} on {len(outputs[0])} samples; give one finite number"
        )
    return value


def metric_name(metric: Metric) -> str:
    """The function's own name."""
    return getattr(metric, "__name__", type(metric).__name__)


def _told(fault: Exception) -> str:
    """The exception in one line of at most 200 characters."""
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:200]
