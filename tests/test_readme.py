"""The documents tell the truth: their Python runs, and their shell commands take the options they show."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from smidgen.cli import main
from smidgen.cli.parser import parse
from smidgen.data import Preprocess
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.forms import Geometry, dense
from smidgen.methods import Family
from smidgen.model.load import load_network
from smidgen.site import Curvature, Site, untouched

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
TEXTS = {document: (ROOT / document).read_text(encoding="utf-8") for document in DOCUMENTS}
IMAGES = 60


def _blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[document], re.MULTILINE | re.DOTALL)


def _lines(document: str) -> list[str]:
    """What is shown as typed into a shell, in blocks and within sentences."""
    shown = _blocks(document, "sh") + re.findall(r"`(smidgen [a-z]+ [^`]+)`", TEXTS[document])
    return [line.partition(" #")[0].strip() for block in shown for line in block.splitlines()]


def _commands() -> list[str]:
    lines = [line for document in DOCUMENTS for line in _lines(document)]
    # What ends in "…" is shortened for reading.
    return sorted({line for line in lines if line.startswith("smidgen ") and "…" not in line})


def _network(path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    prepared = prepare(load_network(model), torch.zeros(1, 3, 12, 12))
    write(prepared.base, prepared.sites, {site.name: untouched(site) for site in prepared.sites}, path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: network and pictures by the names that documents use, and what the README's Python leaves."""
    folder = tmp_path_factory.mktemp("desk")
    _network(folder / "model.onnx")
    rng = np.random.default_rng(0)
    for name in ("images", "more-images"):
        (folder / name).mkdir()
        for i in range(IMAGES):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _run("README.md")
    shutil.copy(folder / "out" / "model.smidgen", folder)  # docs/archive.md opens it
    return folder


def _run(document: str) -> None:
    """A document's Python, block after block, in the current folder."""
    names: dict[str, object] = {"__name__": "document"}
    for block in _blocks(document, "python"):
        exec(compile(block, document, "exec"), names)


def test_python_of_the_readme_leaves_a_network(desk: Path) -> None:
    assert (desk / "out" / "model.onnx").stat().st_size < (desk / "model.onnx").stat().st_size


# TensorFlow is no dependency of the tests; tests/model/test_tensorflow.py runs that conversion where it is installed.
@pytest.mark.parametrize(
    "document",
    [name for name in DOCUMENTS[2:] if _blocks(name, "python") and name != "docs/tensorflow.md"],
)
def test_python_of_the_pages_runs(document: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(desk, tmp_path / "desk"))
    _run(document)


@pytest.mark.slow
def test_three_commands_of_the_readme_give_a_result(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shutil.copytree(desk, tmp_path / "desk", ignore=shutil.ignore_patterns("out")))
    install, *commands = _lines("README.md")[:3]
    assert install.startswith("pip install ")
    assert [main(shlex.split(command)[1:]) for command in commands] == [0, 0]
    assert "agreement" in capsys.readouterr().out
    assert (tmp_path / "desk" / "out" / "model.smidgen").is_file()


@pytest.mark.parametrize("command", _commands())
def test_commands_can_be_typed(command: str) -> None:
    parse(shlex.split(command.partition(">>")[0].partition(" > ")[0])[1:])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_named_exists(document: str) -> None:
    text, cli = TEXTS[document], ROOT / "smidgen" / "cli"
    helps = "".join(path.read_text(encoding="utf-8") for path in cli.glob("*.py"))
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert f'"{option}"' in helps, option
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:smidgen|\.)\[([a-z,]+)\]", text):
        assert set(named.split(",")) <= set(extras), named
    targets = re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in _lines(document):
        if line.startswith("make "):
            assert line.split()[1] in targets, line
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        generated = (ROOT / "smidgen" / link).with_suffix(".py") if link.startswith("methods/") else None
        assert (generated or (ROOT / document).parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_of_a_kind_that_is_tested(document: str, tmp_path: Path) -> None:
    kinds = re.findall(r"^```(\w*)\n.*?^```$", TEXTS[document], re.MULTILINE | re.DOTALL)
    assert set(kinds) <= {"sh", "python", "toml", "text"}
    for block in _blocks(document, "toml"):
        (tmp_path / "set.toml").write_text(block)
        Preprocess.from_toml(tmp_path / "set.toml")


def test_nothing_is_told_twice() -> None:
    told: Counter[str] = Counter()
    for text in TEXTS.values():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        prose = re.sub(r"^(\||    ).*$", "", prose, flags=re.MULTILINE)
        told.update(sentence for sentence in re.split(r"(?<=[.:])\s+", " ".join(prose.split())) if len(sentence) > 70)
    assert len(told) > 300
    assert [sentence for sentence, times in told.items() if times > 1] == []


def test_toml_of_the_data_page_is_a_declaration(tmp_path: Path) -> None:
    (block,) = _blocks("docs/data.md", "toml")
    (tmp_path / "set.toml").write_text(block)
    assert Preprocess.from_toml(tmp_path / "set.toml").output_size(300, 400) == (224, 224)


def test_skeleton_of_a_method_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = _blocks("CONTRIBUTING.md", "python")
    (tmp_path / "skeleton_method.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("skeleton_method").METHOD
    site = Site("fc", Geometry("linear", 30, 20), np.random.default_rng(0).normal(size=(20, 30)).astype("f4"))
    family = method.with_settings(most=9).family(site, Curvature())
    assert isinstance(family, Family)
    assert family.ranks[-1] == 9
    assert dense(family.form(5)).shape == dense(family.outline(5)).shape == (20, 30)
