"""``smidgen fastconv``: each convolution computed the way that is fastest here."""

from __future__ import annotations

import argparse
import contextlib

from smidgen.budget import parse_size
from smidgen.cli.commands import common, example_of, tell_edited
from smidgen.cli.folder import output_folder, undisturbed
from smidgen.cli.inputs import open_sets
from smidgen.cli.progress import Progress
from smidgen.errors import UserError


def fastconv(options: argparse.Namespace) -> int:
    """``smidgen fastconv``."""
    from smidgen.model.fastconv import check_algorithm
    from smidgen.pipeline.fastconv import fastconv as run

    algorithms = None
    if options.algorithms is not None:  # told before the work starts
        algorithms = [name.strip() for name in options.algorithms.split(",") if name.strip()]
        for name in algorithms:
            check_algorithm(name)
    most = None if options.max_size is None else parse_size(options.max_size)
    settings = common(options)
    if options.device != "cpu":
        raise UserError(f"fastconv: it times on the cpu, not on '{options.device}'; leave --device out")
    with contextlib.ExitStack() as stack:
        folder = None
        if options.output is not None:
            folder = stack.enter_context(output_folder(options.output, options.model, options.weights))
        progress = stack.enter_context(Progress(options.quiet, options.verbose))
        data, _ = open_sets(options)
        result = run(
            options.model, data, algorithms=algorithms, max_size=most, low_rank=_share(options.low_rank),
            weights=options.weights, example=example_of(options), threads=settings["threads"], seed=settings["seed"],
            progress=progress,
        )  # fmt: skip
        if folder is not None:
            with undisturbed():
                result.save(folder)
    return tell_edited(result, folder, as_json=options.json)


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        raise UserError(f"fastconv: --low-rank {text!r} is no share; give 1% or 0.01") from None
