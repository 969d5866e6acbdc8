"""What every command that trains does before and after: divide the data, write the network, measure the file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.data import Dataset, Roles, check_labels, split_roles
from smidgen.errors import UserError
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.export.verify import verify
from smidgen.measure.memory import release
from smidgen.measure.scores import Metric, load_metric
from smidgen.model.load import Network
from smidgen.pipeline.measuring import measured
from smidgen.pipeline.task import Data, as_data, check_sets
from smidgen.recover.loop import Fitted
from smidgen.recover.training import Training
from smidgen.report.measured import Measured
from smidgen.report.record import versions
from smidgen.report.result import ORIGINAL, Scratch
from smidgen.report.training import Trained
from smidgen.site import untouched


@dataclass(frozen=True, eq=False)
class Ground:
    """Data for a training, divided; and what its results are measured with.

    Args:
        roles: ``calibration`` holds all that is learned from, ``selection`` says when to stop and what to keep, and
            ``test`` is scored once, at the end.
        example: one input.
        metric: replaces accuracy.
        threads, seed: of everything.
        folder: for files until they are saved.
    """

    roles: Roles
    example: torch.Tensor
    metric: Metric | None
    threads: int
    seed: int
    folder: Scratch

    @property
    def learned(self) -> Dataset:
        """The inputs that are learned from."""
        return self.roles.calibration

    @property
    def one(self) -> np.ndarray:
        """A single input."""
        return self.example.numpy()

    def describe(self) -> dict[str, Any]:
        """The roles for the record."""
        told = self.roles.describe()
        return {"training": told.pop("calibration"), **told}


def open_ground(
    network: Network, data: Data, test: Data, validation: Data, metric: str | Metric | None, threads: int | None,
    training: Training,
) -> Ground:  # fmt: skip
    """Open and divide data for a network.

    Args:
        network: whose inputs they are.
        data: see `smidgen.compress`.
        test, validation: a fifth of ``data`` each when None.
        metric: replaces accuracy.
        threads: what torch uses when None.
        training: has the seed of the division, and how many inputs are for selection.

    Raises:
        DataError: too few inputs, or inputs that do not fit.
    """
    given = as_data(data)
    kept, judges = (None if one is None else as_data(one) for one in (test, validation))
    check_sets(network, (given, kept, judges))
    roles = split_roles(
        given, test=kept, validation=judges, seed=training.seed, max_calibration=len(given),
        hold_back=training.hold_back,
    )  # fmt: skip
    example = torch.from_numpy(next(iter(roles.calibration.take([0]).batches(1))))
    metric = load_metric(metric) if isinstance(metric, str) else metric
    return Ground(roles, example, metric, threads or torch.get_num_threads(), training.seed, Scratch())


def check_classes(ground: Ground, answer: Any) -> None:
    """Refuse labels that are none of a classifier's outputs."""
    if isinstance(answer, torch.Tensor) and answer.ndim >= 2 and answer[0].numel() == answer.shape[1] > 1:
        for part in (ground.roles.calibration, ground.roles.selection, ground.roles.test):
            check_labels(part, answer.shape[1])


def original_file(network: Network, ground: Ground) -> Path:
    """The given network's own file, or one written from it."""
    if network.source is not None:
        return network.source
    path = ground.folder.path / ORIGINAL
    write_network(network, network.module, ground, path)
    return path


def write_network(network: Network, module: nn.Module, ground: Ground, path: Path) -> None:
    """Write a module as ONNX, and hold its answers against the module's.

    Args:
        network: names and inputs of the file.
        module: on any device, in evaluation mode; moved to the host.
        ground: gives an input.
        path: file to write.

    Raises:
        LoadError: torch cannot export it.
    """
    prepared = prepare(replace(network, module=module.cpu().eval(), source=None), ground.example)
    write(prepared.base, prepared.sites, {site.name: untouched(site) for site in prepared.sites}, path)
    verify(module, path, ground.one, ground.threads)
    release()


def finish(
    ground: Ground,
    files: dict[str, Path],
    model: nn.Module,
    training: Training,
    fitted: Fitted,
    *,
    comparable: bool = True,
    **about: Any,
) -> Trained:
    """Measure both files, score them on the test inputs, once, and write the record.

    Args:
        ground: data and settings.
        files: the given network's first, the trained one's last, by what to call them.
        model: the trained network.
        training, fitted: how it was trained.
        comparable: False where the two answer other questions.
        about: what else the record says.

    Raises:
        UserError: nothing was learned, for the loss exploded from the first epoch on.
    """
    if fitted.stopped == "nan" and fitted.best is None:
        raise UserError(
            "train: the loss exploded in the first epoch, at every rate tried; give a lower --lr, or look at the inputs"
        )
    first, path = next(iter(files.values())), list(files.values())[-1]
    found: dict[str, Measured] = {}
    for name, each in files.items():
        test = ground.roles.test if comparable or each == path else None
        found[name] = measured(
            first, each, ground.one, test, ground.metric, ground.threads, ground.seed, comparable=comparable
        )
    record = {
        "schema_version": 1, **about, "training": training.plain(), "fitted": fitted.plain(), "seed": ground.seed,
        "threads": ground.threads, "versions": versions(), "data": ground.describe(),
        "files": {name: each.plain() for name, each in found.items()},
    }  # fmt: skip
    return Trained(model, found, record, path, ground.folder)


def weights_digest(module: nn.Module) -> str:
    """Of a network's tensors: another one's checkpoint is told by it.

    >>> weights_digest(nn.Identity())
    'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
    return digest.hexdigest()[:16]
