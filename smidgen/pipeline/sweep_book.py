"""What a sweep keeps: its points, a file each; whose folder it is; which point is chosen; the record of them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.budget import Budget
from smidgen.errors import OutputError, UserError
from smidgen.export.files import write_bytes
from smidgen.measure.cost import file_cost
from smidgen.pipeline.task import Task
from smidgen.planning.candidates import Options
from smidgen.planning.front import JOINT, front, knee, measured_joint
from smidgen.planning.plan import Plan, fingerprint, plan_from_json
from smidgen.report.record import machine, versions
from smidgen.report.sweep import Mark
from smidgen.site import Site

VERSION = 1
RUN, POINTS_FOLDER, PLANS = "run.json", "points", "plans"


@dataclass(frozen=True, eq=False)
class Order:
    """A plan to be carried out.

    Args:
        name: such as ``joint-03``: the first curve it stands on, and its place there, the largest first.
        curves: all curves it stands on.
        plan: one choice a site.
        options: what the plan was chosen from.
    """

    name: str
    curves: tuple[str, ...]
    plan: Plan
    options: Sequence[Options]

    @property
    def key(self) -> str:
        """What the plan does, as a short hash."""
        text = json.dumps([[c.site, *c.taken] for c in self.plan.choices])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(
    task: Task, original: Path, circumstances: Mapping[str, Any], chosen: Mapping[str, Any], guard: bool
) -> dict[str, Any]:
    """What a folder's points must have in common, by what it is called in a message."""
    assert task.roles is not None
    sites: list[Site] = task.prepared.sites
    data = {name: part["sha256"] for name, part in task.roles.describe().items()}
    return {
        "another network": [fingerprint(sites), hashlib.sha256(original.read_bytes()).hexdigest()],
        "other data or preprocessing": [data, circumstances["data"]],
        "another target": circumstances["target"],
        "other settings": [circumstances["seed"], circumstances["refit"], guard, sorted(chosen),
                           {name: repr(method.settings) for name, method in chosen.items()},
                           None if task.metric is None else getattr(task.metric, "__name__", "metric")],
        "another version of smidgen": [VERSION, versions()["smidgen"]],
    }  # fmt: skip


def claim(place: Path, told: dict[str, Any]) -> None:
    """The folder is this sweep's from now on, or was before.

    Raises:
        OutputError: it holds another one.
    """
    path = place / RUN
    text = json.dumps(told, indent=1)
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            kept = None
        if not isinstance(kept, dict):
            raise OutputError(f"sweep: '{path}' is damaged; remove '{place}', or choose another folder with -o")
        other = [name for name, value in json.loads(text).items() if kept.get(name) != value]
        if other:
            raise OutputError(f"sweep: '{place}' holds a sweep of {other[0]}; choose another folder with -o")
    elif any((place / name).exists() for name in (POINTS_FOLDER, PLANS)):
        raise OutputError(f"sweep: '{place}' has points and does not say of what; choose another folder with -o")
    try:
        for each in (POINTS_FOLDER, PLANS):
            (place / each).mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"sweep: cannot write into '{place}': {error.strerror}; choose another with -o") from error


class Book:
    """Finished points: a file each, and the network each one wrote.

    Args:
        place: the sweep's folder.
        suffix: of the networks' files.
    """

    def __init__(self, place: Path, suffix: str) -> None:
        self.place, self.suffix = place, suffix
        self._known: dict[str, dict[str, Any]] = {}

    def file(self, key: str) -> Path:
        """The network that a point wrote."""
        return self.place / POINTS_FOLDER / f"{key}{self.suffix}"

    def entry(self, key: str) -> dict[str, Any] | None:
        """What is known of a point; None of one that is not finished, or was left half-written."""
        if key not in self._known:
            path = self.place / POINTS_FOLDER / f"{key}.json"
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                whole = found["nbytes"] == self.file(key).stat().st_size and {"plan", "score", "points"} <= set(found)
                plan_from_json(found["plan"])
            except (OSError, ValueError, RecursionError, KeyError, TypeError, UserError):
                return None
            if not whole:
                return None
            self._known[key] = found
        return self._known[key]

    def add(self, key: str, found: dict[str, Any], content: bytes | None = None) -> None:
        """Keep a point: its network first, then what is known of it."""
        if content is not None:
            write_bytes(content, self.file(key))
        text = json.dumps(found, indent=1, allow_nan=False, default=str) + "\n"
        write_bytes(text.encode(), self.place / POINTS_FOLDER / f"{key}.json")
        self._known[key] = found


def record_of(
    task: Task, done: Sequence[Order], book: Book, original: Path, target: str, budget: Budget | None,
    marks: Sequence[Mark], options: Sequence[Options],
) -> dict[str, Any]:  # fmt: skip
    """What ``sweep.json`` says; every point's plan is written beside it."""
    assert task.roles is not None
    before = original.stat().st_size
    entries = []
    for order in sorted(done, key=lambda each: -(book.entry(each.key) or {})["nbytes"]):
        found = dict(book.entry(order.key) or {})
        plan_path = f"{PLANS}/{order.name}.json"
        (book.place / plan_path).write_text(found.pop("plan") + "\n", encoding="utf-8")
        selection = {name: found.pop(name) for name in ("score", "points", "error")}
        found.pop("name")
        entries.append({
            "name": order.name, "curves": list(order.curves), "plan": plan_path,
            "file": f"{POINTS_FOLDER}/{order.key}{book.suffix}", "ratio": before / found["nbytes"],
            **found, "selection": selection, "layers": _told(order.plan),
        })  # fmt: skip
    _take_the_better(entries)
    places = [(float(e["nbytes"]), float(e["selection"]["score"])) for e in entries]
    best = front(places)
    for i, entry in enumerate(entries):
        entry["front"] = i in best
    params, macs = file_cost(original)
    told = [entry["original_ms"] for entry in entries if "original_ms" in entry]
    scores = [e["test"]["original_score"] for e in entries if e["test"]["original_score"] is not None]
    first = entries[0]
    return {
        "schema_version": VERSION, "kind": "sweep", "name": task.network.name, "target": target, "seed": task.seed,
        "threads": task.threads, "versions": versions(), "machine": machine(), "data": task.roles.describe(),
        "measure": first["measure"],
        "original": {
            "path": original.name, "nbytes": before, "params": params, "macs": macs,
            "latency_ms": sorted(told)[len(told) // 2] if told else None, "test_score": scores[0] if scores else None,
            "selection_score": first["selection"]["score"] + first["selection"]["points"] / 100,
        },
        "budget": {"kind": "knee" if budget is None or budget.kind == "default" else budget.kind,
                   "value": None if budget is None else budget.to_dict().get(budget.kind)},
        "points": entries, **choice(entries, best, budget, before),
        "marks": [mark.plain() for mark in marks],
        "sites": [{"name": o.site.name, "shape": list(o.site.weight.shape), "nbytes": int(o.sizes[0])}
                  for o in options],
    }  # fmt: skip


def _take_the_better(entries: Sequence[dict[str, Any]]) -> None:
    """The joint curve goes through a single method's plan where that measured better on the selection inputs."""
    told = [
        (e["nbytes"], e["selection"]["score"], e["selection"]["error"] / 100, JOINT in e["curves"]) for e in entries
    ]
    for passed, better in measured_joint(told).items():
        entries[passed]["curves"].remove(JOINT)
        if JOINT not in entries[better]["curves"]:
            entries[better]["curves"].insert(0, JOINT)


def choice(
    entries: Sequence[Mapping[str, Any]], best: Sequence[int], budget: Budget | None, before: int
) -> dict[str, Any]:
    """The chosen point by the selection inputs, and whether it meets what was asked."""
    ends = [entries[i] for i in best]
    if budget is None or budget.kind == "default":
        return {"chosen": ends[knee([(e["nbytes"], e["selection"]["score"]) for e in ends])]["name"], "met": True}
    if budget.kind == "max_drop":
        kept = [e for e in ends if e["selection"]["points"] + e["selection"]["error"] <= (budget.points or 0) + 1e-9]
        if kept:
            return {"chosen": min(kept, key=lambda e: e["nbytes"])["name"], "met": True}
        return {"chosen": max(ends, key=lambda e: e["selection"]["score"])["name"], "met": False}
    limit = budget.nbytes or int(before / (budget.times or 1))
    kept = [e for e in ends if e["nbytes"] <= limit]
    if kept:
        return {"chosen": max(kept, key=lambda e: e["selection"]["score"])["name"], "met": True}
    return {"chosen": min(ends, key=lambda e: e["nbytes"])["name"], "met": False}


def _told(plan: Plan) -> list[dict[str, Any]]:
    """What the plan does to each layer, for the reader of a picture."""
    return [
        {"site": c.site, "method": c.method, "rank": c.rank, "step": c.step, "bits": c.bits, "nbytes": c.nbytes}
        for c in plan.choices
        if c.changed
    ]
