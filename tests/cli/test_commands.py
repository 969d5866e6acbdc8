"""What the commands do when all is well, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import smidgen.cli.commands
import smidgen.pipeline
from tests.promise import SAVED, assert_whole

Run = Callable[..., tuple[int, str, str]]


def test_compress_writes_its_files_and_tells(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    out = tmp_path / "out"
    code, told, err = run("compress", network, "--data", data, "--ratio", "2", "-o", out, "-q")
    assert (code, err) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == SAVED
    assert "times smaller" in told
    assert "smaller)" in told  # the verdict
    assert str(out / "model.onnx") in told
    assert 2 * (out / "model.onnx").stat().st_size <= network.stat().st_size
    onnx.checker.check_model(onnx.load(out / "model.onnx"))


def test_json_is_the_record_and_nothing_else(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    out = tmp_path / "out"
    code, told, err = run(
        "compress", network, "--data", data, "--size", "12kB", "--seed", "3", "--json", "-q", "-o", out
    )
    record = json.loads(told)
    assert (code, err) == (0, "")
    assert record == json.loads((out / "result.json").read_text())
    assert_whole(record)
    assert (record["seed"], record["mode"], record["target"]) == (3, "calibration", "onnx")
    assert record["files"]["onnx"]["nbytes"] == (out / "model.onnx").stat().st_size <= 12_000


def test_without_data(run: Run, tmp_path: Path, network: Path) -> None:
    code, told, _ = run("compress", network, "--tradeoff", "0.6", "--json", "-q", "-o", tmp_path / "out")
    record = json.loads(told)
    assert (code, record["mode"]) == (0, "no data")
    assert record["files"]["onnx"]["accuracy"] is None
    assert record["files"]["onnx"]["why"]["accuracy"]


def test_a_budget_that_cannot_be_met_keeps_the_best(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    out = tmp_path / "out"
    code, told, err = run("compress", network, "--data", data, "--size", "900", "-q", "-o", out)
    assert code == 3
    assert "the budget was not met" in err
    assert "900" in err
    assert "NOT met" in told
    assert (out / "model.onnx").is_file()


def test_a_plan_replays_to_the_same_bytes(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    assert run("compress", network, "--data", data, "--ratio", "2", "-q", "-o", first)[0] == 0
    assert run("apply", network, first / "plan.json", "--data", data, "-q", "-o", again)[0] == 0
    assert (again / "model.onnx").read_bytes() == (first / "model.onnx").read_bytes()
    assert (again / "plan.json").read_bytes() == (first / "plan.json").read_bytes()


def test_a_plan_of_another_network_is_refused(run: Run, tmp_path: Path, network: Path) -> None:
    other = onnx.load(network)
    for node in other.graph.node:
        node.input[:] = [name.replace("fc2", "fc9") for name in node.input]
    for weight in other.graph.initializer:
        weight.name = weight.name.replace("fc2", "fc9")
    onnx.save(other, tmp_path / "other.onnx")
    assert run("compress", network, "--ratio", "2", "-q", "-o", tmp_path / "out")[0] == 0
    code, _, err = run("apply", tmp_path / "other.onnx", tmp_path / "out" / "plan.json", "-o", tmp_path / "no")
    assert code == 2
    assert "another network" in err


def test_methods_by_layer_kind(run: Run, tmp_path: Path, network: Path) -> None:
    code, told, _ = run(
        "compress", network, "--ratio", "2", "--methods", "linear=svd", "--json", "-q", "-o", tmp_path / "out"
    )
    assert code == 0
    assert {layer["method"] for layer in json.loads(told)["layers"]} <= {"svd", None}


def test_a_metric_of_ones_own(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    metric = tmp_path / "mine.py"
    metric.write_text("def steady(outputs, labels):\n    return 1.0\n")
    code, told, _ = run(
        "compress", network, "--data", data, "--metric", f"{metric}:steady", "--max-drop", "1%", "--json", "-q",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert json.loads(told)["files"]["onnx"]["metric"] == 1.0


def test_a_folder_of_images_with_its_preprocessing(
    run: Run, tmp_path: Path, network: Path, make_images: Callable[..., Path]
) -> None:
    images = make_images(tmp_path / "photos", 6)
    (images / "preprocess.toml").write_text('scale = "1/255"\nchannels = "gray"\n')
    out = tmp_path / "out"
    code, told, err = run(
        "compress", network, "--data", images, "--mean", "0.5", "--tradeoff", "0.5", "--json", "-o", out
    )
    assert code == 0
    assert "preprocessing from" in err
    assert "preprocess.toml, with --mean as given" in err
    for role in json.loads(told)["data"].values():
        assert role["preprocess"]["channels"] == "gray"
        assert role["preprocess"]["scale"] == pytest.approx(1 / 255)
        assert role["preprocess"]["mean"] == [0.5]


def test_both_parts_of_a_divided_file(run: Run, tmp_path: Path, network: Path) -> None:
    generator = np.random.default_rng(5)
    x = generator.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=x, kind=np.arange(50) % 4, split=(np.arange(50) >= 40).astype(np.uint8))
    chosen = ("--data", tmp_path / "set.npz", "--labels", "kind", "--scale", "1/255")
    code, told, _ = run("compress", network, *chosen, "--test-split", "test", "--json", "-q", "-o", tmp_path / "out")
    test = json.loads(told)["data"]["test"]
    assert (code, test["count"], test["split"], test["given"]) == (0, 10, "test", True)
    code, told, _ = run("eval", network, *chosen, "--json", "-q")
    assert (code, json.loads(told)["data"]["test"]["split"]) == (0, "test")


def test_a_validation_set_of_ones_own(run: Run, tmp_path: Path, network: Path) -> None:
    x = np.random.default_rng(5).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=x, y=np.arange(60) % 4, split=np.repeat([0, 2, 1], [30, 20, 10]).astype(np.uint8))
    np.savez(tmp_path / "mine.npz", x=255 - x[:9], kind=np.arange(9) % 4)
    out, chosen = ("--json", "-q", "-o", tmp_path / "out"), ("--data", tmp_path / "set.npz", "--scale", "1/255")
    for more, count, source in (
        (("--validation-split", "validation"), 20, "set.npz"),
        (("--validation", tmp_path / "set.npz"), 20, "set.npz"),
        (("--validation", tmp_path / "mine.npz", "--validation-labels", "kind"), 9, "mine.npz"),
    ):
        code, told, _ = run("compress", network, *chosen, *more, "--test-split", "test", *out)
        roles = json.loads(told)["data"]
        assert (code, roles["selection"]["count"], roles["selection"]["source"]) == (0, count, source)
        assert (roles["selection"]["given"], roles["calibration"]["count"], roles["test"]["count"]) == (True, 30, 10)
    plan = tmp_path / "out" / "plan.json"
    code, told, _ = run("apply", network, plan, *chosen, *more, "--test-split", "test", "--json", "-q", "-o",
                        tmp_path / "again")  # fmt: skip
    assert code == 0
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()
    for wrong, said in (
        (("--validation", tmp_path / "set.npz"), "--validation is given without --data"),
        (("--test", tmp_path / "mine.npz", "--validation", tmp_path / "set.npz"), "give --data too"),
        ((*chosen, "--validation", tmp_path / "nowhere.npz"), "nowhere.npz"),
        ((*chosen, "--validation-split", "validation", "--train", "--hold-back", "3", "--batch", "4"), "leave one out"),
    ):
        code, _, err = run("compress", network, *wrong, "-q", "-o", tmp_path / "wrong")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err


def test_inspect(run: Run, network: Path, data: Path) -> None:
    code, told, _ = run("inspect", network, "-q")
    assert code == 0
    assert "fc1" in told
    assert "svd saves" in told
    code, told, _ = run("inspect", network, "--data", data, "--json", "-q")
    record = json.loads(told)
    first = record["layers"][0]
    assert code == 0
    assert (first["name"], first["shape"], first["params"], first["macs"]) == ("fc1", [48, 64], 3072, 3072)
    assert 0 < first["savings"]["svd"]["saved"] < 1
    assert "only convolutions" in first["refusals"]["cp"]
    assert 0.9 < sum(layer["share"] for layer in record["layers"]) < 1


def test_eval(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    assert run("compress", network, "--ratio", "2", "-q", "-o", tmp_path)[0] == 0
    code, told, _ = run("eval", tmp_path / "model.onnx", "--against", network, "--data", data, "-q")
    assert code == 0
    assert "agreement" in told
    assert "scored on 80 inputs of set.npz" in told
    code, told, _ = run("eval", network, "--json", "-q")
    alone = json.loads(told)
    assert (code, alone["original"], alone["files"]["onnx"]["accuracy"]) == (0, None, None)
    assert alone["files"]["onnx"]["latency_ms"] > 0


def test_ctrl_c_leaves_nothing(run: Run, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(smidgen.pipeline, "compress", stopped)
    code, out, err = run("compress", network, "-o", tmp_path / "deep" / "out", "-q")
    assert (code, out) == (130, "")
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_fault_of_our_own_is_one_line(
    run: Run, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise ZeroDivisionError("an\naccident")

    monkeypatch.setattr(smidgen.pipeline, "compress", faulty)
    code, _, err = run("compress", network, "-o", tmp_path / "out")
    assert code == 1
    assert err == (
        "smidgen: error: internal: ZeroDivisionError: an accident; please report it, with what --debug prints\n"
    )
    code, _, err = run("compress", network, "-o", tmp_path / "out", "--debug")
    assert "Traceback" in err


@pytest.mark.slow
def test_demo(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    code, told, err = run("demo", "-o", tmp_path / "demo", "--json", "-q")
    record = json.loads(told)
    assert (code, err) == (0, "")
    assert record["original"]["accuracy"] > 0.96
    assert record["files"]["onnx"]["nbytes"] * 8 <= record["original"]["nbytes"]
    assert record["files"]["onnx"]["accuracy"] > record["original"]["accuracy"] - 0.03
    assert (record["data"]["test"]["count"], record["data"]["test"]["source"]) == (500, "digits-test.npz")
    # The files it leaves work with the commands of the README.
    demo = tmp_path / "demo"
    assert (
        run("eval", demo / "model.onnx", "--against", demo / "digits.onnx", "--data", demo / "digits-test.npz")[0] == 0
    )
