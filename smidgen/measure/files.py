"""What a written file weighs, and which file it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from smidgen.errors import LoadError, one_line
from smidgen.runtimes.tflite_file import parse


def nbytes(path: str | Path) -> int:
    """Size of the file at ``path`` in bytes. LoadError when there is no such file.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pathlib.Path(folder, "model.onnx").write_bytes(b"12345")
    ...     nbytes(folder + "/model.onnx")
    5
    5
    """
    return _file(path).stat().st_size


def sha256(path: str | Path) -> str:
    """SHA-256 of the file's bytes (FIPS 180-4) in 64 hex digits. LoadError when there is no such file.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pathlib.Path(folder, "model.onnx").write_bytes(b"abc")
    ...     sha256(folder + "/model.onnx")[:16]
    3
    'ba7816bf8f01cfea'
    """
    with _file(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """The ONNX file at ``path``, functions of its own written out. LoadError when it cannot be read."""
    try:
        model = onnx.load(str(path))
    except Exception as fault:  # protobuf and the file system each raise their own
        raise LoadError(f"measure: '{path}' is not an ONNX file: {one_line(fault)}") from None
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def read_tflite(path: str | Path) -> Any:
    """The TFLite file at ``path`` as objects of its schema. LoadError when it cannot be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as fault:
        raise LoadError(f"measure: cannot read '{path}': {fault.strerror}") from None
    return parse(content, f"'{path}'")


def _file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise LoadError(f"measure: no file '{path}'; check the path")
    return Path(path)
