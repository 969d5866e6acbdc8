"""Weight-only ONNX files at a size: int8 and int4 through DequantizeLinear, calibration only, scored on the test split.

The sizes are about what all weights take at that width, and then less, so that rank has to give way too.

    python benchmarks/widths.py
    python benchmarks/widths.py --networks lenet --threads 1
"""

from __future__ import annotations

import argparse
from typing import Any

from archive import measured, runs_of
from claims import Claim, save, show

TITLE = "Weight-only ONNX files at a size, calibration only, no retraining"
# kB by network and target.
SIZES = {
    "lenet": {"onnx-w8": (120, 100), "onnx-w4": (100, 60, 50)},
    "resnet20": {"onnx-w8": (290, 200), "onnx-w4": (160, 120)},
    "catsdogs": {"onnx-w8": (64, 40), "onnx-w4": (40, 24)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    claims: list[Claim] = []
    found: dict[str, Any] = {}
    for name in args.networks:
        for target, sizes in SIZES[name].items():
            runs = runs_of(name, target, sizes, args.threads, args.seed)
            found[f"{name}, {target}"] = [measured(run, target) for run in runs]
            for size, run in zip(sizes, runs, strict=True):
                entry = run.record["files"][target]
                low, high = entry["loss_interval"]
                claims.append(Claim(
                    f"{name}, {target}: {size:g} kB", f"≤ {size:g} kB",
                    f"{entry['nbytes'] / 1000:.1f} kB, lost {entry['loss_points']:.2f} "
                    f"(95 %: {low:.2f} to {high:.2f}), {100 * entry['accuracy']:.2f} %", entry["nbytes"] <= 1000 * size,
                ))  # fmt: skip
    show(TITLE, claims)
    print(save("widths", TITLE, claims, threads=args.threads, seed=args.seed, runs=found))


if __name__ == "__main__":
    main()
