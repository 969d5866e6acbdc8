"""Two processes that share each step end where one does with the doubled batch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smidgen.errors import LoadError
from smidgen.recover.processes import processes

SCRIPT = """
import os, sys, warnings
import numpy as np, torch
from pathlib import Path
from torch import nn
from smidgen.data import Dataset
from smidgen.recover import loop
from smidgen.recover.loop import Training, fit

loop.SAVE_SECONDS = 0.003  # no two processes think so at the same step
random = np.random.default_rng(0)
x = random.standard_normal((90, 6)).astype(np.float32)
inputs = Dataset.from_array(x, (x.sum(1) > 0).astype(np.int64))
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
average, normed = (float(sys.argv[4]) or None), sys.argv[5].startswith("norm")
norm = nn.BatchNorm1d(16) if normed else nn.Identity()
net.append(norm)
unused, beyond = nn.Linear(3, 3), nn.Parameter(torch.zeros(2))
net.spare = unused  # no gradient reaches it
net.forward = lambda x: net[2](net[1](norm(net[0](x))))

asked = 0

def loss(x, labels):
    global asked
    asked += 1
    if sys.argv[5].endswith("killed") and asked == 8:
        os._exit(0)  # in the fourth epoch of two steps
    return nn.functional.cross_entropy(net(x) + beyond, labels)

def held():
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(inputs.labels.copy())))

groups = [{"params": list(net.parameters())}, {"params": [beyond]}]
training = Training(epochs=5, batch=int(sys.argv[1]), lr=0.02, weight_decay=0.01, average=average)
done = fit(net, inputs, loss, training, held=held, groups=groups, checkpoint=Path(sys.argv[3]))
scores = torch.tensor([line["held"] for line in done.history])
state = {**net.state_dict(), "beyond": beyond.detach(), "best": torch.tensor(done.best), "scores": scores}
torch.save(state, f"{sys.argv[2]}.{os.environ.get('RANK', '0')}")
"""


def run(folder: Path, count: int, batch: int, average: float = 0.0, norm: str = "") -> list[dict[str, torch.Tensor]]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    out = folder / f"out{count}"
    launch = [sys.executable]
    if count > 1:
        launch += ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launch, str(script), str(batch), str(out), str(folder / f"{count}.ckpt"), str(average), norm],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ends = [Path(f"{out}.{rank}") for rank in range(count)]
    return [torch.load(each, weights_only=True) for each in ends if each.exists()]


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_two_processes_are_one_with_the_doubled_batch(tmp_path, average):
    pytest.importorskip("accelerate", reason="several processes need accelerate: pip install 'smidgen[train]'")
    (alone,) = run(tmp_path, 1, 32, average)
    first, second = run(tmp_path, 2, 16, average)
    assert all(torch.equal(first[name], second[name]) for name in first), "both have the same network"
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, atol=1e-6, rtol=1e-5)
    resumed = run(tmp_path, 2, 16, average)[1]  # from the checkpoint that the first of them wrote
    assert all(torch.equal(first[name], resumed[name]) for name in first)


@pytest.mark.slow
def test_two_processes_average_and_go_on_with_norms(tmp_path):
    """Each gathers statistics of its own inputs; what is scored and kept are those of the first."""
    pytest.importorskip("accelerate", reason="several processes need accelerate: pip install 'smidgen[train]'")
    for part in ("whole", "killed", "plain"):
        (tmp_path / part).mkdir()
    first, second = run(tmp_path / "whole", 2, 16, 0.9, "norm")
    assert all(torch.equal(first[name], second[name]) for name in first)
    plain = run(tmp_path / "plain", 2, 16, 0.0, "norm")[0]
    assert not torch.allclose(first["scores"], plain["scores"], atol=1e-4), "the average is another network"
    assert not run(tmp_path / "killed", 2, 16, 0.9, "norm killed")
    resumed, other = run(tmp_path / "killed", 2, 16, 0.9, "norm")
    assert all(torch.equal(first[name], each[name]) for each in (resumed, other) for name in first)


def test_accelerate_is_asked_for_by_name(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    if importlib.util.find_spec("accelerate") is not None:
        monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(LoadError, match=r"pip install 'smidgen\[train\]'"):
        processes("cpu")
