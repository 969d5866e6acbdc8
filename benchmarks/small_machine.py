"""GenderNet compressed from its weights alone where there is 1 GB of memory and one core.

The limit is the kernel's (a control group: a process that needs more is killed, there is no swap), not an estimate. It
counts resident pages and the page cache of the files read and written.

Asked: 46 MB compressed at three budgets, peak below 1 GB. The file of each is the same as without the limit.

    python benchmarks/small_machine.py
    python benchmarks/small_machine.py --limit 600MB --ratios 6
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from cgroup import Limited, run_limited
from claims import Claim, save, show
from gendernet import WEIGHTS, train_and_save

from smidgen.budget import format_size, parse_size

TITLE = "1 GB and one core: GenderNet from its weights alone"
HERE = Path(__file__).resolve().parent
LIMIT = "1GB"
START = [sys.executable, "-c", "import sys; from smidgen.cli import main; sys.exit(main())"]


def compress(weights: Path, arguments: list[str], limit: int, folder: Path) -> Limited:
    """``smidgen compress`` under the limit."""
    command = [
        *START, "compress", f"{HERE / 'gendernet.py'}:GenderNet", "--weights", str(weights), "--input", "1,3,100,100",
        "--threads", "1", "--quiet", "-o", str(folder), *arguments,
    ]  # fmt: skip
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    return run_limited(command, limit, environment)


def claims_of(name: str, run: Limited, limit: int, folder: Path) -> list[Claim]:
    """What was asked of one run."""
    told = f"{format_size(run.peak_nbytes)} at most, {run.wall_s:.0f} s"
    if run.code not in (0, 3):
        last = run.err.strip().splitlines()[-1:] or ["killed"]
        return [Claim(name, f"done within {format_size(limit)}", f"ended with {run.code}: {last[0]}; {told}", False)]
    record = json.loads((folder / "result.json").read_text())
    ratio = record["original"]["nbytes"] / record["files"][record["target"]]["nbytes"]
    resident = format_size(record["peak_rss_bytes"])
    return [Claim(name, f"done within {format_size(limit)}", f"{ratio:.2f}x; {told}; {resident} resident", True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default=LIMIT, help="bytes of memory (1GB = 1000 MB)")
    parser.add_argument("--ratios", type=float, nargs="*", default=[6.0, 10.0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="of smidgen compress, besides")
    args = parser.parse_args()
    limit, weights = parse_size(args.limit), args.weights / f"seed{args.seed}.safetensors"
    if not weights.exists():
        train_and_save(args.seed, 12, args.weights, os.cpu_count() or 1)
    claims, runs = [], {}
    asked = [["--ratio", f"{ratio:g}"] for ratio in args.ratios]
    asked.append(["--ratio", f"{args.ratios[-1] if args.ratios else 10:g}", "--target", "archive"])
    for each in asked:
        with tempfile.TemporaryDirectory() as folder:
            run = compress(weights, [*each, *args.arguments], limit, Path(folder))
            claims += claims_of(" ".join(each), run, limit, Path(folder))
        runs[" ".join(each)] = {
            "code": run.code, "wall_s": run.wall_s, "peak_nbytes": run.peak_nbytes,
            "cgroup": run.version,
        }  # fmt: skip
        print(claims[-1].what, claims[-1].measured, flush=True)
    show(TITLE, claims)
    print(save("small_machine", TITLE, claims, threads=1, limit_nbytes=limit, runs=runs))


if __name__ == "__main__":
    main()
