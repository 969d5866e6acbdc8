"""What `smidgen.distil` and `smidgen.transfer` made, and what the record says of a plan that was trained."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from smidgen.forms import Form, Masked, dense
from smidgen.model.replace import save_network
from smidgen.recover.training import duration
from smidgen.report import wording
from smidgen.report.measured import Measured, totals
from smidgen.report.result import ORIGINAL, Result, Scratch, save_together, write_record

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


def with_training(result: Result, told: dict[str, Any]) -> Result:
    """A result whose record says how it was trained, and of each layer what a gradual pruning left."""
    record = {**result.record, "training": told}
    if told["kept"]:
        record["mode"] = "training"
    if told["kept"] and told["gradual"]:
        shares = {name: _gone(one.form) for name, one in result.stored.items()}
        record["layers"] = [_with_share(layer, shares[layer["name"]]) for layer in record["layers"]]
        if "pruning" in record:  # not where the original's file was kept
            record["pruning"] = {**record["pruning"], "method": "magnitude"}
    return replace(result, record=record)


def _gone(form: Form) -> float:
    """Share of the weights that is zero: of a pruned layer's, or of one that shares its values since."""
    return form.sparsity if isinstance(form, Masked) else float(np.mean(dense(form) == 0))


def _with_share(layer: dict[str, Any], share: float) -> dict[str, Any]:
    """A layer of the record with what was removed of it while it trained, in the place of what was planned."""
    if layer["sparsity"] is None:
        return layer
    return {**layer, "sparsity": share, "form": re.sub(r"[\d.]+ %", f"{100 * share:.1f} %", layer["form"])}
