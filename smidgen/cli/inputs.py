"""From options to what the library takes: data, preprocessing, budget, shapes. No torch here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from smidgen.budget import Budget
from smidgen.data import Dataset, Preprocess, open_data
from smidgen.data.reading import MAX_NBYTES, NpzReader
from smidgen.errors import BudgetError, DataError, UserError

_FLAGS = ("mean", "std", "scale", "layout", "channels", "resize", "crop", "crop_first")


BUDGETS = ("size", "ratio", "max_drop", "tradeoff", "macs", "speedup", "latency")


def read_budget(options: argparse.Namespace, names: Sequence[str] = BUDGETS) -> Budget | None:
    """The budget asked for, None where there is none.

    Args:
        options: of a command.
        names: the options that name a budget there.

    Raises:
        BudgetError: several, or a value that cannot be meant.
    """
    given: dict[str, Any] = {}
    for name in names:
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    if "tradeoff" in given:
        given["tradeoff"] = _dial(given["tradeoff"])
    return Budget(**given) if given else None


def _dial(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BudgetError(f"budget: tradeoff={text!r} is not a number; give 0 (accuracy) to 1 (size)") from None


def read_shape(text: str | None) -> tuple[int, ...] | None:
    """A shape such as "1,3,224,224".

    Raises:
        DataError: not positive whole numbers.

    >>> read_shape("1,3,224,224")
    (1, 3, 224, 224)
    """
    if text is None:
        return None
    sides = [int(part) if part.strip().isdecimal() and len(part) < 8 else 0 for part in text.split(",")]
    if min(sides) < 1 or len(sides) < 2:
        raise DataError(f"input: {text!r} is not a shape; give the batch axis and each size, as in --input 1,3,224,224")
    return tuple(sides)


def read_methods(text: str) -> str | list[str] | dict[str, list[str]]:
    """Names, or names by layer kind.

    Raises:
        UserError: both mixed.

    >>> read_methods("svd,cp"), read_methods("linear=svd,conv=cp+svd"), read_methods("auto")
    (['svd', 'cp'], {'linear': ['svd'], 'conv': ['cp', 'svd']}, 'auto')
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text.strip() == "auto":
        return "auto"
    if parts and all("=" in part for part in parts):
        pairs = [part.partition("=") for part in parts]
        return {kind.strip(): [name.strip() for name in names.split("+")] for kind, _, names in pairs}
    if not parts or any("=" in part for part in parts):
        raise UserError(f"methods: {text!r} cannot be read; give svd,cp or linear=svd,conv=cp")
    return parts


def read_ranks(text: str, multiple: int) -> dict[str, dict[str, Any]]:
    """Settings of every method from what was said of ranks.

    Raises:
        UserError: text that cannot be meant.

    >>> read_ranks("energy=0.8", 8)["svd"]
    {'ranks': 'energy', 'energy': 0.8, 'multiple': 8}
    >>> read_ranks("price", 1)
    {}
    """
    from smidgen.methods import methods

    name, _, value = text.strip().partition("=")
    found: dict[str, Any] = {} if multiple == 1 else {"multiple": multiple}
    try:
        if name.isascii() and name.isdecimal() and not value:
            found = {"ranks": "fixed", "rank": int(name), **found}
        elif name == "energy":
            found = {"ranks": "energy", **({"energy": float(value)} if value else {}), **found}
        elif name == "vbmf" and not value:
            found = {"ranks": "vbmf", **found}
        elif name != "price" or value:
            raise ValueError(f"{text!r} is not known")
        # A method's own check: the value is wrong for all of them, or for none.
        next(iter(methods().values())).with_settings(**found)
    except ValueError as error:
        raise UserError(f"ranks: {error}; give price, vbmf, energy=0.9, or a rank such as 16") from None
    return {method: dict(found) for method in methods()} if found else {}


def read_bits(bits: int | None) -> dict[str, dict[str, Any]]:
    """Settings of every way of sharing weights from the width of an index.

    Raises:
        UserError: a width that there is none of.

    >>> read_bits(5), read_bits(None)
    ({'kmeans': {'bits': 5}}, {})
    """
    from smidgen.methods import sharings

    if bits is None:
        return {}
    try:
        if bits < 1:
            raise ValueError(f"bits={bits} must be 1 to 8")
        for sharing in sharings().values():
            sharing.with_settings(bits=bits)
    except ValueError as error:
        raise UserError(f"bits: {error}") from None
    return {name: {"bits": bits} for name in sharings()}


def read_pruning(methods: Any, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Settings of the pruning that was asked for: what --methods names, or obs; of channels, which layers keep theirs.

    Raises:
        UserError: a value that cannot be meant, or options of pruning beside other methods.

    >>> told = {"sparsity": "70%", "pattern": None, "scope": None, "protect": "conv1,head*"}
    >>> read_pruning("auto", argparse.Namespace(**told))
    {'obs': {'sparsity': 0.7, 'protect': ['conv1', 'head*']}}
    """
    from smidgen.methods import choose_methods, prunings

    given: dict[str, Any] = {name: getattr(options, name) for name in ("sparsity", "pattern", "scope", "protect")}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return {}
    if "protect" in given:
        given["protect"] = [part.strip() for part in given["protect"].split(",") if part.strip()]
    if isinstance(methods, list) and "channels" in methods and list(given) == ["protect"]:
        return {"channels": given}
    named = ["obs"] if methods == "auto" else sorted(choose_methods(methods, {})[0])
    if len(named) != 1 or named[0] not in prunings():
        raise UserError(f"pruning: --{next(iter(given))} goes with one of {', '.join(prunings())}, "
                        f"not with --methods {','.join(named)}")  # fmt: skip
    if "sparsity" in given:
        given["sparsity"] = _share(given["sparsity"])
    choose_methods(named, {named[0]: given})  # its own check
    return {named[0]: given}


def _share(text: str) -> float:
    number = text.strip().removesuffix("%").strip()
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"sparsity: {text!r} is not a share; give 70% or 0.7") from None
    return value / 100 if text.strip().endswith("%") else value


class Held(TypedDict, total=False):
    """What is not learned from, by the names that functions take it; none where a command has no such options."""

    test: Dataset | None
    validation: Dataset | None


def open_sets(options: argparse.Namespace) -> tuple[Dataset | None, Held]:
    """The data that was named, and what is held back, with their preprocessing.

    Raises:
        DataError: nothing there, damaged, or preprocessing that cannot be meant.
    """
    test = getattr(options, "test", None)
    named = options.data if options.data is not None else test
    if named is None:
        _refuse_idle(options)
        return None, {}
    preprocess = read_preprocess(options, Path(named))
    data = None
    if options.data is not None:
        data = _open(options, options.data, options.split, options.labels, preprocess)
    if not hasattr(options, "test"):
        return data, {}
    test, validation = (_held_back(options, part, preprocess) for part in ("test", "validation"))
    return data, {"test": test, "validation": validation}


def _held_back(options: argparse.Namespace, part: str, preprocess: Preprocess | None) -> Dataset | None:
    """The test or the validation set; another split of the data's file where only that is named."""
    source, split, labels = (getattr(options, name) for name in (part, f"{part}_split", f"{part}_labels"))
    source = options.data if source is None and split is not None else source
    if source is None:
        return None
    labels = options.labels if labels is None else labels
    return _open(options, source, _split(split, source, part), labels, preprocess)


def open_scored(options: argparse.Namespace, declared: Preprocess | None = None) -> Dataset | None:
    """The set to score on: the test split of a divided file unless another is named.

    ``declared`` is the preprocessing where neither options nor a file beside the data say another.
    """
    if options.data is None:
        _refuse_idle(options)
        return None
    preprocess = read_preprocess(options, Path(options.data)) or declared
    return _open(options, options.data, _split(options.split, options.data, "test"), options.labels, preprocess)


def _refuse_idle(options: argparse.Namespace) -> None:
    """Options that describe data, where there is none: surely a slip."""
    of_parts = (f"{part}_{what}" for part in ("test", "validation") for what in ("split", "labels"))
    for name in (*_FLAGS, "preprocess", "split", "labels", "validation", *of_parts):
        if getattr(options, name, None) is not None:
            raise DataError(f"data: --{name.replace('_', '-')} is given without --data; name the inputs too")


def _open(
    options: argparse.Namespace, source: str, split: str | None, labels: str | None, preprocess: Preprocess | None
) -> Dataset:
    return open_data(source, split=split, labels=labels, preprocess=preprocess, label_offset=options.label_offset)


def _split(asked: str | None, source: str, usual: str) -> str | None:
    """The split that was asked for, or the usual one of a file that is divided."""
    if asked or not source.endswith(".npz") or not Path(source).is_file():
        return asked
    with NpzReader(Path(source), MAX_NBYTES) as file:
        return usual if "split" in file.names else None


def read_preprocess(options: argparse.Namespace, source: Path) -> Preprocess | None:
    """Preprocessing from a file, each flag overriding the file's; None where nothing is declared.

    Args:
        options: with `--preprocess` and the single flags.
        source: the data; ``faces.toml`` beside ``faces.npz`` or ``faces/``, or ``faces/preprocess.toml``, is found.

    Raises:
        DataError: unreadable or not to be meant.
    """
    stored: dict[str, Any] = {}
    file = Path(options.preprocess) if options.preprocess is not None else _beside(source)
    if file is not None:
        stored = Preprocess.from_toml(file).to_dict()
    flags = {name: _READ[name](value) for name in _FLAGS if (value := getattr(options, name)) is not None}
    if file is not None and options.preprocess is None and not options.quiet:
        also = f", with {', '.join('--' + name.replace('_', '-') for name in flags)} as given" if flags else ""
        print(f"smidgen: preprocessing from {file}{also}", file=sys.stderr)
    return Preprocess.from_dict({**stored, **flags}) if file is not None or flags else None


def _beside(source: Path) -> Path | None:
    # resolve(): "faces/" and "." have a name too.
    place = source.resolve()
    tries = [place.with_name(place.name.split(".")[0] + ".toml"), place / "preprocess.toml"]
    return next((path for path in tries if path.is_file() and path.name != "pyproject.toml"), None)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise DataError(f"preprocess: {text!r} is not a row of numbers; give e.g. 0.485,0.456,0.406") from None


def _sides(text: str) -> int | list[int]:
    parts: Sequence[str] = text.lower().replace("×", "x").replace(",", "x").split("x")
    if not all(part.strip().isdecimal() and len(part) < 8 for part in parts) or len(parts) > 2:
        raise DataError(f"preprocess: {text!r} is not a size in pixels; give e.g. 224 or 224x160 (height x width)")
    return int(parts[0]) if len(parts) == 1 else [int(part) for part in parts]


_READ: dict[str, Any] = {
    "mean": _numbers, "std": _numbers, "scale": str, "layout": str, "channels": str, "resize": _sides, "crop": _sides,
    "crop_first": bool,
}  # fmt: skip
