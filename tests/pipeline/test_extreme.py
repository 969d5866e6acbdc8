"""The extreme recipe from end to end: sizes reached, drops kept, silent channels cut, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import smidgen
from smidgen.cli import main
from smidgen.errors import DataError, PlanError, UserError
from smidgen.forms import Quantized
from smidgen.pipeline import apply, compress
from smidgen.runtimes.onnxruntime import open_onnx
from tests.pipeline.pictures import pictures

QUICK = {"training": {"epochs": 15, "batch": 16, "lr": 5e-3}}
SIZE = 800


def made(trained, **asked):
    given = {"settings": QUICK, "threads": 1, "seed": 1, "budget": smidgen.Budget(size=SIZE), **asked}
    return compress(trained, pictures(400), recipe="extreme", **given)


@pytest.fixture(scope="module")
def small(trained):
    return made(trained)


def test_the_file_is_as_small_as_asked_and_still_right(small):
    archive = small.record["files"]["archive"]
    assert small.met
    assert 0.4 * SIZE <= archive["nbytes"] <= SIZE
    assert archive["accuracy"] >= 0.9
    assert small.record["mode"] == "training"
    assert small.record["budget"] == {"kind": "size", "value": SIZE, "met": True, "note": ""}


def test_every_weight_and_bias_is_of_integers_with_one_step(small):
    for one in small.stored.values():
        assert isinstance(one.form, Quantized)
        assert isinstance(one.bias_form, Quantized)
        assert not one.form.row.any()
        assert len(one.form.column) == 1


def test_the_archive_unpacks_to_what_was_trained(small, tmp_path):
    folder = small.save(tmp_path / "out")
    (tmp_path / "unpacked.onnx").write_bytes(smidgen.unpack(folder / "model.smidgen"))
    x = pictures(20, seed=3)[0]
    with open_onnx(tmp_path / "unpacked.onnx") as runner:
        found = runner.run(x)[0]
    np.testing.assert_allclose(found, small.model(torch.from_numpy(x)).detach().numpy(), atol=1e-4)
    assert "mode: training" in small.table()


def test_bytes_were_predicted(small):
    record = small.record
    # So few integers that the coder has hardly learnt their sizes when they end.
    assert record["predicted"]["nbytes"] == pytest.approx(record["files"]["archive"]["nbytes"], rel=0.35)
    told = record["training"]["bytes"]
    assert all(abs(row["coded"] / row["predicted"] - 1) < 0.5 for row in told)
    assert len(record["training"]["history"]) == QUICK["training"]["epochs"]


def test_silent_channels_are_gone(small, trained):
    before = {name: module.weight.shape for name, module in trained.named_modules() if hasattr(module, "weight")}
    hidden = next(layer for layer in small.record["layers"] if layer["name"] == "hidden")
    assert hidden["shape"][0] < before["hidden"][0]
    assert small.record["files"]["onnx"]["macs"] < small.record["original"]["macs"]


def test_the_same_seed_gives_the_same_file(small, trained):
    again = made(trained)
    assert again.files["archive"].read_bytes() == small.files["archive"].read_bytes()


def test_channels_of_very_different_scales_are_learned_too(trained):
    """As folded norms leave them: the first steps, by a tensor's spread, would round most of it to nothing."""
    plain, uneven = copy.deepcopy(trained).eval(), copy.deepcopy(trained).eval()
    with torch.no_grad():
        uneven.hidden.weight[0] *= 1000
        uneven.hidden.bias[0] *= 1000
        uneven.head.weight[:, 0] /= 1000
    x = torch.from_numpy(pictures(20, seed=3)[0])
    torch.testing.assert_close(uneven(x), plain(x), atol=1e-3, rtol=1e-3)
    longer = {"training": {**QUICK["training"], "epochs": 25}}
    archive = made(uneven, settings=longer, budget=smidgen.Budget(size=2 * SIZE)).record["files"]["archive"]
    assert archive["nbytes"] <= 2 * SIZE
    assert archive["accuracy"] >= 0.9


def test_a_run_goes_on_from_its_checkpoint(small, trained, tmp_path):
    settings = {**QUICK, "extreme": {"checkpoint": str(tmp_path / "run")}}
    seen = []

    def stop(stage, done, total):
        seen.append(stage)
        if len(seen) == 120:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(trained, settings=settings, progress=stop)
    assert list(tmp_path.glob("run.*"))
    again = made(trained, settings=settings)
    assert again.files["archive"].read_bytes() == small.files["archive"].read_bytes()


def test_a_drop_is_kept_without_labels(trained):
    x, _ = pictures(400)
    result = compress(
        trained, x, recipe="extreme", budget=smidgen.Budget(max_drop=5), settings=QUICK, threads=1, seed=1
    )
    assert result.met
    trial = result.record["trials"][-1]
    assert trial["points"] + trial["error"] <= 5
    assert result.record["files"]["archive"]["nbytes"] < result.record["original"]["nbytes"] / 8


def test_a_price_alone_is_enough(trained):
    sizes = []
    for price in (1e-6, 1e-3):
        settings = {"training": {"epochs": 8, "batch": 16}, "extreme": {"price": price}}
        result = made(trained, settings=settings, budget=None)
        sizes.append(result.record["files"]["archive"]["nbytes"])
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("named", [True, False])
def test_as_many_inputs_choose_as_are_asked_for(trained, named):
    how = {"epochs": 1, "batch": 16, "hold_back": 30}
    asked = {"train": smidgen.Training(**how), "settings": {}} if named else {"settings": {"training": how}}
    counts = made(trained, **asked, budget=smidgen.Budget(size="20 kB")).record["data"]
    assert [counts[role]["count"] for role in ("calibration", "selection", "test")] == [290, 30, 80]


def test_time_limits_the_epochs(trained):
    settings = {"training": {"epochs": 10_000, "batch": 64, "time_limit": 2.0}}
    result = made(trained, settings=settings, budget=smidgen.Budget(size="20 kB"))
    assert len(result.record["training"]["history"]) < 10_000
    assert result.record["training"]["seconds"] < 6


def test_a_plan_of_a_training_is_not_carried_out_again(small, trained):
    with pytest.raises(PlanError, match="extreme"):
        apply(trained, small.plan.to_json(), pictures(400), threads=1)


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"budget": smidgen.Budget(size=50)}, PlanError, "the graph alone takes"),
        ({"budget": smidgen.Budget(speedup=2)}, PlanError, "no budget of speedup"),
        ({"settings": {"extreme": {"prise": 1}}}, PlanError, "no setting 'prise'"),
        ({"settings": {"svd": {}}}, PlanError, "no setting 'svd'"),
        ({"settings": {"extreme": {"live": False}, "training": {"augment": ["mixup"]}}}, PlanError, "mixed images"),
        ({"settings": {"extreme": {"labels": 2.0}}}, PlanError, "labels and ramp are shares"),
        ({"settings": {"training": {"epochs": 0}}}, UserError, "epochs=0"),
        ({"settings": {"training": {"batch": 4000}}}, DataError, "fewer than a batch"),
    ],
)
def test_what_cannot_be_is_told(trained, asked, error, told):
    with pytest.raises(error, match=told) as caught:
        made(trained, **asked)
    assert "\n" not in str(caught.value)


def test_inputs_are_needed(trained):
    with pytest.raises(DataError, match="needs inputs"):
        compress(trained, example=torch.zeros(1, 2, 8, 8), recipe="extreme", budget=smidgen.Budget(size=SIZE))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--size", "1kB"], "needs inputs"),
        (["--train"], "trains by itself"),
        (["--target", "tflite"], "says target itself"),
        (["--epochs", "0"], "epochs=0"),
        (["--time-limit", "soon"], "is no time"),
        (["--augment", "shave"], "'shave'"),
    ],
)
def test_the_command_line_tells_it_in_one_line(small, asked, told, tmp_path, capsys):
    model = str(small.save(tmp_path / "given") / "model.onnx")
    capsys.readouterr()
    assert main(["compress", model, "-q", "-o", str(tmp_path / "out"), "--recipe", "extreme", *asked]) == 2
    said = capsys.readouterr().err.strip()
    assert told in said
    assert "\n" not in said
