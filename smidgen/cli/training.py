"""``smidgen distil`` and ``smidgen transfer``: networks that are trained, and what that gave."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smidgen.cli.commands import common, print_json, save, tell
from smidgen.cli.folder import output_folder, undisturbed
from smidgen.cli.inputs import open_sets, read_budget
from smidgen.cli.progress import Progress
from smidgen.cli.training_options import read_training
from smidgen.errors import UserError
from smidgen.report.training import Trained

DONE = 0
FLOAT = "transferred"  # folder of the float network, where it was compressed in the same call
Work = Callable[[Any, Any, Progress], Trained]


def distil(options: argparse.Namespace) -> int:
    """``smidgen distil``."""
    from smidgen.pipeline.distil import distil as run

    settings, training = common(options), read_training(options)
    given = (options.teacher, options.student, options.weights, options.student_weights)
    return run_training(options, given, lambda data, held, progress: run(
        options.teacher, options.student, data, training=training, temperature=options.temperature, mix=options.mix,
        features=options.features, search=options.search, **held, weights=options.weights,
        student_weights=options.student_weights, metric=options.metric, checkpoint=options.checkpoint,
        progress=progress, **settings,
    ))  # fmt: skip


def transfer(options: argparse.Namespace) -> int:
    """``smidgen transfer``."""
    from smidgen.pipeline.transfer import transfer as run

    settings, training = common(options), read_training(options)
    return run_training(options, (options.model, options.weights), lambda data, held, progress: run(
        options.model, data, classes=options.classes, training=training, freeze_epochs=options.freeze_epochs,
        body_rate=options.body_rate, **held, weights=options.weights, metric=options.metric,
        checkpoint=options.checkpoint, progress=progress, **settings,
    ), _compression(options, settings))  # fmt: skip


def _compression(options: argparse.Namespace, settings: dict[str, Any]) -> Callable[..., Any] | None:
    """What compresses a written network, where a budget was given; a wrong one is told before the work starts."""
    from smidgen import pipeline
    from smidgen.pipeline.targets import check_targets

    budget = read_budget(options)
    if budget is None:
        return None
    targets = check_targets(options.target.split(","))
    return lambda path, data, held, progress: pipeline.compress(
        path, data, **held, budget=budget, target=targets, metric=options.metric, progress=progress, **settings
    )


def run_training(
    options: argparse.Namespace, given: tuple[str | None, ...], work: Work, further: Callable[..., Any] | None = None
) -> int:
    """Open the data, train, and write what came out; compress that where it was asked for.

    Args:
        options: of the command.
        given: files that it reads, which must not be written over.
        work: (data, what is held back of it, progress) → what was trained.
        further: compresses the written network.
    """
    from smidgen.recover.processes import leads

    if options.data is None:
        raise UserError(f"{options.command}: it needs inputs to learn from; give --data")
    with (
        output_folder(options.output, *given) as folder,
        Progress(options.quiet or not leads(), options.verbose) as progress,
    ):
        data, held = open_sets(options)
        result = work(data, held, progress)
        if not leads():  # of several processes one tells and writes
            return DONE
        place = folder if further is None else folder / FLOAT
        with undisturbed():
            result.save(place)
        smaller = None
        if further is not None:
            smaller = further(place / "model.onnx", data, held, progress)
            save(smaller, folder, options)
    if smaller is None and options.json:
        print_json(result.record)
    elif not options.json:
        _tell(result, place)
    return DONE if smaller is None else tell(smaller, folder, options)


def _tell(result: Trained, place: Path) -> None:
    print(result.table())
    print(result.verdict())
    names = ["model.onnx", *(path.name for path in result.beside), "model.safetensors", "result.json"]
    print(f"files: {', '.join(str(place / name) for name in names)}")
