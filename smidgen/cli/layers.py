"""``smidgen inspect``: what each layer costs, what each method could save there, and why one is left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smidgen.data import Dataset
from smidgen.forms import Dense, macs, nbytes, params
from smidgen.pipeline import Task, candidates, open_task
from smidgen.pipeline.task import Progress
from smidgen.pipeline.times import with_times
from smidgen.planning.candidates import Options
from smidgen.planning.pace import guarded
from smidgen.report import wording

# The loss at which savings are quoted, as a share of what losing the whole layer would cost. Without data all
# directions of a weight count alike, so the same share is a far smaller loss of the network.
MODEST = {"calibration": 0.01, "no data": 0.1}
WIDTH = 120  # columns where the output is no terminal


def describe_layers(
    model: str,
    data: Dataset | None,
    weights: str | None,
    example: torch.Tensor | None,
    methods: str | Sequence[str] | Mapping[str, Sequence[str]],
    threads: int | None,
    device: str,
    seed: int,
    progress: Progress,
    *,
    guard: bool = True,
) -> dict[str, Any]:
    """The layer table as plain values.

    Args:
        model: see `smidgen.compress`, like all others.
        data: makes predicted losses those of the network; without it they are relative errors of the weights.
        weights, example, methods, threads, device, seed, progress: see `smidgen.compress`.
        guard: time the layers, and leave out what is slower than they are.
    """
    task = open_task(model, data, None, weights, example, None, threads, device, seed)
    options, _ = candidates(task, methods, progress)
    if guard:
        options = guarded(with_times(options, task.threads, progress))
    total, is_file = _total(task)
    mode = "no data" if data is None else "calibration"
    return {
        "schema_version": 1,
        "name": task.network.name,
        "mode": mode,
        "nbytes": total,
        "nbytes_of": "file" if is_file else "weights",
        "modest_loss": MODEST[mode],
        "layers": [_entry(option, total, MODEST[mode]) for option in options],
    }


def _total(task: Task) -> tuple[int, bool]:
    source = task.network.source
    if source is not None:
        return Path(source).stat().st_size, True
    return 4 * sum(p.numel() for p in task.network.module.parameters()) or 1, False


def _entry(option: Options, total: int, modest: float) -> dict[str, Any]:
    site = option.site
    form = Dense(site.weight)
    size = nbytes(form, site.geometry)
    return {
        "name": site.name,
        "kind": _kind(option),
        "shape": list(site.weight.shape),
        "params": params(form, site.geometry),
        "macs": macs(form, site.geometry),
        "nbytes": size,
        "share": size / total,
        "savings": {name: _saving(option, name, modest) for name in option.families if name not in option.refusals},
        "refusals": dict(option.refusals),
        "reason": site.refusal,
        "latency_ms": None if option.times is None else float(option.times[0]),
    }


def _kind(option: Options) -> str:
    geometry = option.site.geometry
    if geometry.kind == "conv" and geometry.groups > 1:
        return "depthwise conv" if geometry.depthwise else f"conv, {geometry.groups} groups"
    return geometry.kind.replace("_", " ")


def _saving(option: Options, method: str, modest: float) -> dict[str, Any]:
    """The most bytes one method saves at a modest predicted loss; nothing saved where none is that close."""
    allowed = modest * option.worth
    fits = [i for i, label in enumerate(option.labels) if label.method == method and option.losses[i] <= allowed]
    best = min(fits, key=lambda i: int(option.sizes[i]), default=0)
    return {
        "rank": option.labels[best].rank,
        "nbytes": int(option.sizes[best]),
        "saved": 1 - int(option.sizes[best]) / int(option.sizes[0]),
        "predicted_loss": float(option.losses[best]),
        "latency_ms": None if option.times is None else float(option.times[best]),
    }


def print_layers(record: dict[str, Any]) -> None:
    """The table for people, on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    methods = sorted({name for layer in record["layers"] for name in (*layer["savings"], *layer["refusals"])})
    title = f"{record['name']}: {wording.size(record['nbytes'])} {record['nbytes_of']}, mode: {record['mode']}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("layer", overflow="fold", min_width=6)
    for header in ("kind", "shape", "params", "MACs", "bytes"):
        table.add_column(header, justify="left" if header in ("kind", "shape") else "right")
    for name in methods:
        table.add_column(f"{name} saves", overflow="fold")
    reasons: dict[str, int] = {}
    for layer in record["layers"]:
        table.add_row(*(Text(cell) for cell in _cells(layer, methods, reasons)))
    console.print(table)
    for line in (*_footnotes(record), *(f"[{number}] {reason}" for reason, number in reasons.items())):
        console.print(Text(line))


def _cells(layer: dict[str, Any], methods: Sequence[str], reasons: dict[str, int]) -> list[str]:
    return [
        layer["name"],
        layer["kind"],
        "×".join(map(str, layer["shape"])),
        wording.count(layer["params"]),
        wording.count(layer["macs"]),
        f"{100 * layer['share']:.1f} %",
        *(_saving_cell(layer, name, reasons) for name in methods),
    ]


def _saving_cell(layer: dict[str, Any], method: str, reasons: dict[str, int]) -> str:
    """What a method saves, or the number of the reason why not; new reasons are added to those there."""
    if layer["reason"] is not None:
        return f"left alone [{reasons.setdefault(layer['reason'], len(reasons) + 1)}]"
    if method in layer["refusals"]:
        return f"no [{reasons.setdefault(layer['refusals'][method], len(reasons) + 1)}]"
    saving = layer["savings"].get(method)
    if saving is None:
        return wording.MISSING
    return "nothing that close" if saving["rank"] is None else f"{100 * saving['saved']:.0f} % at rank {saving['rank']}"


def _footnotes(record: dict[str, Any]) -> list[str]:
    if not record["layers"]:
        return ["no layer has a weight that a method could store in another form"]
    rest = 1 - sum(layer["share"] for layer in record["layers"])
    lines = [
        f"savings are quoted at {100 * record['modest_loss']:g} % of what losing the whole layer would cost "
        + ("(squared error of the weights; give --data for more)" if record["mode"] == "no data" else "(in nats)")
    ]
    if rest > 0.005:
        lines.append(f"{100 * rest:.1f} % of the bytes are outside these layers: biases, norms, the graph itself")
    return lines
