"""``smidgen distil`` and ``smidgen transfer``: networks that are trained, and what that gave."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from smidgen.cli.commands import common, print_json
from smidgen.cli.folder import output_folder, undisturbed
from smidgen.cli.inputs import open_sets
from smidgen.cli.progress import Progress
from smidgen.cli.training_options import read_training
from smidgen.data import Dataset
from smidgen.errors import UserError
from smidgen.report.training import Trained

DONE = 0
Work = Callable[[Dataset, Dataset | None, Progress], Trained]


def distil(options: argparse.Namespace) -> int:
    """``smidgen distil``."""
    from smidgen.pipeline.distil import distil as run

    settings, training = common(options), read_training(options)
    given = (options.teacher, options.student, options.weights, options.student_weights)
    return _run(options, given, lambda data, test, progress: run(
        options.teacher, options.student, data, training=training, temperature=options.temperature, mix=options.mix,
        features=options.features, search=options.search, test=test, weights=options.weights,
        student_weights=options.student_weights, metric=options.metric, checkpoint=options.checkpoint,
        progress=progress, **settings,
    ))  # fmt: skip


def transfer(options: argparse.Namespace) -> int:
    """``smidgen transfer``."""
    from smidgen.pipeline.transfer import transfer as run

    settings, training = common(options), read_training(options)
    return _run(options, (options.model, options.weights), lambda data, test, progress: run(
        options.model, data, classes=options.classes, training=training, freeze_epochs=options.freeze_epochs,
        body_rate=options.body_rate, test=test, weights=options.weights, metric=options.metric,
        checkpoint=options.checkpoint, progress=progress, **settings,
    ))  # fmt: skip


def _run(options: argparse.Namespace, given: tuple[str | None, ...], work: Work) -> int:
    from smidgen.recover.processes import leads

    if options.data is None:
        raise UserError(f"{options.command}: it needs inputs to learn from; give --data")
    with output_folder(options.output, *given) as folder, Progress(options.quiet or not leads()) as progress:
        data, test = open_sets(options)
        assert data is not None  # named above
        result = work(data, test, progress)
        if not leads():  # of several processes one tells and writes
            return DONE
        with undisturbed():
            result.save(folder)
    if options.json:
        print_json(result.record)
        return DONE
    print(result.table())
    print(result.verdict())
    print(f"files: {', '.join(str(folder / name) for name in ('model.onnx', 'model.safetensors', 'result.json'))}")
    return DONE
