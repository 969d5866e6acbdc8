"""Accuracy against multiply-adds and against measured latency: each method alone, and the automatic mix of them.

For a small VGG and for ResNet-20 on CIFAR-10, from 1,000 unlabelled training images and without retraining, as ONNX
files of floats. Methods are those that `smidgen.methods.methods()` finds. Asked: in the bytes of each point of each
method the automatic mix is not below it by more than 0.1 point.

    python benchmarks/frontier.py
    python benchmarks/frontier.py --networks resnet20 --methods svd cp --dial 0.3 0.5 --test-inputs 2000
"""

from __future__ import annotations

import argparse
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
from claims import RESULTS, Claim, earlier, save, show
from figure import frontier
from sweep import Bench, Point

from smidgen.measure.cost import onnx_cost
from smidgen.measure.latency import Latency, measure_latency
from smidgen.methods import methods
from smidgen.pipeline import Task, candidates, open_task
from smidgen.planning.candidates import Options
from smidgen.runtimes.onnxruntime import open_onnx

TITLE = "Each method alone and the automatic mix: accuracy against multiply-adds and latency"
NETWORKS = ("vgg", "resnet20")
RESNET = "resnet20_cifar10_jpegft.onnx"
DIAL = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
MIX = "automatic"
SLACK = 0.1
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
    file = vgg.network_file(folder, args.weights, args.threads) if name == "vgg" else sets.model(RESNET)
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


def mix_claim(network: str, pairs: Sequence[tuple[str, Point, Point]]) -> Claim:
    """Whether the mix is anywhere below a method."""
    name, point, mix = max(pairs, key=lambda pair: pair[1].accuracy - pair[2].accuracy)
    below = [(m, a, b) for m, a, b in pairs if 100 * (a.accuracy - b.accuracy) > SLACK]
    told = ", ".join(
        f"{100 * b.accuracy:.2f} against {100 * a.accuracy:.2f} % of {m} in {a.nbytes / 1000:.0f} kB (KL {b.kl:.3f} "
        f"against {a.kl:.3f})" for m, a, b in below
    )  # fmt: skip
    worst = 100 * (point.accuracy - mix.accuracy)
    return Claim(
        f"{network}: the automatic mix in the bytes of {len(pairs)} points of single methods",
        f"never more than {SLACK} points below",
        f"below at {len(below)}: {told}" if below else f"at worst {worst:.2f} below {name}",
        not below,
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


def one_network(name: str, args: argparse.Namespace) -> tuple[list[Claim], dict[str, Any], dict[str, Any]]:
    """Its claims, its tables and what is behind them; and its picture."""
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(name, args, Path(folder))
        benches, points = curves_of(task, args)
        found = costed(benches, points, task)
        beside = mix_beside(benches[MIX], points)
    shown = {k: [(c.macs, c.latency.median_ms, 100 * c.point.accuracy) for c in curve] for k, curve in found.items()}
    original = shown.pop("original")[0]
    frontier(
        RESULTS / f"frontier_{name}.png", f"{name}: each method alone and the automatic mix", shown, original, ZOOM
    )
    claims = [mix_claim(name, beside)] if beside else []
    tables = {
        f"{name}: over the dial": frontier_table(found),
    }
    behind = {
        "points": {k: [asdict(one) for one in curve] for k, curve in found.items()},
        "mix": [[method, a.as_dict(), b.as_dict()] for method, a, b in beside],
    }
    return claims, tables, behind


def _others(networks: Sequence[str]) -> dict[str, Any]:
    """What the last runs left of other networks than these."""
    last = earlier("frontier")

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
    parser.add_argument("--test-inputs", type=int, default=0, help="so many of the test split instead of all")
    parser.add_argument("--weights", type=Path, default=vgg.WEIGHTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="keep what the last run left of other networks")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = _others(args.networks) if args.add else {"claims": [], "tables": {}, "networks": {}}
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
