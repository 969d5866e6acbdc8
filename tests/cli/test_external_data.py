"""A network whose weights lie beside its file, as torch writes it: whole wherever it is read, measured or packed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import smidgen
from smidgen.errors import LoadError
from smidgen.model.onnx import whole_onnx
from smidgen.runtimes.opening import open_file
from smidgen.serve.folder import read_run

Run = Callable[..., tuple[int, str, str]]
WEIGHTS = 4 * (64 * 32 + 32 * 10)  # bytes, biases apart: the exporter leaves small tensors in the file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx with net.onnx.data beside it, the same network in one file, and inputs."""
    place = tmp_path_factory.mktemp("external")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    shapes = ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notices about itself
        for name, outside in (("net.onnx", True), ("one.onnx", False)):
            torch.onnx.export(net, (torch.randn(2, 1, 8, 8),), place / name, dynamo=True, external_data=outside,
                              dynamic_shapes=shapes, verbose=False)  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        np.savez(place / "data.npz", x=x, y=net(torch.from_numpy(x)).argmax(1).numpy())
    assert (place / "net.onnx.data").stat().st_size >= WEIGHTS
    return place


def test_the_copy_answers_alone_as_the_files_do(folder: Path) -> None:
    copy, x = whole_onnx(folder / "net.onnx"), np.load(folder / "data.npz")["x"]
    assert copy.name == "net.onnx"
    assert [each.name for each in copy.parent.iterdir()] == ["net.onnx"]
    assert copy.stat().st_size > WEIGHTS
    assert copy.stat().st_size == pytest.approx((folder / "one.onnx").stat().st_size, abs=200)
    with open_file(copy) as alone, open_file(folder / "net.onnx") as given:
        assert np.array_equal(alone.run(x)[0], given.run(x)[0])
    assert whole_onnx(folder / "net.onnx") == copy, "one copy, however often it is asked"


def test_others_are_given_back(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    for path in (folder / "one.onnx", tmp_path / "broken.onnx", tmp_path / "none.onnx", folder / "data.npz"):
        assert whole_onnx(path) == path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("location", "../net.onnx.data"), "inside the model's folder"), (("location", "gone.data"), "not beside"),
        (("offset", "99999999"), "end before"), (("length", "7"), "7 external bytes"),
    ],
)  # fmt: skip
def test_weights_elsewhere_are_told(folder: Path, tmp_path: Path, change: tuple[str, str], told: str) -> None:
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    next(each for each in tensor.external_data if each.key == change[0]).value = change[1]
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "net.onnx.data").write_bytes((folder / "net.onnx.data").read_bytes())
    with pytest.raises(LoadError, match=told):
        whole_onnx(tmp_path / "net.onnx")


def test_tensors_of_nodes_are_brought_in_too(tmp_path: Path) -> None:
    h = onnx.helper
    value = h.make_tensor("c", onnx.TensorProto.FLOAT, [2], np.array([1.5, -2.0], np.float32).tobytes(), raw=True)
    x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy")
    nodes = [h.make_node("Constant", [], ["c"], value=value), h.make_node("Add", ["x", "c"], ["y"])]
    model = h.make_model(h.make_graph(nodes, "g", [x], [y]), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    inner = model.graph.node[0].attribute[0].t
    (tmp_path / "c.data").write_bytes(inner.raw_data)
    inner.ClearField("raw_data")
    inner.data_location = onnx.TensorProto.EXTERNAL
    inner.external_data.add(key="location", value="c.data")
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    with open_file(whole_onnx(tmp_path / "g.onnx")) as runner:
        assert runner.run(np.zeros((1, 2), np.float32))[0].tolist() == [[1.5, -2.0]]


def test_a_ratio_is_one_of_the_whole_network(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, err = run("compress", folder / "net.onnx", "--data", folder / "data.npz", "--ratio", "3", "-o", out, "-q")
    assert code == 0, err
    record = json.loads((out / "result.json").read_text())
    assert record["original"]["nbytes"] > WEIGHTS
    assert record["original"]["path"] == "net.onnx"
    assert record["original"]["nbytes"] / 4 < record["files"]["onnx"]["nbytes"] <= record["original"]["nbytes"] / 3


def test_sweep_bench_eval_bundle_and_serve_take_it_whole(run: Run, folder: Path, tmp_path: Path) -> None:
    net, data, out, front = folder / "net.onnx", folder / "data.npz", tmp_path / "out", tmp_path / "front"
    asked = ("sweep", net, "--data", data, "--points", "2", "--methods", "svd", "--jobs", "2", "--threads", "1")
    code, _, err = run(*asked, "-o", front, "-q")
    assert code == 0, err
    assert json.loads((front / "sweep.json").read_text())["original"]["nbytes"] > WEIGHTS
    timed = smidgen.bench(str(net), repeats=1).record["original"]
    assert timed["nbytes"] > WEIGHTS
    assert timed["path"] == str(net)
    code, told, err = run("eval", net, "--data", data, "--json", "-q")
    assert code == 0, err
    assert json.loads(told)["files"]["onnx"]["nbytes"] > WEIGHTS
    result = smidgen.compress(str(net), str(data), budget=smidgen.Budget(ratio=3))
    result.save(out)
    smidgen.bundle(out, tmp_path / "bundle", against=net, samples=2)
    with open_file(tmp_path / "bundle" / "original.onnx") as runner:
        assert runner.run(np.load(data)["x"][:2])[0].shape == (2, 10)
    with open_file(read_run(out, against=net).original.path) as runner:
        assert runner.run(np.load(data)["x"][:2])[0].shape == (2, 10)
