"""Damaged files end in a DataError or a valid set: never another exception, never a large allocation."""

from __future__ import annotations

import gzip
import io
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smidgen.data import open_data
from smidgen.errors import DataError

resource = pytest.importorskip("resource", reason="memory is measured as POSIX systems tell it")

_ROUNDS = 200  # mutations of each kind of file; 2,000 over the ten kinds, in a few seconds
_MAX_PIXELS = 4096
_MAX_NBYTES = 1 << 20
_INTERESTING = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00" * 8)


def _image(form: str) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, form, **({} if form == "BMP" else {"exif": exif}))
    return stored.getvalue()


def _npz(compressed: bool) -> bytes:
    stored, pixels = io.BytesIO(), np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    (np.savez_compressed if compressed else np.savez)(stored, x=pixels, y=np.arange(2), split=np.array([0, 1]))
    return stored.getvalue()


def _jpeg_npz() -> bytes:
    stored, image = io.BytesIO(), _image("JPEG")
    offsets = np.array([0, len(image), 2 * len(image)])
    np.savez(stored, jpeg=np.frombuffer(image * 2, np.uint8), offsets=offsets, labels=np.arange(2))
    return stored.getvalue()


def _npy() -> bytes:
    stored = io.BytesIO()
    np.save(stored, np.ones((4, 3, 2), np.float32))
    return stored.getvalue()


def _idx() -> bytes:
    return struct.pack(">HBB3I", 0, 8, 3, 4, 5, 6) + bytes(120)


_SEEDS: dict[str, Callable[[], bytes]] = {
    "stored.npz": lambda: _npz(False),
    "deflated.npz": lambda: _npz(True),
    "jpeg.npz": _jpeg_npz,
    "x.npy": _npy,
    "x.idx": _idx,
    "x.gz": lambda: gzip.compress(_idx()),
    "folder/a.jpg": lambda: _image("JPEG"),
    "folder/a.png": lambda: _image("PNG"),
    "folder/a.bmp": lambda: _image("BMP"),
    "folder/a.webp": lambda: _image("WEBP"),
}


def _mutated(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        # Headers decide most, so half of the damage goes to the first bytes or the zip directory at the end.
        limit = len(damaged)
        at = rng.choice((rng.randrange(limit), rng.randrange(min(limit, 140)), max(0, limit - 1 - rng.randrange(300))))
        kind = rng.randrange(5)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            patch = rng.choice(_INTERESTING)
            damaged[at : at + len(patch)] = patch
        elif kind == 2:
            damaged[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif kind == 3:
            del damaged[at : at + rng.randrange(1, 20)]
        elif rng.random() < 0.3:
            del damaged[at:]
        else:
            damaged[at] = rng.randrange(256)
        damaged = damaged or bytearray(b"\0")
    return bytes(damaged)


@pytest.mark.parametrize("name", _SEEDS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    rng, content = random.Random(name), _SEEDS[name]()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    source = path.parent if path.parent != tmp_path else path
    path.write_bytes(content)
    assert np.isfinite(np.asarray(open_data(source))).all()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(_ROUNDS):
        path.write_bytes(_mutated(content, rng))
        try:
            data = open_data(source, max_pixels=_MAX_PIXELS, max_nbytes=_MAX_NBYTES)
            x = np.asarray(data)
        except DataError as error:
            # A mistake of our own must not pass for a damaged file.
            assert "Type-check" not in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        else:
            assert len(x) == len(data) > 0
            assert x.nbytes <= 8 * _MAX_NBYTES
            assert np.isfinite(x).all()
    assert refused > _ROUNDS // 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # kilobytes: nothing that a header claims was allocated
