"""Channels are followed through all that passes a positive factor on, and held by all else."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from smidgen.export.channel_ties import HELD, channel_ties
from smidgen.export.prepare import prepare
from smidgen.model.load import load_network


def ties_of(model, *shape):
    ready = prepare(load_network(model.eval()), torch.zeros(1, *shape))
    return channel_ties(ready.base.proto.graph, {site.name: site.geometry for site in ready.sites})


def test_convolutions_with_an_activation_and_pooling_between_them_are_tied():
    for between in (nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(4), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity()):
        ties = ties_of(nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 2, 1)), 3, 8, 8)
        assert ties.made["0"].tolist() == ties.read["2"].tolist() == ties.free.tolist(), between
        assert (ties.read["0"] == HELD).all()
        assert (ties.made["2"] == HELD).all()


def test_what_minds_the_scale_holds_its_channels():
    for between in (nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Hardswish()):
        ties = ties_of(nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 2, 1)), 3, 8, 8)
        assert not len(ties.free), between


def test_a_dense_layer_behind_flattened_maps_reads_each_channel_as_several_columns():
    ties = ties_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), 1, 4, 4)
    assert ties.read["3"].tolist() == np.repeat(ties.made["0"], 4).tolist()
    assert len(ties.free) == 2


def test_a_depthwise_layer_has_channels_of_its_own_on_both_sides():
    layers = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ties = ties_of(nn.Sequential(*layers), 3, 8, 8)
    assert ties.made["0"].tolist() == ties.read["2"].tolist()
    assert ties.made["2"].tolist() == ties.read["4"].tolist()
    assert not set(ties.read["2"]) & set(ties.made["2"])


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.last, self.kept = nn.Conv2d(7, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(torch.cat([self.one(x), self.two(x)], 1))
        return self.kept(x + self.last(y)).mean((2, 3)) + x.new_ones(4)


def test_sums_make_channels_one_and_joins_put_them_side_by_side():
    ties = ties_of(Joined(), 3, 6, 6)
    assert ties.read["last"].tolist() == [*ties.made["one"], *ties.made["two"]]
    assert ties.made["stem"].tolist() == ties.made["last"].tolist() == ties.read["kept"].tolist()
    assert ties.read["one"].tolist() == ties.read["two"].tolist() == ties.made["stem"].tolist()
    assert len(ties.free) == 11
