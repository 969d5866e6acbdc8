"""The before/after table of a result, and the table of its layers, from the ``result.json`` dictionary alone.

What was not measured is a dash, and the reason stands under the table. Nothing here computes a measurement.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from smidgen.report import wording
from smidgen.report.devices import devices_table
from smidgen.report.ledger import ledger_table

# Wide enough for a table of four targets; a terminal that is narrower wraps for itself.
_TEXT_WIDTH = 120
# Fields of a file by the names of their rows.
_LABELS = {
    "nbytes": "size",
    "params": "parameters",
    "macs": "MACs",
    "roc_auc": "ROC AUC",
    "top5": "top-5",
    "kl": "KL",
    "output_error": "output error",
    "latency_ms": "latency",
    "loss_points": "lost points",
    "loss_interval": "interval",
}
# Files that store a zero as any other float.
DENSE = ("onnx", "tflite")
# Fields of a file that only say how it differs from the original: a dash in its column needs no reason.
_COMPARISONS = frozenset({"agreement", "kl", "output_error", "loss_points", "loss_interval"})


def render_table(result: dict[str, Any]) -> Table:
    """The before/after table: a column for the original and each target, a row for each thing measured.

    Takes the dictionary of ``result.json``; a row that no file has is left out, its reason is under the table.
    Returns a table for rich to print.

    >>> file = {"path": "a.onnx", "nbytes": 4000, "accuracy": 0.5}
    >>> table = render_table({"original": file, "files": {"onnx": {**file, "nbytes": 1000}}})
    >>> [str(column.header) for column in table.columns], table.row_count
    (['', 'original', 'onnx'], 4)
    """
    files, notes = _files(result), notes_of(result)
    # Text, not strings: rich would read "[n, 4, 8]" in a name or a reason as markup.
    table = Table(title=Text(_title(result)), title_justify="left", caption=Text(notes), caption_justify="left")
    table.add_column("", no_wrap=True)
    for name in files:
        table.add_column(Text(name), justify="right", overflow="fold")
    for label, cells in _rows(files):
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def notes_of(result: dict[str, Any]) -> str:
    """What stands under the table, a line each: what was done to the network, and the reasons for the dashes."""
    lines = (
        _channels(result), _pruning(result), _training(result), _prediction(result), _equalised(result),
        _notes(_files(result)),
    )  # fmt: skip
    return "\n".join(line for line in lines if line)


def file_rows(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The before/after table as plain text: names of the columns, and rows of a label and cells."""
    files = _files(result)
    return list(files), list(_rows(files))


def layers_table(result: dict[str, Any]) -> Table:
    """What became of each layer: form (or why it was left alone), rank, bytes, predicted loss, true loss of it alone.

    Where time was budgeted, the milliseconds it takes alone as well.

    >>> layer = {"name": "fc", "form": None, "nbytes_before": 40, "nbytes_after": 40, "reason": "too small"}
    >>> layers_table({"layers": [layer]}).row_count
    1
    """
    table = Table(title="Layers", title_justify="left")
    # Numbers stay whole, a narrow terminal folds the words: 80 columns hold them all.
    for header, width in (("layer", 10), ("form", 12)):
        table.add_column(header, overflow="fold", min_width=width)
    timed = (result.get("budget") or {}).get("kind") in ("speedup", "latency")
    for header in ("rank", "bytes", "times", "loss, nats", "measured", *(["ms"] if timed else [])):
        table.add_column(header, justify="right", no_wrap=True)
    for layer in result.get("layers", []):
        cells = [*_layer_cells(layer), *([_layer_ms(layer)] if timed else [])]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def stages_table(result: dict[str, Any]) -> Table:
    """Bytes after each stage of a recipe, and what it lost on the selection inputs.

    >>> stages_table({"recipe": "deep-compression", "stages": [{"name": "original", "nbytes": 4000}]}).row_count
    1
    """
    stages, trained = result["stages"], result.get("recipe_trained")
    title = f"Stages of {result.get('recipe')}{'' if trained else ', no training'}"
    table = Table(title=Text(title), title_justify="left")
    for header in ("stage", "file"):
        table.add_column(header)
    losses = ("loss, selection",) if trained else ()
    for header in ("bytes", "times smaller", "lost points, selection", *losses):
        table.add_column(header, justify="right")
    for stage in stages:
        cells = [
            stage["name"], stage.get("path") or wording.MISSING, wording.size(stage["nbytes"]),
            wording.times(stages[0]["nbytes"] / stage["nbytes"]),
            wording.MISSING if stage.get("points") is None else wording.signed(stage["points"]),
            wording.MISSING if stage.get("loss") is None else wording.number(stage["loss"]),
        ]  # fmt: skip
        cells = cells[: len(table.columns)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _layer_ms(layer: dict[str, Any]) -> str:
    """Times of a layer alone, before and after."""
    before, after = layer.get("latency_ms_before"), layer.get("latency_ms_after")
    if before is None or after is None:
        return wording.MISSING
    return wording.number(before) if before == after else f"{wording.number(before)} → {wording.number(after)}"


def to_text(result: dict[str, Any]) -> str:
    """All tables as plain text, without colours or trailing blanks.

    >>> print(to_text({"original": {"path": "a.onnx", "nbytes": 4000}, "files": {}}).splitlines()[3])
    │ file │   a.onnx │
    """
    parts: list[RenderableType] = [render_table(result)]
    if result.get("stages"):
        parts.append(stages_table(result))
    if result.get("layers"):
        parts.append(layers_table(result))
    if result.get("ledger"):
        parts.append(ledger_table(result["ledger"]))
    if result.get("devices"):
        parts.append(devices_table(result["devices"]))
    stream = io.StringIO()
    Console(file=stream, width=_TEXT_WIDTH, color_system=None, legacy_windows=False).print(Group(*parts))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _files(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Columns by name, the original first."""
    return {"original": result["original"], **result.get("files", {})}


def _title(result: dict[str, Any]) -> str:
    """The mode, which decides how far the numbers reach, and whether the budget was met."""
    parts = [f"mode: {result['mode']}"] if result.get("mode") else []
    budget = result.get("budget")
    if budget and budget.get("kind"):
        outcome = "met" if budget.get("met") else "NOT met"
        note = f" ({budget['note']})" if budget.get("note") else ""
        parts.append(f"budget: {budget['kind']} {_budget_value(budget)} {outcome}{note}")
    return ", ".join(parts)


def _budget_value(budget: dict[str, Any]) -> str:
    value = budget.get("value")
    if budget["kind"] == "size" and isinstance(value, (int, float)):
        return wording.size(value)
    if budget["kind"] == "macs" and isinstance(value, float):
        return f"{100 * value:g} %"
    return wording.number(value) if isinstance(value, float) else str(value)


def _rows(files: dict[str, dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Labels and cells of the rows that at least one file fills."""
    columns = list(files.values())
    original = columns[0]
    metric = next((str(each["metric_name"]) for each in columns if each.get("metric_name")), "your metric")
    rows = [
        ("file", [_base_name(each.get("path")) for each in columns]),
        ("size", [wording.size(each.get("nbytes")) for each in columns]),
        ("times smaller", [_ratio(original, each, "nbytes") for each in columns]),
        ("parameters", [wording.count(each.get("params")) for each in columns]),
        ("MACs", [wording.count(each.get("macs")) for each in columns]),
        ("accuracy", [wording.share(each.get("accuracy")) for each in columns]),
        (metric, [wording.number(each.get("metric")) for each in columns]),
        (f"lost points of {loss_name(columns[-1])}", [_points(each) for each in columns]),
        ("  95 % interval", [_interval(each) for each in columns]),
        ("ROC AUC", [_decimal(each.get("roc_auc")) for each in columns]),
        ("top-5", [wording.share(each.get("top5")) for each in columns]),
        ("agreement", [wording.share(each.get("agreement")) for each in columns]),
        ("KL, nats", [wording.number(each.get("kl")) for each in columns]),
        *_output_rows(columns),
        ("latency", [_milliseconds(each.get("latency_ms")) for each in columns]),
        ("times faster", [_faster(original, each) for each in columns]),
    ]
    for label, cells in rows:
        if any(cell != wording.MISSING for cell in cells):
            yield label, cells


def _output_rows(columns: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A row for each output's error, its name beside it."""
    names = dict.fromkeys(name for each in columns for name in (each.get("output_error") or {}))
    return [
        (f"error of '{name}'", [wording.number((each.get("output_error") or {}).get(name)) for each in columns])
        for name in names
    ]


def loss_name(file: dict[str, Any]) -> str:
    """What the points of ``file`` count: its metric, accuracy, agreement or normalised error.

    >>> loss_name({"accuracy": 0.9, "agreement": 0.8}), loss_name({"output_error": {"boxes": 0.01}})
    ('accuracy', 'normalised error')
    """
    if file.get("metric") is not None:
        return str(file.get("metric_name") or "your metric")
    return next((name for name in ("accuracy", "agreement") if file.get(name) is not None), "normalised error")


def _prediction(result: dict[str, Any]) -> str:
    """What was predicted beside what was measured, so that the gap is in plain sight."""
    pairs = []
    for name, write in (("nbytes", wording.size), ("loss", _nats), ("latency_ms", _milliseconds)):
        predicted, measured = ((result.get(kind) or {}).get(name) for kind in ("predicted", "measured"))
        if predicted is not None or measured is not None:
            pairs.append(f"{_LABELS.get(name, name)} {write(predicted)}, measured {write(measured)}")
    return f"predicted {'; predicted '.join(pairs)}" if pairs else ""


def _equalised(result: dict[str, Any]) -> str:
    share = result.get("equalised")
    return "" if share is None else f"channels brought nearer to one size before they became integers (α = {share:g})"


def _channels(result: dict[str, Any]) -> str:
    """How many channels went, or why none did."""
    told = result.get("channels")
    if not told:
        return ""
    if not told["taken"]:
        return f"channels: none removed, {told['why']}"
    before, after = (sum(row[name] for row in told["layers"]) for name in ("before", "after"))
    losses = " and ".join(f"{_nats(told[name]['loss'])} {text}" for name, text in _RUNS.items())
    return f"channels: {after} of {before} outputs of {len(told['layers'])} layers are left ({losses})"


_RUNS = {"cut": "with fewer", "whole": "with all, on the selection inputs"}


def _pruning(result: dict[str, Any]) -> str:
    """How many weights were removed, and what a dense file says of them."""
    told = result.get("pruning")
    if not told:
        return ""
    text = (
        f"pruned by {told['method']}: {wording.share(told['sparsity'])} of {wording.count(told['weights'])} weights "
        "are zero"
    )
    dense = [name for name in result.get("files", {}) if name in DENSE]
    if not dense:
        return text
    return f"{text}; a dense file ({', '.join(dense)}) stores them all the same: its size does not change"


def _training(result: dict[str, Any]) -> str:
    """How long it was trained, on what, and what that brought; or why it was left as it was."""
    told = result.get("training")
    if not told:
        return ""
    text = f"trained for {told['epochs']} epochs on {wording.count(told['inputs'])} inputs ({told['seconds']:.0f} s)"
    if not told["kept"]:
        return f"{text}, and left as it was: {told['why']}"
    if "before" not in told:  # it was trained from the first: there is no plan that it could be compared with
        return text
    before, after = (wording.number(told[when]["loss"]) for when in ("before", "after"))
    return f"{text}: loss on the selection inputs {before} → {after}"


def _nats(loss: float | int | None) -> str:
    return wording.MISSING if loss is None else f"{wording.number(loss)} nats"


def _notes(files: dict[str, dict[str, Any]]) -> str:
    """The reasons for the dashes, each once, with the files it holds for where not for all."""
    told: dict[tuple[str, str], list[str]] = {}
    for column, file in files.items():
        for name, reason in (file.get("why") or {}).items():
            if file.get(name) is None and not (column == "original" and name in _COMPARISONS):
                told.setdefault((name, reason), []).append(column)
    reasons: dict[tuple[str, str], list[str]] = {}
    for (name, reason), columns in told.items():
        where = "" if len(columns) == len(files) else f" ({', '.join(columns)})"
        reasons.setdefault((reason, where), []).append(_LABELS.get(name, name))
    return "\n".join(f"– {', '.join(names)}{where}: {reason}" for (reason, where), names in reasons.items())


def left_alone(layer: dict[str, Any]) -> bool:
    """Whether a layer is as it was: it stayed dense for a reason, and no refit moved its values.

    >>> left_alone({"reason": "too small"}), left_alone({"reason": "too small", "refitted": True})
    (True, False)
    """
    return bool(layer.get("reason")) and not layer.get("refitted")


def _layer_cells(layer: dict[str, Any]) -> list[str]:
    before, after = layer.get("nbytes_before"), layer.get("nbytes_after")
    dense = bool(layer.get("reason"))
    loss = layer.get("predicted_loss")
    became = f"left alone: {layer['reason']}" if left_alone(layer) else str(layer.get("form") or wording.MISSING)
    return [
        str(layer["name"]),
        f"{became}, refitted" if dense and layer.get("refitted") else became,
        wording.MISSING if layer.get("rank") is None else _rank(layer["rank"]),
        wording.size(before) if dense else f"{wording.size(before)} → {wording.size(after)}",
        wording.MISSING if dense or not before or not after else wording.times(before / after),
        wording.MISSING if dense else wording.number(loss),
        wording.MISSING if layer.get("measured_loss") is None else wording.number(layer["measured_loss"]),
    ]


def _rank(rank: Any) -> str:
    """One rank, or those of every mode."""
    return "×".join(map(str, rank)) if isinstance(rank, (list, tuple)) else str(rank)


def _base_name(path: Any) -> str:
    return wording.MISSING if not path else str(path).replace("\\", "/").rsplit("/", 1)[-1]


def _ratio(original: dict[str, Any], file: dict[str, Any], name: str) -> str:
    """How many times less than the original; a dash for the original itself."""
    before, after = original.get(name), file.get(name)
    return wording.MISSING if file is original or not before or not after else wording.times(before / after)


def _faster(original: dict[str, Any], file: dict[str, Any]) -> str:
    """The median over interleaved runs where it is there, which drift of the machine does not touch."""
    if file is original or file.get("speedup") is None:
        return _ratio(original, file, "latency_ms")
    return wording.times(file["speedup"])


def _points(file: dict[str, Any]) -> str:
    points = file.get("loss_points")
    return wording.MISSING if points is None else wording.signed(points)


def _interval(file: dict[str, Any]) -> str:
    limits = file.get("loss_interval")
    return wording.MISSING if not limits or None in limits else wording.interval(limits)


def _decimal(value: float | int | None) -> str:
    return wording.MISSING if value is None else f"{value:.4f}"


def _milliseconds(value: float | int | None) -> str:
    return wording.MISSING if value is None else f"{wording.number(value)} ms"
