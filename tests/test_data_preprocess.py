"""Preprocessing on known answers, and declarations that cannot be meant."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smidgen.data import Preprocess
from smidgen.errors import DataError

_RAMP = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def test_nothing_declared_gives_the_pixels_channels_first() -> None:
    x = Preprocess()(_RAMP)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, _RAMP.transpose(2, 0, 1))


def test_the_order_of_the_arithmetic() -> None:
    pre = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), scale="1/255")
    wanted = (_RAMP.astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(pre(_RAMP), wanted.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize(
    ("scale", "factor"),
    [("1/255", 1 / 255), (" 1 / 127.5 ", 1 / 127.5), ("0.5", 0.5), ("2", 2.0), (3, 3.0), (".5/2", 0.25)],
)
def test_scales_people_write(scale: str | int, factor: float) -> None:
    assert Preprocess(scale=scale).scale == factor


def test_bgr_means_are_in_the_networks_order() -> None:
    pre = Preprocess(mean=(104, 117, 123), channels="bgr")
    wanted = _RAMP[..., ::-1].astype(np.float32) - np.float32([104, 117, 123])
    np.testing.assert_array_equal(pre(_RAMP), wanted.transpose(2, 0, 1))


def test_channels_last() -> None:
    np.testing.assert_array_equal(Preprocess(layout="nhwc", mean=(1,))(_RAMP), _RAMP.astype(np.float32) - 1)


def test_gray_stays_gray_and_colours_become_pillows_gray() -> None:
    assert Preprocess()(_RAMP[..., 0]).shape == (1, 6, 8)
    assert Preprocess(mean=(0.5,))(_RAMP[..., :1]).shape == (1, 6, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(Preprocess(channels="gray")(pixels)[0], wanted)


def test_three_means_for_one_channel_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 means or deviations for images of 1 channel"):
        Preprocess(mean=(1, 2, 3))(_RAMP[..., 0])


@pytest.mark.parametrize(
    ("shape", "pre", "wanted"),
    [
        ((300, 400), Preprocess(resize=256), (256, 341)),
        ((400, 300), Preprocess(resize=256), (341, 256)),
        ((300, 400), Preprocess(resize=(10, 20)), (10, 20)),
        ((300, 400), Preprocess(resize=256, crop=224), (224, 224)),
        ((300, 400), Preprocess(crop=(100, 50)), (100, 50)),
        ((256, 256), Preprocess(crop=224, resize=128, crop_first=True), (128, 128)),
    ],
)
def test_output_sizes(shape: tuple[int, int], pre: Preprocess, wanted: tuple[int, int]) -> None:
    assert pre.output_size(*shape) == wanted
    assert pre(np.zeros((*shape, 3), np.uint8)).shape == (3, *wanted)


@pytest.mark.parametrize(("side", "crop", "corner"), [(8, 4, 2), (5, 4, 0), (7, 4, 2), (256, 227, 14), (9, 4, 2)])
def test_the_corner_of_a_centre_crop_rounds_as_torchvision(side: int, crop: int, corner: int) -> None:
    image = np.arange(side, dtype=np.uint8)[None].repeat(side, 0)
    x = Preprocess(crop=crop)(image)[0]
    assert x.shape == (crop, crop)
    assert x[0, 0] == corner


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    # Without antialiasing the stripes would alias to 0 or 200.
    x = Preprocess(resize=8)(stripes)[0]
    np.testing.assert_allclose(x[:, 1:-1], 100, atol=2)


def test_resizing_an_array_equals_resizing_its_file() -> None:
    from smidgen.data.items import EncodedItems

    pixels = np.random.default_rng(1).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    for pre in (
        Preprocess(resize=20, crop=17, channels="bgr"),
        Preprocess(resize=(9, 11), channels="gray"),
        Preprocess(crop=21, resize=12, crop_first=True),
    ):
        items = EncodedItems(["one"], lambda _: stored.getvalue(), pre)
        from_file, from_array = items.prepare(np.array([0]))[0], pre(pixels)
        # Gray is taken before resizing on both ways, so even that agrees to the bit.
        np.testing.assert_array_equal(from_file, from_array)


def test_crop_before_resize_differs_from_after() -> None:
    assert not np.array_equal(Preprocess(crop=4, resize=2, crop_first=True)(_RAMP), Preprocess(crop=2)(_RAMP))
    with pytest.raises(DataError, match=r"crop=4 does not fit an image of 2×2"):
        Preprocess(resize=2, crop=4)(_RAMP[:6, :6])


@given(
    st.sampled_from(["nchw", "nhwc"]),
    st.sampled_from(["rgb", "bgr", "gray"]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_a_batch_is_its_images(layout: str, channels: str, count: int, height: int, width: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    pre = Preprocess(mean=(3,), std=(2,), scale="1/2", layout=layout, channels=channels)
    np.testing.assert_array_equal(pre.batch(images), np.stack([pre(image) for image in images]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"std": [1, 0, 1]}, "holds a zero"),
        ({"mean": [1, 2]}, "holds 2 numbers for channels='rgb'; give 1 or 3"),
        ({"mean": [1, 2, 3], "channels": "gray"}, "holds 3 numbers for channels='gray'"),
        ({"mean": [float("nan")]}, "not finite"),
        ({"mean": [10**400]}, "not finite"),
        ({"mean": ["a"]}, "row of numbers"),
        ({"layout": "chw"}, "layout='chw' is not known; use nchw or nhwc; did you mean nchw"),
        ({"layout": 3}, "wrong type"),
        ({"channels": "grey"}, "did you mean gray"),
        ({"scale": 0}, "other than 0"),
        ({"scale": "1/0"}, "not a number"),
        ({"scale": "1/2/3"}, "not a number"),
        ({"scale": "3/"}, "not a number"),
        ({"scale": "/3"}, "not a number"),
        ({"scale": ""}, "not a number"),
        ({"scale": "1e999999999"}, "not a number"),
        ({"scale": "__import__('os')"}, "not a number"),
        ({"scale": float("inf")}, "not a finite number"),
        ({"scale": True}, "not a number"),
        ({"resize": 0}, "size in pixels"),
        ({"resize": [1, 2, 3]}, "size in pixels"),
        ({"resize": [224]}, "size in pixels"),
        ({"resize": 10**9}, "size in pixels"),
        ({"crop": "big"}, "size in pixels"),
        ({"crop_first": 1}, "wrong type"),
        ({"meen": [1]}, "'meen' is not one of mean, std, .*did you mean mean"),
    ],
)
def test_declarations_nobody_means(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Preprocess.from_dict(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), (2, 2, 3, 1), (0, 2, 3)])
def test_images_of_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Preprocess()(np.zeros(shape, np.uint8))


def test_toml_and_json(tmp_path: Path) -> None:
    path = tmp_path / "pre.toml"
    path.write_text('scale = "1/255"\nmean = [0.5, 0.5, 0.5]\nstd = 0.25\nresize = 256\ncrop = [224, 200]\n')
    pre = Preprocess.from_toml(path)
    assert pre == Preprocess(mean=(0.5,) * 3, std=(0.25,), scale=1 / 255, resize=256, crop=(224, 200))
    assert Preprocess.from_dict(json.loads(json.dumps(pre.to_dict()))) == pre


@pytest.mark.parametrize("text", ["scale = ", "[mean]\na=1", 'x = "\ud800"', "a" * (2 << 20), "a = " + "[" * 5000])
def test_damaged_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pre.toml"
    path.write_text(text, errors="surrogatepass")
    with pytest.raises(DataError):
        Preprocess.from_toml(path)
    with pytest.raises(DataError, match="cannot be read"):
        Preprocess.from_toml(tmp_path / "absent.toml")
