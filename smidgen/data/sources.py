"""Open a file or folder as a set: .npz, .npy, idx and folders of images."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smidgen.data.dataset import Dataset
from smidgen.data.items import MAX_PIXELS, ArrayItems, EncodedItems, Items, PixelItems
from smidgen.data.preprocess import Preprocess
from smidgen.data.reading import MAX_NBYTES, NpzReader, read_idx, read_npy
from smidgen.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_SPLITS = ("train", "test", "validation")  # 0, 1 and 2 in a file that has numbers
_IDX_NAME = re.compile(r"idx\d-ubyte(\.gz)?$|\.idx$|\.gz$")


@dataclass(frozen=True)
class _Request:
    """What open_data was asked for, handed to the reader of each kind of source."""

    path: Path
    split: str | int | None
    labels: str | os.PathLike[str] | None
    preprocess: Preprocess
    max_pixels: int
    max_nbytes: int


def open_data(
    source: str | os.PathLike[str],
    *,
    split: str | int | None = None,
    labels: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    label_offset: int = 0,
    max_pixels: int = MAX_PIXELS,
    max_nbytes: int = MAX_NBYTES,
) -> Dataset:
    """Open inputs, and labels where there are any.

    Args:
        source: a .npz with `x` and perhaps `y`, or with `jpeg` and `offsets`; a .npy of floats; an idx file (MNIST),
            plain or .gz; or a folder of images, flat or with one sub-folder a class (sorted names are 0, 1, …).
            Floats are taken as the network's inputs. Arrays of uint8 are images, (N, H, W) or with one or three
            channels first or last.
        split: "train" (0), "test" (1) or "validation" (2), for a .npz that has an array `split`; without it such a
            file gives "train".
        labels: the label array's name in a .npz, else a file of labels (.npy or idx).
        preprocess: applies to images; None for none.
        label_offset: added to every label.
        max_pixels: larger images are refused before decoding.
        max_nbytes: larger arrays are refused before allocating.

    Raises:
        DataError: nothing there, damaged, ambiguous or too large; the message says what to give.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "digits.npz")
    ...     np.savez(path, x=np.zeros((3, 28, 28), np.uint8), y=np.arange(3))
    ...     data = open_data(path, preprocess=Preprocess(scale="1/255"))
    >>> len(data), data.shape, data.source
    (3, (1, 28, 28), 'digits.npz')
    """
    path = Path(source)
    request = _Request(path, split, labels, preprocess or Preprocess(), max_pixels, max_nbytes)
    if not path.exists():
        raise DataError(f"data: {str(source)!r} does not exist; give a file or a folder of images")
    if path.is_dir():
        dataset = _open_folder(request)
    elif path.suffix == ".npz":
        dataset = _open_npz(request)
    elif path.suffix == ".npy" or _IDX_NAME.search(path.name):
        dataset = _open_array(request)
    else:
        raise DataError(
            f"data: {path.name!r} is of no known kind; give a .npz, .npy, idx .gz file or a folder of images"
        )
    if label_offset == 0:
        return dataset
    if dataset.labels is None:
        raise DataError(
            f"data: label offset {label_offset} for {path.name!r}, which has no labels; leave the offset out"
        )
    return replace(dataset, labels=dataset.labels + label_offset)


def array_items(x: NDArray[Any], where: str, preprocess: Preprocess) -> Items:
    """Inputs of an array: floats as the network takes them, uint8 as images.

    Args:
        x: (N, …).
        where: what to call it in messages.
        preprocess: applies to images; with floats it must change no values.

    Raises:
        DataError: another type or shape, NaN, or preprocessing declared for ready-made inputs.
    """
    if x.dtype == np.uint8:
        return PixelItems(_as_images(x, where), preprocess)
    if x.dtype.kind != "f":
        raise DataError(f"data: {where!r} holds {x.dtype} inputs; give float32 ready for the network, or uint8 images")
    if preprocess.changes_values:
        raise DataError(
            f"data: {where!r} holds {x.dtype} inputs, taken as they are; leave preprocessing out or store uint8 images"
        )
    return ArrayItems(x, where)


def as_labels(y: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Labels of an array, checked.

    Args:
        y: (N,) or (N, 1) integers.
        count: inputs they are for.
        where: what to call it in messages.

    Raises:
        DataError: not whole numbers, or not one for each input.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (count,):
        raise DataError(
            f"data: labels of {where!r} have shape {y.shape} for {count} inputs; give one class number for each"
        )
    if y.dtype.kind not in "biu" or (y.dtype.kind == "u" and y.size and int(y.max()) > 2**62):
        raise DataError(f"data: labels of {where!r} are {y.dtype}; give class numbers as integers")
    return y.astype(np.int64)


def _as_images(x: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """Pixels as (N, H, W, C) without copying, from the layout that the shape tells."""
    if x.ndim == 3:
        return x[..., None]
    last, first = x.ndim == 4 and x.shape[3] in (1, 3), x.ndim == 4 and x.shape[1] in (1, 3)
    if last == first:
        told = "has channels first or last, which cannot be told" if last else "is not a set of images"
        raise DataError(f"data: {where!r} of uint8 {x.shape} {told}; store it as float32 in the network's layout")
    return x if last else np.moveaxis(x, 1, 3)


def _open_array(request: _Request) -> Dataset:
    """A .npy or idx file, its labels given or found beside it by name."""
    path = request.path
    _refuse_split(request)
    x = _read_array(path, request.max_nbytes)
    items = array_items(x, path.name, request.preprocess)
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    where = (
        Path(request.labels) if request.labels is not None else beside if beside != path and beside.exists() else None
    )
    labels = None if where is None else as_labels(_read_array(where, request.max_nbytes), len(x), where.name)
    return _whole(items, labels, path)


def _read_array(path: Path, max_nbytes: int) -> NDArray[Any]:
    array = read_npy(path, max_nbytes) if path.suffix == ".npy" else read_idx(path, max_nbytes)
    if array.ndim == 0:
        raise DataError(f"data: {path.name!r} holds a single number; give an array with one row for each input")
    return array


def _open_npz(request: _Request) -> Dataset:
    name = request.path.name
    with NpzReader(request.path, request.max_nbytes) as file:
        encoded = "jpeg" in file.names and "offsets" in file.names
        if not encoded and "x" not in file.names:
            raise DataError(
                f"data: {name!r} has the arrays {_listed(file.names)}; name the inputs 'x', or 'jpeg' and 'offsets'"
            )
        items = _jpeg_items(file, request) if encoded else _x_items(file, request)
        labels = _npz_labels(file, "labels" if encoded else "y", len(items), request)
        if "split" not in file.names:
            _refuse_split(request)
            return _whole(items, labels, request.path)
        wanted = _split_name("train" if request.split is None else str(request.split))
        chosen = _split_indices(file.array("split"), wanted, len(items), name)
    return Dataset(items, chosen, None if labels is None else labels[chosen], name, (("split", wanted),))


def _x_items(file: NpzReader, request: _Request) -> Items:
    x = file.array("x")
    if x.ndim == 0:
        raise DataError(f"data: 'x' of {request.path.name!r} is a single number; give one row for each input")
    return array_items(x, request.path.name, request.preprocess)


def _jpeg_items(file: NpzReader, request: _Request) -> Items:
    name, jpeg, offsets = request.path.name, file.array("jpeg"), file.array("offsets")
    if (
        jpeg.dtype != np.uint8
        or jpeg.ndim != 1
        or offsets.dtype.kind not in "iu"
        or offsets.ndim != 1
        or len(offsets) < 2
    ):
        raise DataError(
            f"data: {name!r} needs 'jpeg' as uint8 and 'offsets' as integers, one more than there are images"
        )
    # Compared before the cast to int64, in which a huge unsigned number would turn negative and pass.
    if offsets.min() < 0 or offsets.max() > len(jpeg) or (offsets[1:] <= offsets[:-1]).any():
        raise DataError(f"data: offsets of {name!r} do not rise within its {len(jpeg)} bytes; the file is damaged")
    bounds = offsets.astype(np.int64)
    names = [f"{name}[{index}]" for index in range(len(bounds) - 1)]
    return EncodedItems(names, partial(_slice, jpeg, bounds), request.preprocess, request.max_pixels)


def _slice(jpeg: NDArray[np.uint8], bounds: NDArray[np.int64], index: int) -> bytes:
    """One image's bytes; a function of the module, so that a set can travel to another process."""
    return jpeg[int(bounds[index]) : int(bounds[index + 1])].tobytes()


def _npz_labels(file: NpzReader, usual: str, count: int, request: _Request) -> NDArray[np.int64] | None:
    key = str(request.labels) if request.labels is not None else usual
    if key in file.names:
        return as_labels(file.array(key), count, f"{request.path.name}[{key}]")
    if request.labels is None:
        return None
    raise DataError(f"data: {request.path.name!r} has no labels {key!r}; it has {_listed(file.names)}")


def _split_name(asked: str) -> str:
    """Of a split that is named or numbered."""
    names = {**{name: name for name in _SPLITS}, **{str(number): name for number, name in enumerate(_SPLITS)}}
    if asked not in names:
        raise DataError(f"data: split={asked!r} is not known; give 'train', 'test' or 'validation'")
    return names[asked]


def _split_indices(stored: NDArray[Any], wanted: str, count: int, name: str) -> NDArray[np.int64]:
    if stored.shape != (count,) or stored.dtype.kind not in "biuUS":
        raise DataError(f"data: 'split' of {name!r} has shape {stored.shape} for {count} inputs; "
                        "store 0, 1 or 2 for each")  # fmt: skip
    called: dict[str, Any] = {"U": wanted, "S": wanted.encode()}
    chosen = np.flatnonzero(stored == called.get(stored.dtype.kind, _SPLITS.index(wanted))).astype(np.int64)
    if not len(chosen):
        raise DataError(f"data: {name!r} has nothing in split {wanted!r}; give another split")
    return chosen


@dataclass(frozen=True)
class _Files:
    """Reads images of a folder; an object of the module, so that a set can travel to another process."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    max_nbytes: int

    def __call__(self, index: int) -> bytes:
        name, path = self.names[index], self.paths[index]
        try:
            if path.stat().st_size > self.max_nbytes:
                raise DataError(f"data: {name!r} is larger than {self.max_nbytes} bytes; remove it")
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"data: {name!r} cannot be read ({error.strerror}); check or remove it") from error


def _open_folder(request: _Request) -> Dataset:
    folder = request.path
    _refuse_split(request)
    if request.labels is not None:
        raise DataError(f"data: folder {folder.name!r} takes its labels from its sub-folders; leave the labels out")
    try:
        paths, classes, skipped = _list_images(folder)
    except OSError as error:
        raise DataError(f"data: {folder.name!r} cannot be listed ({error.strerror}); check its permissions") from error
    names = [path.relative_to(folder.parent).as_posix() for path in paths]
    read = _Files(tuple(paths), tuple(names), request.max_nbytes)
    items = EncodedItems(names, read, request.preprocess, request.max_pixels)
    # Headers only: a stray file or an odd size is named now, not after an hour of work.
    for index, path in enumerate(paths):
        try:
            with open(path, "rb") as stream:
                items.check_header(index, stream)
        except OSError as error:
            raise DataError(f"data: {names[index]!r} cannot be read ({error.strerror}); check or remove it") from error
    labels = None if classes is None else np.array(classes, dtype=np.int64)
    notes = (("skipped_files", skipped),) if skipped else ()
    return replace(_whole(items, labels, folder), notes=notes)


def _list_images(folder: Path) -> tuple[list[Path], list[int] | None, int]:
    """Sorted images, their classes (None for a flat folder), and how many other files there are."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    flat = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    folders = [entry for entry in entries if entry.is_dir()]
    if flat and folders:
        raise DataError(
            f"data: '{folder.name}/' holds images beside sub-folders; move each image into its class, or all into one"
        )
    if not folders:
        if not flat:
            raise DataError(
                f"data: '{folder.name}/' holds no images; give a folder with .jpg or .png files, "
                "or one sub-folder a class"
            )
        return flat, None, len(entries) - len(flat)
    paths, classes, skipped = [], [], len(entries) - len(folders)
    for number, inner in enumerate(folders):
        files = sorted(entry for entry in inner.iterdir() if not entry.name.startswith("."))
        images = [entry for entry in files if entry.suffix.lower() in SUFFIXES and entry.is_file()]
        if not images:
            raise DataError(
                f"data: '{folder.name}/{inner.name}/' holds no images; fill it or remove it, each sub-folder is a class"
            )
        paths += images
        classes += [number] * len(images)
        skipped += len(files) - len(images)
    return paths, classes, skipped


def _whole(items: Items, labels: NDArray[np.int64] | None, path: Path) -> Dataset:
    return Dataset(items, np.arange(len(items), dtype=np.int64), labels, path.name)


def _refuse_split(request: _Request) -> None:
    if request.split is not None:
        raise DataError(
            f"data: split={request.split!r} for {request.path.name!r}, which is not divided; leave the split out"
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:12]) or "none"
