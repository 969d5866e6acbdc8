"""The record of a run: everything ``result.json`` says, measured on the written files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.budget import Budget
from smidgen.data import Dataset, Roles
from smidgen.forms import Dense, Form, Masked, describe, macs, nbytes, params
from smidgen.measure.changed import changed_answers
from smidgen.measure.cost import file_cost
from smidgen.measure.files import nbytes as file_nbytes
from smidgen.measure.latency import Latency
from smidgen.measure.memory import UNKNOWN, peak_rss_bytes
from smidgen.measure.scores import Judge, Metric, Scores
from smidgen.measure.speed import compare_speed
from smidgen.methods import sharings
from smidgen.planning.candidates import Options
from smidgen.planning.pace import option_times, saved_ms
from smidgen.planning.plan import Choice, Plan
from smidgen.planning.search import Outcome, Trial
from smidgen.runtimes.micro import MICRO_END
from smidgen.runtimes.opening import open_file, run_dataset

SCHEMA_VERSION = 1
SCORED = ("accuracy", "roc_auc", "agreement", "kl", "top5", "output_error", "metric")
PACKAGES = (
    "smidgen", "torch", "onnx", "onnxruntime", "onnxscript", "numpy", "litert-torch", "ai-edge-litert", "tflite-micro",
    "executorch",
)  # fmt: skip
UNTIMED = "this machine's time says nothing of a microcontroller's"


def measure_files(
    paths: Mapping[str, Path],
    test: Dataset | None,
    metric: Metric | None,
    one: np.ndarray,
    threads: int,
    runs: Mapping[str, Path] | None = None,
    times: int = 1,
) -> dict[str, dict[str, Any]]:
    """Score and time written files in their runtime, the first being the original.

    Args:
        paths: file by name, the original first.
        test: inputs scored once, or None.
        metric: replaces accuracy.
        one: a single input, for latency.
        threads: of the runtime.
        runs: the file that the runtime opens, where it is another: what an archive unpacks to.
        times: measurements of each file's time beside the original's.

    Returns:
        By name, what ``result.json`` says of a file; null where nothing could be measured, with ``why``.
    """
    opened = {**paths, **(runs or {})}
    timed = _latencies(opened, one, threads, times)
    scored = _scores(opened, test, metric, threads)
    entries = {}
    for name, path in paths.items():
        count, macs_ = file_cost(opened[name])
        entries[name] = {"path": path.name, "nbytes": file_nbytes(path), "params": count, "macs": macs_}
        entries[name].update(scored[name])
        entries[name].update(_timing(timed.get(name)))
        if name not in timed:
            entries[name]["why"]["latency_ms"] = UNTIMED
        if count is None:
            entries[name]["why"].update(dict.fromkeys(("params", "macs"), "not counted in a compiled program"))
    return entries


def _latencies(opened: Mapping[str, Path], one: np.ndarray, threads: int, times: int) -> dict[str, Latency]:
    """Each file beside the original, those of microcontrollers left out; the original as it was beside the first."""
    timed = {name: path for name, path in opened.items() if not path.name.endswith(MICRO_END)}
    original, *rest = timed.values()
    pairs = [compare_speed(original, path, one, threads, times) for path in rest or [original]]
    return dict(zip(timed, [pairs[0][0], *(after for _, after in pairs)], strict=False))


def _timing(found: Latency | None) -> dict[str, Any]:
    if found is None:
        return dict.fromkeys(("latency_ms", "latency_quartiles_ms", "speedup", "speedup_error"))
    return {
        "latency_ms": found.median_ms, "latency_quartiles_ms": [found.low_ms, found.high_ms],
        "speedup": found.speedup, "speedup_error": found.error,
    }  # fmt: skip


def _scores(
    files: Mapping[str, Path], test: Dataset | None, metric: Metric | None, threads: int
) -> dict[str, dict[str, Any]]:
    if test is None:
        nothing = dict.fromkeys(SCORED, None)
        why = dict.fromkeys(SCORED, "no data to score on")
        return {name: {**nothing, "loss_points": None, "loss_interval": None, "why": dict(why)} for name in files}
    original, outputs, names = next(iter(files)), {}, {}
    for name, path in files.items():
        with open_file(path, threads) as runner:
            outputs[name], names[name] = run_dataset(runner, test.batches()), runner.output_names
    judge = Judge(outputs[original], names[original], test.labels, metric)
    entries = {original: _entry(judge.baseline())}
    entries[original].update(loss_points=None, loss_interval=None, loss_metric=judge.measures)
    entries[original]["why"]["loss_points"] = "it is the original"
    for name in list(files)[1:]:
        loss = judge.loss(outputs[name])
        entries[name] = _entry(judge.judge(outputs[name]))
        entries[name].update(loss_points=loss.points, loss_interval=[loss.low, loss.high], loss_metric=loss.metric)
        changed = changed_answers(outputs[original], outputs[name], test.labels)
        entries[name].update({} if changed is None else {"changed": changed})
    return entries


def _entry(scores: Scores) -> dict[str, Any]:
    values = scores.as_dict()
    entry = {name: values[name] for name in SCORED}
    return {**entry, "metric_name": values["metric_name"], "why": dict(values["why"])}


def record(
    files: dict[str, dict[str, Any]],
    *,
    outcome: Outcome,
    budget: Budget,
    options: Sequence[Options],
    refitted: frozenset[str],
    roles: Roles | None,
    test: Dataset | None,
    seed: int,
    threads: int,
    seconds: float,
    name: str,
    alone: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The record of a run as plain values.

    Args:
        files: from `measure_files`, under ``original`` and the targets' names.
        outcome: where the search ended.
        budget: what was asked for.
        options: of every site.
        refitted: names of the sites whose values a refit moved.
        roles, test: the data used; None where there was none.
        seed, threads, seconds, name: of the run and its network.
        alone: the true loss of each changed layer, all others as they were.
    """
    peak = peak_rss_bytes()
    original, rest = files["original"], {k: v for k, v in files.items() if k != "original"}
    target = next(iter(rest))
    measured = rest[target]
    values = measured["kl"] is None and measured["output_error"] is not None
    unit = "half the normalised squared error" if values else "nats"
    unit = "relative error" if roles is None else unit
    outside = original["nbytes"] - sum(nbytes(Dense(o.site.weight), o.site.geometry) for o in options)
    share = outcome.best.plan.equalised
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "mode": "no data" if roles is None else "calibration",
        "target": target,
        "seed": seed,
        "seconds": seconds,
        "peak_rss_bytes": peak,
        "why": {"peak_rss_bytes": UNKNOWN} if peak is None else {},
        "threads": threads,
        "versions": versions(),
        "machine": machine(),
        "budget": {"kind": budget.kind, "value": budget.to_dict().get(budget.kind),
                   "met": outcome.met, "note": outcome.note},
        "data": data_entries(roles, test),
        "original": original,
        "files": rest,
        "layers": layers(outcome, options, refitted, alone or {}),
        **pruning_entry(outcome, options),
        "predicted": {"loss": outcome.best.plan.loss, "nbytes": outcome.best.plan.nbytes + outside, "unit": unit,
                      **_latency(predicted_ms(options, outcome.best.plan, original["latency_ms"]))},
        "measured": {"loss": measured_loss(measured), "nbytes": measured["nbytes"],
                     **_latency(measured["latency_ms"] if any(o.times is not None for o in options) else None)},
        "trials": [_trial(t) for t in outcome.trials],
        **({} if share is None else {"equalised": share}),
    }  # fmt: skip


def pruning_entry(outcome: Outcome, options: Sequence[Options]) -> dict[str, Any]:
    """What was removed of the layers that were pruned; nothing where none was."""
    pairs = zip(options, outcome.best.plan.choices, strict=True)
    pruned = [(option.site.weight.size, choice) for option, choice in pairs if choice.pruned]
    if not pruned:
        return {}
    weights, survivors = sum(size for size, _ in pruned), sum(choice.rank or 0 for _, choice in pruned)
    return {"pruning": {
        "method": pruned[0][1].method, "weights": weights, "survivors": survivors, "sparsity": 1 - survivors / weights,
    }}  # fmt: skip


def _trial(trial: Trial) -> dict[str, Any]:
    # JSON has no infinity.
    plan = trial.plan
    price, price_ms, price_mac = (x if isfinite(x) else None for x in (plan.price, plan.price_ms, plan.price_mac))
    entry = {
        "nbytes": trial.nbytes, "points": trial.points, "error": None if trial.points is None else trial.error,
        "price": price, "predicted_loss": plan.loss, **({} if price_mac == 0 else {"price_mac": price_mac}),
    }  # fmt: skip
    if trial.speedup is None:
        return entry
    timing = {"latency_ms": trial.latency_ms, "speedup": trial.speedup, "speedup_error": trial.speedup_error}
    return {**entry, "price_ms": price_ms, **timing}


def _latency(ms: float | None) -> dict[str, float]:
    return {} if ms is None else {"latency_ms": ms}


def predicted_ms(options: Sequence[Options], plan: Plan, original_ms: float) -> float | None:
    """The file's time by those of its layers, beside the original's measured one; None where no layer was timed."""
    if all(option.times is None for option in options):
        return None
    return original_ms - saved_ms(options, plan)


def measured_loss(file: Mapping[str, Any]) -> float | None:
    """The measured loss in the unit of the prediction: KL, or half the normalised squared errors of all outputs."""
    if file["kl"] is None and file["output_error"] is not None:
        return 0.5 * sum(file["output_error"].values())
    return file["kl"]


def data_entries(roles: Roles | None, test: Dataset | None) -> dict[str, Any]:
    """Counts and hashes of the three roles, None for those without data."""
    if roles is not None:
        return dict(roles.describe())
    return {"calibration": None, "selection": None, "test": None if test is None else test.describe()}


def layers(
    outcome: Outcome, options: Sequence[Options], refitted: frozenset[str], alone: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What became of each layer, or why it stayed dense: left alone, unless a refit moved its values."""
    entries = []
    shared = not sharings().keys().isdisjoint(outcome.best.plan.settings)
    for option, choice in zip(options, outcome.best.plan.choices, strict=True):
        before: Form = Dense(option.site.weight)
        after = option.outline(choice.method, choice.rank)
        g = option.site.geometry
        entries.append({
            "name": option.site.name, "form": _form(after, choice, shared=shared),
            "rank": None if choice.pruned or choice.fast else choice.rank,
            "sparsity": after.sparsity if isinstance(after, Masked) else None,
            "method": choice.method,
            "step": choice.step, "bits": choice.bits,
            "shape": list(option.site.weight.shape),
            "nbytes_before": nbytes(before, g),
            "nbytes_after": choice.nbytes if choice.rounded else nbytes(after, g),
            "params_before": params(before, g), "params_after": params(after, g),
            "macs_before": macs(before, g), "macs_after": macs(after, g),
            "predicted_loss": choice.loss, "measured_loss": alone.get(option.site.name),
            "reason": choice.reason, "refitted": option.site.name in refitted,
            **option_times(option, choice),
        })  # fmt: skip
    return entries


def _form(form: Form, choice: Choice, *, shared: bool) -> str:
    """What a form is called in the record, with the kind of integers or indices in its leaves."""
    told = describe(form) if not isinstance(form, Masked) else f"{describe(form)} {100 * form.sparsity:.1f} %"
    if not choice.rounded:
        return told
    integers = "quantized" if choice.bits is None else f"shared {choice.bits}-bit" if shared else f"int{choice.bits}"
    return integers if isinstance(form, Dense) else f"{told}, {integers}"


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def machine() -> dict[str, Any]:
    """What the times were measured on.

    >>> sorted(machine())
    ['cores', 'processor', 'system']
    """
    listed = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", listed.read_text(errors="replace")) if listed.is_file() else None
    return {
        "processor": found[1].strip() if found else platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
