"""What the record of a sweep says: its curves, and the chosen point in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smidgen.report import wording


def curves_of(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Points by curve, the joint one first, each by falling bytes."""
    names = dict.fromkeys(name for point in record["points"] for name in point["curves"])
    ordered: Sequence[str] = sorted(names, key=lambda name: (name != "joint", name))
    return {name: [point for point in record["points"] if name in point["curves"]] for name in ordered}


def sweep_verdict(record: dict[str, Any]) -> str:
    """The chosen point in one sentence, without a full stop.

    Takes the dictionary of ``sweep.json``.
    """
    point = next(each for each in record["points"] if each["name"] == record["chosen"])
    original, test = record["original"], point["test"]
    score = f"{record['measure']} {wording.share(test['score'])}"
    if original.get("test_score") is not None:
        score = f"{record['measure']} {wording.share(original['test_score'])} → {wording.share(test['score'])}"
    speed = f", {wording.times(point['speedup'])} as fast" if point.get("speedup") else ""
    how = {"knee": "where the front bends most"}.get(
        record["budget"]["kind"], f"by {record['budget']['kind']} {record['budget']['value']}"
    )
    missed = "" if record["met"] else "; NO point meets it, this one comes nearest"
    return (
        f"{point['name']}, {how}: {wording.size(original['nbytes'])} → {wording.size(point['nbytes'])} "
        f"({wording.times(point['ratio'])} smaller), {score} on the test inputs{speed}{missed}"
    )
