"""How a network is trained, as options. No torch here."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smidgen.cli.option_groups import add_data, add_network, add_output
from smidgen.errors import UserError

if TYPE_CHECKING:
    from smidgen.recover.training import Training

_UNITS = {"": 1, "s": 1, "min": 60, "h": 3600}


def add_training(parser: argparse.ArgumentParser) -> None:
    """The options that `read_training` reads, and ``--metric``."""
    _add_settings(parser.add_argument_group("training"), 1e-3)
    parser.add_argument("--metric", metavar="FILE.py:FUNCTION", help="your own metric instead of accuracy")


def add_glimpse(parser: argparse.ArgumentParser) -> None:
    """The options of ``smidgen glimpse``."""
    add_network(parser, shape=False)
    add_data(parser)
    group = parser.add_argument_group("looking")
    group.add_argument("--side", metavar="PIXELS", required=True, help="side of what the classifier sees: 36 or 32x28")
    group.add_argument("--classifier", metavar="NETWORK", help="that reads crops (default: a copy of the network)")
    group.add_argument(
        "--boxes", metavar="FILE", help=".npy or .csv: x, y of the centre in -1 … 1 and the side, a row an input"
    )
    group.add_argument("--no-fallback", action="store_true", help="leave the network out: a crop's answer stands")
    group.add_argument("--max-drop", metavar="POINTS", default="0.5%", help="that the short ways may lose (0.5%%)")
    group.add_argument("--label-share", metavar="SHARE", type=float, default=0.5, help="of what is learned from (0.5)")
    group.add_argument(
        "--target", default="onnx", help="onnx; stages compressed to onnx-int8, onnx-w8 or onnx-fp16; or, without "
        "fallback, tflite",
    )  # fmt: skip
    group = parser.add_argument_group("how small each stage becomes (one of these)")
    group.add_argument("--ratio", metavar="TIMES", help="original bytes / written bytes: 4")
    group.add_argument("--tradeoff", metavar="DIAL", help="from 0 (keep accuracy) to 1 (save bytes)")
    add_training(parser)
    add_output(parser)


def add_recovery(parser: argparse.ArgumentParser) -> None:
    """The options that `read_recovery` reads; settings are there only where they are given."""
    group = parser.add_argument_group("training of what was found, to answer as the original does; needs no labels")
    group.add_argument(
        "--train", metavar="EPOCHS", nargs="?", const=True, default=False,
        help="train on all of --data that is not held out (10 passes)",
    )  # fmt: skip
    group.add_argument("--gradual", action="store_true", help="with --sparsity: remove weights while it trains")
    group.add_argument(
        "--mix", metavar="SHARE", type=float, default=1.0, help="the original's share, labels have the rest (1)"
    )
    group.add_argument("--reassign", action="store_true", help="shared weights may take other values while it trains")
    group.add_argument("--round-activations", action="store_true", help="train with activations in eight bits")
    _add_settings(group, 5e-4, given_only=True)


def _add_settings(group: Any, lr: float, *, given_only: bool = False) -> None:
    def add(name: str, metavar: str | None, default: Any, text: str, kind: Any = str, **more: Any) -> None:
        shown = argparse.SUPPRESS if given_only else default
        group.add_argument(name, metavar=metavar, type=kind, default=shown, help=text, **more)

    add("--epochs", "N", 10, "passes over the data (10)", int)
    add("--batch", "N", 128, "inputs of a step (128)", int)
    add("--lr", "RATE", lr, f"highest learning rate ({lr:g})", float)
    add("--optimizer", None, "adamw", "(adamw)", choices=("adamw", "sgd"))
    add("--schedule", None, "cosine", "of the rate", choices=("cosine", "constant", "rewind"))
    add("--weight-decay", "SHARE", 0.0, "of weights, not of biases (0)", float)
    add("--augment", "NAMES", None, "change images anew each time: shift2,flip,zoom20,turn10,elastic4,mixup")
    add("--average", "SHARE", None, "keep a running average of the weights: of itself at each step, 0.999", float)
    add("--hold-back", "N", None, "inputs that choose the epoch, not trained on (a fifth, at most 5000)", int)
    add("--patience", "N", None, "epochs without a better one after which it stops", int)
    add("--precision", None, "float32", "of computing", choices=("float32", "mixed"))
    add("--time-limit", "TIME", None, "of training: 90s, 10min, 2h")
    add("--checkpoint", "FILE", None, "to go on from, if it is there, and to write")


_SETTINGS = ("epochs", "batch", "lr", "optimizer", "schedule", "weight_decay", "patience", "precision", "average",
             "hold_back")  # fmt: skip


def read_training(options: argparse.Namespace, base: Training | None = None) -> Training:
    """The training that was asked for.

    Args:
        options: those of `add_training`, or those of them that were given.
        base: what is not there is taken from this.

    Raises:
        UserError: a value that cannot be meant.
    """
    from smidgen.recover.training import Training

    base = base or Training()
    given = {name: getattr(options, name) for name in _SETTINGS if hasattr(options, name)}
    if getattr(options, "augment", None) is not None:
        given["augment"] = tuple(name.strip() for name in options.augment.split(",") if name.strip())
    if getattr(options, "time_limit", None) is not None:
        given["time_limit"] = read_time(options.time_limit)
    return replace(base, **given, seed=options.seed)


def read_recovery(options: argparse.Namespace) -> Training | None:
    """The training that was asked for by ``--train`` or a recipe that trains, None where it was not.

    Raises:
        UserError: a value that cannot be meant, or settings without ``--train``.

    >>> read_recovery(argparse.Namespace(train=False, mix=1.0, lr=1e-3))
    Traceback (most recent call last):
    smidgen.errors.UserError: train: --lr is given without --train; add it, or leave this out
    """
    if isinstance(options.train, str):
        options.epochs = _epochs(options.train, getattr(options, "epochs", None))
    base = _by_itself(getattr(options, "recipe", None))
    if base is not None:
        if options.recipe == "extreme" and (options.train or options.gradual):
            raise UserError("train: the recipe extreme trains by itself; leave --train and --gradual out")
        return read_training(options, base)
    if not options.train:
        names = (*_SETTINGS, "augment", "time_limit", "checkpoint")
        switches = ("gradual", "reassign", "round_activations")
        idle = [name for name in names if hasattr(options, name)] + ["mix"] * (options.mix != 1)
        idle += [name for name in switches if getattr(options, name, False)]
        if idle:
            raise UserError(f"train: --{idle[0].replace('_', '-')} is given without --train; add it, or leave this out")
        return None
    from smidgen.pipeline.recover import TRAINING

    return read_training(options, TRAINING)


def _by_itself(recipe: str | None) -> Training | None:
    """How a recipe trains where nobody said so; None where it does not."""
    if recipe is None:
        return None
    from smidgen.pipeline.recipes import recipe_of

    return recipe_of(recipe).training


def _epochs(text: str, also: int | None) -> int:
    """The passes in ``--train 20``.

    >>> _epochs("20", None)
    20
    """
    if not re.fullmatch(r"\d{1,6}", text) or int(text) < 1:
        raise UserError(f"train: '{text}' is no number of epochs; give 1 or more, or write --train last")
    if also is not None and also != int(text):
        raise UserError(f"train: --train {text} and --epochs {also} differ; leave one out")
    return int(text)


def read_time(text: str | None) -> float | None:
    """Seconds in a time as people write it.

    Raises:
        UserError: none.

    >>> read_time("90s"), read_time("1.5 min"), read_time("2h"), read_time("30"), read_time(None)
    (90.0, 90.0, 7200.0, 30.0, None)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|)", text.strip().lower())
    if not found or float(found[1]) <= 0:
        raise UserError(f"time-limit: {text!r} is no time; give e.g. 90s, 10min or 2h")
    return float(found[1]) * _UNITS[found[2]]
