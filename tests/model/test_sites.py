"""Finding the layers of a network: order, geometry, and reasons to leave a layer alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.errors import LoadError
from smidgen.model.sites import find_sites


def only(model, *shape):
    (site,) = find_sites(model.eval(), torch.zeros(1, *shape))
    return site


def test_sites_come_in_the_order_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.idle, self.first = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.first(x))

    assert [site.name for site in find_sites(Backwards().eval(), torch.zeros(2, 4))] == ["first", "last"]


def test_geometry_of_a_convolution():
    conv = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    g = only(nn.Sequential(conv), 4, 9, 12).geometry
    assert (g.kind, g.in_channels, g.out_channels, g.groups) == ("conv", 4, 6, 2)
    assert (g.kernel, g.stride, g.padding, g.dilation) == ((3, 5), (2, 1), (1, 2), (1, 2))
    assert (g.in_size, g.out_size) == ((9, 12), (5, 8))


def test_geometry_of_a_transposed_convolution():
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    site = only(nn.Sequential(conv), 4, 5, 5)
    g = site.geometry
    assert (g.kind, g.output_padding, g.in_size, g.out_size) == ("conv_transpose", (1, 1), (5, 5), (10, 10))
    assert site.weight.shape == (4, 3, 3, 3)


def test_geometry_of_dense_layers():
    assert only(nn.Sequential(nn.Linear(7, 5)), 7).geometry.out_size == ()
    over = only(nn.Sequential(nn.Linear(7, 5)), 3, 4, 7).geometry
    assert (over.in_size, over.positions) == ((3, 4), 12)


@pytest.mark.parametrize(("kernel", "dilation", "padding"), [(3, 1, 1), (5, 1, 2), (3, 2, 2), (1, 1, 0)])
def test_same_padding_is_spelled_out(kernel, dilation, padding):
    site = only(nn.Sequential(nn.Conv2d(2, 3, kernel, padding="same", dilation=dilation)), 2, 8, 8)
    assert site.refusal is None
    assert site.geometry.padding == (padding, padding)
    assert site.geometry.out_size == (8, 8)


def test_valid_padding_is_none():
    assert only(nn.Sequential(nn.Conv1d(2, 3, 3, padding="valid")), 2, 8).geometry.padding == (0,)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class Shouting(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (Twice(), (4,), "runs 2 times"),
        (tied(), (4,), "shared with another layer"),
        (nn.Sequential(Shouting(4, 4)), (4,), "a Shouting does more"),
        (nn.Sequential(nn.Conv3d(1, 2, 3)), (1, 5, 5, 5), "three-dimensional"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")), (1, 5, 5), "padding mode 'reflect'"),
        (nn.Sequential(nn.Conv2d(1, 2, 4, padding="same")), (1, 5, 5), "asymmetric 'same' padding"),
    ],
    ids=["twice", "shared", "subclass", "conv3d", "padding mode", "same"],
)
def test_layers_left_alone_say_why(model, shape, reason):
    sites = find_sites(model.eval(), torch.zeros(1, *shape))
    assert sites
    assert all(site.refusal is not None and reason in site.refusal for site in sites)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["weight", "bias"])
def test_values_that_are_no_numbers_are_told(bad, what):
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        getattr(model[1], what).view(-1)[:2] = bad
    with pytest.raises(LoadError, match=f"1.{what} holds 2 NaN or infinite values") as caught:
        find_sites(model, torch.zeros(1, 4))
    assert "\n" not in str(caught.value)


def test_an_example_that_does_not_fit_is_told_in_one_line():
    with pytest.raises(LoadError, match=r"input of shape \(1, 5\)") as caught:
        find_sites(nn.Sequential(nn.Linear(4, 3)).eval(), torch.zeros(1, 5))
    assert "\n" not in str(caught.value)


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True)).eval()
    (site,) = find_sites(model, torch.zeros(1, 4))
    assert not model[0]._forward_hooks
    assert np.array_equal(site.weight, model[0].weight.detach().numpy())
    with pytest.raises(LoadError):
        find_sites(model, torch.zeros(1, 9))
    assert not model[0]._forward_hooks, "hooks go after a failed run too"


def test_half_precision_weights_are_read_as_float32():
    model = nn.Sequential(nn.Linear(4, 3)).half().eval()
    (site,) = find_sites(model, torch.zeros(1, 4, dtype=torch.float16))
    assert site.weight.dtype == np.float32


def test_a_layer_with_a_hook_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    model[0].register_forward_hook(lambda _m, _a, out: 3 * out)
    assert only(model, 4).refusal is not None


class ReadsItsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.a(x.to(self.a.weight.dtype)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [(ReadsItsWeight(), (8,)), (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 8))],
    ids=["weight.dtype", "TransformerEncoderLayer"],
)
def test_a_layer_whose_owner_reads_its_weight_is_left_alone(model, shape):
    refused = {site.name for site in find_sites(model.eval(), torch.zeros(1, *shape)) if site.refusal is not None}
    assert refused & {"a", "linear1"}


def test_a_layer_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(input=x)

    assert only(ByKeyword(), 4).name == "layer"
