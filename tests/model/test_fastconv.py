"""Fast convolutions as modules: the layer's answers, training, ONNX by torch's own exporter, what is not covered."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from smidgen.errors import Refusal, UserError
from smidgen.export.onnx import export_base, write
from smidgen.model.fastconv import Choice, FastConv2d, FFTConv2d, WinogradConv2d, with_fast_convs

MAKERS: dict[str, Callable[[nn.Conv2d, tuple[int, int]], FastConv2d]] = {
    "winograd2": lambda conv, size: WinogradConv2d(conv, size, 2), "winograd4": WinogradConv2d, "fft": FFTConv2d,
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_module_answers_as_its_layer(name: str, padding: int | str, bias: bool) -> None:
    conv = nn.Conv2d(5, 7, 3, padding=padding, bias=bias)
    x = torch.randn(2, 5, 31, 12)
    with torch.no_grad():
        torch.testing.assert_close(MAKERS[name](conv, (31, 12))(x), conv(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_it_trains(name: str) -> None:
    torch.manual_seed(0)
    conv, goal = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
    module, x = MAKERS[name](conv, (8, 8)).train(), torch.randn(16, 3, 8, 8)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)  # F(4, 3) multiplies some entries of the kernel by 64
    losses = []
    for _ in range(100):
        loss = (module(x) - goal(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    assert sorted(module.state_dict()) == ["bias", "kernel"]  # the matrices follow from the plan


def test_saved_weights_come_back() -> None:
    conv, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(1, 3, 8, 8)
    module, other = (WinogradConv2d(each, (8, 8)) for each in (conv, nn.Conv2d(3, 4, 3, padding=1)))
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(other(x), module(x))


def test_torch_exports_it_as_plain_operators(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 9, padding=4)).eval()
    x = torch.randn(5, 3, 34, 10)
    module, _ = with_fast_convs(plain, x, {"0": "winograd4", "1": "fft"})
    base = export_base(module, [], x)
    write(base, [], {}, tmp_path / "fast.onnx")
    assert base.dynamic_batch
    assert {node.op_type for node in base.proto.graph.node} <= {
        "Add", "Concat", "MatMul", "Pad", "Reshape", "Slice", "Transpose", "Unsqueeze", "Squeeze",
    }  # fmt: skip
    answer = onnxruntime.InferenceSession(tmp_path / "fast.onnx").run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(answer, plain(x).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "algorithm", "told"),
    [
        (nn.Conv2d(4, 4, 3, stride=2), "winograd2", "stride 2×2"),
        (nn.Conv2d(4, 4, 3, stride=(1, 2)), "fft", "stride 1×2"),
        (nn.Conv2d(4, 4, 3, dilation=2), "winograd4", "dilation 2×2"),
        (nn.Conv2d(4, 4, 3, groups=2), "fft", "2 groups"),
        (nn.Conv2d(4, 4, 1), "fft", "1×1 kernel"),
        (nn.Conv2d(4, 4, 7), "winograd4", "F(4, 7) loses too many digits"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "winograd2", "padding mode 'reflect'"),
        (nn.ConvTranspose2d(4, 4, 3), "fft", "no convolution of two axes"),
    ],
)
def test_what_is_not_covered_stays_direct_with_the_reason(layer: nn.Module, algorithm: str, told: str) -> None:
    model = nn.Sequential(layer)
    fast, choices = with_fast_convs(model, torch.zeros(1, 4, 12, 12), {"0": algorithm})
    assert [(c.layer, c.algorithm) for c in choices] == [("0", "direct")]
    assert told in (choices[0].reason or "")
    assert type(fast[0]) is type(layer)
    if type(layer) is nn.Conv2d:
        with pytest.raises(Refusal) as refused:
            MAKERS[algorithm](layer, (12, 12))
        assert told in str(refused.value)


def test_layers_are_replaced_in_a_copy() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, (3, 1), padding=(1, 0))).eval()
    x = torch.randn(2, 1, 9, 9)
    fast, choices = with_fast_convs(model, x, {"0": "fft", "2": "winograd4"})
    assert choices == (Choice("0", "fft"), Choice("2", "winograd4"))
    assert [type(m).__name__ for m in fast] == ["FFTConv2d", "ReLU", "WinogradConv2d"]
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_mistakes_are_told() -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3)), torch.zeros(1, 1, 9, 9)
    with pytest.raises(UserError, match="the network runs no layer '7'; there are: 0"):
        with_fast_convs(model, x, {"7": "fft"})
    with pytest.raises(UserError, match="no algorithm 'winogard2'; did you mean winograd2"):
        with_fast_convs(model, x, {"0": "winogard2"})
    with pytest.raises(Refusal, match="a map of 2×9 is smaller than the kernel"):
        FFTConv2d(nn.Conv2d(1, 4, 3), (2, 9))
    with pytest.raises(ValueError, match=r"made for maps of 9×9, got \[1, 1, 8, 9\]"):
        WinogradConv2d(nn.Conv2d(1, 4, 3), (9, 9))(torch.zeros(1, 1, 8, 9))
