"""Files and folders, made here and real, opened as sets."""

from __future__ import annotations

import gzip
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smidgen.data import Dataset, Preprocess, check_inputs, check_labels, open_data
from smidgen.errors import DataError

_RNG = np.random.default_rng(7)
_PIXELS = _RNG.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def _encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, form, **options)
    return stored.getvalue()


def _jpeg_npz(path: Path, images: list[bytes], **more: Any) -> Path:
    offsets = np.concatenate([[0], np.cumsum([len(image) for image in images])])
    arrays = {"jpeg": np.frombuffer(b"".join(images), np.uint8), "offsets": offsets, **more}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def _idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def test_npz_of_floats(tmp_path: Path) -> None:
    x = _RNG.normal(size=(5, 2, 3))
    np.savez_compressed(tmp_path / "set.npz", x=x, y=np.arange(5))
    data = open_data(tmp_path / "set.npz", label_offset=1)
    np.testing.assert_array_equal(np.asarray(data), x.astype(np.float32))
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2, 3, 4, 5]
    assert data.describe()["source"] == "set.npz"


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_npz_of_pixels_first_or_last(tmp_path: Path, axes: tuple[int, ...]) -> None:
    np.savez(tmp_path / "set.npz", x=_PIXELS.transpose(axes))
    np.testing.assert_array_equal(np.asarray(open_data(tmp_path / "set.npz")), _PIXELS.transpose(0, 3, 1, 2))


def test_npz_orders_and_byte_orders(tmp_path: Path) -> None:
    x = np.asfortranarray(_RNG.normal(size=(4, 3, 2)).astype(">f4"))
    np.savez(tmp_path / "set.npz", x=x)
    np.save(tmp_path / "set.npy", x)
    for name in ("set.npz", "set.npy"):
        np.testing.assert_array_equal(np.asarray(open_data(tmp_path / name)), x.astype(np.float32))


def test_splits(tmp_path: Path) -> None:
    words = ["train", "test", "train", "test", "test", "validation"]
    for name, split in [("numbers", [0, 1, 0, 1, 1, 2]), ("text", words)]:
        path = tmp_path / f"{name}.npz"
        np.savez(path, x=np.arange(6.0)[:, None], y=np.arange(6), split=np.array(split))
        parts = {"train": [0, 2], "test": [1, 3, 4], "validation": [5]}
        for asked, called in [(None, "train"), (0, "train"), (1, "test"), (2, "validation"), *((p, p) for p in parts)]:
            data = open_data(path, split=asked)
            assert data.labels is not None
            assert data.labels.tolist() == np.asarray(data)[:, 0].tolist() == parts[called]
            assert data.describe()["split"] == called
        with pytest.raises(DataError, match="split='valid' is not known"):
            open_data(path, split="valid")


def test_jpeg_npz(tmp_path: Path) -> None:
    images = [_encoded(pixels, "JPEG", quality=95) for pixels in _PIXELS]
    path = _jpeg_npz(tmp_path / "set.npz", images, labels=np.arange(5), gender=np.ones(5, np.uint8))
    data = open_data(path, preprocess=Preprocess(layout="nhwc"))
    for row, image in zip(np.asarray(data), images, strict=True):
        np.testing.assert_array_equal(row, np.asarray(Image.open(io.BytesIO(image))))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    named = open_data(path, labels="gender").labels
    assert named is not None
    assert named.tolist() == [1] * 5
    with pytest.raises(DataError, match="no labels 'age'; it has 'jpeg', 'offsets', 'labels', 'gender'"):
        open_data(path, labels="age")


@pytest.mark.parametrize(
    "offsets",
    [
        [0],
        [0, 5, 5],
        [0, 9, 5],
        [-1, 5],
        [0, 10**9],
        np.array([0, 2**64 - 1], np.uint64),
        np.array([[0, 5]]),
        [0.0, 5.0],
    ],
)
def test_offsets_outside_the_bytes(tmp_path: Path, offsets: Any) -> None:
    np.savez(tmp_path / "set.npz", jpeg=np.zeros(20, np.uint8), offsets=np.asarray(offsets))
    with pytest.raises(DataError, match="offsets"):
        open_data(tmp_path / "set.npz")


def test_idx_and_its_labels(tmp_path: Path) -> None:
    digits = _PIXELS[..., 0]
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(digits)))
    data = open_data(tmp_path / "t-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(np.asarray(data), digits[:, None])
    assert data.labels is None
    (tmp_path / "t-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(np.arange(5, dtype=np.uint8))))
    (tmp_path / "plain.idx").write_bytes(_idx(digits))
    np.save(tmp_path / "y.npy", np.arange(5))
    for name, labels in [("t-images-idx3-ubyte.gz", None), ("plain.idx", tmp_path / "y.npy")]:
        found = open_data(tmp_path / name, labels=labels).labels
        assert found is not None
        assert found.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\0\0",
        _idx(_PIXELS[..., 0])[:-1],
        _idx(_PIXELS[..., 0]) + b"x",
        _idx(np.zeros((2, 3, 4), np.float32), 0x0D),
        struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        struct.pack(">HBB3I", 0, 8, 3, 60_000, 28, 28),
        struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28),
        struct.pack(">HBB", 0, 8, 255),
    ],
)
def test_damaged_idx(tmp_path: Path, stored: bytes) -> None:
    for name, content in [("a.gz", gzip.compress(stored)), ("a.idx", stored), ("b.gz", stored or b"x")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            open_data(tmp_path / name)


def test_a_zip_bomb_is_refused_before_allocating(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "big.npz", x=np.zeros((1000, 1000), np.float32))
    with pytest.raises(DataError, match="declares 4000000 bytes, more than 1000000"):
        open_data(tmp_path / "big.npz", max_nbytes=1_000_000)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    (tmp_path / "x.npy").write_bytes(header.getvalue())
    with pytest.raises(DataError, match="more than"):
        open_data(tmp_path / "x.npy")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="holds object"):
            open_data(tmp_path / name)


def test_a_folder_with_one_sub_folder_a_class(tmp_path: Path) -> None:
    for index, name in enumerate(["dog/b.png", "cat/z.PNG", "dog/a.bmp", "cat/y.webp"]):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        options = {"lossless": True} if name.endswith("webp") else {}
        file.write_bytes(_encoded(_PIXELS[index], name[-3:].replace("ebp", "webp").upper(), **options))
    (tmp_path / "pets/cat/.DS_Store").write_text("ignored")
    (tmp_path / "pets/notes.txt").write_text("told")
    data = open_data(tmp_path / "pets")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(np.asarray(data), _PIXELS[[3, 1, 2, 0]].transpose(0, 3, 1, 2))
    described = data.describe()
    assert described["source"] == "pets"
    assert described["skipped_files"] == 1


def _flat(folder: Path, **images: bytes) -> Path:
    folder.mkdir()
    for name, content in images.items():
        (folder / f"{name}.png").write_bytes(content)
    return folder


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    data = open_data(_flat(tmp_path / "flat", b=_encoded(_PIXELS[1]), a=_encoded(_PIXELS[0])))
    assert data.labels is None
    np.testing.assert_array_equal(np.asarray(data), _PIXELS[:2].transpose(0, 3, 1, 2))


def test_one_image_is_a_set(tmp_path: Path) -> None:
    assert len(open_data(_flat(tmp_path / "one", a=_encoded(_PIXELS[0])))) == 1


def test_images_of_two_sizes_are_named_with_the_mend(tmp_path: Path) -> None:
    folder = _flat(tmp_path / "mixed", a=_encoded(_PIXELS[0]), b=_encoded(_PIXELS[1][:, :5]))
    with pytest.raises(DataError, match=r"'mixed/a.png' is 6×8 and 'mixed/b.png' is 6×5 .* --resize and --crop"):
        open_data(folder)
    assert open_data(folder, preprocess=Preprocess(resize=4, crop=3)).shape == (3, 3, 3)
    with pytest.raises(DataError, match=r"'mixed/b.png': preprocess: crop=6 does not fit"):
        open_data(folder, preprocess=Preprocess(crop=6))
    path = _jpeg_npz(tmp_path / "mixed.npz", [file.read_bytes() for file in sorted(folder.iterdir())])
    with pytest.raises(DataError, match=r"'mixed.npz\[0\]' is 6×8 and 'mixed.npz\[1\]' is 6×5"):
        list(open_data(path).batches(1))


def test_damaged_and_foreign_images_are_named(tmp_path: Path) -> None:
    whole = _encoded(_RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"'foreign/b.png' cannot be read as an image"):
        open_data(_flat(tmp_path / "foreign", a=whole, b=b"GIF89a no"))
    cut = open_data(_flat(tmp_path / "cut", a=whole, b=whole[:-3000]))
    with pytest.raises(DataError, match=r"'cut/b.png' cannot be read as an image"):
        np.asarray(cut)
    deep = _encoded(np.zeros((4, 4), np.uint16))
    with pytest.raises(DataError, match="8 bits a channel"):
        open_data(_flat(tmp_path / "deep", a=deep))


def test_pixels_are_counted_before_decoding(tmp_path: Path) -> None:
    folder = _flat(tmp_path / "large", a=_encoded(np.zeros((100, 101), np.uint8)))
    with pytest.raises(DataError, match=r"101×100 pixels, more than max_pixels=10000"):
        open_data(folder, max_pixels=10_000)
    assert open_data(folder, max_pixels=10_100).shape == (3, 100, 101)
    strip = _flat(tmp_path / "strip", a=_encoded(np.zeros((1, 5000), np.uint8)))
    with pytest.raises(DataError, match="more than max_pixels"):
        open_data(strip, preprocess=Preprocess(resize=256))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_turned_upright(tmp_path: Path, form: str) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn anticlockwise: the left half belongs on top
    folder = tmp_path / "turned"
    folder.mkdir()
    suffix = form.lower().replace("jpeg", "jpg")
    (folder / f"a.{suffix}").write_bytes(_encoded(pixels, form, exif=exif))
    x = np.asarray(open_data(folder))[0]
    assert x.shape == (3, 16, 8)
    assert x[:, :6].min() > 240
    assert x[:, 10:].max() < 15


def test_palettes_alpha_and_gray_become_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(_PIXELS[0]).quantize(8)
    palette.info["transparency"] = bytes([0, 128])
    stored = io.BytesIO()
    palette.save(stored, "PNG", transparency=bytes([0, 128]))
    alpha = np.dstack([_PIXELS[0], np.full((6, 8), 7, np.uint8)])
    images = {"a": stored.getvalue(), "b": _encoded(alpha), "c": _encoded(_PIXELS[0][..., 0])}
    x = np.asarray(open_data(_flat(tmp_path / "kinds", **images)))
    assert x.shape == (3, 3, 6, 8)
    np.testing.assert_array_equal(x[1], _PIXELS[0].transpose(2, 0, 1))
    np.testing.assert_array_equal(x[2], np.stack([_PIXELS[0][..., 0]] * 3))


def test_folders_that_are_no_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("")
    (tmp_path / "half/cat").mkdir(parents=True)
    both = _flat(tmp_path / "both", a=_encoded(_PIXELS[0]))
    (both / "cat").mkdir()
    for name, message in [
        ("empty", "'empty/' holds no images; give a folder with .jpg or .png files, or one sub-folder a class"),
        ("half", "'half/cat/' holds no images"),
        ("both", "images beside sub-folders"),
        ("absent", "does not exist"),
        ("empty/notes.txt", "of no known kind"),
    ]:
        with pytest.raises(DataError, match=message):
            open_data(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(tmp_path: Path) -> None:
    folder = _flat(tmp_path / "closed", a=_encoded(_PIXELS[0]))
    (folder / "a.png").chmod(0)
    with pytest.raises(DataError, match="check"):
        open_data(folder)


def test_requests_that_do_not_fit_the_source(tmp_path: Path) -> None:
    folder = _flat(tmp_path / "flat", a=_encoded(_PIXELS[0]))
    np.savez(tmp_path / "set.npz", x=np.zeros((2, 3)), other=np.zeros(2))
    np.savez(tmp_path / "odd.npz", images=np.zeros((2, 3)))
    np.savez(tmp_path / "long.npz", x=np.zeros((2, 3)), y=np.arange(3))
    for source, options, message in [
        (folder, {"split": "test"}, "not divided"),
        (folder, {"labels": "y"}, "from its sub-folders"),
        (folder, {"label_offset": 1}, "has no labels"),
        (tmp_path / "set.npz", {"split": 1}, "not divided"),
        (tmp_path / "set.npz", {"labels": "y"}, "no labels 'y'; it has 'x', 'other'"),
        (tmp_path / "odd.npz", {}, "has the arrays 'images'; name the inputs 'x'"),
        (tmp_path / "long.npz", {}, "shape \\(3,\\) for 2 inputs"),
    ]:
        with pytest.raises(DataError, match=message):
            open_data(source, **options)


_REAL: list[tuple[str, dict[str, Any], int, tuple[int, ...], int]] = [
    ("mnist/train-images-idx3-ubyte.gz", {}, 60_000, (1, 28, 28), 10),
    ("mnist/t10k-images-idx3-ubyte.gz", {}, 10_000, (1, 28, 28), 10),
    ("cats_dogs_128.npz", {"split": "test"}, 2000, (3, 128, 128), 2),
    ("utkface_adults_rgb100.npz", {"labels": "gender"}, 4658, (3, 100, 100), 2),
    ("cifar10_jpeg.npz", {"split": "test"}, 10_000, (3, 32, 32), 10),
    ("tinyimagenet50_64.npz", {}, 10_000, (3, 64, 64), 50),
    ("imagenet_sample1000_256.npz", {}, 1000, (3, 256, 256), 1000),
]


@pytest.mark.parametrize(("name", "options", "count", "shape", "classes"), _REAL)
def test_real_sets(
    data_dir: Path, name: str, options: dict[str, Any], count: int, shape: tuple[int, ...], classes: int
) -> None:
    data: Dataset = open_data(data_dir / name, **options)
    assert len(data) == count
    assert data.shape == shape
    assert data.labels is not None
    assert len(np.unique(data.labels)) == classes
    assert np.asarray(data.take(range(0, count, count // 50))).std() > 20


_IMAGENET = "imagenet_sample1000_256.npz"
_TORCHVISION = Preprocess(scale="1/255", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_KNOWN: list[tuple[str, str, dict[str, Any], float]] = [
    ("lenet_mnist", "mnist/t10k-images-idx3-ubyte.gz", {}, 99.21),
    ("ai85cd_catsdogs", "cats_dogs_128.npz", {"split": "test", "preprocess": Preprocess((128,), (128,))}, 94.65),
    ("resnet20_cifar10_jpegft", "cifar10_jpeg.npz", {"split": "test", "preprocess": _TORCHVISION}, 88.08),
    ("squeezenet1_1_imagenet", _IMAGENET, {"preprocess": Preprocess((104, 117, 123), channels="bgr", crop=227)}, 61.7),
    (
        "mobilenet_v1_0.25_128_imagenet",
        _IMAGENET,
        {"label_offset": 1, "preprocess": Preprocess((1,), (), "1/127.5", crop=224, resize=128, crop_first=True)},
        44.6,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "name", "options", "accuracy"), _KNOWN)
def test_known_networks_reach_their_known_accuracy(
    data_dir: Path, network: str, name: str, options: dict[str, Any], accuracy: float
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        data_dir / f"models/{network}.onnx", settings, providers=["CPUExecutionProvider"]
    )
    data = open_data(data_dir / name, **options)
    check_inputs(data, [side if isinstance(side, int) else None for side in session.get_inputs()[0].shape])
    outputs = np.concatenate([session.run(None, {"input": x})[0] for x in data.batches(50)])
    outputs = outputs.reshape(len(data), -1)
    check_labels(data, outputs.shape[1])
    # Every error of order, colour, crop or scale costs more than this.
    assert 100 * (outputs.argmax(1) == data.labels).mean() == pytest.approx(accuracy, abs=0.15)
