"""What `smidgen.distil` and `smidgen.transfer` made: a trained network, its files, and what was measured on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from smidgen.model.replace import save_network
from smidgen.recover.training import duration
from smidgen.report import wording
from smidgen.report.measured import Measured, totals
from smidgen.report.result import ORIGINAL, Scratch, save_together, write_record

_STOPPED = {
    "done": "",
    "patience": ", stopped where it got no better",
    "time": ", stopped by the time limit",
    "nan": ", stopped by a loss that kept exploding",
}


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished training.

    Args:
        model: the trained network, an ordinary module in evaluation mode.
        files: what was measured on each file, by what to call it: the given network first, the trained one last.
        record: all of it as plain values.
        file: the trained network as ONNX, in a temporary folder until `save`.
        folder: the temporary folder, removed with the result.
        beside: other files of the trained network.
    """

    model: nn.Module
    files: Mapping[str, Measured]
    record: dict[str, Any]
    file: Path
    folder: Scratch
    beside: tuple[Path, ...] = ()

    def table(self) -> str:
        """Before and after, measured on the written files, as text."""
        return totals(self.files)

    def verdict(self) -> str:
        """What came out, in a sentence."""
        first, *_, last = self.files.values()
        fitted = self.record["fitted"]
        told = f"{fitted['epochs']} epoch{'' if fitted['epochs'] == 1 else 's'} in {duration(fitted['seconds'])}"
        told += f"{_STOPPED[fitted['stopped']]}: "
        told += f"{wording.size(first.nbytes)} → {wording.size(last.nbytes)}, {first.nbytes / last.nbytes:.1f}× smaller"
        test = last.test or {}
        if test.get("score") is not None:
            told += f", {test['metric']} {100 * test['score']:.2f} %"
        if test.get("lost") is not None:
            told += f", {wording.signed(test['lost'])} points lost"
        return told

    def save(self, folder: str | Path) -> Path:
        """Write ``model.onnx``, ``model.safetensors`` and ``result.json``; ``original.onnx`` where a module was given.

        Args:
            folder: made when it is missing.

        Returns:
            The folder.

        Raises:
            OutputError: when it cannot be written.
        """
        own = self.folder.path / ORIGINAL

        def write(draft: Path) -> None:
            for path in (self.file, *self.beside, *([own] if own.is_file() else [])):
                shutil.copyfile(path, draft / path.name)
            save_network(self.model, [], {}, draft / "model.safetensors")
            write_record(self.record, draft)

        return save_together(folder, write)
