"""prune(): whole channels and neurons cut, until so many multiplications are left, and what is left refitted.

    load → prepare → find channels → calibrate → choose → cut → refit → export → measure

What comes out is an ordinary smaller network, which `compress` can take further. Nothing is trained: a refit is least
squares on calibration inputs, and the test inputs are scored once, at the end.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn

from smidgen.calibrate.activity import collect_activity
from smidgen.calibrate.answers import outputs_of, true_loss
from smidgen.errors import BudgetError, DataError, UserError
from smidgen.export.files import write_bytes
from smidgen.export.onnx import fill, write
from smidgen.export.onnx_strip import drop_unused, strip
from smidgen.export.prepare import Prepared
from smidgen.export.verify import verify
from smidgen.measure.memory import release
from smidgen.measure.scores import Metric
from smidgen.methods.channels import CURVATURE, Criterion, choose_criterion
from smidgen.model.channels import Found, cut, find_channels
from smidgen.model.channels.aims import channel_aims
from smidgen.model.channels.refilling import refill, refilled
from smidgen.model.onnx import import_model
from smidgen.model.sites import find_sites
from smidgen.pipeline.measuring import measured
from smidgen.pipeline.options import curvatures_of, kept_batches
from smidgen.pipeline.task import Data, Progress, Task, Threads, one_input, open_task
from smidgen.planning.channel_probe import probe
from smidgen.planning.channel_readers import compensated, readers_of
from smidgen.planning.channels import ByCurvature, ByScore, Pricer, Step, choose, evidence_of
from smidgen.planning.reconstruct import reconstruct
from smidgen.report.pruning import LayerRow, Pruning
from smidgen.report.record import versions
from smidgen.report.result import Scratch
from smidgen.site import ChannelLayer, untouched

REFIT_INPUTS = 512  # calibration inputs that refits use at most
LOSS_INPUTS = 256  # selection inputs that say whether a refit is kept
ROUNDS = (6, 2)  # of least squares, at last and while its ridge is chosen
LOSS_MACS = 1e10  # … and multiplications of one such look


def prune(
    model: nn.Module | str | Path,
    data: Data = None,
    *,
    macs: float | int | str | None = None,
    params: float | int | str | None = None,
    criterion: str = CURVATURE,
    multiple: int | None = None,
    protect: Sequence[str] = (),
    test: Data = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    metric: str | Metric | None = None,
    refit: bool = True,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Pruning:
    """Cut whole channels and neurons, and refit what is left.

    Args:
        model: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``.
        data: inputs, labels optional, as for `smidgen.compress`; None for none.
        macs: share of the multiply-accumulates that is left at most: ``"50%"`` or 0.5.
        params: the same of the weights, instead.
        criterion: which channels go first; see `smidgen.methods.channels`.
        multiple: counts of channels that change become multiples of this, 1 for any; when None of 16, and of 8 in
            layers of fewer than 48, which runs faster.
        protect: names of layers whose outputs stay, or patterns such as ``"layer3*"``.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        example: one batch of inputs, needed where neither data nor the file tell the shape.
        metric: replaces accuracy; see `smidgen.compress`.
        refit: refit the layers that read other values than before to the original's (needs data).
        threads: for torch and onnxruntime; what torch uses when None.
        seed: of everything drawn.
        progress: called with (stage, done, total).

    Returns:
        The smaller network, its file, and what was measured on it.

    Raises:
        UserError: for anything wrong with what was given.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    >>> prune(net, torch.randn(50, 8), macs="50%").model(torch.zeros(1, 8)).shape
    torch.Size([1, 3])
    """
    wanted, by = share_wanted(macs, params)
    chosen = choose_criterion(criterion)
    if multiple is not None and multiple < 1:
        raise UserError(f"prune: channels cannot be multiples of {multiple}; give 1, 4, 8 or 16")
    task = open_task(model, data, test, weights, example, metric, threads, "cpu", seed)
    if chosen.needs == "inputs" and task.roles is None:
        raise DataError(f"prune: the criterion '{criterion}' needs inputs to run; give --data, or another criterion")
    with Threads(task.threads):
        work = Pruner(task, protect, progress)
        pricer = work.pricer(chosen)
        keep, steps = choose(
            work.found.channels, pricer, wanted, multiple=multiple, by=by,
            tick=lambda done, total: progress("choose", done, total),
        )  # fmt: skip
        smaller = work.cut(keep, refit, pricer)
        asked = {by: wanted, "criterion": criterion, "multiple": multiple, "protect": list(protect)}
        return work.finish(smaller, keep, steps, asked)


def parse_share(name: str, given: float | int | str) -> float:
    """A share of what there is, between 0 and 1.

    >>> parse_share("macs", "35%"), parse_share("macs", 0.5)
    (0.35, 0.5)
    """
    text = str(given).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise BudgetError(f"prune: {name}={text!r} is no share that could be left; give one between 0 and 1: 50%")
    return value


def share_wanted(macs: float | int | str | None, params: float | int | str | None) -> tuple[float, str]:
    if (macs is None) == (params is None):
        raise BudgetError("prune: say how much is to be left, of one of the two: --macs 50% or --params 50%")
    return (parse_share("macs", macs), "macs") if macs is not None else (parse_share("params", params or 0), "weights")


@dataclass(frozen=True, eq=False)
class Smaller:
    """The network without the channels, refitted and written."""

    model: nn.Module
    path: Path
    loss: float | None


class Pruner:
    """Prices, cuts, refits, writes and measures one network."""

    def __init__(self, task: Task, protect: Sequence[str], progress: Progress) -> None:
        self.task, self.progress, self.folder = task, progress, Scratch()
        prepared = task.prepared
        stored = {site.name: untouched(site) for site in prepared.sites}
        self.path = task.network.source or self.folder.path / "original.onnx"
        if task.network.source is None:
            write(prepared.base, prepared.sites, stored, self.path)
        self.proto = fill(prepared.base, prepared.sites, stored)
        # Twice: names that do not exist are told of before, what they protect is known after.
        names = [layer.name for layer in find_channels(self.proto).channels.layers]
        self.found = find_channels(self.proto, protected_layers(protect, names))
        if not self.found.channels.count:
            reasons = "; ".join(sorted(set(self.found.channels.left.values()))) or "it has no layer"
            raise UserError(f"prune: no channel of this network can be cut: {reasons}")
        self.sites = {site.name: site for site in prepared.sites}

    def pricer(self, criterion: Criterion) -> Pricer:
        """What tells which channels go."""
        task, channels = self.task, self.found.channels
        prepared: Prepared = task.prepared
        if criterion.score is None:
            priced = ByCurvature(channels, readers_of(channels, self.sites, curvatures_of(task, self.progress)))
            if task.roles is not None:
                loss = self._loss(prepared.module)
                tick = partial(self.progress, "probe")
                priced.scales = probe(channels, priced, prepared.module, self.sites, loss, tick)
            return priced
        activity = {}
        if criterion.needs == "inputs":
            assert task.roles is not None
            batches = task.roles.calibration.batches()
            activity = collect_activity(prepared.module, prepared.sites, batches, seed=task.seed)
        if criterion.needs == "norms" and not prepared.gains:
            raise UserError(
                f"prune: the criterion '{criterion.name}' needs BatchNorms, and this network has none behind its "
                "layers (or an export folded them); choose another criterion"
            )
        return ByScore(channels, criterion, evidence_of(channels, self.sites, activity, prepared.gains))

    def cut(self, keep: np.ndarray, refit: bool, pricer: Pricer | None = None) -> Smaller:
        """The network without the channels that are not kept.

        Args:
            keep: as chosen.
            refit: whether what is left is refitted.
            pricer: what chose them; layers that it knows refitted without them start from there.
        """
        task = self.task
        graph = smaller_graph(self.found, keep)
        changed = import_model(graph).module
        model, loss = copy.deepcopy(changed), None
        if refit and isinstance(pricer, ByCurvature):
            told = compensated(pricer.readers.values())
            for layer in self.found.channels.layers:
                if layer.name in told:
                    refill(model, layer, keep, *told[layer.name])
        if task.roles is not None:
            model, loss = self._refitted(import_model(self.proto).module, model, keep, refit)
        names = [layer.name for layer in self.found.channels.layers]
        path = self.folder.path / "model.onnx"
        write_bytes(strip(refilled(graph, changed, model, names)).SerializeToString(), path)
        verify(model, path, one_input(task), task.threads)
        release()
        return Smaller(model, path, loss)

    def _refitted(
        self, original: fx.GraphModule, changed: fx.GraphModule, keep: np.ndarray, refit: bool
    ) -> tuple[fx.GraphModule, float]:
        task, roles = self.task, self.task.roles
        assert roles is not None
        loss = self._loss(original)
        if not refit:
            return changed, loss(changed)
        batches = kept_batches(roles.calibration, REFIT_INPUTS)
        aims = channel_aims(original, changed, self.found.channels, keep)
        sites = find_sites(changed, task.example[:1])
        done: list[str] = []

        def tick(name: str) -> None:
            done.append(name)
            self.progress("refit", len(done), 2 * len(aims))

        return reconstruct(original, changed, aims, sites, batches, loss, seed=task.seed, rounds=ROUNDS, tick=tick)

    def _loss(self, original: nn.Module) -> Callable[[nn.Module], float]:
        """The loss of a network's answers on selection inputs."""
        roles = self.task.roles
        assert roles is not None
        channels = self.found.channels
        whole = channels.macs(np.ones(channels.count, dtype=bool))
        count = int(np.clip(LOSS_MACS / max(whole, 1), 32, LOSS_INPUTS))
        selection = [torch.from_numpy(batch) for batch in kept_batches(roles.selection, count)]

        def answers(model: nn.Module) -> list[list[torch.Tensor]]:
            with torch.no_grad():
                return [outputs_of(model(x)) for x in selection]

        reference = answers(original)
        return lambda model: true_loss(reference, answers(model))

    def finish(self, smaller: Smaller, keep: np.ndarray, steps: list[Step], asked: dict[str, Any]) -> Pruning:
        """Measure, score on the test inputs once, and write the record."""
        task, channels = self.task, self.found.channels
        self.progress("test", 0, 1)
        before, after = (
            measured(self.path, path, one_input(task), task.test, task.metric, task.threads, task.seed)
            for path in (self.path, smaller.path)
        )
        every = np.ones(len(keep), dtype=bool)
        layers = tuple(_row(layer, every, keep, channels.left.get(layer.name)) for layer in channels.layers)
        predicted = sum(step.cost for step in steps) if asked["criterion"] == CURVATURE else None
        record = {
            "schema_version": 1, "name": task.network.name, "asked": asked, "seed": task.seed,
            "threads": task.threads, "versions": versions(),
            "data": task.roles.describe() if task.roles is not None else None,
            "predicted_loss": predicted, "measured_loss": smaller.loss,
            "original": before.plain(), "smaller": after.plain(), "layers": [row.plain() for row in layers],
        }  # fmt: skip
        return Pruning(smaller.model, before, after, layers, record, smaller.path, self.folder)


def _row(layer: ChannelLayer, every: np.ndarray, keep: np.ndarray, reason: str | None) -> LayerRow:
    before, after = (int(np.append(kept, True)[layer.outputs].sum()) for kept in (every, keep))
    return LayerRow(layer.name, before, after, reason)


def smaller_graph(found: Found, keep: np.ndarray) -> onnx.ModelProto:
    """The graph without some channels, and without what nothing reads any more."""
    smaller = cut(found, keep)
    drop_unused(smaller.graph)
    return smaller


def protected_layers(patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    """The layers that names or patterns mean.

    Raises:
        UserError: one that means none; the nearest names are offered.

    >>> sorted(protected_layers(["layer3*"], ["layer1.conv", "layer3.conv", "layer3.fc"]))
    ['layer3.conv', 'layer3.fc']
    """
    found: set[str] = set()
    for pattern in patterns:
        meant = fnmatch.filter(names, pattern)
        if not meant:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or list(names[:3])
            raise UserError(f"prune: there is no layer '{pattern}' to protect; near: {', '.join(near)}")
        found.update(meant)
    return frozenset(found)
