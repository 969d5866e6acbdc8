"""Which channels of a network go, and the network without them, refitted and written."""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import fx, nn

from smidgen.budget import FILES
from smidgen.calibrate.activity import collect_activity
from smidgen.calibrate.answers import outputs_of, true_loss
from smidgen.errors import UserError
from smidgen.export.files import write_bytes
from smidgen.export.onnx import fill, write
from smidgen.export.onnx_strip import drop_unused, strip
from smidgen.export.prepare import Prepared, prepare
from smidgen.export.verify import verify
from smidgen.measure.memory import release
from smidgen.methods.channels import Criterion
from smidgen.model.channels import Found, cut, find_channels
from smidgen.model.channels.aims import channel_aims
from smidgen.model.channels.refilling import refill, refilled
from smidgen.model.load import load_network
from smidgen.model.onnx import import_model
from smidgen.model.onnx.naming import identifier
from smidgen.model.sites import find_sites
from smidgen.pipeline.options import curvatures_of, kept_batches
from smidgen.pipeline.task import Progress, Task, one_input
from smidgen.planning.channel_probe import probe
from smidgen.planning.channel_readers import compensated, readers_of
from smidgen.planning.channels import ByCurvature, ByScore, Pricer, evidence_of
from smidgen.planning.reconstruct import reconstruct
from smidgen.report.result import ORIGINAL, Scratch
from smidgen.site import Channels, Curvature, untouched

REFIT_INPUTS = 512  # calibration inputs that refits use at most
LOSS_INPUTS = 256  # selection inputs that say whether a refit is kept
ROUNDS = (6, 2)  # of least squares, at last and while its ridge is chosen
LOSS_MACS = 1e10  # … and multiplications of one such look


@dataclass(frozen=True, eq=False)
class Smaller:
    """The network without the channels, refitted and written."""

    model: nn.Module
    path: Path
    loss: float | None


class Cutter:
    """Prices, cuts, refits and writes one network.

    Args:
        task: with the network as it is now.
        protect: names of layers whose outputs stay, or patterns of names.
        progress: called with (stage, done, total).
        before: where channels went already: what cut the network that this one came from, and what it kept. A refit
            then aims at the first network's values.
    """

    def __init__(
        self, task: Task, protect: Sequence[str], progress: Progress, before: tuple[Cutter, np.ndarray] | None = None
    ) -> None:
        self.task, self.progress = task, progress
        self.folder: Scratch = Scratch() if before is None else before[0].folder
        prepared = task.prepared
        stored = {site.name: untouched(site) for site in prepared.sites}
        self.path = task.network.source or self.folder.path / ORIGINAL
        if task.network.source is None:
            write(prepared.base, prepared.sites, stored, self.path)
        self.proto = fill(prepared.base, prepared.sites, stored)
        # Twice: names that do not exist are told of before, what they protect is known after.
        names = [layer.name for layer in find_channels(self.proto).channels.layers]
        self.protected = protected_layers(protect, names)
        self.found = find_channels(self.proto, self.protected)
        if not self.found.channels.count:
            reasons = "; ".join(sorted(set(self.found.channels.left.values()))) or "it has no layer"
            raise UserError(f"prune: no channel of this network can be cut: {reasons}")
        self.sites = {site.name: site for site in prepared.sites}
        self.first, self.origin = self, np.arange(self.found.channels.count)
        if before is not None:
            self.first = before[0].first
            self.origin = before[0].origin[same_channels(before[0].found.channels, before[1], self.found.channels)]

    def pricer(self, criterion: Criterion, curvatures: Mapping[str, Curvature] | None = None) -> Pricer:
        """What tells which channels go.

        Args:
            criterion: from `smidgen.methods.channels`.
            curvatures: of the layers' inputs and outputs, where they are known already.
        """
        task, channels = self.task, self.found.channels
        prepared: Prepared = task.prepared
        if criterion.score is None:
            curvatures = curvatures_of(task, self.progress) if curvatures is None else curvatures
            priced = ByCurvature(channels, readers_of(channels, self.sites, curvatures))
            if task.roles is not None:
                tick = partial(self.progress, "probe")
                priced.scales = probe(channels, priced, prepared.module, self.sites, self._loss(prepared.module), tick)
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

    @property
    def protected_names(self) -> list[str]:
        """Names of the protected layers, as the network without some channels has them."""
        return sorted(identifier(name) for name in self.protected)

    def kept(self, keep: np.ndarray) -> np.ndarray:
        """Which channels of the first network are left, with those of this one that are kept."""
        left = np.zeros(self.first.found.channels.count, dtype=bool)
        left[self.origin[keep]] = True
        return left

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
            model, loss = self._refitted(import_model(self.first.proto).module, model, self.kept(keep), refit)
        names = [layer.name for layer in self.found.channels.layers]
        path = self.folder.path / FILES["onnx"]
        write_bytes(strip(refilled(graph, changed, model, names)).SerializeToString(), path)
        verify(model, path, one_input(task), task.threads)
        release()
        return Smaller(model, path, loss)

    def _refitted(
        self, original: fx.GraphModule, changed: fx.GraphModule, kept: np.ndarray, refit: bool
    ) -> tuple[fx.GraphModule, float]:
        task, roles = self.task, self.task.roles
        assert roles is not None
        loss = self._loss(original)
        if not refit:
            return changed, loss(changed)
        batches = kept_batches(roles.calibration, REFIT_INPUTS)
        aims = channel_aims(original, changed, self.first.found.channels, kept)
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


def same_channels(whole: Channels, keep: np.ndarray, smaller: Channels) -> np.ndarray:
    """For each channel of a network that lost some: its number before, ``[count]``.

    Args:
        whole, keep: the network before, and what it kept.
        smaller: the network after, as read from its file.
    """
    left = np.append(keep, True)
    places = {identifier(layer.name): layer for layer in whole.layers}
    found = np.full(smaller.count, -1)
    for layer in smaller.layers:
        if layer.name not in places:
            continue
        before = places[layer.name]
        for now, then in ((layer.outputs, before.outputs), (layer.inputs, before.inputs)):
            then = then[left[then]]
            found[now[now >= 0]] = then[now >= 0]
    return found


def without_channels(task: Task, smaller: Smaller, original: Path) -> Task:
    """The task with the smaller network in the place of the larger one; files are still measured beside the original.

    Args:
        task: not changed.
        smaller: from `Cutter.cut`.
        original: the file that the larger network was given as, or written to.
    """
    network = load_network(smaller.path)
    prepared = prepare(network, task.example)
    network = replace(network, module=prepared.module, name=task.network.name, source=original)
    release()
    return replace(task, network=network, prepared=prepared)


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
