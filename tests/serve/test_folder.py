"""A run's folder gives what its record names, and nothing else; a record may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smidgen.errors import LoadError
from smidgen.serve.folder import read_classes, read_run
from tests.serve.networks import classifier, saved_run, write_record


def test_a_run(tmp_path: Path) -> None:
    run = read_run(saved_run(tmp_path / "out", {"scale": 0.5, "channels": "gray"}))
    assert run.name == "small"
    assert run.original.path == (tmp_path / "out" / "small.onnx").resolve()
    assert [network.target for network in run.written] == ["onnx", "onnx-w8"], "the budget's first, no archive"
    assert (run.original.accuracy, run.written[0].accuracy, run.written[1].accuracy) == (0.75, 0.5, None)
    assert run.original.nbytes == (tmp_path / "out" / "small.onnx").stat().st_size
    assert run.preprocess is not None
    assert (run.preprocess.scale, run.preprocess.channels) == (0.5, "gray")
    assert run.notes == ()


def test_an_original_elsewhere(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "out")
    (folder / "small.onnx").rename(tmp_path / "mine.onnx")
    with pytest.raises(LoadError, match=r"the original 'small.onnx' is not in .*--against"):
        read_run(folder)
    assert read_run(folder, tmp_path / "mine.onnx").original.path.name == "mine.onnx"
    with pytest.raises(LoadError, match=r"there is no file .*none.onnx"):
        read_run(folder, tmp_path / "none.onnx")
    with pytest.raises(LoadError, match=r"no browser runs 'model.smidgen'"):
        read_run(folder, folder / "model.smidgen")


def test_a_file_that_has_gone(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "out")
    (folder / "model.w8.onnx").unlink()
    run = read_run(folder)
    assert [network.target for network in run.written] == ["onnx"]
    assert len(run.notes) == 1
    assert "'model.w8.onnx' is no longer" in run.notes[0]
    (folder / "model.onnx").unlink()
    with pytest.raises(LoadError, match=r"'model\.\w*\.?onnx' is no longer"):
        read_run(folder)


@pytest.mark.parametrize("file", ["../secret.onnx", "/etc/secret.onnx", "..", "a/../../secret.onnx", "..\\secret.onnx",
                                  "secret.onnx\0.onnx", "./../secret.onnx", "sub/inner.onnx"])  # fmt: skip
@pytest.mark.parametrize("where", ["original", "written"])
def test_a_record_that_names_a_file_elsewhere(tmp_path: Path, file: str, where: str) -> None:
    folder = saved_run(tmp_path / "out")
    classifier(tmp_path / "secret.onnx")
    (folder / "sub").mkdir()
    classifier(folder / "sub" / "inner.onnx")
    record = json.loads((folder / "result.json").read_text())
    (record["original"] if where == "original" else record["files"]["onnx"])["path"] = file
    if file == ".." and where == "written":
        record["files"] = {"onnx": {"path": file}}
    write_record(folder, record)
    with pytest.raises(LoadError, match=r"no plain file name|names no file"):
        read_run(folder)


def test_a_link_that_leads_out(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "out")
    classifier(tmp_path / "secret.onnx")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(tmp_path / "secret.onnx")
    with pytest.raises(LoadError, match="leads out of the folder"):
        read_run(folder)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(folder / "model.w8.onnx")
    assert read_run(folder).written[0].path.name == "model.w8.onnx", "a link within is none"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff\xfe"]
)
def test_a_damaged_record(tmp_path: Path, text: str | bytes) -> None:
    folder = saved_run(tmp_path / "out")
    (folder / "result.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(LoadError, match="damaged"):
        read_run(folder)


@pytest.mark.parametrize("record", [
    {}, {"files": None}, {"files": []}, {"files": {"onnx": 3}}, {"files": {"onnx": {"path": None}}},
    {"files": {"onnx": {"path": "model.onnx"}}, "original": "small.onnx"},
    {"files": {"onnx": {"path": "model.onnx", "accuracy": "good"}}, "original": {"path": ["small.onnx"]}},
    {"files": {"onnx": {"path": "model.onnx"}}, "original": {"path": "small.onnx"},
     "data": {"test": {"preprocess": {"scale": "much"}}}},
])  # fmt: skip
def test_a_record_with_other_things_in_it(tmp_path: Path, record: object) -> None:
    folder = saved_run(tmp_path / "out")
    write_record(folder, record)
    with pytest.raises(LoadError):
        read_run(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no folder"):
        read_run(tmp_path / "none")
    with pytest.raises(LoadError, match=r"holds no result\.json"):
        read_run(tmp_path)


def test_what_downsample_leaves(tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "out")
    write_record(folder, {"name": "small", "rows": [], "max_drop": 1.0})
    with pytest.raises(LoadError, match="give it with --against"):
        read_run(folder)
    run = read_run(folder, folder / "small.onnx")
    assert [network.path.name for network in run.written] == ["model.onnx"]


def test_names_of_classes(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(" cat\ndog \n", encoding="utf-8")
    assert read_classes(tmp_path / "names.txt") == ("cat", "dog")
    with pytest.raises(LoadError, match=r"none\.txt' cannot be read"):
        read_classes(tmp_path / "none.txt")
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LoadError, match="it is not text"):
        read_classes(tmp_path / "noise.txt")
