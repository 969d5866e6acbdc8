"""A classifier's last layer, replaced: the rest stays, and what cannot be replaced is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smidgen.errors import UserError
from smidgen.model.heads import with_head
from smidgen.model.load import load_network


def test_everything_but_the_head_stays():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    x = torch.randn(2, 1, 6, 6)
    changed, name = with_head(net, x, 3)
    assert name == "4"
    assert changed(x).shape == (2, 3)
    assert torch.equal(changed[:4](x), net[:4](x))
    assert net(x).shape == (2, 10), "the given network was changed"


@pytest.mark.parametrize("name", ["mobilenet_v2_1.0_224_imagenet", "squeezenet1_1_imagenet", "lenet_mnist"])
def test_networks_as_they_are_get_other_classes(data_dir, name):
    network = load_network(data_dir / "models" / f"{name}.onnx")
    side = 28 if name == "lenet_mnist" else 128
    x = torch.randn(2, network.input_shape[1] or 1, side, side)
    changed, _ = with_head(network.module, x, 2)
    assert changed(x).shape == (2, 2)


class Fixed(nn.Module):
    """Its last step knows the number of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).reshape(-1, 6)


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (Fixed(), "what follows 'fc'"),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Flatten()), "needs the old number of classes"),
        (nn.Sequential(nn.Linear(4, 6), nn.MaxPool1d(2)), "must end in a dense or 1×1 layer"),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))), "one score a class"),
        (nn.ReLU(), "one score a class|must end in"),
    ],
)
def test_what_cannot_be_replaced_is_told(net, told):
    with pytest.raises(UserError, match=told):
        with_head(net.eval(), torch.zeros(2, 4), 3)
