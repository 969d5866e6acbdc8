"""Groups of options that several commands share."""

from __future__ import annotations

import argparse


def add_network(parser: argparse.ArgumentParser, *, shape: bool = True) -> None:
    """What is worked on."""
    parser.add_argument("model", help="an .onnx or .pt2 file, or file.py:factory")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or weights-only .pth for a factory")
    if shape:
        parser.add_argument(
            "--input", metavar="SHAPE", help="shape of one batch, where nothing else tells it: 1,3,224,224"
        )


def add_data(parser: argparse.ArgumentParser, *, test: bool = True, split: str = "train") -> None:
    """Inputs, and what makes pixels of them."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="SRC", help="inputs: .npz, .npy, idx .gz, or a folder of images")
    group.add_argument(
        "--split", metavar="NAME", help=f"train, test or validation of a divided .npz (default: {split})"
    )
    group.add_argument("--labels", metavar="KEY", help="name of the label array in a .npz, or a file of labels")
    group.add_argument("--label-offset", metavar="N", type=int, default=0, help="added to every label")
    if test:
        group.add_argument(
            "--validation", metavar="SRC", help="inputs that choose, best if new to the network (a fifth of --data)"
        )
        group.add_argument("--validation-split", metavar="NAME", help="part of a divided .npz (default: validation)")
        group.add_argument("--validation-labels", metavar="KEY", help="as --labels, for --validation")
        group.add_argument("--test", metavar="SRC", help="inputs scored once at the end (default: a fifth of --data)")
        group.add_argument("--test-split", metavar="NAME", help="part of a divided .npz (default: test)")
        group.add_argument("--test-labels", metavar="KEY", help="as --labels, for --test (default: the same)")
    pixels = parser.add_argument_group(
        "preprocessing", "x = (pixel · scale − mean) / std; else from a TOML file of these names beside the data"
    )
    pixels.add_argument("--scale", metavar="NUMBER", help="multiplies pixels 0..255: 1/255")
    pixels.add_argument("--mean", metavar="NUMBERS", help="one a channel: 0.485,0.456,0.406")
    pixels.add_argument("--std", metavar="NUMBERS", help="as --mean")
    pixels.add_argument("--layout", metavar="NAME", help="nchw or nhwc")
    pixels.add_argument("--channels", metavar="NAME", help="rgb, bgr or gray")
    pixels.add_argument("--resize", metavar="SIZE", help="shorter side, or HEIGHTxWIDTH")
    pixels.add_argument("--crop", metavar="SIZE", help="side of the centre crop, or HEIGHTxWIDTH")
    pixels.add_argument("--crop-first", action="store_true", default=None, help="crop before resizing")
    pixels.add_argument("--preprocess", metavar="FILE.toml", help="all of these in a file")


def add_budget(parser: argparse.ArgumentParser, told: str = "budget (one of these)") -> None:
    """What to reach; one of these."""
    group = parser.add_argument_group(told)
    group.add_argument("--size", metavar="SIZE", help="bytes of the written file: 200kB, 64KiB")
    group.add_argument("--ratio", metavar="TIMES", help="original bytes / written bytes: 6")
    group.add_argument("--max-drop", metavar="POINTS", help="percentage points of the metric that may be lost: 0.5%%")
    group.add_argument("--tradeoff", metavar="DIAL", help="from 0 (keep accuracy) to 1 (save bytes)")
    group.add_argument("--macs", metavar="SHARE", help="share of the multiply-accumulates that is left: 40%%")
    group.add_argument("--speedup", metavar="TIMES", help="original's time / written file's, measured here: 2")
    group.add_argument("--latency", metavar="TIME", help="time of one input, measured here: 5ms, 250us")


def add_work(parser: argparse.ArgumentParser) -> None:
    """How it is measured and refitted."""
    parser.add_argument("--metric", metavar="FILE.py:FUNCTION", help="your own metric instead of accuracy")
    parser.add_argument("--no-refit", action="store_true", help="leave layers as the methods made them")


def add_output(parser: argparse.ArgumentParser, folder: str = "out") -> None:
    """Where files go."""
    parser.add_argument("-o", "--output", metavar="FOLDER", default=folder, help=f"where files go ({folder}/)")


def add_computing(parser: argparse.ArgumentParser, seed: int | None) -> None:
    """Seed, threads and device."""
    default = "the plan's" if seed is None else seed
    parser.add_argument("--seed", metavar="N", type=int, default=seed, help=f"of everything drawn ({default})")
    parser.add_argument("--threads", metavar="N", type=int, help="processor threads")
    parser.add_argument("--device", metavar="NAME", default="cpu", help="where torch computes: cpu or cuda")


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every command says and how much."""
    parser.add_argument("--json", action="store_true", help="print the record as JSON, nothing else, on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("-v", "--verbose", action="store_true", help="every step of the progress, a line each")
    parser.add_argument("--debug", action="store_true", help="tracebacks and warnings")
