"""Everything a user can get wrong ends in one clear line, exit code 2 and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import save_file

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]

FACTORY = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Refused:
    """Runs a command that must be refused; `told` must be in its one line."""

    def refused(*arguments: str | Path, told: str | tuple[str, ...] = ()) -> None:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run(*arguments)
        assert code == 2, err
        assert out == ""
        assert err.startswith("smidgen: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        for part in (told,) if isinstance(told, str) else told:
            assert part in err
        assert sorted(tmp_path.rglob("*")) == before

    return refused


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


def test_a_file_that_is_not_there(refused: Refused, out: Path) -> None:
    refused("compress", "none.onnx", "-o", out, told=("none.onnx", "there is no file"))


def test_a_file_that_is_not_onnx(refused: Refused, out: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"this is no network" * 20)
    for command in ("compress", "inspect"):
        refused(command, path, *(["-o", out] if command == "compress" else []), told="noise.onnx")
    refused("eval", path, told="noise.onnx")


def test_a_truncated_file(refused: Refused, out: Path, tmp_path: Path, network: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(network.read_bytes()[:5000])
    refused("compress", path, "-o", out, told="cut.onnx")
    refused("eval", path, told="cut.onnx")


def test_an_empty_file(refused: Refused, out: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    refused("compress", path, "-o", out, told="empty.onnx")


def test_weights_that_are_missing_or_do_not_fit(refused: Refused, out: Path, tmp_path: Path) -> None:
    code = tmp_path / "nets.py"
    code.write_text(FACTORY)
    save_file({"1.weight": np.zeros((4, 63), np.float32)}, tmp_path / "other.safetensors")
    compress = ("compress", f"{code}:net", "--input", "1,1,8,8", "-o", out)
    refused(*compress, "--weights", tmp_path / "none.safetensors", told="none.safetensors")
    refused(*compress, "--weights", tmp_path / "other.safetensors", told=("other.safetensors", "does not fit"))
    refused("compress", f"{code}:nett", "-o", out, told=("nett", "net"))
    refused("compress", code, "-o", out, told="factory")
    refused("compress", tmp_path / "other.safetensors", "-o", out, told="--weights")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(refused: Refused, out: Path, tmp_path: Path, network: Path, value: float) -> None:
    model = onnx.load(network)
    weight = next(t for t in model.graph.initializer if t.name == "fc1.weight")
    array = numpy_helper.to_array(weight).copy()
    array[3, 5] = value
    weight.CopyFrom(numpy_helper.from_array(array, "fc1.weight"))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    refused("compress", path, "--ratio", "2", "-o", out, told=("fc1", "NaN"))


def test_images_that_do_not_fit(
    refused: Refused, out: Path, tmp_path: Path, network: Path, make_images: Callable[..., Path]
) -> None:
    images = make_images(tmp_path / "large", 3, side=9)
    refused("compress", network, "--data", images, "--channels", "gray", "-o", out, told=("(1, 9, 9)", "(1, 8, 8)"))
    refused("eval", network, "--data", images, "--channels", "gray", told=("(1, 9, 9)", "(1, 8, 8)"))


def test_an_empty_folder(refused: Refused, out: Path, tmp_path: Path, network: Path) -> None:
    (tmp_path / "nothing").mkdir()
    refused("compress", network, "--data", tmp_path / "nothing", "-o", out, told="holds no images")
    refused("compress", network, "--data", tmp_path / "nowhere", "-o", out, told="does not exist")


def test_one_image(
    refused: Refused, out: Path, tmp_path: Path, network: Path, make_images: Callable[..., Path]
) -> None:
    images = make_images(tmp_path / "one", 1, classes=1)
    refused("compress", network, "--data", images, "--channels", "gray", "-o", out, told=("1 input", "at least 3"))


def test_labels_out_of_range(refused: Refused, out: Path, network: Path, data: Path) -> None:
    refused("compress", network, "--data", data, "--label-offset", "2", "-o", out, told="--label-offset")
    refused("eval", network, "--data", data, "--label-offset", "-1", told="--label-offset")
    refused("compress", network, "--data", data, "--labels", "z", "-o", out, told="'z'")


@pytest.mark.parametrize(
    "budget",
    [
        ("--size", "0"), ("--size", "-3kB"), ("--size", "200 qB"), ("--size", "much"), ("--ratio", "1"),
        ("--ratio", "0.5"), ("--ratio", "six"), ("--max-drop", "0"), ("--max-drop=-1%",), ("--max-drop", "120"),
        ("--tradeoff", "1.5"), ("--tradeoff", "nan"), ("--tradeoff", "half"), ("--size", "2kB", "--ratio", "3"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be_meant(refused: Refused, out: Path, network: Path, budget: tuple[str, ...]) -> None:
    refused("compress", network, *budget, "-o", out, told="budget: ")


def test_a_drop_without_inputs_to_measure_it_on(refused: Refused, out: Path, network: Path) -> None:
    refused("compress", network, "--max-drop", "1%", "-o", out, told=("max_drop", "--data"))


def test_an_output_folder_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    # Told before the network is looked at: the work would be in vain.
    refused("compress", "none.onnx", "-o", tmp_path / "file", told=("file", "-o"))
    refused("compress", "none.onnx", "-o", tmp_path / "file" / "out", told=("file", "-o"))


def test_an_output_that_would_replace_the_original(refused: Refused, tmp_path: Path, network: Path) -> None:
    original = tmp_path / "model.onnx"
    original.write_bytes(network.read_bytes())
    refused("compress", original, "--ratio", "2", "-o", tmp_path, told=("model.onnx", "overwritten", "-o"))
    assert original.read_bytes() == network.read_bytes()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused("compress", "none.onnx", "-o", tmp_path / "locked" / "out", told=("locked", "-o"))


def test_plans_that_do_not_fit(refused: Refused, out: Path, tmp_path: Path, network: Path) -> None:
    plan = tmp_path / "plan.json"
    refused("apply", network, plan, "-o", out, told="plan.json")
    for text in ("", "{}", "[1]", '{"version": 99}', '{"version": 1, "choices": [{}]}'):
        plan.write_text(text)
        refused("apply", network, plan, "-o", out, told="plan")
    plan.write_bytes(b"\xff\xfe\x00")
    refused("apply", network, plan, "-o", out, told="not text")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("compres", "x.onnx"), "did you mean 'compress'"),
        (("compress", "x.onnx", "--siez", "3kB"), "did you mean '--size'"),
        (("compress", "x.onnx", "--ratoi=3"), "did you mean '--ratio'"),
        (("compress", "x.onnx", "y.onnx"), "'y.onnx' is one argument too many"),
        (("compress", "x.onnx", "--target", "tflyte"), "did you mean tflite"),
        (("compress", "x.onnx", "--target", "coreml"), "'coreml' is not one of archive, onnx"),
        (("compress", "x.onnx", "--methods", "sdv"), "did you mean 'svd'"),
        (("compress", "x.onnx", "--methods", "liner=svd"), "did you mean 'linear'"),
        (("compress", "x.onnx", "--methods", "svd,conv=cp"), "methods"),
        (("compress", "x.onnx", "--seed", "x"), "--seed"),
        (("inspect", "x.onnx", "--seed", "-1"), "seed"),
        (("inspect", "x.onnx", "--threads", "0"), "threads"),
        (("inspect", "x.onnx", "--device", "abacus"), "device"),
        (("inspect", "x.onnx", "--input", "3,x"), "--input 1,3,224,224"),
        (("inspect", "x.onnx", "--mean", "0.5"), "without --data"),
        (("compress",), "model"),
        ((), "command"),
    ],
)
def test_slips_of_the_keyboard(refused: Refused, arguments: tuple[str, ...], told: str) -> None:
    refused(*arguments, told=told)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--layout", "nhcw"), "did you mean nhwc or nchw"),
        (("--channels", "grey"), "did you mean gray"),
        (("--scale", "1/0"), "scale"),
        (("--mean", "a,b"), "row of numbers"),
        (("--resize", "8xx9"), "size in pixels"),
        (("--crop", "80"), "crop"),
        (("--split", "test"), "split"),
        (("--preprocess", "none.toml"), "none.toml"),
    ],
)
def test_preprocessing_that_cannot_be_meant(
    refused: Refused, tmp_path: Path, network: Path, make_images: Callable[..., Path], flags: tuple[str, str], told: str
) -> None:
    images = make_images(tmp_path / "images", 2)
    refused("inspect", network, "--data", images, *flags, told=told)


def test_a_metric_that_is_missing(refused: Refused, out: Path, network: Path, data: Path) -> None:
    refused("compress", network, "--data", data, "--metric", "none.py:f", "-o", out, told="none.py")
    refused("eval", network, "--data", data, "--metric", "none.py", told="file.py:function")
