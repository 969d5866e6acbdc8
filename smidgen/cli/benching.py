"""``smidgen bench``: files timed beside their original."""

from __future__ import annotations

import argparse
from pathlib import Path

from smidgen.cli.commands import print_json
from smidgen.cli.inputs import open_scored
from smidgen.cli.progress import Progress
from smidgen.errors import OutputError, UserError

DONE = 0


def bench(options: argparse.Namespace) -> int:
    """``smidgen bench``."""
    from smidgen.pipeline.bench import bench as measure

    threads = read_threads(options.threads)
    place = None if options.output is None else _place(options)
    with Progress(options.quiet, options.verbose) as progress:
        data = open_scored(options)
        result = measure(
            options.files, options.against, data, threads=threads, repeats=options.repeats, progress=progress
        )
    if place is not None:
        result.save(place)
    if options.json:
        print_json(result.record)
        return DONE
    print(result.table())
    source = result.record["input"]
    print(f"one input {source['shape'][1:]} ({source['source']}), times of this machine")
    if place is not None:
        print(f"files: {place}")
    return DONE


def read_threads(text: str) -> list[int]:
    """Thread counts such as "1,2,4".

    Raises:
        UserError: not such numbers.

    >>> read_threads("1,2")
    [1, 2]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise UserError(f"threads: {text!r} is no count of threads; give 1, or several with commas: 1,2,4")
    return [int(part) for part in parts]


def _place(options: argparse.Namespace) -> Path:
    """Where the record goes, known to be writable before the work starts."""
    place = Path(options.output)
    given = [Path(each) for each in (*options.files, options.against) if each is not None]
    if place.resolve() in [each.resolve() for each in given]:
        raise OutputError(f"bench: '{place}' is one of the files to time; name another with -o")
    if place.is_dir() or not place.parent.is_dir():
        raise OutputError(f"bench: '{place}' is no file in a folder that is there; name another with -o")
    return place
