"""Open and check everything a run works on, before any work starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.data import Dataset, Roles, as_dataset, check_inputs, check_labels, open_data, split_roles
from smidgen.errors import DataError
from smidgen.export.prepare import Prepared, prepare
from smidgen.measure.memory import release
from smidgen.measure.scores import Metric, load_metric
from smidgen.model.load import Network, load_network
from smidgen.planning.plan import Cut
from smidgen.report.result import Scratch

Data = Any
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Task:
    """Everything a run works on, opened and checked.

    ``equalised`` is α where its channels were, ``cut`` the channels that went; None where not. ``scratch`` holds the
    original's file where the network lost channels and came as no file.
    """

    network: Network
    prepared: Prepared
    roles: Roles | None
    test: Dataset | None
    example: torch.Tensor
    metric: Metric | None
    threads: int
    device: str
    seed: int
    equalised: float | None = None
    cut: Cut | None = None
    scratch: Scratch | None = None


def open_task(
    model: nn.Module | str | Path,
    data: Data,
    test: Data,
    weights: str | Path | None,
    example: torch.Tensor | None,
    metric: str | Metric | None,
    threads: int | None,
    device: str,
    seed: int,
    *,
    validation: Data = None,
    trains: bool = False,
    hold_back: int | None = None,
) -> Task:
    """Open and check everything before any work starts; see `compress` for the arguments.

    With `trains` all inputs that are held back for nothing else are calibration inputs, not a thousand of them;
    `hold_back` of them are for selection where it is not None.
    """
    network = load_network(model, weights)
    given, kept, judges = (None if d is None else as_data(d) for d in (data, test, validation))
    if given is None and judges is not None:
        raise DataError("validation: it chooses between what is found from other inputs; give --data too")
    check_sets(network, (given, kept, judges))
    most = {"max_calibration": len(given)} if trains and given is not None else {}
    divided = {"test": kept, "validation": judges, "seed": seed, "hold_back": hold_back, **most}
    roles = None if given is None else split_roles(given, **divided)
    example = _example(network, given or kept, example)
    prepared = prepare(network, example)
    network = replace(network, module=prepared.module)  # the unfolded one is not needed any more
    release()
    _check_classes(prepared, (given, kept, judges), example, metric)
    if isinstance(metric, str):
        metric = load_metric(metric)
    prepared.module.to(device)
    return Task(
        network, prepared, roles, roles.test if roles else kept, example, metric, threads or torch.get_num_threads(),
        device, seed,
    )  # fmt: skip


def check_sets(network: Network, sets: Sequence[Dataset | None]) -> None:
    """Refuse inputs that do not fit the network; a module says nothing of them, and all are like the first set's then.

    Raises:
        DataError: another shape.
    """
    there = [each for each in sets if each is not None]
    for one in there:
        check_inputs(one, network.input_shape or (None, *there[0].shape))


def as_data(given: Data) -> Dataset:
    """A path opened, a `Dataset` as it is, anything else from Python made one."""
    if isinstance(given, Dataset):
        return given
    return open_data(given) if isinstance(given, (str, Path)) else as_dataset(given)


def _example(network: Network, data: Dataset | None, example: torch.Tensor | None) -> torch.Tensor:
    if example is not None:
        return example
    if data is not None:
        return torch.from_numpy(next(iter(data.take([0]).batches(1))))
    shape = network.input_shape[1:]
    if not network.input_shape or any(s is None for s in shape):
        raise DataError("load: the input shape is not known; give --data, or --input 1,3,224,224 (example= in Python)")
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, *[int(s or 1) for s in shape], generator=generator)


def _check_classes(prepared: Prepared, inputs: Sequence[Dataset | None], example: torch.Tensor, metric: Any) -> None:
    with torch.no_grad():
        answer = prepared.module(example)
    if metric is not None or not isinstance(answer, torch.Tensor) or answer.ndim < 2:
        return  # class numbers alone, one for each sample, have no axis of classes
    if answer.flatten(1).shape[1] == answer.shape[1] > 1:
        for one in inputs:
            if one is not None and one.labels is not None:
                check_labels(one, answer.shape[1])


def data_hash(roles: Roles | None) -> str | None:
    """What the calibration inputs are known by in a plan: their stored bytes and how they become inputs.

    >>> data_hash(None) is None
    True
    """
    if roles is None:
        return None
    told = roles.calibration.describe()
    text = json.dumps([told["sha256"], told.get("preprocess")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def one_input(task: Task) -> np.ndarray:
    source = task.roles.calibration if task.roles is not None else task.test
    return next(iter(source.take([0]).batches(1))) if source is not None else task.example[:1].numpy()


class Threads:
    """Torch's thread count for the time of a block."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)
