"""Accuracy against multiply-adds and against measured latency: each method alone, and the automatic mix of them.

For a small VGG and for ResNet-20 on CIFAR-10, from 1,000 unlabelled training images and without retraining, as ONNX
files of floats. Methods are those that `smidgen.methods.methods()` finds. Two questions are asked:

    the mix     in the bytes of each point of each method, the automatic mix is not below it by more than 0.1 point
    the metric  at the same rank of every layer and without a refit, the form found in the metric of the data has a
                lower KL on the test inputs than the one found in plain Frobenius norm, at 90 % or more of the points
                where either loses more than 0.5 points

    python benchmarks/frontier.py
    python benchmarks/frontier.py --networks resnet20 --methods svd cp --dial 0.3 0.5 --test-inputs 2000
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sets
import torch
import vgg
from claims import RESULTS, Claim, save, show
from figure import frontier
from mobile_peers import write_network
from sweep import Bench, Point

from smidgen.measure.cost import onnx_cost
from smidgen.measure.latency import Latency, measure_latency
from smidgen.methods import methods
from smidgen.pipeline import Task, candidates, open_task
from smidgen.planning.allocate import allocate
from smidgen.planning.candidates import Options, gather
from smidgen.planning.plan import Choice
from smidgen.runtimes.onnxruntime import open_onnx

TITLE = "Each method alone and the automatic mix: accuracy against multiply-adds and latency"
NETWORKS = ("vgg", "resnet20")
RESNET = "resnet20_cifar10_jpegft.onnx"
DIAL = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
SHARES = (1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)  # of each layer's largest offered rank
MIX = "automatic"
SLACK, COUNTS_FROM, MOSTLY = 0.1, 0.5, 0.9
ZOOM = 12.0
REPEATS, MOST_SECONDS = 200, 120.0


@dataclass(frozen=True)
class Costed:
    """A point and what its file costs.

    Args:
        point: file and scores.
        macs: of one answer.
        latency: of one answer, timed in turn with the original and all other points of the network.
    """

    point: Point
    macs: int
    latency: Latency


def task_of(name: str, args: argparse.Namespace, folder: Path) -> Task:
    """The network, its calibration inputs and its test inputs."""
    if name == "vgg":
        file = folder / "vgg.onnx"
        write_network(vgg.network(0, args.weights, threads=args.threads), file, (3, vgg.SIDE, vgg.SIDE))
    else:
        file = sets.model(RESNET)
    calibration, test = sets.calibration_and_test(name, args.seed)
    if args.test_inputs:
        order = np.random.default_rng(args.seed).permutation(len(test))
        test = test.take(order[: args.test_inputs])
    return open_task(file, calibration, sets.ready(test), None, None, None, args.threads, "cpu", args.seed)


def alone(options: Sequence[Options], method: str) -> list[Options]:
    """The options with every other method's taken away."""
    result = []
    for option in options:
        kept = [i for i, label in enumerate(option.labels) if label.method in (None, method)]
        result.append(replace(
            option, losses=option.losses[kept], sizes=option.sizes[kept],
            labels=tuple(option.labels[i] for i in kept),
        ))  # fmt: skip
    return result


def curves_of(task: Task, args: argparse.Namespace) -> tuple[dict[str, Bench], dict[str, list[Point]]]:
    """Every method over the dial, then the mix over the dial and in the bytes of every point of a method."""
    assert task.test is not None
    options, chosen = candidates(task, list(args.methods))  # calibrated once for all
    benches, points = {}, {}
    for name in args.methods:
        print(f"{name} alone", flush=True)
        benches[name] = Bench(task, name, task.test, found=(alone(options, name), {name: chosen[name]}))
        points[name] = [benches[name].at_dial(position) for position in args.dial]
    print(MIX, flush=True)
    benches[MIX] = mix = Bench(task, list(args.methods), task.test, found=(options, chosen))
    points[MIX] = [mix.at_dial(position) for position in args.dial]
    return benches, points


def mix_beside(mix: Bench, points: Mapping[str, list[Point]]) -> list[tuple[str, Point, Point]]:
    """Each different point of each method, and the mix in its bytes."""
    pairs = []
    for name, curve in points.items():
        if name != MIX:
            for point in {p.nbytes: p for p in curve if p.ratio > 1}.values():
                pairs.append((name, point, mix.at_ratio(point.ratio)))
    return pairs


def costed(benches: Mapping[str, Bench], points: Mapping[str, list[Point]], task: Task) -> dict[str, list[Costed]]:
    """The points with MACs and latency; the first of "original" is the original."""
    files = {(name, p.asked): benches[name].path(p.asked) for name, curve in points.items() for p in curve}
    first = benches[MIX]
    assert task.test is not None
    with ExitStack() as stack:
        # Points that share a file share its time; the original comes first: it is what the others are held against.
        paths = dict.fromkeys([first.work.original, *files.values()])
        runners = {str(path): stack.enter_context(open_onnx(path, task.threads)) for path in paths}
        one = next(iter(task.test.take([0]).batches(1)))
        timed = measure_latency(runners, one, repeats=REPEATS, max_seconds=MOST_SECONDS)
    cost = {str(path): onnx_cost(path)[1] or 0 for path in paths}

    def at(path: Path, point: Point) -> Costed:
        return Costed(point, cost[str(path)], timed[str(path)])

    found = {name: [at(files[name, p.asked], p) for p in curve] for name, curve in points.items()}
    return {**found, "original": [at(first.work.original, original_point(first))]}


def original_point(bench: Bench) -> Point:
    """The original as a point."""
    accuracy = bench.baseline.accuracy or 0.0
    return Point("original", 0.0, bench.nbytes, 1.0, accuracy, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, "", True)


def at_share(
    options: Sequence[Options], method: str, shared: Mapping[str, Sequence[int]], share: float
) -> list[Choice]:
    """A choice a site: the shared rank next to this share of the largest one that makes the layer smaller."""
    choices = []
    for option in options:
        name, ranks = option.site.name, shared.get(option.site.name, ())
        if ranks:
            rank = min(ranks, key=lambda r: abs(r - share * ranks[-1]))
            i = next(i for i, label in enumerate(option.labels) if (label.method, label.rank) == (method, rank))
            choices.append(Choice(name, method, rank, float(option.losses[i]), int(option.sizes[i])))
        else:
            choices.append(Choice(name, None, None, 0.0, int(option.sizes[0]), "it offers no shared rank"))
    return choices


def shared_ranks(one: Sequence[Options], other: Sequence[Options], method: str) -> dict[str, list[int]]:
    """Ranks that both offer, by site."""

    def ranks(option: Options) -> set[int]:
        return {label.rank for label in option.labels if label.method == method and label.rank is not None}

    return {a.site.name: sorted(ranks(a) & ranks(b)) for a, b in zip(one, other, strict=True)}


def metric_pairs(task: Task, method: str, shares: Sequence[float]) -> list[tuple[Point, Point]]:
    """The plain point and the data-aware one at each share, neither refitted."""
    assert task.test is not None
    aware, chosen = candidates(task, [method])
    plain = gather(task.prepared.sites, {}, {method: methods()[method]}, device=task.device, seed=task.seed)
    ranks = shared_ranks(aware, plain, method)
    pairs: list[list[Point]] = []
    for name, options in (("plain", plain), ("data-aware", aware)):
        bench = Bench(task, method, task.test, refit=False, found=(options, chosen))
        base, points = allocate(options, 0.0, chosen), []
        for share in shares:
            plan = replace(base, choices=tuple(at_share(options, method, ranks, share)))
            points.append(bench.at_plan(f"{name} {share:g}", share, plan))
        pairs.append(points)
    return list(zip(*pairs, strict=True))


def mix_claim(network: str, pairs: Sequence[tuple[str, Point, Point]]) -> Claim:
    """Whether the mix is anywhere below a method."""
    name, point, mix = max(pairs, key=lambda pair: pair[1].accuracy - pair[2].accuracy)
    below = 100 * (point.accuracy - mix.accuracy)
    return Claim(
        f"{network}: the automatic mix in the bytes of {len(pairs)} points of single methods",
        f"never more than {SLACK} points below",
        f"at worst {below:.2f} below {name} ({100 * mix.accuracy:.2f} against {100 * point.accuracy:.2f} % in "
        f"{point.nbytes / 1000:.1f} kB)",
        below <= SLACK,
    )  # fmt: skip


def metric_claim(network: str, method: str, pairs: Sequence[tuple[Point, Point]]) -> Claim:
    """At how many points that lose something the metric of the data is the better one; the others are told."""
    counted = [(a, b) for a, b in pairs if max(a.lost, b.lost) > COUNTS_FROM]
    others = [(a, b) for a, b in counted if (b.kl or 0.0) >= (a.kl or 0.0)]
    text = f"{len(counted) - len(others)} of {len(counted)}"
    if others:
        told = (
            "the same"
            if a.kl == b.kl
            else f"KL {b.kl:.3f} against {a.kl:.3f} at {b.lost:.1f} and {a.lost:.1f} points lost"
            for a, b in others
        )
        text += "; not at " + ", ".join(f"{a.value:g} ({how})" for (a, _), how in zip(others, told, strict=True))
    return Claim(
        f"{network}, {method}: data-aware has a lower KL than plain at shared ranks",
        f"≥ {100 * MOSTLY:g} % of the points that lose more than {COUNTS_FROM} points",
        text, len(counted) - len(others) >= MOSTLY * len(counted) if counted else None,
    )  # fmt: skip


def frontier_table(found: Mapping[str, Sequence[Costed]]) -> list[list[str]]:
    """Heads and rows."""
    rows = [["method", "budget", "bytes", "MACs", "latency", "as fast", "accuracy", "points lost (95 %)"]]
    for name, curve in found.items():
        for one in curve:
            p = one.point
            rows.append([
                name, p.asked, f"{p.nbytes:,}", f"{one.macs:,}", f"{one.latency.median_ms:.3f} ms",
                f"{one.latency.speedup:.2f}×", f"{100 * p.accuracy:.2f} %",
                f"{p.lost:.2f} ({p.lost_low:.2f} to {p.lost_high:.2f})",
            ])  # fmt: skip
    return rows


def metric_table(pairs: Mapping[str, Sequence[tuple[Point, Point]]]) -> list[list[str]]:
    """Heads and rows."""
    rows = [
        ["method", "share of the largest rank", "bytes", "KL plain", "KL data-aware", "lost plain", "lost data-aware"]
    ]
    for name, listed in pairs.items():
        rows += [
            [name, f"{a.value:g}", f"{a.nbytes:,}", f"{a.kl:.4f}", f"{b.kl:.4f}", f"{a.lost:.2f}", f"{b.lost:.2f}"]
            for a, b in listed
        ]
    return rows


def one_network(name: str, args: argparse.Namespace) -> tuple[list[Claim], dict[str, Any], dict[str, Any]]:
    """Its claims, its tables and what is behind them; and its picture."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(name, args, Path(folder))
        benches, points = curves_of(task, args)
        found = costed(benches, points, task)
        beside = mix_beside(benches[MIX], points)
        print("data-aware against plain", flush=True)
        pairs = {method: metric_pairs(task, method, args.shares) for method in args.methods}
    shown = {k: [(c.macs, c.latency.median_ms, 100 * c.point.accuracy) for c in curve] for k, curve in found.items()}
    original = shown.pop("original")[0]
    frontier(
        RESULTS / f"frontier_{name}.png", f"{name}: each method alone and the automatic mix", shown, original, ZOOM
    )
    claims = [mix_claim(name, beside)] if beside else []
    claims += [metric_claim(name, method, listed) for method, listed in pairs.items()]
    tables = {
        f"{name}: over the dial": frontier_table(found),
        f"{name}: data-aware against plain, no refit": metric_table(pairs),
    }
    behind = {
        "points": {k: [asdict(one) for one in curve] for k, curve in found.items()},
        "mix": [[method, a.as_dict(), b.as_dict()] for method, a, b in beside],
        "metric": {k: [[a.as_dict(), b.as_dict()] for a, b in listed] for k, listed in pairs.items()},
    }
    return claims, tables, behind


def earlier(networks: Sequence[str]) -> dict[str, Any]:
    """What the last runs left of other networks than these."""
    path = RESULTS / "frontier.json"
    last = json.loads(path.read_text()) if path.is_file() else {}

    def others(names: Any) -> list[Any]:
        return [n for n in names if n.split(":")[0].split(",")[0] not in networks]

    return {
        "claims": [c for c in last.get("claims", []) if others([c["what"]])],
        **{key: {n: last[key][n] for n in others(last.get(key, {}))} for key in ("tables", "networks")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=sorted(methods()), default=sorted(methods()))
    parser.add_argument("--dial", type=float, nargs="+", default=list(DIAL), help="rising positions")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--test-inputs", type=int, default=0, help="so many of the test split instead of all")
    parser.add_argument("--weights", type=Path, default=vgg.WEIGHTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="keep what the last run left of other networks")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = earlier(args.networks) if args.add else {"claims": [], "tables": {}, "networks": {}}
    claims = [Claim(c["what"], c["asked"], c["measured"], c["passed"]) for c in kept["claims"]]
    for name in args.networks:
        added, tables, behind = one_network(name, args)
        claims += added
        kept["tables"] |= tables
        kept["networks"][name] = behind
        # After each network: a long run that is stopped leaves what it has.
        save("frontier", TITLE, claims, threads=args.threads, seed=args.seed, test_inputs=args.test_inputs or "all",
             tables=kept["tables"], networks=kept["networks"])  # fmt: skip
    show(TITLE, claims)


if __name__ == "__main__":
    main()
