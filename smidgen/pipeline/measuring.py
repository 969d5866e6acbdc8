"""One written file beside its original: what it holds, how fast it runs, how well it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.data import Dataset
from smidgen.measure.cost import file_cost
from smidgen.measure.peak import peak_of
from smidgen.measure.scores import Judge, Loss, Metric, Scores
from smidgen.measure.speed import compare_speed
from smidgen.report.measured import Measured
from smidgen.runtimes.opening import open_file, run_dataset


def measured(
    original: Path,
    path: Path,
    one: np.ndarray,
    test: Dataset | None,
    metric: Metric | None,
    threads: int,
    seed: int,
    *,
    comparable: bool = True,
) -> Measured:
    """Count, time and score a file.

    Args:
        original: the file it is compared with; perhaps the same.
        path: the file.
        one: a single input, ``[1, …]``.
        test: inputs scored, or None.
        metric: replaces accuracy.
        threads: of the runtime.
        seed: of resamples.
        comparable: False where the two answer other questions, so that nothing can be said to be lost.
    """
    found = None
    if test is not None:
        found = _scored(original if comparable else path, path, test, metric, threads, seed)
        found = found if comparable else {name: found[name] for name in ("metric", "score")}
    return replace(counted(original, path, one, threads), test=found)


def counted(original: Path, path: Path, one: np.ndarray, threads: int) -> Measured:
    """Count and time a file, as `measured` does; nothing is scored."""
    params, macs = file_cost(path)
    peak = peak_of(path)
    _, speed = compare_speed(original, path, one, threads)
    return Measured(
        params or 0,
        macs,
        path.stat().st_size,
        None if peak is None else peak.nbytes,
        speed.median_ms,
        speed.speedup,
        speed.error,
    )


def entry_of(loss: Loss, scores: Scores) -> dict[str, Any]:
    """What the record says of answers on test inputs.

    Args:
        loss: beside the original's answers.
        scores: the first of the user's metric, accuracy and agreement that there is becomes the score.
    """
    score = next((s for s in (scores.metric, scores.accuracy, scores.agreement) if s is not None), None)
    return {
        "metric": loss.metric, "score": score, "lost": loss.points, "low": loss.low, "high": loss.high,
        "roc_auc": scores.roc_auc, "agreement": scores.agreement, "kl": scores.kl,
    }  # fmt: skip


def _scored(
    original: Path, path: Path, test: Dataset, metric: Metric | None, threads: int, seed: int
) -> dict[str, Any]:
    with open_file(original, threads) as runner:
        answers, names = run_dataset(runner, test.batches()), runner.output_names
    judge = Judge(answers, names, test.labels, metric, seed)
    if path != original:
        with open_file(path, threads) as runner:
            answers = run_dataset(runner, test.batches())
    return entry_of(judge.loss(answers), judge.judge(answers))
