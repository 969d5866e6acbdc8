"""The documents tell the truth: their Python runs, and their shell commands take the options they show."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from smidgen.cli.parser import parse
from smidgen.data import Preprocess
from smidgen.forms import Geometry, dense
from smidgen.methods import Family
from smidgen.site import Curvature, Site

ROOT = Path(__file__).resolve().parents[1]


def _blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _commands(document: str) -> list[str]:
    shown = _blocks(document, "sh") + re.findall(
        r"`(smidgen [a-z]+ [^`]+)`", (ROOT / document).read_text(encoding="utf-8")
    )
    lines = [line.partition("#")[0].strip() for block in shown for line in block.splitlines()]
    return [line for line in lines if line.startswith("smidgen ")]


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_python_of_the_training_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in _blocks("docs/training.md", "python"):
        exec(compile(block, "docs/training.md", "exec"), names)
    assert {"student", "result"} <= names.keys()


@pytest.mark.parametrize("command", [*_commands("README.md"), *_commands("docs/training.md")])
def test_commands_of_the_readme_can_be_typed(command: str) -> None:
    parse(shlex.split(command)[1:])


@pytest.mark.parametrize("document", ["README.md", "docs/training.md"])
def test_options_named_in_the_readme_exist(document: str) -> None:
    cli = ROOT / "smidgen" / "cli"
    helps = "".join((cli / name).read_text(encoding="utf-8") for name in ("parser.py", "training_options.py"))
    for option in set(re.findall(r"`(--[a-z-]+)", (ROOT / document).read_text(encoding="utf-8"))):
        assert f'"{option}"' in helps, option


def test_toml_of_the_readme_is_a_declaration(tmp_path: Path) -> None:
    (block,) = _blocks("README.md", "toml")
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


def test_links_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/training.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / document).parent / link).exists(), f"{document}: {link}"
