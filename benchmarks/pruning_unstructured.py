"""Unstructured pruning: each criterion at the same sparsities, calibration only, no retraining.

Every weight that may go competes with every other by the criterion's own rule (global magnitude, which is L1 and L2 of
single weights; magnitude of each layer; Wanda in each row; ours, which has the others make good and refits each
layer), on the same unlabelled training inputs, and the written file is scored on the test split. Asked: ours
at least 3 points better than global magnitude at the first sparsity where that loses more than 5; LeNet at 90 % in an
archive at most 0.1 point lost, and smaller than the unpruned plan at equal accuracy, or this says that the joint plan
already does better; and what each stage of Deep Compression takes.

    python benchmarks/pruning_unstructured.py
    python benchmarks/pruning_unstructured.py --networks lenet --sparsities 0.9 --parts table
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from claims import Claim, earlier, joined, save, show
from sets import calibration_and_test, model

import smidgen
from smidgen.data import Dataset
from smidgen.forms import FLOATS
from smidgen.measure.scores import Judge
from smidgen.methods import Pruning, choose_methods
from smidgen.pipeline import Task, Workshop, open_task
from smidgen.pipeline.options import curvatures_of, truths
from smidgen.pipeline.targets import write_target
from smidgen.planning.candidates import gather
from smidgen.planning.sparsity import pruned_plan, with_pruned
from smidgen.runtimes.opening import open_file, run_dataset
from smidgen.site import Curvature

TITLE = "Unstructured pruning, calibration only, no retraining"
FILES = {
    "lenet": "lenet_mnist.onnx", "resnet20": "resnet20_cifar10_jpegft.onnx",
    "squeezenet": "squeezenet1_1_imagenet.onnx", "mobilenet_v2": "mobilenet_v2_1.0_224_imagenet.onnx",
}  # fmt: skip
SPARSITIES = (0.3, 0.5, 0.7, 0.9)
# Criterion by name: its method, settings, and whether layers are refitted on what those before them give.
CRITERIA: dict[str, tuple[str, dict[str, Any], bool]] = {
    "magnitude, global": ("magnitude", {}, False),
    "magnitude, layer": ("magnitude", {"scope": "layer"}, False),
    "wanda, row": ("wanda", {}, False),
    "magnitude, refitted": ("magnitude", {}, True),
    "ours": ("obs", {}, True),
}
PLAIN, OURS = "magnitude, global", "ours"
EVERY = "points lost"  # the table of all networks
COLLAPSE, BETTER = 5.0, 3.0  # points
ARCHIVE_POINTS = 0.1
MIDDLE, ARCHIVE = 0.9, "80 kB"  # of LeNet, and of its archive


def pruned(task: Task, curvatures: Mapping[str, Curvature], name: str, sparsity: float) -> dict[str, Any]:
    """One criterion at one sparsity: the file written, scored on the test split."""
    method, settings, refit = CRITERIA[name]
    chosen, allowed = choose_methods(method, {method: {**settings, "sparsity": sparsity}})
    pruning = chosen[method]
    assert isinstance(pruning, Pruning)
    options = gather(task.prepared.sites, curvatures, {}, device=task.device)
    options = with_pruned(options, curvatures, pruning, allowed, FLOATS[0], truths(task, options))
    work = Workshop(task, options, refit, lambda *_: None)
    trial = work.trial(replace(pruned_plan(options, chosen), **work.circumstances))
    realised, path, _ = trial.carried
    source = work.source(realised, path)
    assert task.test is not None
    with open_file(work.original, task.threads) as runner:
        before = run_dataset(runner, task.test.batches())
        labels, names = task.test.labels, runner.output_names
    with open_file(path, task.threads) as runner:
        after = run_dataset(runner, task.test.batches())
    judge = Judge(before, names, labels)
    loss, scores = judge.loss(after), judge.judge(after)
    return {
        "sparsity": sparsity, "criterion": name, "lost": loss.points, "interval": [loss.low, loss.high],
        "accuracy": scores.accuracy, "kl": scores.kl, "onnx": path.stat().st_size,
        "onnx-sparse": write_target("onnx-sparse", source).stat().st_size,
        "archive": write_target("archive", source).stat().st_size,
        "layers": {o.site.name: c.rank for o, c in zip(options, trial.plan.choices, strict=True)},
    }  # fmt: skip


def claim_of(network: str, rows: Sequence[Mapping[str, Any]]) -> Claim:
    """Ours beside plain magnitude where that first loses more than 5 points."""
    lost = {(row["criterion"], row["sparsity"]): row["lost"] for row in rows}
    at = next((s for s in SPARSITIES if lost.get((PLAIN, s), 0.0) > COLLAPSE), None)
    what = f"{network}: ours beside global magnitude at the first sparsity where that loses more than {COLLAPSE:g}"
    if at is None or (OURS, at) not in lost:
        return Claim(what, f"≥ {BETTER:g} points better", "no such sparsity was measured")
    plain, ours = lost[PLAIN, at], lost[OURS, at]
    return Claim(what, f"≥ {BETTER:g} points better", f"at {100 * at:g} %: {plain - ours:.2f} better "
                 f"(lost {ours:.2f} against {plain:.2f})", plain - ours >= BETTER)  # fmt: skip


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Points lost, a row a criterion and a column a sparsity."""
    columns = sorted({row["sparsity"] for row in rows})
    told = [["criterion", *(f"{100 * s:g} %" for s in columns)]]
    for name in dict.fromkeys(row["criterion"] for row in rows):
        found = {row["sparsity"]: row for row in rows if row["criterion"] == name}
        cells = [f"{found[s]['lost']:.2f} (KL {found[s]['kl']:.3g})" if s in found else "–" for s in columns]
        told.append([name, *cells])
    return told


def together(tables: Mapping[str, list[list[str]]]) -> list[list[str]]:
    """The tables of all networks as one."""
    heads = next(["network", *tables[name][0]] for name in FILES if name in tables)
    return [heads, *([name, *row] for name in FILES if name in tables for row in tables[name][1:])]


def archives(threads: int, seed: int, test: Dataset | None) -> tuple[list[Claim], dict[str, Any]]:
    """LeNet with 90 % removed in an archive, beside the joint plan of the same bytes without pruning."""
    calibration, whole = calibration_and_test("lenet", seed)
    test = whole if test is None else test
    given = {"data": calibration, "test": test, "target": "archive", "threads": threads, "seed": seed}
    path = str(model(FILES["lenet"]))
    one = smidgen.compress(path, settings={"obs": {"sparsity": MIDDLE}}, budget=smidgen.Budget(size=ARCHIVE), **given)
    mine = one.record["files"]["archive"]
    other = smidgen.compress(path, budget=smidgen.Budget(size=mine["nbytes"]), **given).record["files"]["archive"]
    low, high = mine["loss_interval"]
    better = mine["loss_points"] <= ARCHIVE_POINTS
    text = (
        f"{mine['nbytes'] / 1000:.1f} kB, lost {mine['loss_points']:.2f} (95 %: {low:.2f} to {high:.2f}), KL "
        f"{mine['kl']:.4f}; the joint plan without pruning at {other['nbytes'] / 1000:.1f} kB loses "
        f"{other['loss_points']:.2f}, KL {other['kl']:.4f}"
    )
    text += ": the joint plan already does better" if other["kl"] < mine["kl"] else ""
    asked = f"≤ {ARCHIVE_POINTS:g} points lost, smaller than unpruned or said so"
    return [Claim("lenet, 90 % removed, archive of integers", asked, text, better)], {"pruned": mine, "joint": other}


def recipe(networks: Sequence[str], threads: int, seed: int) -> tuple[list[Claim], dict[str, Any]]:
    """Bytes after each stage of Deep Compression."""
    claims, found = [], {}
    for name in networks:
        calibration, test = calibration_and_test(name, seed)
        result = smidgen.compress(
            str(model(FILES[name])), calibration, test=test, recipe="deep-compression", threads=threads, seed=seed
        )
        stages = result.record["stages"]
        text = ", ".join(f"{stage['name']} {stage['nbytes'] / 1000:.1f} kB" for stage in stages)
        lost = result.record["files"]["archive"]["loss_points"]
        claims.append(Claim(f"{name}: Deep Compression without training", "", f"{text}; lost {lost:.2f} points"))
        found[name] = stages
    return claims, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument(
        "--parts", nargs="+", choices=("table", "archive", "recipe"), default=["table", "archive", "recipe"]
    )
    parser.add_argument("--inputs", type=int, default=1000, help="training inputs for calibration at most")
    parser.add_argument("--test-inputs", type=int, default=0, help="so many of the test split instead of all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="pruning_unstructured", help="of the file in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    claims: list[Claim] = []
    tables: dict[str, Any] = {}
    behind: dict[str, Any] = {}

    def keep() -> None:
        before = earlier(args.name)
        known = {key: {**before.get(key, {}), **found} for key, found in (("tables", tables), ("behind", behind))}
        known["tables"][EVERY] = together(known["tables"])
        save(args.name, TITLE, joined(before, claims), threads=args.threads, seed=args.seed, **known,
             test_inputs=args.test_inputs or "all", inputs=args.inputs)  # fmt: skip

    for name in args.networks if "table" in args.parts else ():
        calibration, test = calibration_and_test(name, args.seed, args.inputs)
        test = test.take(range(min(args.test_inputs, len(test)))) if args.test_inputs else test
        task = open_task(str(model(FILES[name])), calibration, test, None, None, None, args.threads, "cpu", args.seed)
        curvatures = curvatures_of(task, lambda *_: None)
        rows: list[dict[str, Any]] = []
        for sparsity in args.sparsities:
            for criterion in args.criteria:
                rows.append(pruned(task, curvatures, criterion, sparsity))
                row = rows[-1]
                print(f"{name} {100 * sparsity:g} % {criterion}: lost {row['lost']:.2f}, KL {row['kl']:.4g}, "
                      f"sparse {row['onnx-sparse']}, archive {row['archive']}", flush=True)  # fmt: skip
                tables[name], behind[name] = table_of(rows), rows
                keep()
        claims.append(claim_of(name, rows))
        keep()
    if "archive" in args.parts and "lenet" in args.networks:
        told, behind["archive"] = archives(args.threads, args.seed, None)
        claims += told
        keep()
    if "recipe" in args.parts:
        told, behind["recipe"] = recipe(
            [n for n in args.networks if n in ("lenet", "resnet20")], args.threads, args.seed
        )
        claims += told
        keep()
    show(TITLE, claims)


if __name__ == "__main__":
    main()
