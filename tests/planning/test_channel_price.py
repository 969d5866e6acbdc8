"""How many channels go at a price, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from smidgen.planning.channel_price import shares_left, steps_worth
from smidgen.planning.channels import Step
from smidgen.site import ChannelLayer, Channels

# 2 inputs → 4 channels → 3 outputs: the first layer has 8 weights, the second 12.
CHANNELS = Channels(
    4,
    (
        ChannelLayer("a", np.array([-1, -1]), np.arange(4)),
        ChannelLayer("b", np.arange(4), np.array([-1, -1, -1])),
    ),
    (np.arange(4),),
    ((0,),),
    {},
)
STEPS = [Step(0, (unit,), price, cost, 0.0) for unit, price, cost in ((2, 0.1, 1.0), (0, 0.4, 4.0), (3, 0.2, 2.0))]


def test_each_step_takes_a_quarter_of_both_layers():
    shares = shares_left(CHANNELS, STEPS)
    assert shares["a"].tolist() == shares["b"].tolist() == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("limit", "count"), [(60.0, 0), (50.0, 1), (20.0, 3), (1.0, 3)])
def test_the_lowest_price_at_which_all_fits(limit, count):
    # Bytes fall from 60 at no price to 30 at a price of 1; a step behind a dearer one waits for that one.
    def amounts(price):
        return {"a": 20 - 10 * price, "b": 40 - 20 * price}

    assert steps_worth(CHANNELS, STEPS, amounts, limit, 1.0) == count


def test_layers_without_channels_count_whole():
    def amounts(price):
        return {"a": 10.0, "other": 10.0}

    assert steps_worth(CHANNELS, STEPS, amounts, 17.6, 1.0) == 1
    assert steps_worth(CHANNELS, [], amounts, 17.6, 1.0) == 0
