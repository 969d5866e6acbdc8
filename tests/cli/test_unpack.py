"""``smidgen unpack``: the file back, or one line and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from smidgen.export.archive import pack_archive

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def archive(tmp_path: Path, network: Path) -> Path:
    path = tmp_path / "model.smidgen"
    path.write_bytes(pack_archive(network.read_bytes(), {}))
    return path


def test_unpack(run: Run, archive: Path, network: Path, tmp_path: Path) -> None:
    code, out, err = run("unpack", archive, "-o", tmp_path / "out.onnx")
    assert (code, err) == (0, "")
    assert (tmp_path / "out.onnx").read_bytes() == network.read_bytes()
    assert "float32 tensors" in out
    assert f"{network.stat().st_size:,} bytes" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.smidgen", "out.onnx"]


def test_unpack_beside_the_archive_as_json(run: Run, archive: Path, network: Path, tmp_path: Path) -> None:
    code, out, _ = run("unpack", archive, "--json", "-q")
    record = json.loads(out)
    assert code == 0
    assert record["file"] == str(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == network.read_bytes()
    assert sum(record["streams"].values()) == record["nbytes"] == archive.stat().st_size
    assert record["model_nbytes"] == network.stat().st_size


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:-3], "header promises"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is damaged"),
        (lambda data: b"PK" + data, "not 'SMDG'"),
        (lambda data: b"", "starts with nothing"),
    ],
)
def test_what_is_no_archive(
    run: Run, archive: Path, tmp_path: Path, change: Callable[[bytes], bytes], told: str
) -> None:
    archive.write_bytes(change(archive.read_bytes()))
    code, out, err = run("unpack", archive)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert list(tmp_path.iterdir()) == [archive]


def test_places_that_will_not_do(run: Run, archive: Path, tmp_path: Path) -> None:
    for arguments, told in (
        ([archive, "-o", archive], "is the archive itself"),
        ([archive, "-o", tmp_path], "cannot write"),
        ([archive, "-o", tmp_path / "none" / "model.onnx"], "cannot write"),
        ([archive, "--limit", "1 kB"], "allowed"),
        ([archive, "--limit", "much"], "is no size"),
        ([tmp_path / "none.smidgen"], "cannot be read"),
    ):
        code, out, err = run("unpack", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err
        assert list(tmp_path.iterdir()) == [archive]


def test_unpack_to_tflite(run: Run, archive: Path, network: Path, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="the tflite extra is not installed")
    from smidgen.runtimes.opening import open_file

    code, out, err = run("unpack", archive, "-o", tmp_path / "out.tflite")
    assert (code, err) == (0, "")
    assert f"{(tmp_path / 'out.tflite').stat().st_size:,} bytes" in out
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    with open_file(network) as before, open_file(tmp_path / "out.tflite") as after:
        np.testing.assert_allclose(after.run(x)[0], before.run(x)[0], rtol=1e-4, atol=1e-5)


def test_free_sizes_have_no_tflite(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="the tflite extra is not installed")
    free = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, None, None])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, None, None])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [free], [end])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "model.smidgen"
    path.write_bytes(pack_archive(model.SerializeToString(), {}))
    code, out, err = run("unpack", path, "-o", tmp_path / "out.tflite")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has free sizes" in err
    assert [each.name for each in tmp_path.iterdir()] == ["model.smidgen"]
