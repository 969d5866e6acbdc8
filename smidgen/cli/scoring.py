"""``smidgen eval``: score written files in ONNX Runtime, alone or beside the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from smidgen.data import Dataset, check_labels
from smidgen.errors import LoadError
from smidgen.measure.memory import UNKNOWN, peak_rss_bytes
from smidgen.measure.scores import load_metric
from smidgen.model.onnx import whole_onnx
from smidgen.pipeline.samples import sample_inputs
from smidgen.pipeline.task import Progress
from smidgen.report.record import measure_files, versions
from smidgen.report.table import render_table
from smidgen.runtimes.opening import Runner, open_file

WIDTH = 120  # columns where the output is no terminal


def score_files(
    file: str, against: str | None, data: Dataset | None, metric: str | None, threads: int | None, progress: Progress
) -> dict[str, Any]:
    """What was measured on a file, and on the original where one is given.

    Args:
        file: an ONNX file.
        against: the original's ONNX file.
        data: inputs to score on, all of them; None for size and speed only.
        metric: ``file.py:function`` in place of accuracy.
        threads: of the runtime.
        progress: called with (stage, done, total).

    Raises:
        UserError: for files that cannot be opened and data that do not fit.
    """
    threads = threads or torch.get_num_threads()
    paths = {"original": whole_onnx(file if against is None else against)}
    if against is not None:
        paths["onnx"] = whole_onnx(file)
    one = np.zeros(0)
    for path in paths.values():
        with open_file(path, threads) as runner:
            one = sample_inputs(runner, data)
            _check(runner, data, one, metric)
    judged = None if metric is None else load_metric(metric)
    progress("measure", 0, 1)
    files = measure_files(paths, data, judged, one, threads)
    peak = peak_rss_bytes()
    return {
        "schema_version": 1,
        "file": Path(file).name,
        "threads": threads,
        "peak_rss_bytes": peak,
        "why": {"peak_rss_bytes": UNKNOWN} if peak is None else {},
        "versions": versions(),
        "data": {"test": None if data is None else data.describe()},
        "original": files["original"] if against is not None else None,
        "files": {"onnx": files["onnx" if against is not None else "original"]},
    }


def _check(runner: Runner, data: Dataset | None, one: np.ndarray, metric: str | None) -> None:
    """Told now in terms of the data, not later in the runtime's."""
    answers = runner.run(one)
    if data is None or data.labels is None or metric is not None or len(answers) != 1:
        return
    if answers[0].ndim < 2:
        raise LoadError(f"eval: '{runner.path.name}' gives {list(answers[0].shape)} for one input; give --metric")
    classes = answers[0][0].size
    if classes == answers[0].shape[1] > 1:
        check_labels(data, classes)


def print_scores(record: dict[str, Any]) -> None:
    """The table for people, on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    original, file = record["original"], record["files"]["onnx"]
    if original is None:
        table = render_table({"original": file, "files": {}})
        table.columns[1].header = Text("measured")
    else:
        table = render_table({"original": original, "files": {"onnx": file}})
    console.print(table)
    data = record["data"]["test"]
    if data is not None:
        part = f", split {data['split']}" if "split" in data else ""
        console.print(Text(f"scored on {data['count']} inputs of {data['source']}{part}"))
