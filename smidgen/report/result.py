"""What compress() returns: the smaller network, its files and what was measured on them."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from smidgen.data import Dataset
from smidgen.errors import OutputError
from smidgen.model.replace import save_network
from smidgen.planning.plan import Plan
from smidgen.report.page import changed_of, in_notebook, result_page
from smidgen.report.table import to_text
from smidgen.report.thumbnails import thumbnails
from smidgen.site import Site, Stored

ORIGINAL = "original.onnx"  # the file of an original that was none


class Scratch:
    """A temporary folder that is removed with the last object that holds it.

    >>> folder = Scratch()
    >>> place = folder.path
    >>> del folder
    >>> place.exists()
    False
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="smidgen-"))
        self._removal = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run.

    Args:
        model: the smaller network, an ordinary module with the original's inputs and outputs.
        plan: which form each layer took.
        met: whether the budget was met.
        record: what ``result.json`` holds.
        files: written files by target, in a temporary folder until `save`.
        sites, stored: the layers, and the form and bias each one took.
        folder: the temporary folder, removed with the result.
        beside: further files that `save` writes.
        test: the inputs that files were scored on; the report shows those whose answer changed.
    """

    model: nn.Module
    plan: Plan
    met: bool
    record: dict[str, Any]
    files: Mapping[str, Path]
    sites: list[Site]
    stored: Mapping[str, Stored]
    folder: Scratch
    beside: tuple[Path, ...] = ()
    test: Dataset | None = None

    def page(self) -> str:
        """``report.html``: everything the record says, and the inputs whose answer changed."""
        places = [each["place"] for each in (changed_of(self.record) or {"inputs": []})["inputs"]]
        return result_page(self.record, {} if self.test is None else thumbnails(self.test, places))

    def _repr_html_(self) -> str:
        return in_notebook(self.page())

    def table(self) -> str:
        """Before and after, measured on the written files, as text."""
        return to_text(self.record)

    def save(self, folder: str | Path) -> Path:
        """Write ``model.onnx``, ``model.smidgen``, ``model.safetensors``, ``plan.json``, ``result.json`` and
        ``report.html``.

        Each file appears whole or not at all. A network that was given as a module leaves ``original.onnx`` too: what
        it was measured as. One that lost channels leaves no ``model.safetensors``, which the user's class could not
        take.

        Args:
            folder: made when it is missing.

        Returns:
            The folder.

        Raises:
            OutputError: when it cannot be written.
        """
        own = self.folder.path / ORIGINAL

        def write(draft: Path) -> None:
            for path in (*self.files.values(), *self.beside, *([own] if own.is_file() else [])):
                shutil.copyfile(path, draft / path.name)
            if self.plan.cut is None:  # else the user's class makes layers that these weights do not fit
                save_network(self.model, self.sites, self.stored, draft / "model.safetensors")
            (draft / "plan.json").write_text(self.plan.to_json() + "\n", encoding="utf-8")
            write_record(self.record, draft)
            (draft / "report.html").write_text(self.page(), encoding="utf-8")

        return save_together(folder, write)


def save_together(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Files that belong together: all of them appear, each in one step, or none.

    Args:
        folder: made when it is missing.
        write: puts the files into an empty folder.

    Returns:
        The folder.

    Raises:
        OutputError: when it cannot be written.
    """
    place = writable_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".smidgen-", dir=place) as draft:
            write(Path(draft))
            for path in sorted(Path(draft).iterdir()):
                path.replace(place / path.name)
    except OSError as error:
        raise OutputError(f"save: cannot write into '{place}': {error.strerror}") from error
    return place


def save_edited(folder: str | Path, file: Path, record: Mapping[str, Any], own: Path | None = None) -> Path:
    """``model.onnx`` and ``result.json`` of a network that was edited and not planned.

    Args:
        folder: made when it is missing.
        file: the network.
        record: what was measured.
        own: where the original is when it was given as a module: ``original.onnx`` in the folder.

    Returns:
        The folder.

    Raises:
        OutputError: when it cannot be written.
    """

    def write(draft: Path) -> None:
        shutil.copyfile(file, draft / "model.onnx")
        if own is not None and own.is_file():
            shutil.copyfile(own, draft / ORIGINAL)
        write_record(record, draft)

    return save_together(folder, write)


def write_record(record: Mapping[str, Any], folder: Path) -> None:
    """``result.json``."""
    (folder / "result.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if missing, once it is certain that files can be written there.

    Raises:
        OutputError: when it cannot be made or written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"save: cannot write into '{folder}': {reason}; choose another folder with -o") from error
    return place
