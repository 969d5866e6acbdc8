"""What a microcontroller's project takes from a run, beside the file that was measured: the file as C sources."""

from __future__ import annotations

from dataclasses import replace

from smidgen.export.files import write_bytes
from smidgen.export.micro import c_sources
from smidgen.report.result import Result


def with_sources(result: Result) -> Result:
    """The result with C sources of its ``mcu`` file beside it, where it has one.

    Args:
        result: with its ledger, which tells the arena.
    """
    path = result.files.get("mcu")
    if path is None:
        return result
    arena = result.record["ledger"]["files"]["mcu"]["arena_bytes"]
    written = []
    for name, content in c_sources(path.read_bytes(), arena).items():
        write_bytes(content, path.with_name(name))
        written.append(path.with_name(name))
    return replace(result, beside=tuple(written))
