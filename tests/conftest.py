"""Shared fixtures. Shape and type annotations of smidgen are enforced while tests run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.annotations import enforce

enforce("smidgen")
# An assert that fails there shows its values, as in a test.
pytest.register_assert_rewrite("tests.model.against_onnxruntime", "tests.promise")
# Layers timed in tests are remembered for this run alone, and never in the user's own folder.
_TIMES = tempfile.TemporaryDirectory(prefix="smidgen-times-")
os.environ["SMIDGEN_CACHE"] = _TIMES.name


def _data_folder() -> Path | None:
    named = os.environ.get("SMIDGEN_DATA")
    for folder in ([Path(named)] if named else []) + [Path(__file__).resolve().parents[2] / "shared" / "data"]:
        if (folder / "models").is_dir():
            return folder
    return None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real networks and sets; the test is skipped where there is none."""
    folder = _data_folder()
    if folder is None:
        pytest.skip("no evaluation data: set SMIDGEN_DATA or put it in ../shared/data")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _briefly_timed(request: pytest.FixtureRequest) -> Iterator[float]:
    """Every run ends in timing its files: here in a few rounds, for only tests of time look at the result.

    A module whose tests do has ``WELL_TIMED = True``; `well_timed` is for a single one.
    """
    from smidgen.measure import speed

    usual = speed.SECONDS
    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "WELL_TIMED", False):
            patch.setattr(speed, "SECONDS", 0.02)
        yield usual


@pytest.fixture
def well_timed(_briefly_timed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are timed as long as users' are."""
    from smidgen.measure import speed

    monkeypatch.setattr(speed, "SECONDS", _briefly_timed)
