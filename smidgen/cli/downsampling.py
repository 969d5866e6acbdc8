"""``smidgen downsample``: where a network could downsample earlier, what that saves and costs, and the best of it."""

from __future__ import annotations

import argparse
import contextlib

from smidgen.cli.commands import common, tell_edited
from smidgen.cli.folder import output_folder, undisturbed
from smidgen.cli.inputs import open_sets
from smidgen.cli.progress import Progress
from smidgen.errors import UserError


def downsample(options: argparse.Namespace) -> int:
    """``smidgen downsample``."""
    from smidgen.pipeline.downsample import downsample as search

    if options.data is None:
        raise UserError("downsample: it needs inputs to refit and to measure on; give --data")
    settings = common(options)
    if options.device != "cpu":
        raise UserError(f"downsample: it computes on the cpu, not on '{options.device}'; leave --device out")
    with contextlib.ExitStack() as stack:
        folder = None
        if options.output is not None:
            folder = stack.enter_context(output_folder(options.output, options.model, options.weights))
        progress = stack.enter_context(Progress(options.quiet, options.verbose))
        data, held = open_sets(options)
        result = search(
            options.model, data, max_drop=options.max_drop, **held, weights=options.weights, metric=options.metric,
            refit=not options.no_refit, threads=settings["threads"], seed=settings["seed"], progress=progress,
        )  # fmt: skip
        if folder is not None:
            with undisturbed():
                result.save(folder)
    return tell_edited(result, folder, as_json=options.json)
