"""What can be typed, and what is said when something else is."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import shlex
from collections.abc import Sequence
from typing import NoReturn

from smidgen.cli.option_groups import (
    add_budget,
    add_common,
    add_computing,
    add_data,
    add_network,
    add_output,
    add_work,
)
from smidgen.cli.serving_options import add_serving
from smidgen.cli.showing_options import add_completion, add_report, add_sweep
from smidgen.cli.training_options import add_glimpse, add_recovery, add_training
from smidgen.errors import UserError

COMMANDS = {
    "compress": "make a trained network smaller within a budget",
    "sweep": "compress to many sizes at once and show what each costs, as a picture",
    "inspect": "show each layer: shape, bytes, what each method could save, why one is left alone",
    "downsample": "show where it could downsample earlier and what that saves, and write the best of it",
    "prune": "cut whole channels and neurons until so many multiplications are left, and refit the rest",
    "fastconv": "compute each convolution the way that is fastest here: direct, Winograd, Fourier",
    "distil": "train a smaller network of your own to answer as a trained one does",
    "transfer": "teach a trained network other classes: a new last layer, trained alone and then with all others",
    "glimpse": "put two small stages before a network, so that it reads a whole image only when it must",
    "apply": "carry out a saved plan.json again",
    "eval": "score any ONNX or TFLite file in its runtime",
    "report": "write the page of a result again, or of two side by side",
    "serve": "show original and smaller network side by side in a browser, on this machine or a phone",
    "bench": "time files beside their original, on this machine",
    "bundle": "pack a result for a device, with a script that measures it there; merge what came back",
    "unpack": "give back the ONNX file inside a .smidgen archive, to the bit, or as TFLite",
    "demo": "train a small network on handwritten digits and compress it",
    "completion": "print what makes a shell complete commands and options",
}
_EPILOG = """\
examples:
  smidgen demo
  smidgen inspect model.onnx
  smidgen compress model.onnx --data faces/ --scale 1/255 --max-drop 0.5% -o out/
  smidgen compress nets.py:resnet20 --weights resnet20.safetensors --data test.npz --size 90kB -o out/

exit codes: 0 done, 1 a fault of smidgen's own, 2 something given is wrong,
            3 the budget was not met (the best found is kept), 130 stopped with Ctrl-C
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are a UserError in one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the arguments; ``--help`` and ``--version`` print and end the process.

    Args:
        argv: without the program's name.

    Raises:
        UserError: for anything unknown, with the nearest name.

    >>> parse(["inspect", "model.onnx"]).command
    'inspect'
    """
    parser, known = _build()
    argv = _joined(argv)
    if not argv:
        raise UserError(f"give a command: {', '.join(COMMANDS)}; see smidgen --help")
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError(f"there is no command '{argv[0]}'{nearest(argv[0], COMMANDS)} There are: {', '.join(COMMANDS)}")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(unknown[0], options.command, known[options.command])
    options.typed = shlex.join(["smidgen", *argv])
    return options


def _joined(argv: Sequence[str]) -> list[str]:
    """Negative values made part of their option, as argparse would take "--mean -1,-1" for two options."""
    joined: list[str] = []
    for argument in argv:
        negative = argument[:1] == "-" and argument[1:2] in "0123456789." and len(argument) > 1
        if negative and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def nearest(name: str, known: Sequence[str] | dict[str, str]) -> str:
    """The end of a sentence that names what may have been meant.

    >>> nearest("--siez", ["--size", "--ratio"]), nearest("x", ["--size"])
    ("; did you mean '--size'?", '.')
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else "."


def _refuse(argument: str, command: str, parser: argparse.ArgumentParser) -> NoReturn:
    if not argument.startswith("-"):
        raise UserError(f"{command}: '{argument}' is one argument too many; see smidgen {command} --help")
    name = argument.partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    raise UserError(f"{command}: there is no option '{name}'{nearest(name, known)} See smidgen {command} --help")


def _build() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    shape = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "smidgen", description="Make trained neural networks small.", epilog=_EPILOG, formatter_class=shape
    )
    parser.add_argument("--version", action="version", version=f"smidgen {_version()}")
    inner = parser.add_subparsers(dest="command", metavar="command", required=True, parser_class=_Parser)
    commands: dict[str, argparse.ArgumentParser] = {}
    for name, text in COMMANDS.items():
        # No abbreviations: a script that says --s today must not change its meaning when an option is added.
        told = f"{text[0].upper()}{text[1:]}."
        commands[name] = inner.add_parser(name, help=text, description=told, allow_abbrev=False)
        _FILL[name](commands[name])
        if name not in ("unpack", "report", "serve", "bench", "bundle", "completion"):
            add_computing(commands[name], seed=None if name == "apply" else 0)
        add_common(commands[name])
    return parser, commands


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    return _build()[1]


def _version() -> str:
    try:
        return importlib.metadata.version("smidgen")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed as a package)"


def _compress(parser: argparse.ArgumentParser) -> None:
    for add in (add_network, add_data, add_budget, add_work):
        add(parser)
    parser.add_argument(
        "--methods", "--method", metavar="NAMES", default="auto",
        help="svd,cp,spatial,tucker2 or by layer kind: linear=svd,conv=tucker2 (all by default); or one that removes "
        "single weights: obs, wanda, magnitude; channels beside others weighs whole channels too: auto,channels",
    )  # fmt: skip
    parser.add_argument(
        "--ranks", metavar="HOW", default="price",
        help="of factors: price (the default), vbmf, energy=0.9, or one rank for all: 16",
    )  # fmt: skip
    parser.add_argument("--rank-multiple", metavar="N", type=int, default=1, help="ranks are multiples of N: 8")
    parser.add_argument(
        "--rounding", metavar="NAME", help="of integers: gptq (the default), rate_aware, nearest; kmeans shares weights"
    )
    parser.add_argument(
        "--bits", metavar="N", type=int, help="share weights: 2^N values a layer, 1 to 8 (default: the price chooses)"
    )
    parser.add_argument(
        "--recipe", metavar="NAME",
        help="a named chain of stages: deep-compression (prune, share, Huffman), distil (what the budget asks for, "
        "trained to answer as the original), or extreme (trained on bits)",
    )  # fmt: skip
    pruning = parser.add_argument_group("pruning of single weights (by --methods obs unless another is named)")
    pruning.add_argument("--sparsity", metavar="SHARE", help="of the weights that goes: 70%% or 0.7")
    pruning.add_argument("--pattern", metavar="N:M", help="keep N of every M neighbouring input channels: 2:4")
    pruning.add_argument("--scope", metavar="NAME", help="compare weights over all layers (global), a layer, or a row")
    pruning.add_argument("--protect", metavar="NAMES", help="layers left whole (also of channels): conv1,head*")
    add_recovery(parser)
    parser.add_argument(
        "--target",
        default="onnx",
        help="file the budget binds: onnx, onnx-fp16, onnx-int8, onnx-w8, onnx-w4, onnx-shared, onnx-sparse, tflite, "
        "tflite-fp16, tflite-int8, mcu, executorch, executorch-int8 or archive; of several with commas, the first",
    )
    parser.add_argument(
        "--max-ram",
        metavar="SIZE",
        help="bytes that the target's activations (of mcu: its arena) may take at once, besides the budget: 64KiB",
    )
    parser.add_argument(
        "--max-flash", metavar="SIZE", help="bytes that the target's file may have; the budget where none is given"
    )
    slower = parser.add_mutually_exclusive_group()
    slower.add_argument("--allow-slower", action="store_true", help="take forms that run slower than their layer too")
    slower.add_argument("--refuse-slower", action="store_true", help="leave them out, also for --size and --ratio")
    add_output(parser)


def _sweep(parser: argparse.ArgumentParser) -> None:
    for add in (add_network, add_data, add_sweep, add_work, add_output):
        add(parser)


def _inspect(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_data(parser, test=False)
    parser.add_argument("--methods", "--method", metavar="NAMES", default="auto", help="those to ask (all by default)")
    parser.add_argument("--allow-slower", action="store_true", help="time no layer, and show what would be slower too")


def _downsample(parser: argparse.ArgumentParser) -> None:
    add_network(parser, shape=False)
    add_data(parser)
    parser.add_argument(
        "--max-drop", metavar="POINTS", default="1%", help="percentage points that may be lost (default: 1%%)"
    )
    add_work(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where the best network goes (default: nowhere)")


def _prune(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_data(parser)
    group = parser.add_argument_group("how much is left (one of these)")
    group.add_argument("--macs", metavar="SHARE", help="of the multiply-accumulates: 50%%")
    group.add_argument("--params", metavar="SHARE", help="of the weights: 50%%")
    parser.add_argument(
        "--criterion", metavar="NAME", default="curvature",
        help="what goes first: curvature (the default), l1, l2, magnitude, activation, apoz, cosine, correlation, "
        "median, taylor, batchnorm",
    )  # fmt: skip
    parser.add_argument(
        "--round", metavar="N", type=int, help="channel counts become multiples of N (16, small layers: 8)"
    )
    parser.add_argument(
        "--protect", metavar="LAYER", action="append", default=[], help="a layer whose outputs stay, or 'layer3*'"
    )
    add_work(parser)
    add_output(parser)


def _fastconv(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    add_data(parser, test=False)
    parser.add_argument(
        "--algorithms", metavar="NAMES", help="beside direct: winograd2,winograd4,fft (all of them by default)"
    )
    parser.add_argument("--max-size", metavar="SIZE", help="of the file; transformed kernels are larger: 45MB")
    parser.add_argument(
        "--low-rank", metavar="SHARE", help="try kernels in two factors too, which may be off by so much: 1%%"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where the fastest file goes (default: nowhere)")


def _distil(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", help="an .onnx or .pt2 file, or file.py:factory")
    parser.add_argument("student", help="the same; smaller, with the same inputs and outputs")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or weights-only .pth for the teacher's factory")
    parser.add_argument("--student-weights", metavar="FILE", help="as --weights, for the student's")
    add_data(parser)
    group = parser.add_argument_group("distillation")
    group.add_argument("--temperature", metavar="T", type=float, default=4.0, help="of the softened scores (4)")
    group.add_argument(
        "--mix", metavar="SHARE", type=float, help="the teacher's share, labels have the rest (0.9; 1 without labels)"
    )
    group.add_argument("--features", metavar="WEIGHT", type=float, default=0.0, help="of what layers pass on, too (0)")
    group.add_argument("--search", metavar="N", type=int, default=0, help="trials that choose T, share and rate (0)")
    add_training(parser)
    add_output(parser)


def _transfer(parser: argparse.ArgumentParser) -> None:
    add_network(parser, shape=False)
    add_data(parser)
    parser.add_argument("--classes", metavar="N", type=int, help="of the new network (default: what the labels name)")
    parser.add_argument(
        "--freeze-epochs", metavar="N", type=int, default=3, help="in which the new layer learns alone (3)"
    )
    parser.add_argument(
        "--body-rate", metavar="SHARE", type=float, default=0.1, help="of the learning rate, for all other layers (0.1)"
    )
    add_training(parser)
    add_budget(parser, "compress it in the same call (one of these; the float network goes into transferred/)")
    parser.add_argument("--target", default="onnx", help="file the budget binds, as for compress")
    add_output(parser)


def _apply(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    parser.add_argument("plan", help="plan.json that compress wrote")
    add_data(parser)
    add_work(parser)
    add_output(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="file to score, in the runtime its name says")
    parser.add_argument("--against", metavar="FILE", help="the original, to compare with")
    add_data(parser, test=False, split="the test split where the file has one")
    parser.add_argument("--metric", metavar="FILE.py:FUNCTION", help="your own metric instead of accuracy")


def _serve(parser: argparse.ArgumentParser) -> None:
    add_serving(parser)
    add_data(parser, test=False, split="the test split where the file has one")


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="files to time, each in the runtime its name says")
    parser.add_argument("--against", metavar="ORIGINAL", help="the original they are compared with (the first file)")
    add_data(parser, test=False, split="the test split where the file has one")
    parser.add_argument("--threads", metavar="COUNTS", default="1", help="of the runtime: 1, or several: 1,2,4")
    parser.add_argument("--repeats", metavar="N", type=int, default=5, help="measurements of each file (5)")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="where the record goes (default: nowhere)")


def _bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what compress wrote")
    parser.add_argument("-o", "--output", metavar="BUNDLE", help="folder to write, and to copy to the device")
    parser.add_argument("--against", metavar="ORIGINAL", help="the original, to compare with there")
    parser.add_argument("--samples", metavar="N", type=int, default=16, help="inputs that travel (16)")
    parser.add_argument("--merge", metavar="RESULTS.json", nargs="+", help="take a device's results into FOLDER")
    add_data(parser, test=False, split="the test split where the file has one")


def _unpack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.smidgen", help="archive to unpack")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="model.onnx or model.tflite (default: .onnx beside the archive)"
    )
    parser.add_argument("--limit", metavar="SIZE", help="largest file to unpack to (1 GiB)")


def _demo(parser: argparse.ArgumentParser) -> None:
    add_budget(parser)
    add_output(parser, "smidgen-demo")


_FILL = {
    "compress": _compress, "sweep": _sweep, "inspect": _inspect, "downsample": _downsample, "prune": _prune,
    "fastconv": _fastconv, "glimpse": add_glimpse, "apply": _apply, "distil": _distil, "transfer": _transfer,
    "eval": _eval, "report": add_report, "serve": _serve,
    "bench": _bench, "bundle": _bundle, "unpack": _unpack, "demo": _demo, "completion": add_completion,
}  # fmt: skip
