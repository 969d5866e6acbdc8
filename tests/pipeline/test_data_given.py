"""Data as they may be given to a run: none, a test set alone, both, and data that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smidgen import Budget
from smidgen.errors import BudgetError, DataError, LoadError
from smidgen.pipeline import compress
from tests.pipeline.pictures import nbytes, pictures


def test_without_data(trained):
    result = compress(trained, example=torch.zeros(1, 2, 8, 8), budget=Budget(tradeoff=0.8))
    assert result.record["mode"] == "no data"
    assert nbytes(result) < result.record["original"]["nbytes"]
    for name in ("accuracy", "agreement", "kl"):
        assert result.record["files"]["onnx"][name] is None
        assert result.record["files"]["onnx"]["why"][name]
    assert result.record["data"] == {"calibration": None, "selection": None, "test": None}
    with pytest.raises(BudgetError, match="max_drop needs inputs"):
        compress(trained, example=torch.zeros(1, 2, 8, 8), budget=Budget(max_drop=1))
    with pytest.raises(DataError, match="input shape is not known"):
        compress(trained)


def test_a_test_set_alone_is_only_for_scoring(trained):
    result = compress(trained, test=pictures(40, seed=9), budget=Budget(ratio=3))
    assert result.record["mode"] == "no data"
    assert result.record["files"]["onnx"]["accuracy"] is not None
    assert result.record["data"]["test"]["count"] == 40


def test_a_given_test_set_is_the_test(trained):
    result = compress(trained, pictures(), test=pictures(40, seed=9), budget=Budget(tradeoff=0.3))
    assert result.record["data"]["test"]["count"] == 40
    assert result.record["data"]["calibration"]["count"] + result.record["data"]["selection"]["count"] == 160


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.random.default_rng(0).random((20, 3, 8, 8), "f4"), "cannot run on an input of shape"),
        (np.full((20, 2, 8, 8), np.nan, "f4"), "NaN"),
        (np.zeros((1, 2, 8, 8), "f4"), "too few"),
        ((pictures(20)[0], np.full(20, 9)), "label"),
        ([], "no "),
    ],
    ids=["shape", "nan", "one image", "label out of range", "empty"],
)
def test_data_that_does_not_fit_is_told_in_one_line(trained, data, words):
    with pytest.raises((DataError, LoadError), match=words) as caught:
        compress(trained, data)
    assert "\n" not in str(caught.value)
