"""onnx-shared as a budget's target, and shared weights in an archive, from end to end."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
from smidgen.cli import main
from smidgen.errors import PlanError
from smidgen.forms import Codebook, leaves
from smidgen.pipeline import apply, compress
from smidgen.runtimes.onnxruntime import open_onnx
from tests.pipeline.kinds import kinds, noise

TARGET = "onnx-shared"
SHARE_5 = {"kmeans": {"bits": 5}}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return kinds(40)


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return noise()


@pytest.fixture(scope="module")
def small(network, inputs):
    return compress(network, [inputs], target=TARGET, budget=smidgen.Budget(ratio=4), threads=1)


@pytest.fixture(scope="module")
def five(network, inputs):
    return compress(network, [inputs], target=TARGET, settings=SHARE_5, threads=1)


def test_the_budget_binds_the_shared_file(small):
    files = small.record["files"]
    assert list(files) == [TARGET, "onnx", "archive"]
    assert small.met
    assert files[TARGET]["nbytes"] * 4 <= small.record["original"]["nbytes"]
    assert files[TARGET]["nbytes"] == small.files[TARGET].stat().st_size
    assert files[TARGET]["path"] == "model.shared.onnx"
    assert files["archive"]["nbytes"] < files[TARGET]["nbytes"] < files["onnx"]["nbytes"]
    assert files[TARGET]["agreement"] > 0.8
    assert files[TARGET]["params"] == files["onnx"]["params"]
    assert files[TARGET]["macs"] == files["onnx"]["macs"]
    predicted, measured = small.record["predicted"], small.record["measured"]
    assert abs(predicted["nbytes"] - measured["nbytes"]) <= max(200, 0.03 * measured["nbytes"])


def test_the_shared_file_answers_as_that_of_floats_and_as_the_archive(small, five, inputs):
    for result in (small, five):
        (unpacked := result.files["archive"].with_suffix(".back.onnx")).write_bytes(
            smidgen.unpack(result.files["archive"])
        )
        answers = []
        for path in (result.files[TARGET], result.files["onnx"], unpacked):
            with open_onnx(path) as runner:
                answers.append(runner.run(inputs[:9])[0].tobytes())
        assert answers[0] == answers[1] == answers[2]


def test_bits_alone_share_every_layer_that_can(five):
    assert five.met
    layers = {layer["name"]: layer for layer in five.record["layers"]}
    assert {layer["form"] for name, layer in layers.items() if name not in ("up", "depthwise")} == {"shared 5-bit"}
    assert "transposed" in layers["up"]["reason"]
    assert [layer["bits"] for layer in layers.values()].count(5) >= 3
    books = [leaf for one in five.stored.values() for leaf in leaves(one.form) if isinstance(leaf, Codebook)]
    assert len(books) >= 3
    assert all(len(book.values) <= 32 for book in books)
    proto = onnx.load(five.files[TARGET])
    onnx.checker.check_model(proto, full_check=True)
    head = next(t for t in proto.graph.initializer if t.name == "head.weight")
    assert len(head.raw_data) == 33 * 9 * 40 * 5 // 8


def test_a_plan_makes_the_same_files_again(small, five, network, inputs):
    for result in (small, five):
        text = result.plan.to_json()
        assert json.loads(text)["target"] == TARGET
        again = apply(network, text, [inputs], threads=1)
        for name in (TARGET, "onnx", "archive"):
            assert again.files[name].read_bytes() == result.files[name].read_bytes()


def test_without_data(network):
    result = compress(network, example=torch.zeros(1, 3, 4, 4), target=TARGET, settings=SHARE_5, threads=1)
    assert result.record["mode"] == "no data"
    assert any(choice.bits == 5 for choice in result.plan.choices)


def test_shared_weights_in_an_archive(network, inputs):
    budget = smidgen.Budget(ratio=5)
    result = compress(network, [inputs], target="archive", rounding="kmeans", budget=budget, threads=1)
    assert result.met
    assert any("shared" in layer["form"] for layer in result.record["layers"])
    predicted, measured = result.record["predicted"], result.record["measured"]
    # The graph, a tenth of so small a file, is predicted as it is before it is packed.
    assert 0 <= predicted["nbytes"] - measured["nbytes"] <= 0.12 * measured["nbytes"]
    again = apply(network, result.plan.to_json(), [inputs], threads=1)
    assert again.files["archive"].read_bytes() == result.files["archive"].read_bytes()


def test_factors_are_shared_too(network, inputs):
    settings = {**SHARE_5, "svd": {"ranks": "fixed", "rank": 8}}
    result = compress(network, [inputs], target=TARGET, methods="svd", settings=settings, threads=1)
    forms = {layer["name"]: layer["form"] for layer in result.record["layers"]}
    assert forms["head"] == "low-rank, shared 5-bit"
    books = [leaf for leaf in leaves(result.stored["head"].form) if isinstance(leaf, Codebook)]
    assert len(books) == 2


@pytest.mark.parametrize(
    ("target", "asked", "told"),
    [
        ("onnx-w8", {"settings": SHARE_5}, "holds no codebooks"),
        ("onnx", {"rounding": "kmeans"}, "holds no codebooks"),
        (TARGET, {"rounding": "gptq"}, "holds codebooks, not gptq's"),
        (TARGET, {"settings": {"kmeans": {"bits": 11}}}, "bits=11"),
        ("archive", {"rounding": "kmeens"}, "did you mean 'kmeans'"),
    ],
)
def test_what_a_file_cannot_hold_is_told(network, target, asked, told):
    with pytest.raises(PlanError, match=told) as caught:
        compress(network, example=torch.zeros(1, 3, 4, 4), target=target, **asked)
    assert "\n" not in str(caught.value)


@pytest.fixture
def given(network, inputs, tmp_path):
    np.savez(tmp_path / "x.npz", x=inputs)
    result = compress(network, example=torch.zeros(1, 3, 4, 4), budget=smidgen.Budget(tradeoff=0), threads=1)
    return result.save(tmp_path / "given") / "model.onnx", tmp_path / "x.npz"


def test_on_the_command_line(given, tmp_path, capsys):
    model, data = map(str, given)
    out = str(tmp_path / "out")
    asked = [model, "--data", data, "--bits", "4", "--target", TARGET, "-q", "--threads", "1", "-o", out]
    assert main(["compress", *asked]) == 0
    assert "shared 4-bit" in capsys.readouterr().out
    again = ["--data", data, "-q", "--threads", "1", "-o", str(tmp_path / "again")]
    assert main(["apply", model, str(tmp_path / "out" / "plan.json"), *again]) == 0
    for name in ("model.shared.onnx", "model.onnx", "model.smidgen"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert main(["unpack", str(tmp_path / "out" / "model.smidgen"), "-o", str(tmp_path / "back.onnx")]) == 0


@pytest.mark.parametrize("bits", ["0", "9", "x"])
def test_bits_that_there_are_none_of(given, bits, tmp_path, capsys):
    capsys.readouterr()
    assert main(["compress", str(given[0]), "--bits", bits, "--target", TARGET, "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert "bits" in told
    assert "\n" not in told


def test_bits_of_a_file_of_floats(given, tmp_path, capsys):
    capsys.readouterr()
    assert main(["compress", str(given[0]), "--bits", "5", "-o", str(tmp_path / "out")]) == 2
    assert "onnx-shared" in capsys.readouterr().err


@pytest.mark.slow
def test_lenet(data_dir):
    """What is asked of 5 bits: an ONNX file of a quarter, an archive of 0.16, at most 0.3 points lost."""
    train = smidgen.open_data(data_dir / "mnist" / "train-images-idx3-ubyte.gz").take(range(300))
    test = smidgen.open_data(data_dir / "mnist" / "t10k-images-idx3-ubyte.gz").array(0, 2000)
    result = compress(
        str(data_dir / "models" / "lenet_mnist.onnx"), train, test=test, target=TARGET, settings=SHARE_5, threads=1
    )  # fmt: skip
    whole = result.record["original"]["nbytes"]
    for name, most in ((TARGET, 0.25), ("archive", 0.16)):
        entry = result.record["files"][name]
        assert entry["nbytes"] <= most * whole
        assert entry["loss_points"] <= 0.3
