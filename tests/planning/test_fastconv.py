"""Fast convolutions as options: what they cost is what the file holds, and only what gains is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.forms import dense, nbytes
from smidgen.model.load import load_network
from smidgen.planning.candidates import gather
from smidgen.planning.fastconv import fastest, keep_fast, with_fast
from smidgen.planning.pace import TOLERANCE
from smidgen.site import Stored, untouched


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 36, 4),
    )  # fmt: skip
    return prepare(load_network(net.eval()), torch.zeros(1, 3, 14, 14))


@pytest.fixture(scope="module")
def options(prepared):
    return with_fast(gather(prepared.sites, {}, {}))


def test_only_what_is_covered_gets_algorithms_and_nothing_is_lost(prepared, options):
    found = {o.site.name: [label.method for label in o.labels] for o in options}
    assert found["0"] == [None, "winograd2", "winograd4", "fft"]
    assert found["4"] == found["6"] == [None]
    for option in options:
        assert not option.losses.any()
        for label in option.labels:
            np.testing.assert_array_equal(dense(option.form(label.method, label.rank)), option.site.weight)


@pytest.mark.parametrize("algorithm", ["winograd2", "winograd4", "fft"])
def test_bytes_are_those_of_the_file(prepared, options, algorithm, tmp_path):
    stored = {site.name: untouched(site) for site in prepared.sites}
    before = write(prepared.base, prepared.sites, stored, tmp_path / "plain.onnx")
    option = options[0]
    stored["0"] = Stored(option.form(algorithm, 1), option.site.bias)
    after = write(prepared.base, prepared.sites, stored, tmp_path / "fast.onnx")
    place = [label.method for label in option.labels].index(algorithm)
    predicted = before + int(option.sizes[place]) - int(option.sizes[0])
    assert abs(predicted - after) <= 0.05 * after
    assert option.sizes[place] == nbytes(stored["0"].form, option.site.geometry)


def timed(options, share):
    """The layer as it is takes 1 ms, Winograd's F(4) a share of it, the others more."""

    def ms(label):
        return {None: 1.0, "winograd4": share}.get(label.method, 1.5)

    return [replace(o, times=np.array([ms(label) for label in o.labels])) for o in options]


def test_the_fastest_that_surely_gains(options):
    assert fastest(timed(options, 0.5)) == {"0": ("winograd4", 0.5), "2": ("winograd4", 0.5)}
    assert fastest(timed(options, 1 - TOLERANCE / 2)) == {}
    assert fastest(options) == {}, "nothing was timed"


def test_what_gains_nothing_is_left_out_and_says_so(options):
    kept = keep_fast(timed(options, 0.5), {"0": "winograd4"})
    assert [label.method for label in kept[0].labels] == [None, "winograd4"]
    assert kept[0].times.tolist() == [1.0, 0.5]
    assert [label.method for label in kept[1].labels] == [None]
    assert len(kept[1].losses) == len(kept[1].sizes) == len(kept[1].times) == 1
    assert kept[1].refusals["fft"] == "fft: does not make the whole file faster"
