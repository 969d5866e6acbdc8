"""The command line as its own process: how fast it answers, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIGHT = """
import sys
import smidgen
from smidgen.cli import main
try:
    main(["compress", "--help"])
except SystemExit:
    pass
heavy = {"torch", "numpy", "onnx", "onnxruntime", "rich"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_help_imports_nothing_heavy() -> None:
    done = _run("-c", LIGHT)
    assert done.returncode == 0, done.stderr
    assert "--max-drop" in done.stdout


def test_smidgen_does_not_import_onnx() -> None:
    code = "import sys, smidgen; sys.exit(int('onnx' in sys.modules or 'torch' in sys.modules))"
    assert _run("-c", code).returncode == 0


def test_module_and_version() -> None:
    assert _run("-m", "smidgen", "--version").stdout.startswith("smidgen ")
    done = _run("-m", "smidgen", "compress", "none.onnx", "--size", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("smidgen: error: budget: size='x'")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_in_the_middle(tmp_path: Path, network: Path, data: Path) -> None:
    # A library that is just being imported may catch the interrupt; users press again.
    outs = [tmp_path / f"out{attempt}" for attempt in range(3)]
    assert 130 in (_interrupted(network, data, out) for out in outs)


def _interrupted(network: Path, data: Path, out: Path) -> int:
    command = [sys.executable, "-m", "smidgen", "compress", str(network), "--data", str(data), "-o", str(out)]
    # Tests that run in the background of a shell have interrupts turned off, and so would what they start.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    while not out.exists():  # made once the arguments are read, before the work
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    assert process.returncode in (0, 130), told
    assert out.exists() == (process.returncode == 0), "nothing half done is left"
    return process.returncode


def test_a_reader_that_goes_away(network: Path) -> None:
    piped = f"{sys.executable} -m smidgen inspect {network} --json -q | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
