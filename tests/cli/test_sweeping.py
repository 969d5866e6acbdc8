"""``smidgen sweep``, and the completion of shells."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from smidgen.cli.completion import options_of
from smidgen.cli.parser import COMMANDS, commands

Run = Callable[..., tuple[int, str, str]]


def test_sweep_in_two_processes_writes_what_can_be_applied(run: Run, tmp_path: Path, network: Path, data: Path) -> None:
    out = tmp_path / "out"
    asked = ("sweep", network, "--data", data, "--points", "3", "--methods", "svd", "--jobs", "2", "--threads", "1")
    code, told, err = run(*asked, "--mark", "paper:4kB:0.3", "-o", out, "-q")
    assert (code, err) == (0, "")
    record = json.loads((out / "sweep.json").read_text())
    assert record["jobs"] == 2
    assert record["note"] == ""
    assert record["marks"] == [{"name": "paper", "nbytes": 4000, "score": 0.3}]
    assert record["command"].startswith("smidgen sweep ")
    assert record["chosen"] in told
    point = next(each for each in record["points"] if each["name"] == record["chosen"])
    assert not (out / "parcel").exists()
    code, _, err = run("apply", network, out / point["plan"], "--data", data, "--threads", "1", "-o", tmp_path / "one")
    assert code == 0, err
    assert (tmp_path / "one" / "model.onnx").read_bytes() == (out / point["file"]).read_bytes()
    code, told, err = run(*asked, "--size", "10", "-o", out, "--json", "-q")
    assert code == 3, "no file is that small"
    assert json.loads(told)["met"] is False
    assert "comes nearest" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give --data"), (("--data", "none.npz"), "none.npz"), (("--mark", "x"), "name:bytes:accuracy"),
        (("--time-limit", "soon"), "90s, 10m or 2h"), (("--points", "1"), "between 2 and 1000"),
        (("--target", "onxn"), "onxn"), (("--jobs", "0"), "between 1 and 256"), (("--methods", "svt"), "svt"),
        (("--size", "1kB", "--ratio", "3"), "one"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(
    run: Run, tmp_path: Path, network: Path, data: Path, arguments: tuple[str, ...], told: str
) -> None:
    given = arguments if not arguments or arguments[0] == "--data" else ("--data", data, *arguments)
    code, _, err = run("sweep", network, *given, "-o", tmp_path / "out", "-q")
    assert code == 2, err
    assert err.count("\n") == 1
    assert told in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(run: Run, tmp_path: Path, shell: str) -> None:
    code, script, _ = run("completion", shell)
    assert code == 0
    for name, parser in commands().items():
        assert name in script
        for option in options_of(parser):
            assert option in script or f"-l {option[2:]} " in script, (name, option)
    found = shutil.which(shell)
    if found is not None:  # its own reading of the script
        path = tmp_path / "script"
        path.write_text(script)
        check = subprocess.run([found, "-n", str(path)], capture_output=True, text=True, check=False)
        assert (check.returncode, check.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(run("completion", "bash")[1])

    def completed(*words: str) -> list[str]:
        line = (
            f". {path}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _smidgen; echo ${{COMPREPLY[@]}}"
        )
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.split()

    assert completed("smidgen", "sw") == ["sweep"]
    assert completed("smidgen", "sweep", "--time") == ["--time-limit"]
    assert set(completed("smidgen", "''")) >= set(COMMANDS)


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(run("completion", "fish")[1])

    def completed(line: str) -> list[str]:
        asked = ["fish", "--no-config", "-c", f"source {path}; complete -C '{line}'"]
        found = subprocess.run(asked, capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)})
        return [each.split("\t")[0] for each in found.stdout.splitlines()]

    assert completed("smidgen sw") == ["sweep"]
    assert completed("smidgen sweep --time") == ["--time-limit"]
    assert set(completed("smidgen ")) >= set(COMMANDS)
