"""Whole channels cut without retraining: every criterion, ours with its refit, and torch-pruning's one-shot pruner.

Each network at 20, 35 and 50 % fewer multiply-accumulates, chosen and refitted on at most 1,000 unlabelled training
inputs, scored on the test split and timed in onnxruntime in turns with the original. torch-pruning runs in a Python of
its own, named in $TORCH_PRUNING_PYTHON; it is left out where there is none.

    python benchmarks/pruning_structured.py
    python benchmarks/pruning_structured.py --networks squeezenet --criteria l1 --test 300
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sets
import vgg
from claims import RESULTS, Claim, earlier, joined, save, show

from smidgen.data import Dataset
from smidgen.measure.cost import onnx_cost
from smidgen.measure.speed import compare_speed
from smidgen.methods.channels import CRITERIA, CURVATURE
from smidgen.pipeline.cutting import Cutter
from smidgen.pipeline.task import Threads, open_task
from smidgen.planning.channels import choose
from smidgen.runtimes.opening import open_file, run_dataset

TITLE = "Structured pruning, calibration only, no retraining: accuracy by criterion"
FILES = {
    "lenet": "lenet_mnist.onnx", "resnet20": "resnet20_cifar10_jpegft.onnx",
    "squeezenet": "squeezenet1_1_imagenet.onnx", "mobilenet_v2": "mobilenet_v2_1.0_224_imagenet.onnx", "vgg": "",
}  # fmt: skip
SHARES = (0.8, 0.65, 0.5)
ORIGINAL, OURS, PEER = "original", "curvature + refit", "torch-pruning, global L2"
L1_LOSES, BETTER, FASTER = 5.0, 3.0, 1.5
SAME_MACS = 0.02  # counts that are multiples of 8 leave a little more or less
HEADS = ["network", "criterion", "MACs asked", "MACs", "bytes", "accuracy", "points lost", "latency", "as fast"]
FOLDER = RESULTS / "pruning_structured"


@dataclass(frozen=True)
class Row:
    """One written file.

    Args:
        network, criterion: what was done.
        share: of the multiplications asked for.
        macs, nbytes, accuracy, lost, latency_ms, speedup: measured; None where it could not be done.
        reason: why not.
    """

    network: str
    criterion: str
    share: float
    macs: float | None = None
    nbytes: int | None = None
    accuracy: float | None = None
    lost: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    reason: str = ""

    def cells(self) -> list[str]:
        """A line of the table."""
        head = [self.network, self.criterion, f"{100 * self.share:g} %"]
        if self.accuracy is None or self.macs is None or self.lost is None:
            return [*head, f"not done: {self.reason}", *[""] * 5]
        return [
            *head, f"{100 * self.macs:.1f} %", f"{self.nbytes:,}", f"{100 * self.accuracy:.2f} %", f"{self.lost:.2f}",
            f"{self.latency_ms:.3f} ms", f"{self.speedup:.2f}×",
        ]  # fmt: skip


class Bench:
    """One network, its test set and what the original scores."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.file = vgg.network_file(FOLDER) if name == "vgg" else sets.model(FILES[name])
        calibration, test = sets.calibration_and_test(name, args.seed)
        # A fixed random part: sets are sorted by class.
        order = np.random.default_rng(0).permutation(len(test))[: args.test]
        self.test = test.take(order)
        self.task = open_task(
            self.file, calibration, Dataset.from_array(np.asarray(self.test)), None, None, None, args.threads, "cpu",
            args.seed,
        )  # fmt: skip
        self.whole = onnx_cost(self.file)[1] or 0
        self.accuracy = self.score(self.file)

    def score(self, path: Path) -> float:
        with open_file(path, self.args.threads) as runner:
            (answers, *_) = run_dataset(runner, self.test.batches())
        return float((answers.reshape(len(answers), -1).argmax(1) == np.asarray(self.test.labels)).mean())

    def row(self, criterion: str, share: float, path: Path) -> Row:
        x = next(iter(self.test.take([0]).batches(1)))
        _, speed = compare_speed(self.file, path, x, self.args.threads)
        accuracy = self.score(path)
        macs = (onnx_cost(path)[1] or 0) / self.whole
        lost = 100 * (self.accuracy - accuracy)
        return Row(
            self.name, criterion, share, macs, path.stat().st_size, accuracy, lost, speed.median_ms, speed.speedup
        )

    def criterion(self, name: str) -> list[Row]:
        """One criterion at every share, without its readers refitted; the curvature with and without."""
        rows = []
        with Threads(self.args.threads):
            pruner = Cutter(self.task, (), lambda stage, done, total: None)
            pricer = pruner.pricer(CRITERIA[name])
            channels, keep = pruner.found.channels, None
            for share in self.args.shares:
                keep, _ = choose(channels, pricer, share, multiple=self.args.multiple, begin=keep)
                rows.append(self.row(name, share, pruner.cut(keep, False).path))
                if name in (CURVATURE, *self.args.refit):
                    rows.append(self.row(f"{name} + refit", share, pruner.cut(keep, True, pricer).path))
        return rows

    def peer(self, python: str) -> list[Row]:
        """torch-pruning's."""
        folder = FOLDER / f"{self.name}-peer"
        folder.mkdir(exist_ok=True)
        client = Path(__file__).with_name("torch_pruning_client.py")
        command = [python, str(client), str(self.file), str(folder), *(f"{share:g}" for share in self.args.shares)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        last = (ran.stdout.strip().splitlines() or [""])[-1]
        found = json.loads(last) if last.startswith("{") else {}
        rows = []
        for share in self.args.shares:
            told = found.get(f"{share:g}", (ran.stderr.strip().splitlines() or ["nothing came back"])[-1])
            path = folder / f"{share:g}.onnx"
            done = told == "done"
            rows.append(self.row(PEER, share, path) if done else Row(self.name, PEER, share, reason=told))
        return rows


def claims_of(name: str, rows: list[Row]) -> list[Claim]:
    """Ours against L1 where no more multiplications are left, and how fast half of them are."""
    claims = []
    plain = next((row for row in rows if row.criterion == "l1" and (row.lost or 0.0) > L1_LOSES), None)
    ours = [row for row in rows if row.criterion == OURS and row.lost is not None]
    if plain is not None and ours:
        fair = [row for row in ours if _left(row) <= _left(plain) + SAME_MACS]
        mine = max(fair, key=_left) if fair else min(ours, key=_left)
        gained = (plain.lost or 0.0) - (mine.lost or 0.0)
        told = (
            f"{gained:.1f} points ({mine.lost:.2f} at {100 * _left(mine):.1f} % of the MACs against {plain.lost:.2f} "
            f"at {100 * _left(plain):.1f} %)"
        )
        asked = f"≥ {BETTER:g} points, where L1 first loses {L1_LOSES:g}"
        claims.append(Claim(f"{name}: better than plain L1", asked, told, gained >= BETTER))
    for row in rows:
        if row.criterion == OURS and row.share == min(SHARES) and row.speedup is not None:
            asked = f"≥ {FASTER:g}×" if name in ("squeezenet", "vgg") else ""
            passed = row.speedup >= FASTER if asked else None
            claims.append(Claim(f"{name}: as fast at 50 % fewer MACs", asked, f"{row.speedup:.2f}×", passed))
    return claims


def _left(row: Row) -> float:
    return 1.0 if row.macs is None else row.macs


def points_lost(rows: list[list[str]]) -> list[list[str]]:
    """Points lost, of the table's rows: a row a network and criterion, a column the MACs that were asked for."""
    cells = {tuple(row[:3]): row[HEADS.index("points lost")] for row in rows if row[1] != ORIGINAL}
    shares = sorted({share for *_, share in cells}, key=lambda share: -float(share.split()[0]))
    found = dict.fromkeys((network, criterion) for network, criterion, _ in cells)
    heads = ["network", "criterion", *(f"{share} of the MACs" for share in shares)]
    return [heads, *([*key, *(cells.get((*key, share)) or "–" for share in shares)] for key in found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument(
        "--criteria", nargs="+", choices=list(CRITERIA), default=[c for c in CRITERIA if c != "batchnorm"]
    )
    parser.add_argument("--refit", nargs="*", choices=list(CRITERIA), default=[], help="criteria to refit as well")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES, help="of the MACs that are left, falling")
    parser.add_argument("--multiple", type=int)
    parser.add_argument("--test", type=int, default=10_000, help="test inputs at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    python = os.environ.get("TORCH_PRUNING_PYTHON")
    claims: list[Claim] = []
    rows: list[Row] = []
    for name in args.networks:
        started, bench = time.perf_counter(), Bench(name, args)
        own: list[Row] = [Row(name, ORIGINAL, 1.0, 1.0, bench.file.stat().st_size, bench.accuracy, 0.0, 0.0, 1.0)]
        for criterion in args.criteria:
            own += bench.criterion(criterion)
            print("\n".join(" | ".join(row.cells()) for row in own if row.criterion.startswith(criterion)), flush=True)
        if python:
            own += (peer := bench.peer(python))
            print("\n".join(" | ".join(row.cells()) for row in peer), flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        claims += claims_of(name, own)
        rows += own
        before = earlier("pruning_structured")
        every = _rows(before, [row.cells() for row in rows])
        tables = {"by criterion": [HEADS, *every], "points lost": points_lost(every)}
        path = save("pruning_structured", TITLE, joined(before, claims), threads=args.threads, seed=args.seed,
                    multiple=args.multiple, tables=tables)  # fmt: skip
    show(TITLE, claims)
    print(path)


def _rows(before: dict[str, Any], rows: list[list[str]]) -> list[list[str]]:
    """Rows of an earlier run, and these in the place of the same network, criterion and share."""
    _, *old = before.get("tables", {}).get("by criterion", [HEADS])
    found = {tuple(row[:3]): row for row in [*old, *rows]}
    return sorted(found.values(), key=lambda row: (list(FILES).index(row[0]), row[1]))


if __name__ == "__main__":
    main()
