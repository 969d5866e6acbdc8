"""Downsampling earlier, without retraining: what it saves and loses on cats-dogs and on the gender CNN.

Every change alone and the greedy combination, from at most 1,000 unlabelled training inputs: MACs, time of one input
in turns with the original, peak of live activations, bytes; accuracy and ROC AUC on the test split, scored once, at the
end.
The selection inputs have no labels, so what a combination may lose is counted there in agreement with the original.

    python benchmarks/downsampling.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import gender_cnn
import numpy as np
import sets
from claims import RESULTS, Claim, save, show
from mobile_peers import write_network

from smidgen import downsample
from smidgen.numerics.metrics import roc_auc
from smidgen.report.downsampling import Downsampling, Row

TITLE = "Downsampling earlier: calibration only, no retraining"
FILES = RESULTS / "downsampling"
NETWORKS = ("catsdogs", "gender_cnn")
MOST_LOST = 5.0  # points of agreement on the selection inputs, one standard error included


def roc_auc_of(outputs: np.ndarray, labels: np.ndarray) -> float:
    """ROC AUC of two classes' outputs."""
    return roc_auc(outputs[:, 1] - outputs[:, 0], labels)


def network(name: str, args: argparse.Namespace) -> Path:
    """The original's file."""
    if name == "catsdogs":
        return sets.model("ai85cd_catsdogs.onnx")
    FILES.mkdir(parents=True, exist_ok=True)
    path = FILES / f"{name}.onnx"
    write_network(gender_cnn.network(args.seed, threads=args.threads), path)
    return path


def run(name: str, args: argparse.Namespace) -> tuple[Downsampling, float]:
    """Every change of one network, and the seconds it took."""
    calibration, test = sets.calibration_and_test(name, args.seed)
    started = time.perf_counter()
    result = downsample(
        network(name, args), calibration, max_drop=args.max_drop, test=test, threads=args.threads, seed=args.seed,
        metric=None if name == "catsdogs" else roc_auc_of,
        progress=lambda stage, done, total: print(f"{name}: {stage} {done}/{total}", flush=True) if total > 1 else None,
    )  # fmt: skip
    result.save(FILES / name)
    return result, time.perf_counter() - started


def table_of(result: Downsampling) -> list[list[str]]:
    """Heads and rows."""
    kind = (result.rows[0].measured.test or {})["metric"] if result.rows[0].measured else ""
    score = "accuracy" if kind == "accuracy" else "ROC AUC"
    heads = [
        "change", "MACs", "latency", "as fast", "activations", "bytes", "KL, selection", "agreement lost, selection",
        score, "points lost (95 %)",
    ]  # fmt: skip
    return [
        heads,
        *(_line(row) for row in result.rows if row.measured),
        *(_refused(row) for row in result.rows if row.reason),
    ]


def _line(row: Row) -> list[str]:
    one = row.measured
    assert one is not None
    test: Any = one.test
    return [
        f"{' + '.join(row.changes) or 'original'}{' (chosen)' if row.chosen else ''}", f"{one.macs:,}",
        f"{one.latency_ms:.3f} ms", f"{one.speedup:.2f} ± {one.speedup_error:.2f}×", f"{one.activation_bytes:,}",
        f"{one.nbytes:,}", f"{one.loss:.4f}", f"{one.points:.1f} ± {one.points_error:.1f}",
        f"{100 * test['score']:.2f}", f"{test['lost']:.2f} ({test['low']:.2f} to {test['high']:.2f})",
    ]  # fmt: skip


def _refused(row: Row) -> list[str]:
    return ["; ".join(row.changes), f"refused: {row.reason}", *[""] * 8]


def claims_of(name: str, result: Downsampling, seconds: float) -> list[Claim]:
    """What the chosen network takes, and the least that a change alone loses."""
    whole, best = result.rows[0].measured, result.chosen.measured
    assert whole is not None
    assert best is not None
    assert best.macs is not None
    test: Any = best.test
    return [
        Claim(
            f"{name}: {' + '.join(result.chosen.changes) or 'nothing chosen'}", "",
            f"MACs {whole.macs:,} → {best.macs:,}, {best.speedup:.2f}× as fast, "
            f"activations {whole.activation_bytes:,} → {best.activation_bytes:,} bytes, "
            f"file {whole.nbytes:,} → {best.nbytes:,} bytes, {test['metric']} lost {test['lost']:.2f} points "
            f"(95 %: {test['low']:.2f} to {test['high']:.2f})",
        ),
        Claim(f"{name}: seconds for all changes, refits and measurements", "", f"{seconds:.0f}"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--max-drop", type=float, default=MOST_LOST)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    claims, tables, records = [], {}, {}
    for name in args.networks:
        result, seconds = run(name, args)
        claims += claims_of(name, result, seconds)
        tables[name], records[name] = table_of(result), result.record
        print(result.table(), flush=True)
    show(TITLE, claims)
    print(save(
        "downsampling", TITLE, claims, threads=args.threads, seed=args.seed, tables=tables, measured=records,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
