"""A result in one plain sentence."""

from __future__ import annotations

from collections import Counter
from typing import Any

from smidgen.report import wording
from smidgen.report.table import left_alone, loss_name

REASONS = 2  # that a sentence tells
DOUBTFUL = 0.5  # accuracy of a trained network, below which its inputs are more likely wrong than it
SATURATED = 0.05  # of the largest output; integers of 8 bits on the verge of two come to a tenth of it


def verdict(result: dict[str, Any]) -> str:
    """What was gained and what it cost, of the target the budget binds, in one sentence without a full stop.

    Takes the dictionary of ``result.json``; what was not measured is not mentioned, a budget that was missed is.

    >>> before = {"nbytes": 3_253_851, "accuracy": 0.9921}
    >>> after = {"nbytes": 512_000, "accuracy": 0.9914, "loss_points": 0.07, "loss_interval": [-0.05, 0.19]}
    >>> print(verdict({"target": "onnx", "original": before, "files": {"onnx": after}}))
    3.25 MB → 512 kB (6.4× smaller), accuracy 99.21 % → 99.14 % (lost 0.07 points, 95 % interval −0.05 … 0.19)
    """
    original, files = result["original"], result.get("files") or {}
    if not files:
        return f"{wording.size(original.get('nbytes'))}: nothing was written"
    target = result.get("target")
    file = files[target] if target in files else next(iter(files.values()))
    parts = [_size(original, file), _quality(original, file), _speed(original, file)]
    endings = _alone([layer for layer in result.get("layers") or [] if left_alone(layer)])
    budget = result.get("budget") or {}
    if budget.get("met") is False:
        endings.append("the budget was not met" + (f" ({budget['note']})" if budget.get("note") else ""))
    elif coarse := _coarse(result, file, budget):
        endings.append(coarse)
    if loss_name(file) == "accuracy" and original.get("accuracy") is not None and original["accuracy"] < DOUBTFUL:
        endings.append(
            f"the original is right on {wording.share(original['accuracy'])} of these inputs: if it should do better, "
            "see that they are prepared as in its training (--scale, --mean, --channels) and labelled alike"
        )
    if (file.get("saturation") or 0.0) > SATURATED:
        endings.append(
            f"this processor's 8-bit products saturate: answers are off by {wording.share(file['saturation'])} of the "
            "largest output, on others they are not"
        )
    return "; ".join([", ".join(part for part in parts if part), *endings])


def _coarse(result: dict[str, Any], file: dict[str, Any], budget: dict[str, Any]) -> str:
    """What a loss that was promised rests on, where the inputs are so few that one answer is more; empty elsewhere."""
    count = ((result.get("data") or {}).get("selection") or {}).get("count")
    counted = loss_name(file) in ("accuracy", "agreement")  # of answers, one of which is a whole
    if budget.get("kind") != "max_drop" or not count or not counted or 100 / count <= budget["value"]:
        return ""
    return (
        f"max_drop {wording.number(budget['value'])} was judged on {count} inputs, of which one is "
        f"{wording.number(100 / count)} points: give more to be surer"
    )


def _alone(layers: list[dict[str, Any]]) -> list[str]:
    """How many layers were left alone, and why most of them.

    >>> _alone([{"reason": "too small"}, {"reason": "too small"}, {"reason": "shared"}])
    ['3 layers left alone: 2 too small, 1 shared']
    """
    if not layers:
        return []
    reasons = Counter(str(layer["reason"]) for layer in layers).most_common()
    told = [f"{count} {reason}" if len(layers) > 1 else reason for reason, count in reasons[:REASONS]]
    rest = sum(count for _, count in reasons[REASONS:])
    others = [f"{rest} for other reasons"] if rest else []
    return [f"{len(layers)} layer{'s' if len(layers) > 1 else ''} left alone: {', '.join(told + others)}"]


def _size(original: dict[str, Any], file: dict[str, Any]) -> str:
    before, after = original.get("nbytes"), file.get("nbytes")
    if not before or not after:
        return wording.size(after)
    change = (
        f"{wording.times(before / after)} smaller" if before >= after else f"{wording.times(after / before)} larger"
    )
    return f"{wording.size(before)} → {wording.size(after)} ({change})"


def _quality(original: dict[str, Any], file: dict[str, Any]) -> str:
    """The measure the loss is counted in, before and after, and the loss."""
    name, points = loss_name(file), file.get("loss_points")
    if name == "normalised error":
        return "" if points is None else f"normalised error {wording.signed(points)} points{_limits(file)}"
    key, write = ("metric", wording.number) if file.get("metric") is not None else (name, wording.share)
    if name == "agreement":
        text = f"{wording.share(file[name])} of the answers as before"
    elif original.get(key) is None:
        text = f"{name} {write(file[key])}"
    else:
        text = f"{name} {write(original[key])} → {write(file[key])}"
    if points is None:
        return text
    return f"{text} ({'lost' if points >= 0 else 'gained'} {wording.signed(abs(points))} points{_limits(file, points)})"


def _limits(file: dict[str, Any], points: float | int = 0) -> str:
    """The interval in the direction the points are told in: of what was gained, where they were gained."""
    limits = file.get("loss_interval")
    if not limits or None in limits:
        return ""
    told = limits if points >= 0 else [-limits[1], -limits[0]]
    return f", 95 % interval {wording.interval(told)}"


def _speed(original: dict[str, Any], file: dict[str, Any]) -> str:
    before, after = original.get("latency_ms"), file.get("latency_ms")
    if not before or not after:
        return ""
    speedup = file.get("speedup") or before / after
    return f"{wording.times(speedup)} faster" if speedup >= 1 else f"{wording.times(1 / speedup)} slower"
