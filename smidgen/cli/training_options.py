"""How a network is trained, as options. No torch here."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from smidgen.errors import UserError

if TYPE_CHECKING:
    from smidgen.recover.training import Training

_UNITS = {"": 1, "s": 1, "min": 60, "h": 3600}


def add_training(parser: argparse.ArgumentParser) -> None:
    """The options that `read_training` reads, and ``--metric``."""
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", metavar="N", type=int, default=10, help="passes over the data (10)")
    group.add_argument("--batch", metavar="N", type=int, default=128, help="inputs of a step (128)")
    group.add_argument("--lr", metavar="RATE", type=float, default=1e-3, help="highest learning rate (0.001)")
    group.add_argument("--optimizer", metavar="NAME", default="adamw", help="adamw (the default) or sgd")
    group.add_argument("--schedule", metavar="NAME", default="cosine", help="of the rate: cosine, constant or rewind")
    group.add_argument("--weight-decay", metavar="SHARE", type=float, default=0.0, help="of weights, not of biases (0)")
    group.add_argument("--augment", metavar="NAMES", help="change images anew each time: shift2,flip,zoom20,turn10")
    group.add_argument("--patience", metavar="N", type=int, help="epochs without a better one after which it stops")
    group.add_argument("--precision", metavar="NAME", default="float32", help="float32 (the default) or mixed")
    group.add_argument("--time-limit", metavar="TIME", help="of training: 90s, 10min, 2h")
    group.add_argument("--checkpoint", metavar="FILE", help="to go on from, if it is there, and to write")
    parser.add_argument("--metric", metavar="FILE.py:FUNCTION", help="your own metric instead of accuracy")


def read_training(options: argparse.Namespace) -> Training:
    """The training that was asked for.

    Raises:
        UserError: a value that cannot be meant.
    """
    from smidgen.recover.training import Training

    names = [name.strip() for name in (options.augment or "").split(",") if name.strip()]
    return Training(
        epochs=options.epochs, batch=options.batch, lr=options.lr, optimizer=options.optimizer,
        schedule=options.schedule, weight_decay=options.weight_decay, augment=tuple(names), patience=options.patience,
        precision=options.precision, time_limit=read_time(options.time_limit), seed=options.seed,
    )  # fmt: skip


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
