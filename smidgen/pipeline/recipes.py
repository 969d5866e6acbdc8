"""Named chains of stages, and what each takes.

    deep-compression    prune → share → Huffman                              `smidgen.pipeline.deep_compression`
    distil              search → train to answer as the original does        here
    extreme             train with a price on bits → cut → write             `smidgen.pipeline.extreme`

Bytes and losses of each stage are in ``result.json`` under ``stages``.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smidgen.budget import FILES, Budget
from smidgen.errors import PlanError
from smidgen.pipeline.deep_compression import PRUNING, SHARING, deep_compression
from smidgen.pipeline.extreme import DEFAULTS, extreme
from smidgen.pipeline.recover import TRAINING
from smidgen.pipeline.running import Asked, concluded, run
from smidgen.pipeline.stages import Stage, with_stages
from smidgen.pipeline.task import Task, Threads
from smidgen.recover.training import Training
from smidgen.report.result import Result

Settings = Mapping[str, Mapping[str, Any]]
# Of the recipe `distil`, whose only work it is: twice the epochs of ``--train``.
DISTIL = replace(TRAINING, epochs=20)


def distil(task: Task, asked: Asked) -> Result:
    """Search → train: the network that the budget asks for learns to answer as the original does.

    Args:
        task: from `open_task`.
        asked: any budget, target and methods; its recovery says how to train.
    """
    started, target = time.perf_counter(), asked.targets[0]
    with Threads(task.threads):
        done = run(task, asked)
        result = concluded(done, asked, started)
    told, file = done.training or {}, result.files[target].stat().st_size
    before, after = told["before"], told["after" if told["kept"] else "before"]
    stages = [
        Stage("original", done.work.original.stat().st_size),
        Stage("planned", before["nbytes"], None, before["points"], before["loss"]),
        Stage("trained", file, FILES[target], after["points"], after["loss"]),
    ]
    if target != "archive":
        stages.append(Stage("archive", result.files["archive"].stat().st_size, FILES["archive"]))
    return with_stages(result, "distil", stages, trained=True)


@dataclass(frozen=True)
class Recipe:
    """A chain that has a name.

    Args:
        cook: carries it out.
        says: what it says itself, of `compress`' arguments.
        settings: names that settings may be of; None for those of all methods.
        budgets: kinds of budgets that it can meet; None for all.
        training: how it trains where nobody said; None where it does so only when asked.
        whole: whether all inputs that are not held back are calibration inputs.
    """

    cook: Callable[[Task, Asked], Result]
    says: tuple[str, ...] = ()
    settings: tuple[str, ...] | None = None
    budgets: tuple[str, ...] | None = None
    training: Training | None = None
    whole: bool = False


FIXED = ("methods", "target", "rounding", "guard", "gradual")
RECIPES: dict[str, Recipe] = {
    "deep-compression": Recipe(
        deep_compression, (*FIXED, "round_activations"), (PRUNING, SHARING), ("default", "max_drop"),
    ),
    "distil": Recipe(distil, training=DISTIL),
    "extreme": Recipe(
        extreme, (*FIXED, "mix", "reassign", "round_activations"), None, ("default", "size", "ratio", "max_drop"),
        DEFAULTS, whole=True,
    ),
}  # fmt: skip
TRAINED = tuple(name for name, recipe in RECIPES.items() if recipe.whole)  # whose plans nothing but they can carry out


def recipe_of(
    name: str, given: Sequence[str] = (), budget: Budget | None = None, settings: Settings | None = None
) -> Recipe:
    """The recipe of a name.

    Args:
        name: one of `RECIPES`.
        given: which of `compress`' arguments say what to do.
        budget: one that it can meet.
        settings: by the name of a method, or of what else the recipe has settings of.

    Raises:
        PlanError: there is none, or something is given that it says itself or does not know.

    >>> recipe_of("destil")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    smidgen.errors.PlanError: recipe: there is no 'destil'; did you mean distil? there are: ...
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        meant = f"did you mean {near[0]}? " if near else ""
        raise PlanError(f"recipe: there is no {name!r}; {meant}there are: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if itself := [each for each in given if each in recipe.says]:
        them = "it" if len(itself) == 1 else "them"
        raise PlanError(f"recipe: {name} says {' and '.join(itself)} itself; leave {them} out")
    if recipe.settings is not None and (unknown := [each for each in settings or {} if each not in recipe.settings]):
        raise PlanError(f"recipe: {name} takes no settings of {unknown[0]!r}; give those of "
                        f"{' and '.join(recipe.settings)}, or leave the recipe out")  # fmt: skip
    kind = (budget or Budget()).kind
    if recipe.budgets is not None and kind not in recipe.budgets:
        offered = ", ".join(each for each in recipe.budgets if each != "default")
        raise PlanError(f"recipe: {name} has no budget of {kind}; give {offered}, or none")
    return recipe


def with_training_of(
    recipe: str | None, settings: Settings, train: Training | None, checkpoint: str | Path | None
) -> Settings:  # fmt: skip
    """Settings of a recipe that trains from the first, with how it trains and where that is kept.

    >>> with_training_of("deep-compression", {}, None, None)
    {}
    """
    if recipe not in TRAINED:
        return settings
    own = {**settings.get(recipe, {}), **({} if checkpoint is None else {"checkpoint": str(checkpoint)})}
    how = settings.get("training", {}) if train is None else train.plain()
    return {**settings, recipe: own, "training": how}
