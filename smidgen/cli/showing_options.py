"""What ``smidgen sweep``, ``smidgen report`` and ``smidgen completion`` take."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Options that no other command has, and those of the choice."""
    chosen = parser.add_argument_group("the chosen point (one of these; by default where the front bends most)")
    chosen.add_argument("--size", metavar="SIZE", help="the best of at most so many bytes: 200kB, 64KiB")
    chosen.add_argument("--ratio", metavar="TIMES", help="the best of at most the original's bytes / TIMES: 6")
    chosen.add_argument("--max-drop", metavar="POINTS", help="the smallest that loses at most so many points: 0.5%%")
    group = parser.add_argument_group("sweep")
    group.add_argument("--points", metavar="N", type=int, default=12, help="of the joint curve, others a third (12)")
    group.add_argument("--methods", "--method", metavar="NAMES", default="auto", help="as for compress")
    group.add_argument("--target", metavar="NAME", default="onnx", help="kind of file, as for compress")
    group.add_argument("--rounding", metavar="NAME", help="of integers, as for compress")
    group.add_argument("--refuse-slower", action="store_true", help="leave out forms that run slower than their layer")
    group.add_argument(
        "--mark", metavar="NAME:BYTES:SCORE", action="append", default=[],
        help="a point to show beside, 'paper:27kB:99.26%%', or a CSV file of name,bytes,accuracy; again for more",
    )  # fmt: skip
    group.add_argument("--jobs", metavar="N", type=int, help="processes that points run in (all processors)")
    group.add_argument("--time-limit", metavar="TIME", help="begin no point after that: 10m, 90s, 2h")


def add_report(parser: argparse.ArgumentParser) -> None:
    """Options of ``smidgen report``."""
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="what compress or sweep wrote; two to compare")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="where the page goes (report.html in FOLDER; of "
                        "two, comparison.html here)")  # fmt: skip
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Options of ``smidgen completion``."""
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or fish: smidgen completion bash >> ~/.bashrc")
