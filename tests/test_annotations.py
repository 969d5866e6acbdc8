"""What the other tests rely on: annotations of smidgen are enforced while they run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from smidgen.budget import Budget, parse_size
from smidgen.numerics.rounding import round_nearest
from smidgen.planning.plan import Cut
from tests import annotations
from tests.annotations import enforce

ONES = torch.ones(2)


@pytest.fixture(autouse=True)
def _every_call(monkeypatch):
    monkeypatch.setattr(annotations, "EVERY", 1)


def test_a_function() -> None:
    with pytest.raises(TypeCheckError, match="text"):
        parse_size(b"3 kB")  # pyright: ignore[reportArgumentType]


def test_shapes_that_do_not_agree_with_each_other() -> None:
    assert round_nearest(torch.ones(2, 2), ONES, ONES).integers.shape == (2, 2)
    with pytest.raises(TypeCheckError, match="column_scale"):
        round_nearest(torch.ones(2, 2), ONES, torch.ones(3))


def test_a_dataclass_and_a_method() -> None:
    with pytest.raises(TypeCheckError, match="removed"):
        Cut("network", 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError, match="stored"):
        Budget.from_dict(3)  # pyright: ignore[reportArgumentType]


def test_first_calls_and_some_of_those_that_follow(monkeypatch) -> None:
    monkeypatch.setattr(annotations, "EVERY", 20)

    @annotations.checked
    def twice(x: int) -> int:
        return 2 * x

    found = []
    for call in range(1, 201):
        try:
            twice("2")  # pyright: ignore[reportArgumentType]
        except TypeCheckError:
            found.append(call)
    assert found == [*range(1, 101), 120, 140, 160, 180, 200]


def test_too_late_is_told() -> None:
    with pytest.raises(RuntimeError, match="'smidgen' is imported already"):
        enforce("smidgen")
