"""Opening ExecuTorch programs and running arrays through them; files that are damaged end in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.errors import DataError, LoadError

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from smidgen.export.executorch import to_executorch
from smidgen.runtimes import executorch as runtime
from smidgen.runtimes.executorch import open_pte, quiet, runner_of
from smidgen.runtimes.opening import Runner, open_file, run_dataset


class Net(nn.Module):
    """Two outputs of a depthwise and a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.point, self.head = nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.point(self.depth(x).relu()).relu().mean((2, 3))
        return self.head(features), features


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def content(network: nn.Module) -> bytes:
    return to_executorch(network, torch.zeros(2, 3, 9, 7))


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "net.pte").write_bytes(content)
    return tmp_path / "net.pte"


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 3, 9, 7)).astype("f4")


def test_runner_tells_what_the_file_takes_and_gives(file: Path) -> None:
    with open_file(file) as runner:
        assert isinstance(runner, Runner)
        assert (runner.input_shape, runner.input_dtype) == ((1, 3, 9, 7), np.float32)
        assert runner.output_names == ("output", "output1")


def test_any_number_of_samples_answers_as_the_network(file: Path, network: nn.Module, x: np.ndarray) -> None:
    with open_pte(file) as runner, torch.no_grad():
        together = runner.run(x)
        parts = run_dataset(runner, [x[:2], x[2:].astype("f8")])
        for got, part, want in zip(together, parts, network(torch.from_numpy(x)), strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
            assert np.array_equal(got, part)


def test_a_program_that_takes_and_gives_channels_last_answers_as_the_network(x: np.ndarray) -> None:
    """ExecuTorch copies an input's bytes as they lie, so that channels first would be read as channels last."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    example = torch.zeros(1, 3, 9, 7).to(memory_format=torch.channels_last)
    with quiet():  # importing it warns, too
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(torch.export.export(net, (example,)), partitioner=[XnnpackPartitioner()])
        content = bytes(lowered.to_executorch().buffer)
    with runner_of(content) as runner, torch.no_grad():
        assert runner.axes == (0, 2, 3, 1)
        np.testing.assert_allclose(runner.run(x)[0], net(torch.from_numpy(x)).numpy(), atol=1e-5)


def test_two_files_of_other_numbers_of_threads_run_in_turns(file: Path, x: np.ndarray) -> None:
    """A program keeps the address of the pool it was loaded with, which the other's opening frees."""
    one, two = open_pte(file, 1), open_pte(file, 2)
    first = one.run(x)
    for _ in range(3):
        for runner in (two, one):
            assert all(np.array_equal(a, b) for a, b in zip(runner.run(x), first, strict=True))
    two.close()
    assert np.array_equal(one.run(x)[0], first[0])


def test_an_answer_is_not_overwritten_by_the_next(file: Path, x: np.ndarray) -> None:
    with open_pte(file) as runner:
        x.setflags(write=False)
        first = runner.run(x[:1])[0]
        kept = first.copy()
        runner.run(x[1:2])
        assert np.array_equal(first, kept)


def test_shapes_that_do_not_fit_and_a_closed_file_are_told(file: Path) -> None:
    runner = open_pte(file)
    for shape in [(2, 9, 7, 3), (0, 3, 9, 7), (3, 9, 7)]:
        with pytest.raises(DataError, match=r"takes \[n, 3, 9, 7\]"):
            runner.run(np.zeros(shape, "f4"))
    runner.close()
    runner.close()
    with pytest.raises(LoadError, match="closed"):
        runner.run(np.zeros((1, 3, 9, 7), "f4"))


@pytest.mark.parametrize("damage", ["cut", "words", "inside"])
def test_what_is_damaged_is_one_line(
    content: bytes, damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inside = bytearray(content)
    inside[400:2000] = np.random.default_rng(0).bytes(1600)
    path = tmp_path / "damaged.pte"
    path.write_bytes({"cut": content[: len(content) // 2], "words": b"not a network", "inside": bytes(inside)}[damage])
    with pytest.raises(LoadError, match=r"damaged\.pte") as caught:
        open_file(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_ends_the_process_is_tried_elsewhere_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.SOUND.clear()  # as of a file from elsewhere
    monkeypatch.setattr(runtime, "_TRY", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(LoadError, match=r"crashes on .*signal 11"):
        open_pte(file)


def test_a_missing_file_and_a_missing_package_are_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="no file"):
        open_pte(file.with_name("none.pte"))
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"pip install smidgen\[executorch\]"):
        open_pte(file)
