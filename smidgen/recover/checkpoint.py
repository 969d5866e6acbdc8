"""A training that was stopped, in one file: written whole or not at all, and read without running code from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.errors import DataError, LoadError, OutputError, one_line
from smidgen.recover.training import Training

KIND, VERSION = "smidgen training", 1
_FREE = ("time_limit",)  # settings that may differ when a run goes on: they change no step


@dataclass(frozen=True)
class Fingerprint:
    """What must be the same for a run to go on.

    Args:
        network: digest of its layers' kinds and its tensors' names, shapes and types.
        data: digest of inputs, labels and preprocessing.
        settings: of the training, and what the caller adds, as plain values.
    """

    network: str
    data: str
    settings: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """For the file."""
        return {"network": self.network, "data": self.data, "settings": json.dumps(self.settings, sort_keys=True)}


def fingerprint(
    model: nn.Module, inputs: Dataset, training: Training, hooks: Sequence[object], identity: Mapping[str, Any]
) -> Fingerprint:
    """Of a run that is about to begin.

    >>> import numpy as np
    >>> inputs = Dataset.from_array(np.zeros((2, 3), np.float32))
    >>> fingerprint(nn.Linear(3, 1), inputs, Training(), [], {}).settings["epochs"]
    10
    """
    layers = [(name, type(part).__name__) for name, part in model.named_modules()]
    tensors = [(name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    seen = inputs.describe()
    settings = {name: value for name, value in training.plain().items() if name not in _FREE}
    own = {"hooks": [type(hook).__name__ for hook in hooks], **identity}
    return Fingerprint(
        _digest([layers[1:], tensors]), _digest([seen["sha256"], seen.get("preprocess")]), {**settings, **own}
    )


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def write_checkpoint(path: Path, state: Mapping[str, Any], made: Fingerprint) -> None:
    """Write a run's state; an older file is replaced at once.

    Args:
        path: its folder is made when missing.
        state: tensors and plain values, nested.
        made: of the run.

    Raises:
        OutputError: when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"kind": KIND, "version": VERSION, "made": made.plain(), "state": dict(state)}, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OutputError(f"checkpoint: cannot write '{path}': {reason}; choose another --checkpoint") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_checkpoint(path: Path, made: Fingerprint) -> dict[str, Any] | None:
    """A run's state, for the same run to go on; None where there is no file yet.

    Args:
        path: perhaps written by `write_checkpoint`.
        made: of the run that wants to go on.

    Raises:
        LoadError: damaged, or no such file at all.
        DataError: of another network, other data, other settings or another version.
    """
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile each raise their own for damaged bytes
        reason = one_line(error, 80) or type(error).__name__
        raise LoadError(f"checkpoint: '{path}' cannot be read ({reason}); remove it to start over") from error
    if not isinstance(found, dict) or found.get("kind") != KIND or not isinstance(found.get("state"), dict):
        raise LoadError(f"checkpoint: '{path}' holds no training that was stopped; name another file")
    if found.get("version") != VERSION:
        raise DataError(f"checkpoint: '{path}' is of version {found.get('version')!r} and this is {VERSION}; {_MEND}")
    _check(path, found.get("made"), made)
    return found["state"]


def _check(path: Path, found: Any, made: Fingerprint) -> None:
    found = found if isinstance(found, dict) else {}
    for part, told in (("network", "another network"), ("data", "other data")):
        if found.get(part) != getattr(made, part):
            raise DataError(f"checkpoint: '{path}' is of {told}; {_MEND}")
    try:
        before = dict(json.loads(found.get("settings", "")))
    except (TypeError, ValueError) as error:
        raise LoadError(f"checkpoint: '{path}' is damaged; remove it to start over") from error
    now = json.loads(made.plain()["settings"])
    # A setting that the file does not know is a newer one, whose None is what was done before.
    name = next((n for n in sorted({*before, *now}) if before.get(n) != now.get(n)), None)
    if name is None:
        return
    raise DataError(
        f"checkpoint: '{path}' was made with {name}={before.get(name)!r} and now it is {now.get(name)!r}; {_MEND}"
    )


_MEND = "give another --checkpoint, or remove that file to start over"
