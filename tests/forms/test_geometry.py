"""Geometry: what it derives, and its way through JSON."""

from __future__ import annotations

import json

from smidgen.forms import Geometry

CONV = Geometry("conv", 12, 8, (3, 2), (2, 1), (1, 0), (1, 1), 4, in_size=(9, 9), out_size=(5, 8))


def test_columns_are_those_of_one_group():
    assert (CONV.columns, CONV.positions) == (3 * 6, 40)
    assert (Geometry("linear", 30, 20).columns, Geometry("linear", 30, 20).positions) == (30, 1)


def test_depthwise_means_one_input_channel_a_group():
    assert CONV.with_(groups=12, out_channels=24).depthwise
    assert not CONV.depthwise
    assert not CONV.with_(groups=1, in_channels=1).depthwise
    assert not Geometry("linear", 1, 1).depthwise


def test_plain_values_survive_json():
    stored = json.loads(json.dumps(CONV.to_dict()))
    assert stored["kernel"] == [3, 2]
    assert Geometry.from_dict(stored) == CONV
