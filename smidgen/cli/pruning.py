"""``smidgen prune``: whole channels cut, the rest refitted, and what that saves and costs."""

from __future__ import annotations

import argparse

from smidgen.cli.commands import common, example_of, tell_edited
from smidgen.cli.folder import output_folder, undisturbed
from smidgen.cli.inputs import open_sets
from smidgen.cli.progress import Progress
from smidgen.errors import UserError


def prune(options: argparse.Namespace) -> int:
    """``smidgen prune``."""
    from smidgen.methods.channels import choose_criterion
    from smidgen.pipeline.prune import prune as run
    from smidgen.pipeline.prune import share_wanted

    share_wanted(options.macs, options.params)  # told before the work starts
    choose_criterion(options.criterion)
    settings = common(options)
    if options.device != "cpu":
        raise UserError(f"prune: it computes on the cpu, not on '{options.device}'; leave --device out")
    given = (options.model, options.weights)
    with output_folder(options.output, *given) as folder, Progress(options.quiet, options.verbose) as progress:
        data, held = open_sets(options)
        result = run(
            options.model, data, macs=options.macs, params=options.params, criterion=options.criterion,
            multiple=options.round, protect=options.protect, **held,
            weights=options.weights, example=example_of(options), metric=options.metric, refit=not options.no_refit,
            threads=settings["threads"], seed=settings["seed"], progress=progress,
        )  # fmt: skip
        with undisturbed():
            result.save(folder)
    return tell_edited(result, folder, as_json=options.json)
