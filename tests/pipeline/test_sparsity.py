"""Pruning from end to end: the written files, plans carried out again, the recipe, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import smidgen
from smidgen.cli import main
from smidgen.errors import BudgetError, PlanError
from smidgen.forms import Codebook, Masked, Quantized, dense
from smidgen.pipeline import apply, compress
from smidgen.runtimes.onnxruntime import open_onnx
from tests.pipeline.pictures import pictures

HALF = {"obs": {"sparsity": 0.5}}


def zeros(result, total=True):
    """Share of zeros in the sites' weights as realised."""
    weights = [dense(one.form) for one in result.stored.values()]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.size for w in weights)


@pytest.fixture(scope="module")
def halved(trained):
    return compress(trained, pictures(), settings=HALF, target=["onnx", "onnx-sparse"], threads=1, seed=1)


def test_half_of_the_weights_are_zero_in_every_file(halved):
    record = halved.record
    count = sum(site.weight.size for site in halved.sites)
    assert halved.met
    assert record["pruning"]["weights"] == count
    assert record["pruning"]["survivors"] == count - round(0.5 * count)
    assert zeros(halved) == pytest.approx(0.5, abs=1 / count)
    stored = {e.name: numpy_helper.to_array(e) for e in onnx.load(halved.files["onnx"]).graph.initializer}
    written = [stored[f"{site.name}.weight"] for site in halved.sites]
    assert sum(int((each == 0).sum()) for each in written) == round(0.5 * count)
    assert all(isinstance(one.form, Masked) for one in halved.stored.values())
    assert all(layer["form"].startswith("pruned ") for layer in record["layers"])


def test_a_dense_file_says_that_its_size_does_not_change(halved):
    files = halved.record["files"]
    assert files["onnx"]["nbytes"] == pytest.approx(halved.record["original"]["nbytes"], rel=0.02)
    assert files["onnx-sparse"]["nbytes"] < 0.75 * files["onnx"]["nbytes"]
    assert files["archive"]["nbytes"] < files["onnx-sparse"]["nbytes"]
    text = " ".join(halved.table().split())
    assert "pruned by obs: 50.00 %" in text
    assert "(onnx) stores them all the same: its size does not change" in text


def test_all_files_answer_alike_and_nearly_as_the_original(halved):
    inputs, _ = pictures()
    (back := halved.files["archive"].with_suffix(".back.onnx")).write_bytes(smidgen.unpack(halved.files["archive"]))
    answers = []
    for path in (halved.files["onnx"], halved.files["onnx-sparse"], back):
        with open_onnx(path) as runner:
            answers.append(runner.run(inputs[:16])[0].tobytes())
    assert answers[0] == answers[1] == answers[2]
    assert halved.record["files"]["onnx"]["agreement"] > 0.8


def test_a_plan_makes_the_same_files_again(halved, trained):
    text = halved.plan.to_json()
    assert {choice["method"] for choice in json.loads(text)["choices"]} == {"obs"}
    again = apply(trained, text, pictures(), threads=1)
    for name in ("onnx", "archive"):
        assert again.files[name].read_bytes() == halved.files[name].read_bytes()


def test_integers_keep_the_zeros(trained):
    result = compress(trained, pictures(), settings=HALF, target="onnx-w8", threads=1, seed=1)
    assert all(isinstance(one.form, Quantized) for one in result.stored.values())
    assert zeros(result) >= 0.5
    assert {layer["form"].split()[-1] for layer in result.record["layers"]} == {"int8"}


def test_an_archive_of_integers_finds_its_steps_within_a_budget(trained):
    budget = smidgen.Budget(ratio=8)
    result = compress(trained, pictures(), settings=HALF, target="archive", budget=budget, threads=1, seed=1)
    assert result.met
    pruned = [choice for choice in result.plan.choices if choice.method == "obs"]
    assert pruned
    assert all(choice.step is not None for choice in pruned)


def test_patterns_and_protected_layers(trained):
    first = next(iter(compress(trained, pictures(), settings=HALF, threads=1).stored))
    result = compress(
        trained, pictures(), settings={"magnitude": {"pattern": "2:4", "protect": [first]}}, threads=1, seed=1
    )
    assert not isinstance(result.stored[first].form, Masked)
    masked = [one.form for one in result.stored.values() if isinstance(one.form, Masked)]
    assert masked
    for form in masked:
        there = np.moveaxis(form.kept, 1, -1)
        assert there[..., : there.shape[-1] // 4 * 4].reshape(*there.shape[:-1], -1, 4).sum(-1).max() <= 2


def test_without_data(trained):
    import torch

    example = torch.from_numpy(pictures()[0][:1])
    result = compress(
        trained, example=example, methods="magnitude", settings={"magnitude": {"sparsity": 0.4}}, threads=1
    )
    assert result.record["mode"] == "no data"
    assert zeros(result) == pytest.approx(0.4, abs=0.001)


def test_the_recipe_tells_the_bytes_of_every_stage(trained, tmp_path):
    settings = {"obs": {"sparsity": 0.6}, "kmeans": {"bits": 4}}
    result = compress(trained, pictures(), recipe="deep-compression", settings=settings, threads=1, seed=1)
    stages = result.record["stages"]
    assert [stage["name"] for stage in stages] == ["original", "pruned", "shared", "Huffman", "archive"]
    sizes = [stage["nbytes"] for stage in stages]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    for one in result.stored.values():
        assert isinstance(one.form, Codebook)
        assert 0.0 in one.form.values.tolist()
        assert len(one.form.values) <= 16
    assert zeros(result) >= 0.6
    folder = result.save(tmp_path / "out")
    for stage in stages:
        if stage["path"] is not None:
            assert (folder / stage["path"]).stat().st_size == stage["nbytes"]
    coded = (folder / "model.huffman.smidgen").read_bytes()
    assert coded[4] == 3
    assert smidgen.unpack(folder / "model.huffman.smidgen") == smidgen.unpack(folder / "model.smidgen")
    assert "Stages of deep-compression, no training" in result.table()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"methods": "obs"}, "no sparsity is named"),
        ({"settings": {"obs": {"sparsity": 1}}}, "above 0 and below 1"),
        ({"settings": {"obs": {"sparsity": 0.9999}}}, "leave a layer empty"),
        ({"settings": {"obs": {"sparsity": 0.5, "protect": ["feetures"]}}}, "no layer is called 'feetures'"),
        ({"methods": ["obs", "svd"], "settings": HALF}, "stands alone"),
        ({"recipe": "deep-compresion"}, "there are: deep-compression"),
        ({"recipe": "deep-compression", "methods": "svd"}, "says methods itself"),
    ],
)
def test_what_cannot_be_is_told(trained, asked, told):
    with pytest.raises(PlanError, match=told) as caught:
        compress(trained, pictures(), threads=1, **asked)
    assert "\n" not in str(caught.value)


def test_a_budget_of_a_dense_file_is_refused(trained):
    with pytest.raises(BudgetError, match="give target onnx-sparse or archive"):
        compress(trained, pictures(), settings=HALF, budget=smidgen.Budget(ratio=2), threads=1)


@pytest.mark.parametrize(
    "asked",
    [["--sparsity", "0"], ["--sparsity", "100%"], ["--sparsity", "-5%"], ["--sparsity", "nan"], ["--sparsity", "half"],
     ["--pattern", "4:2"], ["--pattern", "2:4", "--sparsity", "50%"], ["--methods", "svd", "--sparsity", "50%"],
     ["--sparsity", "50%", "--protect", "hedd"], ["--recipe", "deep"]],
)  # fmt: skip
def test_the_command_line_tells_it_in_one_line(halved, asked, tmp_path, capsys):
    model = str(halved.save(tmp_path / "given") / "model.onnx")
    capsys.readouterr()
    assert main(["compress", model, "-q", "-o", str(tmp_path / "out"), *asked]) == 2
    told = capsys.readouterr().err.strip()
    assert told
    assert "\n" not in told


def test_on_the_command_line(halved, tmp_path, capsys):
    model = str(halved.save(tmp_path / "given") / "model.onnx")
    np.savez(tmp_path / "x.npz", x=pictures()[0])
    asked = ["--data", str(tmp_path / "x.npz"), "--threads", "1", "-q", "--sparsity", "60%", "--methods", "magnitude"]
    assert main(["compress", model, *asked, "-o", str(tmp_path / "out")]) == 0
    assert "pruned by magnitude: 60.00 %" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_lenet_with_nine_of_ten_weights_gone(data_dir):
    train = smidgen.open_data(data_dir / "mnist" / "train-images-idx3-ubyte.gz").take(range(300))
    test = smidgen.open_data(data_dir / "mnist" / "t10k-images-idx3-ubyte.gz").array(0, 2000)
    model = str(data_dir / "models" / "lenet_mnist.onnx")
    result = compress(model, train, test=test, settings={"obs": {"sparsity": 0.9}}, threads=1)
    files = result.record["files"]
    assert result.record["pruning"]["sparsity"] == pytest.approx(0.9, abs=1e-5)
    assert files["archive"]["nbytes"] < 0.13 * result.record["original"]["nbytes"]
    assert files["archive"]["loss_points"] < 1.0
