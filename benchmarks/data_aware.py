"""The metric of the data against the plain one at the same ranks, no refit: which form answers more like the original.

For a small VGG and for ResNet-20 on CIFAR-10, from 1,000 unlabelled training images. Each method finds its forms twice,
in the metric of the data and in plain Frobenius norm; both are put in at the same ranks and nothing is refitted. Points
go from mild to strong: the largest layers alone at their largest offered rank, one, two, … of them, then all layers at
falling shares of it. Asked: a lower KL on the test inputs at 90 % or more of each method's points where either loses
more than 0.5 points.

    python benchmarks/data_aware.py
    python benchmarks/data_aware.py --networks resnet20 --methods svd --test-inputs 2000
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import vgg
from claims import Claim, save, show
from frontier import NETWORKS, task_of
from sweep import Bench, Point

from smidgen.methods import methods
from smidgen.pipeline import Task, candidates
from smidgen.planning.allocate import allocate
from smidgen.planning.candidates import Options, gather
from smidgen.planning.plan import Choice

TITLE = "Data-aware against plain decomposition at shared ranks, no refit"
LAYERS = (1, 2, 3, 5, 8, 12)  # the largest so many alone, at their largest offered rank
SHARES = (1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)  # all layers, at this share of it
COUNTS_FROM, MOSTLY = 0.5, 0.9
# Ranks of Tucker-2 lie on a path in which the metric has a say: of ten each, hardly any are shared but the smallest.
SETTINGS: dict[str, dict[str, Any]] = {"tucker2": {"points": 64, "sweeps": 1}}


def at_share(
    options: Sequence[Options],
    method: str,
    shared: Mapping[str, Sequence[int]],
    share: float,
    layers: int | None = None,
) -> list[Choice]:
    """A choice a site: the shared rank next to this share of the largest one that makes the layer smaller.

    Args:
        options: of every site.
        method: the method.
        shared: ranks by site.
        share: of the largest.
        layers: how many of the largest layers take it; all when None.
    """
    offering = sorted((o for o in options if shared.get(o.site.name)), key=lambda o: -o.site.weight.size)
    taken = {option.site.name for option in offering[:layers]}
    choices = []
    for option in options:
        name, ranks = option.site.name, shared.get(option.site.name, ())
        if name in taken:
            rank = min(ranks, key=lambda r: abs(r - share * ranks[-1]))
            i = next(i for i, label in enumerate(option.labels) if (label.method, label.rank) == (method, rank))
            choices.append(Choice(name, method, rank, float(option.losses[i]), int(option.sizes[i])))
        else:
            choices.append(Choice(name, None, None, 0.0, int(option.sizes[0]), "left for this point"))
    return choices


def shared_ranks(one: Sequence[Options], other: Sequence[Options], method: str) -> dict[str, list[int]]:
    """Ranks that both offer, by site."""

    def ranks(option: Options) -> set[int]:
        return {label.rank for label in option.labels if label.method == method and label.rank is not None}

    return {a.site.name: sorted(ranks(a) & ranks(b)) for a, b in zip(one, other, strict=True)}


def metric_pairs(task: Task, method: str) -> list[tuple[Point, Point]]:
    """The plain point and the data-aware one at each share, neither refitted."""
    assert task.test is not None
    settings = SETTINGS.get(method, {})
    aware, chosen = candidates(task, [method], settings={method: settings})
    asked = {method: methods()[method].with_settings(**settings)}
    plain = gather(task.prepared.sites, {}, asked, device=task.device, seed=task.seed)
    ranks = shared_ranks(aware, plain, method)
    pairs: list[list[Point]] = []
    for name, options in (("plain", plain), ("data-aware", aware)):
        bench = Bench(task, method, task.test, refit=False, found=(options, chosen))
        base, points = allocate(options, 0.0, chosen), []
        able = sum(bool(ranks[o.site.name]) for o in options)
        for asked, share, layers in [
            *((f"{n} layers", 1.0, n) for n in LAYERS if n < able), *((f"share {s:g}", s, None) for s in SHARES)
        ]:  # fmt: skip
            plan = replace(base, choices=tuple(at_share(options, method, ranks, share, layers)))
            points.append(replace(bench.at_plan(f"{name}, {asked}", share, plan), asked=asked))
        pairs.append(points)
    return list(zip(*pairs, strict=True))


def metric_claim(network: str, method: str, pairs: Sequence[tuple[Point, Point]]) -> Claim:
    """At how many points that lose something the metric of the data is the better one; the others are told."""
    counted = [(a, b) for a, b in pairs if max(a.lost, b.lost) > COUNTS_FROM]
    others = [(a, b) for a, b in counted if (b.kl or 0.0) >= (a.kl or 0.0)]
    text = f"{len(counted) - len(others)} of {len(counted)}"
    # Past the logarithm of ten a network answers worse than one that says nothing.
    answering = [(a, b) for a, b in counted if min(a.kl or 0.0, b.kl or 0.0) < math.log(vgg.CLASSES)]
    good = sum((b.kl or 0.0) < (a.kl or 0.0) for a, b in answering)
    text += f" ({good} of the {len(answering)} where either KL is below ln 10)"
    if others:
        told = (
            "the same"
            if a.kl == b.kl
            else f"KL {b.kl:.3f} against {a.kl:.3f} at {b.lost:.1f} and {a.lost:.1f} points lost"
            for a, b in others
        )
        text += "; not at " + ", ".join(f"{a.asked} ({how})" for (a, _), how in zip(others, told, strict=True))
    return Claim(
        f"{network}, {method}: data-aware has a lower KL than plain at shared ranks",
        f"≥ {100 * MOSTLY:g} % of the points that lose more than {COUNTS_FROM} points",
        text, len(counted) - len(others) >= MOSTLY * len(counted) if counted else None,
    )  # fmt: skip


def metric_table(pairs: Mapping[str, Sequence[tuple[Point, Point]]]) -> list[list[str]]:
    """Heads and rows."""
    rows = [["method", "point", "bytes", "KL plain", "KL data-aware", "lost plain", "lost data-aware"]]
    for name, listed in pairs.items():
        rows += [
            [name, a.asked, f"{a.nbytes:,}", f"{a.kl:.4f}", f"{b.kl:.4f}", f"{a.lost:.2f}", f"{b.lost:.2f}"]
            for a, b in listed
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=sorted(methods()), default=sorted(methods()))
    parser.add_argument("--test-inputs", type=int, default=0, help="so many of the test split instead of all")
    parser.add_argument("--weights", type=Path, default=vgg.WEIGHTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    claims: list[Claim] = []
    tables: dict[str, Any] = {}
    behind: dict[str, Any] = {}
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            task = task_of(name, args, Path(folder))
            pairs = {method: metric_pairs(task, method) for method in args.methods}
        claims += [metric_claim(name, method, listed) for method, listed in pairs.items()]
        tables[name] = metric_table(pairs)
        behind[name] = {k: [[a.as_dict(), b.as_dict()] for a, b in listed] for k, listed in pairs.items()}
        save("data_aware", TITLE, claims, threads=args.threads, seed=args.seed, tables=tables, pairs=behind,
             test_inputs=args.test_inputs or "all")  # fmt: skip
    show(TITLE, claims)


if __name__ == "__main__":
    main()
