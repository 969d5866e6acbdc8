"""What each stage of a recipe left: bytes, points, loss; in ``result.json`` under ``stages``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from smidgen.report.result import Result


@dataclass(frozen=True)
class Stage:
    """One stage as carried out.

    Args:
        name: what was done.
        nbytes: of the file after it.
        path: its name, where it is saved.
        points: lost on the selection inputs, None where nothing was measured or nothing changed.
        loss: that was trained on, on the selection inputs; None where nothing is trained.
    """

    name: str
    nbytes: int
    path: str | None = None
    points: float | None = None
    loss: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def with_stages(result: Result, recipe: str, stages: Sequence[Stage], trained: bool) -> Result:
    """A result whose record names its recipe and tells of its stages.

    Args:
        result: as the last stage left it.
        recipe: its name.
        stages: in the order they ran.
        trained: whether any of them was training.
    """
    told = {"recipe": recipe, "recipe_trained": trained, "stages": [stage.as_dict() for stage in stages]}
    return replace(result, record={**result.record, **told})
