"""``smidgen sweep``: the whole front in one run."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys

from smidgen.cli.folder import output_folder, undisturbed
from smidgen.cli.inputs import open_sets, read_budget
from smidgen.cli.progress import Progress
from smidgen.errors import UserError

DONE, NOT_MET = 0, 3
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?)\s*([a-z]*)", re.ASCII)


def sweep(options: argparse.Namespace) -> int:
    """``smidgen sweep``."""
    from smidgen.cli.commands import common, example_of, methods_named, print_json
    from smidgen.pipeline.sweep import sweep as run
    from smidgen.pipeline.targets import check_targets
    from smidgen.report.picture import EXTRA, can_draw
    from smidgen.report.sweep import read_mark, read_marks

    if options.data is None:
        raise UserError("sweep: it needs inputs to calibrate and to measure on; give --data")
    limit = read_duration(options.time_limit)
    budget = read_budget(options, ("size", "ratio", "max_drop"))
    marks = [
        mark for text in options.mark for mark in (read_marks(text) if os.path.isfile(text) else [read_mark(text)])
    ]
    methods = methods_named(options.methods)
    (target,) = check_targets([options.target])
    settings = common(options)
    given = (options.model, options.weights)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(output_folder(options.output, *given))
        progress = stack.enter_context(Progress(options.quiet, options.verbose))
        data, held = open_sets(options)
        found = run(
            options.model, data, **held, folder=folder, points=options.points, budget=budget, marks=marks,
            jobs=options.jobs if options.jobs is not None else processors(), time_limit=limit,
            weights=options.weights, example=example_of(options), methods=methods, target=target,
            rounding=options.rounding, metric=options.metric, refit=not options.no_refit,
            guard=options.refuse_slower, progress=progress, **settings,
        )  # fmt: skip
        found.record["command"] = options.typed
        with undisturbed():
            found.save(folder)
    if not can_draw():
        print(f"smidgen: no sweep.png and sweep.svg, for want of matplotlib: {EXTRA}", file=sys.stderr)
    if options.json:
        print_json(found.record)
    else:
        print(found.table())
        print(found.verdict())
        print(f"files: {folder / 'report.html'}, {folder / 'sweep.json'}, {folder / 'sweep.csv'}, {folder / 'plans'}/")
        print(f"to write that point: smidgen apply {options.model} {folder / found.chosen()['plan']} --data … -o …")
    if found.record["met"]:
        return DONE
    asked = found.record["budget"]
    print(f"smidgen: no point meets {asked['kind']} {asked['value']}; {found.record['chosen']} comes nearest",
          file=sys.stderr)  # fmt: skip
    return NOT_MET


def processors() -> int:
    """How many this process may use.

    >>> processors() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_duration(text: str | None) -> float | None:
    """Seconds in a duration such as "10m".

    Raises:
        UserError: not a duration.

    >>> read_duration("10m"), read_duration("90s"), read_duration("1.5h"), read_duration(None)
    (600.0, 90.0, 5400.0, None)
    """
    if text is None:
        return None
    found = _DURATION.fullmatch(text.strip().lower()) if len(text) < 20 else None
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise UserError(f"time limit: {text!r:.40} is not a time; give 90s, 10m or 2h")
    return float(found[1]) * _UNITS[found[2]]
