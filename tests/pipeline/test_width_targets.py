"""onnx-w8 and onnx-w4 as a budget's target, from end to end: sizes that are kept, files that run and were scored."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

import smidgen
from smidgen.cli import main
from smidgen.errors import BudgetError, PlanError
from smidgen.pipeline import apply, compress
from smidgen.runtimes.onnxruntime import open_onnx
from tests.pipeline.kinds import kinds, noise


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return kinds(10)


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return noise()


RATIOS = {"onnx-w8": 2.2, "onnx-w4": 3.2}


@pytest.fixture(scope="module", params=list(RATIOS))
def small(request, network, inputs):
    return compress(
        network, [inputs], target=request.param, budget=smidgen.Budget(ratio=RATIOS[request.param]), threads=1
    )


def test_the_budget_binds_the_file_of_integers(small):
    files, target = small.record["files"], small.record["target"]
    assert list(files) == [target, "onnx", "archive"]
    assert small.met
    assert files[target]["nbytes"] * RATIOS[target] <= small.record["original"]["nbytes"]
    assert files[target]["nbytes"] == small.files[target].stat().st_size
    assert files[target]["path"] == f"model.{target.removeprefix('onnx-')}.onnx"
    assert files[target]["agreement"] > 0.8
    assert files["archive"]["nbytes"] < files[target]["nbytes"] < files["onnx"]["nbytes"]


def test_the_file_of_integers_answers_as_that_of_floats_and_as_the_module(small, inputs):
    target = small.record["target"]
    with open_onnx(small.files[target]) as integers, open_onnx(small.files["onnx"]) as floats, torch.no_grad():
        got = integers.run(inputs[:9])[0]
        assert got.tobytes() == floats.run(inputs[:9])[0].tobytes()
        assert np.allclose(got, small.model(torch.from_numpy(inputs[:9])).numpy(), atol=1e-4)


def test_weights_are_integers_and_the_record_counts_them(small):
    target = small.record["target"]
    proto = onnx.load(small.files[target])
    onnx.checker.check_model(proto, full_check=True)
    kinds = {t.data_type for t in proto.graph.initializer}
    wanted = {TensorProto.INT8} if target == "onnx-w8" else {TensorProto.INT4}
    assert wanted <= kinds
    files = small.record["files"]
    assert files[target]["params"] == files["onnx"]["params"]
    assert files[target]["macs"] == files["onnx"]["macs"]
    forms = {layer["name"]: layer for layer in small.record["layers"]}
    assert "transposed" not in str(forms["over"]["reason"])
    assert forms["up"]["reason"], "a transposed convolution says why it stays"
    assert any("int" in layer["form"] for layer in forms.values())
    for layer in forms.values():
        assert (layer["bits"] is not None) == ("int" in layer["form"])
        assert layer["step"] is None


def test_predicted_bytes_are_the_written_ones(small):
    predicted, measured = small.record["predicted"], small.record["measured"]
    assert abs(predicted["nbytes"] - measured["nbytes"]) <= max(64, 0.02 * measured["nbytes"])
    assert predicted["loss"] > 0


def test_a_plan_knows_its_file_and_makes_it_again(small, network, inputs):
    text = small.plan.to_json()
    again = apply(network, text, [inputs], threads=1)
    target = small.record["target"]
    assert json.loads(text)["target"] == target
    for name in (target, "onnx", "archive"):
        assert again.files[name].read_bytes() == small.files[name].read_bytes()
    with pytest.raises(PlanError, match="version 2"):
        apply(network, json.dumps({**json.loads(text), "version": 2}), [inputs])


def test_without_data(network):
    for target, ratio in RATIOS.items():
        budget = smidgen.Budget(ratio=ratio)
        result = compress(network, example=torch.zeros(1, 3, 4, 4), target=target, budget=budget, threads=1)
        assert result.record["mode"] == "no data"
        assert result.met
        assert any(choice.bits is not None for choice in result.plan.choices)


def test_an_archive_first_and_integers_beside_it(network, inputs):
    result = compress(
        network, [inputs[:60]], target=["archive", "onnx-w8"], budget=smidgen.Budget(ratio=4), threads=1
    )  # fmt: skip
    assert list(result.files) == ["archive", "onnx-w8", "onnx"]
    sizes = {name: file["nbytes"] for name, file in result.record["files"].items()}
    assert sizes["onnx-w8"] < sizes["onnx"], "integers that fit eight bits take them"
    with open_onnx(result.files["onnx-w8"]) as integers, open_onnx(result.files["onnx"]) as floats:
        np.testing.assert_allclose(integers.run(inputs[:5])[0], floats.run(inputs[:5])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("refit", [True, False])
def test_a_drop_is_kept(network, inputs, refit):
    budget = smidgen.Budget(max_drop=6)
    result = compress(network, [inputs], target="onnx-w4", budget=budget, refit=refit, threads=1)
    assert result.met
    assert result.record["files"]["onnx-w4"]["nbytes"] * 2 < result.record["original"]["nbytes"]


def test_never_larger_than_the_original(tmp_path):
    """So small that integers would only cost: the file is the original's, byte for byte."""
    lean = compress(nn.Linear(3, 2), example=torch.zeros(1, 3), budget=smidgen.Budget(tradeoff=0), threads=1)
    path = lean.save(tmp_path) / "model.onnx"
    result = compress(path, target="onnx-w8", budget=smidgen.Budget(tradeoff=0.5), threads=1)
    assert result.files["onnx-w8"].stat().st_size <= path.stat().st_size


def test_a_budget_out_of_reach_keeps_the_smallest(network, inputs):
    result = compress(network, [inputs[:40]], target="onnx-w4", budget=smidgen.Budget(size=500), threads=1)
    assert not result.met
    assert "smallest" in result.record["budget"]["note"]


@pytest.fixture
def given(network, inputs, tmp_path):
    np.savez(tmp_path / "x.npz", x=inputs)
    result = compress(network, example=torch.zeros(1, 3, 4, 4), budget=smidgen.Budget(tradeoff=0), threads=1)
    return result.save(tmp_path / "given") / "model.onnx", tmp_path / "x.npz"


def test_on_the_command_line(given, tmp_path, capsys):
    model, data = map(str, given)
    out = str(tmp_path / "out")
    asked = [model, "--data", data, "--size", "16kB", "--target", "onnx-w8", "-q", "--threads", "1", "-o", out]
    assert main(["compress", *asked]) == 0
    assert (tmp_path / "out" / "model.w8.onnx").stat().st_size <= 16_000
    assert "model.w8.onnx" in capsys.readouterr().out
    again = ["--data", data, "-q", "--threads", "1", "-o", str(tmp_path / "again")]
    assert main(["apply", model, str(tmp_path / "out" / "plan.json"), *again]) == 0
    for name in ("model.w8.onnx", "model.onnx", "model.smidgen"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert main(["eval", str(tmp_path / "out" / "model.w8.onnx"), "--against", model, "--data", data, "-q"]) == 0


@pytest.mark.parametrize("target", ["onnx-w2", "coreml", ""])
def test_a_target_that_is_not_written_is_one_line(given, target, tmp_path, capsys):
    capsys.readouterr()
    asked = ["compress", str(given[0]), "--size", "16kB", "--target", target, "-o", str(tmp_path / "out")]
    assert main(asked) == 2
    told = capsys.readouterr().err.strip()
    assert "target" in told
    assert "\n" not in told


def test_nothing_small_enough_is_told_in_python(network):
    with pytest.raises(BudgetError, match="onnx-w8"):
        compress(network, example=torch.zeros(1, 3, 4, 4), target="onnx-w3")


@pytest.mark.slow
def test_lenet(data_dir):
    train = smidgen.open_data(data_dir / "mnist" / "train-images-idx3-ubyte.gz").take(range(300))
    test = smidgen.open_data(data_dir / "mnist" / "t10k-images-idx3-ubyte.gz").array(0, 2000)
    result = compress(
        str(data_dir / "models" / "lenet_mnist.onnx"), train, test=test, target="onnx-w4",
        budget=smidgen.Budget(size="60kB"), threads=1,
    )  # fmt: skip
    entry = result.record["files"]["onnx-w4"]
    assert result.met
    assert entry["loss_points"] <= 0.3
    assert abs(result.record["predicted"]["nbytes"] - entry["nbytes"]) <= 0.03 * entry["nbytes"]
