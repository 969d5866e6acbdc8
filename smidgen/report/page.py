"""``report.html``: a result as one file that asks nobody for anything."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from smidgen.report import wording
from smidgen.report.drawing import became, front_picture, layers_picture
from smidgen.report.front import curves_of, sweep_verdict
from smidgen.report.html import Safe, document, table, tag, text
from smidgen.report.style import SCRIPT, STYLE
from smidgen.report.summary import verdict
from smidgen.report.table import file_rows, notes_of

MOST_LAYERS = 600  # rows of a table; a page of more is no page


def result_page(record: Mapping[str, Any], pictures: Mapping[int, bytes] | None = None) -> str:
    """The page of a result.

    Args:
        record: the dictionary of ``result.json``.
        pictures: PNG images of the inputs whose answer changed, by their place among the test inputs.

    Returns:
        HTML, complete.
    """
    name = str(record.get("name") or "network")
    body = _result_body(dict(record), pictures or {})
    return document(f"smidgen: {name}", tag("main", *body), STYLE, SCRIPT)


def _result_body(record: dict[str, Any], pictures: Mapping[int, bytes]) -> list[Safe | None]:
    missed = (record.get("budget") or {}).get("met") is False
    layers = [each for each in record.get("layers") or [] if isinstance(each, dict)]
    return [
        tag("header", tag("h1", str(record.get("name") or "network")),
            tag("p", verdict(record) + ".", class_="verdict missed" if missed else "verdict"),
            tag("p", _how(record), class_="soft")),
        _section("Before and after", _files(record)),
        _section("Layers", layers_picture(layers), _layers(layers)) if layers else None,
        _section("Bytes", _ledger(record)) if record.get("ledger") else None,
        _section("Answers that changed", *_changed(record, pictures)),
        _section("To do it again", *_again(record)),
        tag("footer", "Written by smidgen. Nothing in this page was loaded from anywhere."),
    ]  # fmt: skip


def sweep_page(record: Mapping[str, Any]) -> str:
    """The page of a front; takes the dictionary of ``sweep.json``."""
    curves = curves_of(dict(record))
    body = [
        tag("header", tag("h1", str(record["name"])),
            tag("p", sweep_verdict(dict(record)) + ".", class_="verdict" if record["met"] else "verdict missed"),
            tag("p", "Points were chosen by the selection inputs; each file was scored on the test inputs once, which "
                "chose nothing.", class_="soft")),
        _section("The front", front_picture(record, curves),
                 tag("div", "Point at a mark, or reach it with the tab key, and its plan is told here.", id="told",
                     aria_live="polite")),
        _section("Points", _points(record)),
        _section("To do it again", *_again(dict(record)),
                 tag("p", "A point's network: ", tag("code", "smidgen apply MODEL plans/NAME.json --data … -o …"))),
        tag("footer", "Written by smidgen. Nothing in this page was loaded from anywhere."),
    ]  # fmt: skip
    return document(f"smidgen sweep: {record['name']}", tag("main", *body), STYLE, SCRIPT)


def comparison_page(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Two results side by side.

    Args:
        first, second: dictionaries of ``result.json``.
        names: what to call them.
    """
    both = (dict(first), dict(second))
    verdicts = [
        tag("div", tag("h2", name), tag("p", verdict(each) + ".", class_="verdict"), _files(each))
        for name, each in zip(names, both, strict=True)
    ]
    title = f"{names[0]} and {names[1]}"
    body = tag("main", tag("header", tag("h1", title)), tag("div", *verdicts, class_="two"), _beside(both, names),
               tag("footer", "Written by smidgen. Nothing in this page was loaded from anywhere."))  # fmt: skip
    return document(f"smidgen: {title}", body, STYLE, SCRIPT)


def in_notebook(page: str) -> str:
    """A page in a frame of its own, whose styles stay its own."""
    return tag("iframe", srcdoc=page, title="smidgen report", width="100%", height="640", style="border:0",
               sandbox="allow-scripts")  # fmt: skip


def _section(title: str, *parts: Safe | str | None) -> Safe:
    return tag("section", tag("h2", title), *parts)


def _how(record: Mapping[str, Any]) -> str:
    parts = [f"target {record['target']}" if record.get("target") else "", str(record.get("mode") or "")]
    data = record.get("data") or {}
    for role in ("calibration", "selection", "test"):
        found = data.get(role)
        if isinstance(found, dict):
            parts.append(f"{found.get('count')} {role} inputs")
    return ", ".join(part for part in parts if part)


def _files(record: dict[str, Any]) -> Safe:
    columns, rows = file_rows(record)
    notes = [line for line in notes_of(record).splitlines() if line]
    return Safe(
        table("What was measured on the written files", ["", *columns],
              [[label, *cells] for label, cells in rows]) + (tag("p", *_lines(notes), class_="soft") if notes else "")
    )  # fmt: skip


def _lines(lines: Sequence[str]) -> list[Safe]:
    return [part for line in lines for part in (text(line), tag("br"))][:-1]


def _layers(layers: Sequence[Mapping[str, Any]]) -> Safe:
    rows = []
    for layer in layers[:MOST_LAYERS]:
        before, after = layer.get("nbytes_before"), layer.get("nbytes_after")
        rows.append([
            str(layer.get("name")), became(layer), wording.size(before), wording.size(after),
            wording.times(before / after) if before and after and before != after else wording.MISSING,
            wording.number(layer.get("predicted_loss")), wording.number(layer.get("measured_loss")),
        ])  # fmt: skip
    heads = ["layer", "became", "before", "after", "smaller", "loss predicted", "measured alone"]
    more = len(layers) - len(rows)
    told = "What became of each layer; losses in nats, each layer alone"
    return table(told + (f" ({more} more are in result.json)" if more > 0 else ""), heads, rows, words=2, kind="layers")


def _ledger(record: Mapping[str, Any]) -> Safe:
    ledger = record["ledger"]
    files = ledger.get("files") or {}
    rows = []
    for layer in (ledger.get("layers") or [])[:MOST_LAYERS]:
        found = layer.get("files") or {}
        rows.append([str(layer.get("name")), *(_stored(found.get(name)) for name in files)])
    for label, key in (("file", "nbytes"), ("file, zipped", "zipped_nbytes"), ("in memory, floats", "memory_nbytes"),
                       ("activations at their peak", "peak_activation_bytes")):  # fmt: skip
        rows.append([label, *(wording.size(file.get(key)) for file in files.values())])
    return table("Bytes as stored, and once zipped in brackets", ["", *files], rows)


def _stored(weight: Mapping[str, Any] | None) -> str:
    if not weight:
        return wording.MISSING
    return f"{wording.size(weight.get('nbytes'))} ({wording.size(weight.get('zipped_nbytes'))})"


def changed_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``result.json`` says of the answers that changed in the file the budget binds; None where nothing."""
    files = record.get("files") or {}
    file = files.get(record.get("target")) or next(iter(files.values()), {})
    found = file.get("changed") if isinstance(file, dict) else None
    return found if isinstance(found, dict) else None


def _changed(record: Mapping[str, Any], pictures: Mapping[int, bytes]) -> list[Safe]:
    told = changed_of(record)
    if told is None:
        return [tag("p", "No test inputs with classes, so no answers to compare.", class_="soft")]
    count, of = told.get("count", 0), told.get("of", 0)
    if not count:
        return [tag("p", f"None of {of} test inputs is answered otherwise.")]
    items = []
    for each in told.get("inputs") or []:
        image = pictures.get(each.get("place"))
        told_ = f"input {each.get('place')}: {each.get('before')} → {each.get('after')}"
        label = f", labelled {each['label']}" if each.get("label") is not None else ""
        src = None if image is None else "data:image/png;base64," + base64.b64encode(image).decode()
        picture = None if src is None else tag("img", src=src, alt=f"test input {each.get('place')}")
        items.append(tag("li", picture, told_ + label))
    shown = "" if len(items) == count else f" The {len(items)} of which the original was surest:"
    return [
        tag("p", f"{count} of {of} test inputs are answered otherwise by the file of {record.get('target')}.{shown}"),
        tag("ul", *items, class_="inputs"),
    ]  # fmt: skip


def _again(record: Mapping[str, Any]) -> list[Safe]:
    command = record.get("command")
    parts = [tag("pre", str(command))] if command else []
    machine = record.get("machine") or {}
    rows = [["seed", str(record.get("seed"))], ["threads", str(record.get("threads"))],
            ["seconds", wording.number(record.get("seconds"))]]  # fmt: skip
    rows += [[str(name), str(value)] for name, value in machine.items()]
    rows += [[str(name), str(value)] for name, value in (record.get("versions") or {}).items()]
    data = record.get("data") or {}
    rows += [[f"{role} inputs", f"{found.get('source')}, {str(found.get('sha256'))[:16]}"]
             for role, found in data.items() if isinstance(found, dict)]  # fmt: skip
    return [*parts, table("Seed, machine, versions and data", ["what", "value"], rows, words=2)]


def _points(record: Mapping[str, Any]) -> Safe:
    rows = []
    for point in record["points"]:
        test = point["test"]
        where = ["chosen"] if point["name"] == record["chosen"] else ["front"] if point["front"] else []
        rows.append([
            point["name"], ", ".join([*where, *point["curves"]]), wording.size(point["nbytes"]),
            wording.times(point["ratio"]), wording.count(point.get("macs")),
            wording.MISSING if point.get("latency_ms") is None else f"{wording.number(point['latency_ms'])} ms",
            wording.share(point["selection"]["score"]), wording.share(test["score"]),
            f"{wording.signed(test['points'])} ({wording.interval(test['interval'])})",
        ])  # fmt: skip
    heads = ["point", "", "bytes", "smaller", "MACs", "latency", "selection", "test", "lost points (95 %)"]
    heads[1] = "curves"
    return table(f"{record['measure']} of every written file", heads, rows, words=2)


def _beside(both: tuple[dict[str, Any], dict[str, Any]], names: tuple[str, str]) -> Safe:
    """The layers of two results, a row a layer that either has."""
    found = [{str(layer.get("name")): layer for layer in each.get("layers") or []} for each in both]
    rows = []
    for name in dict.fromkeys([*found[0], *found[1]]):
        cells: list[Any] = [name]
        for each in found:
            layer = each.get(name)
            cells += (
                [wording.MISSING] * 2 if layer is None else [became(layer), wording.size(layer.get("nbytes_after"))]
            )
        rows.append(cells)
    heads = ["layer", names[0], "bytes", names[1], "bytes"]
    return _section("Layers", table("What became of each layer", heads, rows, words=5))
