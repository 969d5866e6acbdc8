"""The kernel built afresh from its source, and a switch between it and its plain twin."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import smidgen.coding
from smidgen.coding import kernel

SOURCE = Path(smidgen.coding.__file__).parent / "_kernel.c"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The compiled kernel of this very source; the test is skipped where nothing compiles."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    include = Path(sysconfig.get_paths()["include"])
    if compiler is None or not (include / "Python.h").exists():
        pytest.skip("no C compiler or no Python headers")
    target = tmp_path_factory.mktemp("kernel") / "_kernel.so"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    # Where -undefined is needed (macOS) the loader finds Python's symbols in the running process.
    flags += ["-undefined", "dynamic_lookup"] if sysconfig.get_platform().startswith("macosx") else []
    subprocess.run([compiler, *flags, f"-I{include}", str(SOURCE), "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location("_kernel", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compiled(built: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the compiled kernel."""
    monkeypatch.setattr(kernel, "_compiled", built)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the plain twin, as an installation without a compiler does."""
    monkeypatch.setattr(kernel, "_compiled", None)


@pytest.fixture(params=["compiled", "plain"])
def either(request: pytest.FixtureRequest) -> str:
    """Run twice: compiled, then plain."""
    request.getfixturevalue(request.param)
    return request.param
