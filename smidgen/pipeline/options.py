"""What every site could become: curvature, the methods' forms, the roundings', and probes of their true loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from smidgen.calibrate.answers import outputs_of, true_loss
from smidgen.calibrate.curvature import collect
from smidgen.calibrate.norms import curvature_of
from smidgen.data import Dataset
from smidgen.errors import PlanError
from smidgen.forms import FLOATS, SHARED, STATIC, WIDTHS, Dense, Masked, macs
from smidgen.measure.memory import release
from smidgen.methods import (
    AnyMethod,
    Leaves,
    Method,
    Pruning,
    Rounding,
    Sharing,
    choose_methods,
    choose_rounding,
    sharings,
)
from smidgen.model.replace import with_forms
from smidgen.pipeline.task import Progress, Task, Threads
from smidgen.planning.candidates import Options, gather, weights_only
from smidgen.planning.precision import with_precision
from smidgen.planning.probe import SHARES, losses_alone, probe
from smidgen.planning.sparsity import Alone, Together, with_pruned, without_whole
from smidgen.planning.widths import with_widths
from smidgen.site import Curvature, Stored

PROBE_INPUTS = 512  # selection inputs that a probe of the true loss uses at most
PROBE_MACS = 4e11  # most multiplications of all probes: some ten seconds on a small machine
LEAST_PROBED = 16  # inputs; a mean of fewer says little
KEPT_NBYTES = 128 << 20  # most memory for either


def candidates(
    task: Task,
    methods: str | Sequence[str] | Mapping[str, Sequence[str]],
    progress: Progress = lambda stage, done, total: None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    target: str = "onnx",
    rounding: str | None = None,
    *,
    curvatures: Mapping[str, Curvature] | None = None,
) -> tuple[list[Options], dict[str, AnyMethod]]:
    """Curvature, and every form every site could take.

    Args:
        task: from `open_task`.
        methods: see `compress`.
        progress: called with (stage, done, total).
        settings: of methods, by name.
        target: the file whose bytes count.
        rounding: how integers or codebooks are found, for a target that holds them; its usual one when None.
        curvatures: from `curvatures_of`, where they are known already.

    Returns:
        The options in running order, and the methods they came from.
    """
    # One rounding prices every rank of an SVD; each rank of the others is rounded by itself, which takes three times as
    # long for little (ResNet-20 at 60 kB: one layer of twenty takes one). Who names them gets them.
    integers = target == "archive" or target in WIDTHS
    wanted = "svd" if methods == "auto" and integers else methods
    named, allowed = choose_methods(wanted, settings or {})
    pruning = check_pruning(named)
    asked = {name: method for name, method in named.items() if isinstance(method, Method)}
    how = rounding_for(target, rounding, settings or {})
    chosen: dict[str, AnyMethod] = {**named, how.name: how} if integers else {**named}
    sites = task.prepared.sites
    with Threads(task.threads):
        curvatures = curvatures_of(task, progress) if curvatures is None else curvatures
        tick = _ticks(progress, "candidates", len(sites))
        asking = {kind: [name for name in names if name in asked] for kind, names in allowed.items()}
        options = gather(
            sites, curvatures, asked, allowed=asking, target=target if target in {*FLOATS, *STATIC} else "onnx",
            device=task.device, seed=task.seed, tick=tick,
        )  # fmt: skip
        if pruning is not None:
            floats = target if target in FLOATS else "onnx"
            options = with_pruned(options, curvatures, pruning, allowed, floats, truths(task, options))
        options = [_rounded(o, curvatures.get(o.site.name, weights_only(o.site)), how, target) for o in options]
        if pruning is not None:
            options = [without_whole(option, pruning.name) for option in options]
        if task.roles is not None and pruning is None:
            # Not the inputs that the forms were fitted to: on those an overfitted layer looks free.
            inputs = kept_batches(task.roles.selection, probe_inputs(options))
            tick = _ticks(progress, "probe", len(sites))
            options = probe(task.prepared.module, options, inputs, device=task.device, tick=tick)
            release()
    return options, chosen


def truths(task: Task, options: list[Options]) -> tuple[Alone, Together] | None:
    """True losses of pruned forms on selection inputs, which no form was fitted to."""
    if task.roles is None:
        return None
    inputs = kept_batches(task.roles.selection, probe_inputs(options))
    sites = {option.site.name: option.site for option in options}

    def alone(forms: Mapping[str, Masked]) -> dict[str, float]:
        pairs = {name: (sites[name], form) for name, form in forms.items()}
        return losses_alone(task.prepared.module, pairs, inputs, device=task.device)

    def together(forms: Mapping[str, Masked]) -> float:
        stored = {name: Stored(form, sites[name].bias) for name, form in forms.items()}
        pruned, before, after = with_forms(task.prepared.module, list(sites.values()), stored), [], []
        with torch.no_grad():
            for batch in inputs:
                x = torch.from_numpy(batch).to(task.device)
                before.append(outputs_of(task.prepared.module(x)))
                after.append(outputs_of(pruned(x)))
        return true_loss(before, after)

    return alone, together


def check_pruning(named: Mapping[str, Method | Pruning]) -> Pruning | None:
    """The pruning among the methods named, if any.

    Raises:
        PlanError: it is not alone.
    """
    found = [method for method in named.values() if isinstance(method, Pruning)]
    if found and len(named) > 1:
        raise PlanError(f"methods: {found[0].name} prunes all layers to one sparsity, and stands alone; "
                        f"leave {', '.join(name for name in named if name != found[0].name)} out")  # fmt: skip
    return found[0] if found else None


def curvatures_of(task: Task, progress: Progress) -> dict[str, Curvature]:
    """From calibration inputs; without them from what the network's BatchNorms remember, where they do."""
    sites, signals = task.prepared.sites, task.prepared.signals
    if task.roles is None:
        told = {site.name: curvature_of(site, signals[site.name]) for site in sites if site.name in signals}
        return {name: curvature for name, curvature in told.items() if curvature is not None}
    batches = _counted(task.roles.calibration, progress)
    curvatures = collect(task.prepared.module, sites, batches, device=task.device, seed=task.seed)
    release()
    return curvatures


def rounding_for(target: str, name: str | None, settings: Mapping[str, Mapping[str, Any]]) -> Leaves:
    """How leaves become small in a target's file: as the name says, or what settings are given for.

    Raises:
        PlanError: there is no such rounding, or the file cannot hold what it makes.

    >>> rounding_for("onnx-shared", None, {}).name, rounding_for("archive", None, {}).name
    ('kmeans', 'gptq')
    >>> rounding_for("archive", None, {"kmeans": {"bits": 5}}).settings.bits
    5
    """
    meant = next((each for each in sharings() if each in settings), "kmeans" if target in SHARED else "gptq")
    how = choose_rounding(name or meant, settings)
    if isinstance(how, Sharing) and target not in (*SHARED, "archive"):
        raise PlanError(f"rounding: a file of {target} holds no codebooks of {how.name}; "
                        f"give target {', '.join(SHARED)} or archive")  # fmt: skip
    if target in SHARED and not isinstance(how, Sharing):
        raise PlanError(f"rounding: a file of {target} holds codebooks, not {how.name}'s integers; "
                        f"use {', '.join(sorted(sharings()))}")  # fmt: skip
    return how


def _rounded(option: Options, curvature: Curvature, how: Leaves, target: str) -> Options:
    """A site's options with the integers, or codebooks, that the target's file can hold."""
    if target in WIDTHS or (target == "archive" and isinstance(how, Sharing)):
        return with_widths(option, curvature, how, target)
    if target == "archive" and isinstance(how, Rounding):
        return with_precision(option, curvature, how)
    return option


def probe_inputs(options: list[Options]) -> int:
    each = sum(macs(Dense(o.site.weight), o.site.geometry) for o in options)
    passes = 1 + len(SHARES) * sum(len(o.labels) > 1 for o in options)
    return int(np.clip(PROBE_MACS / max(1, each * passes), LEAST_PROBED, PROBE_INPUTS))


def kept_batches(inputs: Dataset, most: int) -> list[np.ndarray]:
    """Inputs that stay in memory: at most so many, and at most `KEPT_NBYTES`."""
    each = int(np.prod(inputs.shape)) * 4
    count = min(len(inputs), most, max(16, KEPT_NBYTES // each))
    return list(inputs.array(0, count).batches())


def _ticks(progress: Progress, stage: str, total: int) -> Callable[[str], None]:
    done: list[str] = []

    def tick(name: str) -> None:
        done.append(name)
        progress(stage, len(done), total)

    return tick


def _counted(data: Dataset, progress: Progress) -> Any:
    done = 0
    for batch in data.batches():
        yield batch
        done += len(batch)
        progress("calibrate", done, len(data))
