"""One function a subcommand: options in, exit code out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from smidgen.cli.folder import WRITTEN, output_folder, undisturbed
from smidgen.cli.inputs import (
    open_scored,
    open_sets,
    read_bits,
    read_budget,
    read_methods,
    read_pruning,
    read_ranks,
    read_shape,
)
from smidgen.cli.progress import Progress
from smidgen.cli.training_options import read_recovery
from smidgen.errors import PlanError, UserError
from smidgen.report.result import Result
from smidgen.report.summary import verdict

DONE, NOT_MET = 0, 3
LARGEST_PLAN = 64 << 20  # bytes; a plan has one short entry a layer


def compress(options: argparse.Namespace) -> int:
    """``smidgen compress``."""
    from smidgen import pipeline
    from smidgen.measure.memory import spare
    from smidgen.pipeline.options import rounding_for
    from smidgen.pipeline.targets import check_targets

    spare()

    budget = read_budget(options)
    targets = check_targets(options.target.split(","))
    methods = methods_named(options.methods)
    settings = read_ranks(options.ranks, options.rank_multiple) | read_bits(options.bits)
    settings |= read_pruning(methods, options)
    if options.recipe is None:
        rounding_for(targets[0], options.rounding, settings)  # told before the work starts
    training = read_recovery(options)
    given = (options.model, options.weights)
    with output_folder(options.output, *given) as folder, Progress(options.quiet, options.verbose) as progress:
        data, held = open_sets(options)
        result = pipeline.compress(
            options.model,
            data,
            **held,
            budget=budget,
            methods=methods,
            settings=settings,
            rounding=options.rounding,
            target=targets,
            max_ram=options.max_ram,
            max_flash=options.max_flash,
            recipe=options.recipe,
            train=training,
            checkpoint=getattr(options, "checkpoint", None),
            gradual=options.gradual,
            mix=options.mix,
            reassign=options.reassign,
            round_activations=options.round_activations,
            guard=False if options.allow_slower else True if options.refuse_slower else None,
            **_work(options),
            progress=progress,
        )
        save(result, folder, options)
    return tell(result, folder, options)


def apply(options: argparse.Namespace) -> int:
    """``smidgen apply``."""
    from smidgen import pipeline

    plan = _read_plan(Path(options.plan))
    given = (options.model, options.weights)
    with output_folder(options.output, *given) as folder, Progress(options.quiet, options.verbose) as progress:
        data, held = open_sets(options)
        # What is not asked for is as in the run that made the plan.
        work = {**_work(options), "refit": False if options.no_refit else None}
        result = pipeline.apply(options.model, plan, data, **held, **work, progress=progress)
        save(result, folder, options)
    return tell(result, folder, options)


def inspect(options: argparse.Namespace) -> int:
    """``smidgen inspect``."""
    from smidgen.cli.layers import describe_layers, print_layers

    methods = methods_named(options.methods)
    with Progress(options.quiet, options.verbose) as progress:
        data, _ = open_sets(options)
        settings = common(options)
        record = describe_layers(
            options.model, data, options.weights, example_of(options), methods,
            settings["threads"], settings["device"], settings["seed"], progress, guard=not options.allow_slower,
        )  # fmt: skip
    print_json(record) if options.json else print_layers(record)
    return DONE


def eval(options: argparse.Namespace) -> int:
    """``smidgen eval``."""
    from smidgen.cli.scoring import print_scores, score_files

    with Progress(options.quiet, options.verbose) as progress:
        data = open_scored(options)
        record = score_files(options.file, options.against, data, options.metric, common(options)["threads"], progress)
    print_json(record) if options.json else print_scores(record)
    return DONE


def demo(options: argparse.Namespace) -> int:
    """``smidgen demo``."""
    from smidgen import pipeline
    from smidgen.cli.demo import BUDGET, make_demo

    budget = read_budget(options) or BUDGET
    settings = common(options)
    with output_folder(options.output) as folder, Progress(options.quiet, options.verbose) as progress:
        made = make_demo(folder, settings["seed"], settings["threads"], progress)
        result = pipeline.compress(
            made.network, made.data, test=made.test, budget=budget, progress=progress, **settings
        )  # fmt: skip
        save(result, folder, options)
    code = tell(result, folder, options)
    if not options.json:
        print(f"the demo's own network and data: {made.network}, {made.data_file}, {made.test_file}")
    return code


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Seed, threads and device, checked."""
    import torch

    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise UserError(f"threads: {options.threads} is not between 1 and 1024; leave it out for all processors")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise UserError(f"seed: {options.seed} is not between 0 and 4294967295; give a small whole number")
    try:
        torch.empty(1, device=options.device)
    # A name torch does not know, a device it was built without, one it cannot allocate on: an exception each.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(f"device: '{options.device}' cannot be used here: {reason}; leave it out for the cpu") from None
    return {"seed": options.seed, "threads": options.threads, "device": options.device}


def save(result: Result, folder: Path, options: argparse.Namespace) -> None:
    """All files or, when stopped, none of them halfway; the record tells the command that was typed."""
    result.record["command"] = options.typed
    with undisturbed():
        result.save(folder)


def tell(result: Result, folder: Path, options: argparse.Namespace) -> int:
    """Print what came out; 3 when the budget was not met."""
    if options.json:
        print_json(result.record)
    else:
        print(result.table())
        print(verdict(result.record))
        print("files: " + ", ".join(str(path) for path in sorted(_written(folder))))
    if result.met:
        return DONE
    note = result.record["budget"]["note"]
    print(f"smidgen: the budget was not met: {note}; the best found is in {folder}/", file=sys.stderr)
    return NOT_MET


@runtime_checkable
class Edited(Protocol):
    """What a command that edits a network found."""

    @property
    def record(self) -> dict[str, Any]:
        """What ``result.json`` holds."""
        ...

    def table(self) -> str:
        """What was measured."""
        ...

    def verdict(self) -> str:
        """What came out, in a sentence."""
        ...


def tell_edited(result: Edited, folder: Path | None, *, as_json: bool) -> int:
    """Print what came out of a command without a budget.

    Args:
        result: of the command.
        folder: where it was saved, if it was.
        as_json: the record instead.
    """
    if as_json:
        print_json(result.record)
        return DONE
    print(result.table())
    print(result.verdict())
    if folder is not None:
        print(f"files: {folder / 'model.onnx'}, {folder / 'result.json'}")
    return DONE


def print_json(record: dict[str, Any]) -> None:
    """JSON on stdout."""
    print(json.dumps(record, indent=1))


def _written(folder: Path) -> list[Path]:
    return [folder / name for name in WRITTEN if (folder / name).is_file()]


def methods_named(text: str) -> str | list[str] | dict[str, list[str]]:
    """Names that exist; told before the work starts, not after the network is open."""
    from smidgen.methods import choose_methods
    from smidgen.pipeline.channels import split_channels

    named = read_methods(text)
    choose_methods(split_channels(named, {})[0], {})
    return named


def _work(options: argparse.Namespace) -> dict[str, Any]:
    settings = common(options)
    return {
        "weights": options.weights, "example": example_of(options), "metric": options.metric,
        "refit": not options.no_refit, **settings,
    }  # fmt: skip


def example_of(options: argparse.Namespace) -> Any:
    """A random batch of the shape that was asked for, None where none was."""
    shape = read_shape(options.input)
    if shape is None:
        return None
    import torch

    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def _read_plan(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_PLAN:
            raise PlanError(f"plan: '{path}' is too large to be a plan; give the plan.json that compress wrote")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise PlanError(f"plan: '{path}' cannot be read: {reason}; give the plan.json that compress wrote") from None
