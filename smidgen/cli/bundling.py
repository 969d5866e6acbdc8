"""``smidgen bundle``: the files of a run packed for a device, and what came back from it."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from smidgen.cli.commands import print_json
from smidgen.cli.folder import undisturbed
from smidgen.cli.inputs import open_scored
from smidgen.errors import UserError

DONE = 0
WIDTH = 120  # columns where the output is no terminal


def bundle(options: argparse.Namespace) -> int:
    """``smidgen bundle``."""
    if options.merge is not None:
        return _merge(options)
    from smidgen.pipeline.bundle import bundle as pack

    if options.output is None:
        raise UserError("bundle: it needs a folder to write; name one with -o, or results with --merge")
    data = open_scored(options)
    with undisturbed():
        record = pack(options.folder, options.output, against=options.against, data=data, samples=options.samples)
    if options.json:
        print_json(record)
        return DONE
    for file in record["files"]:
        print(f"{file['path']}: {file['nbytes']:,} bytes")
    for name, reason in record["left_out"].items():
        print(f"left out: {name}: {reason}")
    print(f"{record['count']} inputs ({record['source']}) and the answers of {record['machine']['processor']}")
    print(f"copy {Path(options.output)}/ to the device and run: python3 bench.py   (Android: sh android.sh)")
    print(f"then here: smidgen bundle {options.folder} --merge results.json")
    return DONE


def _merge(options: argparse.Namespace) -> int:
    from smidgen.pipeline.bundle import merge
    from smidgen.report.devices import devices_table

    if options.output is not None or options.data is not None or options.against is not None:
        raise UserError("bundle: --merge reads results; leave -o, --data and --against out")
    with undisturbed():
        record = merge(options.merge, options.folder)
    if options.json:
        print_json(record)
        return DONE
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(devices_table(record["devices"]))
    print(f"files: {options.folder}/result.json")
    return DONE
