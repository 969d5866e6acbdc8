"""Pictures of a report as inline SVG: layers before and after, and a front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from smidgen.report import wording
from smidgen.report.html import Safe, tag

WIDTH = 900
MOST_LAYERS = 60  # with a bar of their own, the largest of the original
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 3", "5 2")


def layers_picture(layers: Sequence[Mapping[str, Any]]) -> Safe:
    """A pair of bars a layer: its bytes before and after, on a logarithmic scale, and what it became.

    Args:
        layers: entries of ``result.json``.
    """
    sized = [layer for layer in layers if _number(layer.get("nbytes_before")) > 0]
    largest = sorted(sized, key=lambda layer: -_number(layer["nbytes_before"]))[:MOST_LAYERS]
    shown = [layer for layer in sized if any(layer is each for each in largest)]
    if not shown:
        return Safe("")
    values = [v for layer in shown for v in (_number(layer["nbytes_before"]), _number(layer.get("nbytes_after"))) if v]
    low, high = floor(log10(min(values))), max(ceil(log10(max(values))), floor(log10(min(values))) + 1)
    left, right, row = 170, 400, 26
    width, height = WIDTH - left - right, row * len(shown) + 40

    def x(nbytes: float | int) -> float:
        return left + width * (log10(max(nbytes, 10.0**low)) - low) / (high - low)

    parts = []
    for power in range(low, high + 1):
        at = round(x(10.0**power), 1)
        parts.append(tag("line", x1=at, x2=at, y1=22, y2=height - 8, class_="grid"))
        parts.append(tag("text", wording.size(10**power), x=at, y=14, text_anchor="middle", class_="soft"))
    for place, layer in enumerate(shown):
        top = 28 + row * place
        before, after = _number(layer["nbytes_before"]), _number(layer.get("nbytes_after"))
        parts.append(tag("text", _short(layer.get("name"), 24), x=left - 8, y=top + 13, text_anchor="end"))
        for kind, nbytes, lower in (("before", before, 0), ("after", after, 9)):
            length = max(1.5, round(x(nbytes) - left, 1)) if nbytes else 0
            parts.append(tag("rect", x=left, y=top + lower, width=length, height=8, class_=kind))
        parts.append(
            tag("text", _short(became(layer) + _losses(layer), 62), x=left + width + 10, y=top + 13, class_="soft")
        )
    hidden = len(sized) - len(shown)
    told = f"{len(shown)} layers, grey before and blue after, bytes on a logarithmic scale"
    told += f"; {hidden} smaller layers are in the table alone" if hidden else ""
    whole = tag(
        "svg", tag("title", "Bytes of each layer", id="layers-title"),
        tag("desc", f"{told}. The table below has every number.", id="layers-desc"), *parts,
        viewBox=f"0 0 {WIDTH} {height}", role="img", aria_labelledby="layers-title layers-desc",
    )  # fmt: skip
    region = tag("div", whole, class_="wide", tabindex="0", role="region", aria_label="Picture of the layers")
    return tag("figure", region, tag("figcaption", told[0].upper() + told[1:] + "."))


def became(layer: Mapping[str, Any]) -> str:
    """What a layer became, or why it did not.

    >>> became({"form": "low-rank", "rank": 3, "bits": None}), became({"reason": "too small"})
    ('low-rank, rank 3', 'left alone: too small')
    """
    if layer.get("reason"):
        return f"refitted; {layer['reason']}" if layer.get("refitted") else f"left alone: {layer['reason']}"
    rank = layer.get("rank")
    parts = [str(layer.get("form") or "as it was"), None if rank is None else f"rank {rank}",
             None if layer.get("bits") is None else f"{layer['bits']} bits"]  # fmt: skip
    return ", ".join(part for part in parts if part)


def _losses(layer: Mapping[str, Any]) -> str:
    """The predicted loss beside the measured one, where the layer changed."""
    predicted, measured = layer.get("predicted_loss"), layer.get("measured_loss")
    if layer.get("reason") or predicted is None:
        return ""
    told = "" if measured is None else f", measured {wording.number(measured)}"
    return f" · loss {wording.number(predicted)}{told}"


def front_picture(record: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Safe:
    """Score against bytes; each point tells its plan when it is pointed at or focused.

    Args:
        record: the dictionary of ``sweep.json``.
        curves: points by curve, from `smidgen.report.front.curves_of`.
    """
    original = record["original"]
    top = original.get("test_score")
    marks = list(record.get("marks") or [])
    every = [(float(p["nbytes"]), 100 * float(p["test"]["score"])) for p in record["points"]]
    every.append((float(original["nbytes"]), 100.0 if top is None else 100 * float(top)))
    every += [(float(mark["nbytes"]), 100 * float(mark["score"])) for mark in marks]
    logs, scores = [log10(max(1.0, nbytes)) for nbytes, _ in every], [score for _, score in every]
    low, high, floor_, ceiling = min(logs), max(logs), min(scores), max(scores)
    span, rise = (high - low) or 1.0, (ceiling - floor_) or 1.0
    left, right, upper, height = 64, 24, 16, 420
    width, depth = WIDTH - left - right, height - upper - 64

    def at(nbytes: float | int, score: float | int) -> tuple[float, float]:
        across = (log10(max(1.0, nbytes)) - low) / span
        return round(left + width * (0.03 + 0.94 * across), 1), round(
            upper + depth * (0.97 - 0.94 * (score - floor_) / rise), 1
        )

    parts = [*_axes(at, low, high, floor_, ceiling, left, width, upper, depth)]
    for place, (name, points) in enumerate(curves.items()):
        colour, dash = f"var(--c{place % 6})", _DASHES[place % 6]
        ends = [at(p["nbytes"], 100 * p["test"]["score"]) for p in points]
        path = "M" + " L".join(f"{a} {b}" for a, b in ends)
        parts.append(tag("path", d=path, class_="curve", stroke=colour, stroke_dasharray=dash or None))
        parts += [_point(point, end, colour, name) for point, end in zip(points, ends, strict=True)]
        key = f"M{left + 8 + 140 * place} {height - 10} h36"
        parts.append(tag("path", d=key, class_="curve", stroke=colour, stroke_dasharray=dash or None))
        told = "joint plan" if name == "joint" else f"{name} alone"
        parts.append(tag("text", _short(told, 15), x=left + 50 + 140 * place, y=height - 6))
    chosen = next((p for p in record["points"] if p["name"] == record["chosen"]), None)
    if chosen is not None:
        cx, cy = at(chosen["nbytes"], 100 * chosen["test"]["score"])
        parts.append(tag("circle", cx=cx, cy=cy, r=11, class_="ring"))
        parts.append(tag("text", "chosen", x=cx + 15, y=cy + 16))
    cx, cy = at(*every[len(record["points"])])
    parts.append(tag("path", d=f"M{cx - 7} {cy} l7 -7 l7 7 l-7 7 z", class_="before"))
    parts.append(tag("text", "original", x=cx, y=cy + 22, text_anchor="end"))
    for mark in marks:
        cx, cy = at(mark["nbytes"], 100 * mark["score"])
        parts.append(tag("path", d=f"M{cx - 6} {cy - 6} l12 12 m0 -12 l-12 12", class_="ring"))
        parts.append(tag("text", _short(mark["name"], 30), x=cx + 10, y=cy + 4))
    title = tag("title", f"{record['measure']} against bytes of the file", id="front-title")
    told = "Score on the test inputs in percent against bytes on a logarithmic scale; the table below has every number."
    whole = tag(
        "svg", title, tag("desc", told, id="front-desc"), *parts,
        viewBox=f"0 0 {WIDTH} {height}", role="group", aria_labelledby="front-title front-desc",
    )  # fmt: skip
    region = tag("div", whole, class_="wide", tabindex="0", role="region", aria_label="Picture of the front")
    return tag("figure", region, tag("figcaption", told))


def _axes(
    at: Any, low: float, high: float, floor_: float, ceiling: float, left: int, width: int, upper: int, depth: int
) -> list[Safe]:
    """Lines and labels: sizes of one, two and five, and round scores."""
    parts = []
    for power in range(floor(low) - 1, ceil(high) + 1):
        for digit in (1, 2, 5):
            nbytes = digit * 10.0**power
            if low - 1e-9 <= log10(nbytes) <= high + 1e-9:
                x, _ = at(nbytes, floor_)
                parts.append(tag("line", x1=x, x2=x, y1=upper, y2=upper + depth, class_="grid"))
                parts.append(tag("text", wording.size(nbytes), x=x, y=upper + depth + 16, text_anchor="middle",
                                 class_="soft"))  # fmt: skip
    rise = (ceiling - floor_) or 1.0
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if s >= rise / 6 or s == 50)
    for i in range(ceil(floor_ / step), floor(ceiling / step) + 1):
        _, y = at(10**low, i * step)
        parts.append(tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{i * step:g} %", x=left - 6, y=y + 4, text_anchor="end", class_="soft"))
    return parts


def _point(point: Mapping[str, Any], end: tuple[float, float], colour: str, curve: str) -> Safe:
    told = plan_words(point)
    return tag("circle", tag("title", told), cx=end[0], cy=end[1], r=5.5 if curve == "joint" else 4.5, fill=colour,
               class_="point", tabindex="0", role="img", aria_label=told, data_plan=told)  # fmt: skip


def plan_words(point: Mapping[str, Any]) -> str:
    """A point and its plan in one line."""
    layers = [
        f"{each['site']}: " + " ".join(
            part for part in (
                each.get("method"), None if each.get("rank") is None else str(each["rank"]),
                None if each.get("bits") is None else f"{each['bits']} bits",
                None if each.get("step") is None else f"step {wording.number(each['step'])}",
            ) if part
        )
        for each in point.get("layers") or []
    ]  # fmt: skip
    most = 24
    rest = f" and {len(layers) - most} more" if len(layers) > most else ""
    return (
        f"{point['name']}: {wording.size(point['nbytes'])}, {wording.share(point['test']['score'])} on the test "
        f"inputs, {wording.share(point['selection']['score'])} on those that chose. "
        f"{'; '.join(layers[:most]) or 'no layer changed'}{rest}"
    )


def _short(value: Any, most: int) -> str:
    told = str(value)
    return told if len(told) <= most else told[: most - 1] + "…"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
