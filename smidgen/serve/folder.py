"""Which files of a run's folder the page may have: those its ``result.json`` names, and none outside the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.data import Preprocess
from smidgen.errors import DataError, LoadError
from smidgen.model.onnx import whole_onnx
from smidgen.report.folder import LARGEST_RECORD, RESULT, parsed
from smidgen.runtimes.micro import MICRO_END

_DOWNSAMPLED = {"onnx": {"path": "model.onnx"}}  # what smidgen downsample writes; its record names no files
RUNTIMES = {".onnx": "onnxruntime", ".tflite": "litert"}  # what runs a file in a browser, by the end of its name


@dataclass(frozen=True)
class Network:
    """A network's file.

    Args:
        target: what it was written for, such as ``onnx-w8``; ``original``.
        path: the file, links resolved.
        accuracy: on the run's test inputs, as ``result.json`` says; None where it does not.
    """

    target: str
    path: Path
    accuracy: float | None = None

    @property
    def runtime(self) -> str:
        """What runs it in a browser."""
        return RUNTIMES[self.path.suffix.lower()]

    @property
    def nbytes(self) -> int:
        """What a phone has to load."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Run:
    """What a run left in its folder.

    Args:
        name: of the network.
        original: the network that was compressed.
        written: the smaller ones that a browser can run, the one the budget was for first.
        preprocess: how the run's images became inputs; None where nothing was declared.
        notes: what else to say, a line each.
    """

    name: str
    original: Network
    written: tuple[Network, ...]
    preprocess: Preprocess | None
    notes: tuple[str, ...] = ()


def read_run(folder: str | Path, against: str | Path | None = None) -> Run:
    """The run that was saved in a folder.

    Args:
        folder: holds ``result.json`` and the files it names.
        against: the original, where it is not in the folder.

    Raises:
        LoadError: no such folder, no or a damaged record, or a file that is missing, leads elsewhere or runs in no
            browser.

    >>> read_run("no-such-folder")
    Traceback (most recent call last):
    smidgen.errors.LoadError: serve: there is no folder 'no-such-folder'; give the one that compress wrote
    """
    place = Path(folder)
    if not place.is_dir():
        raise LoadError(f"serve: there is no folder '{folder}'; give the one that compress wrote")
    record = _read_record(place)
    name, target = str(record.get("name", "network"))[:80], record.get("target")
    entries = _mapping(record.get("files")) or _DOWNSAMPLED
    order = sorted(entries, key=lambda each: each != target)
    written, notes = [], []
    for each in order:
        entry = _mapping(entries[each])
        file = str(entry.get("path", ""))
        if Path(file).suffix.lower() not in RUNTIMES or file.endswith(MICRO_END):
            continue
        path = _inside(place, file)
        if path.is_file():
            written.append(Network(str(each)[:40], path, _share(entry.get("accuracy"))))
        else:
            notes.append(f"'{file}' is no longer in '{folder}', so the page goes without it")
    if not written:
        ends = " or ".join(RUNTIMES)
        reason = notes[0] if notes else f"'{place / RESULT}' names no file that ends in {ends}"
        raise LoadError(f"serve: {reason}; compress again with a target such as onnx")
    original = _original(place, _mapping(record.get("original")), against)
    return Run(name, original, tuple(written), _declared(record), tuple(notes))


def _read_record(place: Path) -> dict[str, Any]:
    path = _inside(place, RESULT)
    if not path.is_file():
        raise LoadError(f"serve: '{place}' holds no {RESULT}; give the folder that compress wrote")
    return parsed(path, "serve")


def _original(place: Path, entry: Mapping[str, Any], against: str | Path | None) -> Network:
    named = str(entry.get("path", ""))
    if against is not None:
        path = Path(against).resolve()
        if not path.is_file():
            raise LoadError(f"serve: there is no file '{against}'; give the original network with --against")
    else:
        path = _inside(place, named) if named else None
        if path is None or not path.is_file():
            raise LoadError(f"serve: the original {named!r:.80} is not in '{place}'; give it with --against")
    if path.suffix.lower() not in RUNTIMES:
        raise LoadError(f"serve: no browser runs '{path.name}'; give a file that ends in {' or '.join(RUNTIMES)}")
    return Network("original", whole_onnx(path), _share(entry.get("accuracy")))


def _inside(place: Path, file: str) -> Path:
    """A file of the folder itself; a record may come from anywhere, and links may lead anywhere."""
    if file in ("", "..") or file != Path(file).name or "\\" in file or "\0" in file:
        raise LoadError(f"serve: '{place / RESULT}' names {file!r:.80}, which is no plain file name; compress again")
    try:
        path = (place / file).resolve()
    except (OSError, RuntimeError) as error:
        raise LoadError(f"serve: '{place / file}' cannot be followed; remove it") from error
    if path.parent != place.resolve():
        raise LoadError(f"serve: '{place / file}' leads out of the folder; put the file itself there")
    return path


def _declared(record: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing of the run's inputs; the same for all of them."""
    for role in _mapping(record.get("data")).values():
        stored = _mapping(role).get("preprocess")
        if isinstance(stored, dict):
            try:
                return Preprocess.from_dict(stored)
            except DataError as error:
                raise LoadError(f"serve: {RESULT}: {error}") from error
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _share(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Names of classes, a line each.

    Args:
        path: a text file.

    Raises:
        LoadError: it cannot be read as that.
    """
    try:
        if Path(path).stat().st_size > LARGEST_RECORD:
            raise LoadError(f"serve: '{path}' is too large for names of classes; give one name a line")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise LoadError(f"serve: '{path}' cannot be read: {reason}; give a text file, one class a line") from None
    return tuple(line.strip()[:80] for line in lines)
