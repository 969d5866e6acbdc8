"""executorch and executorch-int8 as a budget's target, from end to end: sizes that are kept, files that were scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import smidgen
from smidgen.cli import main
from smidgen.errors import DataError, LoadError
from smidgen.forms import Quantized, leaves
from smidgen.pipeline import apply, compress
from smidgen.planning.widths import in_integers
from smidgen.runtimes import executorch as runtime
from smidgen.runtimes.opening import open_file

pytest.importorskip("executorch", reason="the executorch extra is not installed")

BUDGET = smidgen.Budget(ratio=3)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 10),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(120, 3, 8, 8)).astype("f4")


@pytest.fixture(scope="module")
def small(network, inputs):
    return compress(network, [inputs], target=["executorch-int8", "executorch"], budget=BUDGET, threads=1)


def test_the_budget_binds_the_file_of_integers(small):
    files, original = small.record["files"], small.record["original"]
    assert list(files) == ["executorch-int8", "executorch", "onnx", "archive"]
    assert small.met
    assert (files["executorch-int8"]["path"], files["executorch"]["path"]) == ("model.int8.pte", "model.pte")
    assert files["executorch-int8"]["nbytes"] * 3 <= original["nbytes"]
    assert files["executorch-int8"]["nbytes"] == small.files["executorch-int8"].stat().st_size
    assert files["executorch-int8"]["agreement"] > 0.8
    assert files["executorch-int8"]["latency_ms"] > 0
    predicted, measured = small.record["predicted"]["nbytes"], small.record["measured"]["nbytes"]
    assert abs(predicted - measured) <= 0.15 * measured


def test_what_a_compiled_program_does_not_tell_says_why(small):
    for name in ("executorch", "executorch-int8"):
        file = small.record["files"][name]
        assert file["params"] is None
        assert file["macs"] is None
        assert {"params", "macs"} <= set(file["why"])


def test_floats_answer_as_the_module_and_integers_nearly(small, inputs):
    with torch.no_grad():
        want = small.model(torch.from_numpy(inputs)).numpy()
    size = np.square(want - want.mean(0)).mean()
    for name, share in (("executorch", 1e-6), ("executorch-int8", 0.02)):
        with open_file(small.files[name]) as runner:
            assert np.square(runner.run(inputs)[0] - want).mean() < share * size


def test_a_plan_makes_the_file_again(small, network, inputs):
    again = apply(network, small.plan.to_json(), [inputs], threads=1)
    assert again.files["executorch-int8"].read_bytes() == small.files["executorch-int8"].read_bytes()


def test_integers_beside_a_plan_of_floats_are_rounded_under_the_weights_metric(network, inputs):
    """The other target binds; the file of integers still holds integers that were chosen, not the nearest."""
    result = compress(
        network, [inputs], target=("onnx", "executorch-int8"), budget=smidgen.Budget(tradeoff=0), threads=1
    )  # fmt: skip
    content = result.files["executorch-int8"].read_bytes()
    for site in result.sites:
        stored = in_integers(site, result.stored[site.name], "executorch-int8")
        chosen = [leaf for leaf in leaves(stored.form) if isinstance(leaf, Quantized)]
        assert chosen, site.name
        for integers in (leaf.integers.astype(np.int8) for leaf in chosen):
            laid = integers.transpose(0, 2, 3, 1) if integers.ndim == 4 else integers  # as XNNPACK stores them
            assert np.ascontiguousarray(laid).tobytes() in content, site.name


def test_integers_need_inputs_and_floats_do_not(network):
    with pytest.raises(DataError, match="executorch-int8 needs inputs"):
        compress(network, example=torch.zeros(1, 3, 8, 8), target="executorch-int8")
    budget = smidgen.Budget(ratio=1.5)
    result = compress(network, example=torch.zeros(1, 3, 8, 8), target="executorch", budget=budget, threads=1)
    assert result.met
    file = result.record["files"]["executorch"]
    assert file["nbytes"] * 1.5 <= result.record["original"]["nbytes"]


def test_a_missing_package_is_told_before_the_work(network, monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install smidgen\[executorch\]"):
        compress(network, example=torch.zeros(1, 3, 8, 8), target="executorch")


def test_a_saved_file_is_scored_on_the_command_line(small, inputs, tmp_path, capsys):
    folder = small.save(tmp_path / "out")
    np.savez(tmp_path / "x.npz", x=inputs)
    asked = [str(folder / "model.int8.pte"), "--against", str(folder / "model.onnx"), "--data"]
    assert main(["eval", *asked, str(tmp_path / "x.npz"), "-q", "--threads", "1"]) == 0
    assert "model.int8.pte" in capsys.readouterr().out
    assert main(["bench", str(folder / "model.int8.pte"), "--against", str(folder / "model.onnx"), "-q"]) == 0
    assert "model.int8.pte" in capsys.readouterr().out
