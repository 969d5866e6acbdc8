"""``smidgen unpack``: apart from the other commands, for it runs where there is no torch (but for a TFLite file)."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smidgen.budget import parse_size
from smidgen.errors import BudgetError, OutputError, UserError
from smidgen.export.archive import LIMIT, describe_archive, read_archive, unpack_archive
from smidgen.export.files import write_bytes


def unpack(options: argparse.Namespace) -> int:
    """``smidgen unpack``."""
    source = Path(options.file)
    target = Path(options.output) if options.output else source.with_suffix(".onnx")
    if target.resolve() == source.resolve():
        raise OutputError(f"unpack: '{target}' is the archive itself; name another file with -o")
    limit = _limit(options.limit)
    data = read_archive(source, limit)
    model = unpack_archive(data, limit)
    write_bytes(_as_tflite(model) if target.suffix == ".tflite" else model, target)
    record = {"file": str(target), "archive": str(source), **asdict(describe_archive(data, limit))}
    if options.json:
        print(json.dumps(record, indent=1))
    else:
        _tell(record)
    return 0


def _limit(text: str | None) -> int:
    try:
        return LIMIT if text is None else parse_size(text)
    except BudgetError:
        raise UserError(f"unpack: limit '{text}' is no size; write it like 2GB or 512MiB") from None


def _tell(record: dict[str, Any]) -> None:
    nbytes = Path(record["file"]).stat().st_size
    times = nbytes / record["nbytes"]
    print(f"{record['file']}: {nbytes:,} bytes, {times:.1f} times the archive's {record['nbytes']:,}")
    for name, nbytes in record["streams"].items():
        print(f"  {name:<10}{nbytes:>12,}")
    kinds = [
        f"{record['weights'][kind]:,} values of {number} {kind} tensor{'s' * (number != 1)}"
        for kind, number in record["tensors"].items()
        if number
    ]
    print(", ".join(kinds) or "no weights")


def _as_tflite(model: bytes) -> bytes:
    """An ONNX file's bytes as those of a TFLite file."""
    from smidgen.export.tflite import tflite_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        return tflite_of(path)
