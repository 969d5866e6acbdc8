"""Sets, views, hashes and inputs given in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smidgen.data import Dataset, Preprocess, as_dataset, check_inputs, check_labels
from smidgen.errors import DataError

_X = np.arange(24, dtype=np.float32).reshape(6, 4)
_Y = np.array([0, 1, 2, 0, 1, 2])


def test_batches_cover_the_set_in_order() -> None:
    data = as_dataset((_X, _Y))
    batches = list(data.batches(4))
    assert [len(batch) for batch in batches] == [4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), _X)
    np.testing.assert_array_equal(np.asarray(data), _X)
    assert data.shape == (4,)
    assert data.num_inputs == len(data) == 6
    with pytest.raises(DataError, match="batch_size=0"):
        data.batches(0)


def test_batches_are_the_callers_to_change() -> None:
    data = as_dataset(_X.copy())
    for batch in data.batches(2):
        batch += 1
    np.testing.assert_array_equal(np.asarray(data), _X)


def test_the_set_itself_is_frozen() -> None:
    data = as_dataset((_X, _Y))
    assert data.labels is not None
    with pytest.raises(ValueError, match="read-only"):
        data.labels[0] = 5


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.data())
def test_a_view_of_a_view(first: list[int], draw: st.DataObject) -> None:
    second = draw.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, max_size=5))
    view = as_dataset((_X, _Y)).take(first).take(second)
    chosen = np.array(first)[second]
    np.testing.assert_array_equal(np.asarray(view), _X[chosen])
    assert view.labels is not None
    np.testing.assert_array_equal(view.labels, _Y[chosen])


def test_views_outside_or_empty_are_refused() -> None:
    data = as_dataset(_X)
    assert len(data.array(4, 99)) == 2
    for wrong in ([6], [-1], []):
        with pytest.raises(DataError):
            data.take(wrong)
    with pytest.raises(DataError, match="holds no inputs"):
        data.array(3, 3)


def test_hashes_tell_items_order_and_labels() -> None:
    data = as_dataset((_X, _Y))
    assert data.sha256 == as_dataset((_X.astype(np.float64), _Y.astype(np.int8))).sha256
    # Held here so that a release that hashes otherwise is noticed: reports are compared by it.
    assert data.sha256 == "eeed2984b430fbe0907858e3fb582725482c81ede393e028b5ec864594f65ea8"
    others = [as_dataset(_X), as_dataset((_X, _Y + 1)), data.take([1, 0, 2, 3, 4, 5]), data.array(0, 5)]
    assert len({data.sha256, *(other.sha256 for other in others)}) == 5
    assert data.item_hashes[3] == data.take([3]).item_hashes[0]
    assert len(set(data.item_hashes)) == 6


def test_describe_names_no_path() -> None:
    data = as_dataset((_X, _Y))
    assert data.describe() == {"count": 6, "sha256": data.sha256, "labels": True, "source": "array"}


class _Loader:
    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize(
    "given_data",
    [
        (_X, _Y),
        (torch.tensor(_X), torch.tensor(_Y)),
        [(_X[:4], _Y[:4]), (_X[4:], _Y[4:])],
        [
            [torch.tensor(_X[:4], requires_grad=True), torch.tensor(_Y[:4])],
            [torch.tensor(_X[4:]), torch.tensor(_Y[4:])],
        ],
        {"x": _X, "y": _Y},
        [{"x": _X[:1], "y": _Y[:1]}, {"x": _X[1:], "y": _Y[1:]}],
        _Loader((_X[:3], _Y[:3]), (_X[3:], _Y[3:])),
        ((x, y) for x, y in zip(_X.reshape(3, 2, 4), _Y.reshape(3, 2), strict=True)),
        [(x, int(y)) for x, y in zip(_X, _Y, strict=True)],
        (_X, _Y[:, None]),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(_X), torch.tensor(_Y)), batch_size=4),
    ],
    ids=[
        "pair",
        "tensors",
        "batches",
        "lists",
        "mapping",
        "mappings",
        "loader",
        "generator",
        "singles",
        "column",
        "torch",
    ],
)
def test_everything_people_pass(given_data: Any) -> None:
    data = as_dataset(given_data)
    np.testing.assert_array_equal(np.asarray(data), _X)
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, _Y)


@pytest.mark.parametrize(
    "given_data", [_X, torch.tensor(_X), [_X[:2], _X[2:]], [(_X,)], {"x": _X}, torch.tensor(_X).bfloat16()]
)
def test_labels_are_optional(given_data: Any) -> None:
    data = as_dataset(given_data)
    np.testing.assert_array_equal(np.asarray(data), _X)
    assert data.labels is None
    assert as_dataset(data) is data


def test_a_loader_that_fills_one_buffer() -> None:
    def loader() -> Any:
        buffer = np.empty((2, 4), np.float32)
        for start in (0, 2, 4):
            buffer[:] = _X[start : start + 2]
            yield buffer

    np.testing.assert_array_equal(np.asarray(as_dataset(loader())), _X)


def test_pixels_given_in_python_are_prepared() -> None:
    pixels = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    first, last = as_dataset(pixels.transpose(0, 3, 1, 2)), as_dataset(pixels, preprocess=Preprocess(mean=(1,)))
    np.testing.assert_array_equal(np.asarray(first), np.asarray(last) + 1)
    assert last.shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("faces/", "str is not inputs"),
        (3, "int is not inputs"),
        ([], "no batches"),
        (np.zeros((0, 3)), "no inputs"),
        (np.float32(3), "no inputs"),
        ([3], "batch 0 is int"),
        ({"inputs": _X}, "keys"),
        ([_X, _X[:, :2]], "batch 1 is"),
        ([_X, (_X, _Y)], "has labels"),
        ([(_X, _Y), _X], "lacks labels"),
        ([(_X, _Y[:3])], "one label each"),
        ((_X, _Y[:3]), "one class number for each"),
        ((_X, _Y / 2), "class numbers as integers"),
        ((_X, np.eye(6)), "one class number for each"),
        ((_X, np.array([2**64 - 1] * 6, np.uint64)), "class numbers as integers"),
        (_X.astype(np.int64), "give float32 ready for the network, or uint8 images"),
        (_X.astype(np.complex64), "complex64"),
        (np.array([None, 3]), "Python objects"),
        (np.full((3, 2), np.nan), "input 0 holds NaN"),
        (np.full((3, 2), 1e300), "input 0 holds NaN or infinite"),
        (np.zeros((2, 4), np.uint8), "not a set of images"),
        (np.zeros((2, 3, 5, 3), np.uint8), "cannot be told"),
    ],
)
def test_what_is_not_a_set(wrong: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        as_dataset(wrong)
    assert "\n" not in str(caught.value)


def test_the_first_bad_input_is_named() -> None:
    x = np.zeros((3000, 2), np.float32)
    x[2345, 1] = np.inf
    with pytest.raises(DataError, match="input 2345 holds"):
        as_dataset(x)


def test_endless_iterables_end() -> None:
    def endless() -> Any:
        while True:
            yield _X

    with pytest.raises(DataError, match="more than 1000 bytes by batch 10"):
        as_dataset(endless(), max_nbytes=1000)


def test_preprocessing_of_ready_made_inputs_is_refused() -> None:
    with pytest.raises(DataError, match="taken as they are"):
        as_dataset(_X, preprocess=Preprocess(scale="1/255"))
    assert as_dataset(_X, preprocess=Preprocess(layout="nhwc")).shape == (4,)


def test_labels_out_of_range_are_named() -> None:
    data = as_dataset((_X, _Y))
    check_labels(data, 3)
    check_labels(as_dataset(_X), 1)
    with pytest.raises(DataError, match=r"label 2 of input 2 .* outside 0\.\.1 \(2 of 6 are\).*--label-offset"):
        check_labels(data, 2)
    with pytest.raises(DataError, match=r"label -1 of input 1"):
        check_labels(as_dataset((_X[:2], np.array([0, -1]))), 3)


@pytest.mark.parametrize(
    ("shape", "mend"),
    [
        ((None, 3, 64, 64), "--resize or --crop to 64×64"),
        ((3, 64, None), "--resize or --crop to 64×48"),
        ((1, 32, 48), "try --channels gray$"),
        ((1, 1, 28, 28), "--channels gray and --resize or --crop to 28×28"),
        ((None, 32, 48, 3), "--layout nhwc"),
        ((None, 64, 64, 3), "--layout nhwc"),
        ((None, 10), "give inputs of that shape"),
        ((4, 32, 48), "images with 4 channels"),
    ],
)
def test_inputs_that_do_not_fit(shape: tuple[int | None, ...], mend: str) -> None:
    data = as_dataset(np.zeros((2, 3, 32, 48), np.float32))
    with pytest.raises(DataError, match=rf"inputs of shape \(3, 32, 48\) and the network takes .*{mend}"):
        check_inputs(data, shape)
    check_inputs(as_dataset(np.zeros((2, 32, 48, 3))), (None, 32, 48, 3))
    for fits in ((3, 32, 48), (None, 3, 32, 48), (1, 3, None, None), (None, None, None, None)):
        check_inputs(data, fits)


def test_channels_last_given_to_a_channels_first_network() -> None:
    with pytest.raises(DataError, match="try --layout nchw"):
        check_inputs(Dataset.from_array(np.zeros((1, 32, 48, 3))), (None, 3, 32, 48))
