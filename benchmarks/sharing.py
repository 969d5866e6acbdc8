"""Weight sharing: every layer as 2^b values and packed indices, calibration only, scored on the test split.

Asked of 5 bits: an ONNX file of at most a quarter of the original's bytes, its archive of at most 0.16 of them, at most
0.3 points lost, and no slower than the original. The other widths are reported beside it.

    python benchmarks/sharing.py
    python benchmarks/sharing.py --networks lenet --bits 5 --threads 1
"""

from __future__ import annotations

import argparse
from typing import Any

import process
from archive import EPSILON, measured, runs_asked
from claims import Claim, save, show

TITLE = "Weights that share 2^b values a layer, calibration only, no retraining"
TARGET = "onnx-shared"
NETWORKS = ("lenet", "resnet20")
ASKED_BITS = 5
# Shares of the original's bytes, and points.
MOST = {TARGET: 0.25, "archive": 0.16}
POINTS = 0.3
SLOWER = 0.05  # of the original's time: what two files of the same graph differ by here


def claims_of(name: str, bits: int, run: process.Run) -> list[Claim]:
    """One line for each file."""
    whole, claims = run.record["original"]["nbytes"], []
    for target, most in MOST.items():
        entry = run.record["files"][target]
        low, high = entry["loss_interval"]
        share, asked = entry["nbytes"] / whole, bits == ASKED_BITS
        claims.append(Claim(
            f"{name}, {bits} bits: {entry['path']}",
            f"≤ {most:g} of {whole / 1000:.0f} kB at ≤ {POINTS} points" * asked,
            f"{share:.3f}: {entry['nbytes'] / 1000:.1f} kB, lost {entry['loss_points']:.2f} "
            f"(95 %: {low:.2f} to {high:.2f}), {100 * entry['accuracy']:.2f} %",
            share <= most and entry["loss_points"] <= POINTS + EPSILON if asked else None,
        ))  # fmt: skip
    entry = run.record["files"][TARGET]
    if bits == ASKED_BITS:
        claims.append(Claim(
            f"{name}, {bits} bits: time beside the original's", "no slower",
            f"{entry['speedup']:.2f} ± {entry['speedup_error']:.2f} times faster",
            entry["speedup"] + entry["speedup_error"] >= 1 - SLOWER,
        ))  # fmt: skip
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", type=int, choices=range(1, 9), default=[5, 2, 3, 4, 6, 7, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    claims: list[Claim] = []
    found: dict[str, Any] = {}
    for bits in args.bits:
        for name in args.networks:
            asked = {f"{bits}-bit": ["--bits", str(bits)]}
            (run,) = runs_asked(name, TARGET, asked, args.threads, args.seed)
            claims += claims_of(name, bits, run)
            found[f"{name}, {bits} bits"] = {target: measured(run, target) for target in MOST}
            # After each run: half an hour that is stopped leaves what it has.
            save("sharing", TITLE, claims, threads=args.threads, seed=args.seed, runs=found)
    show(TITLE, claims)


if __name__ == "__main__":
    main()
