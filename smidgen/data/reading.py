"""Untrusted files into arrays: .npy, .npz and idx.

Sizes are checked before anything is allocated, and nothing is unpickled.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from smidgen.errors import DataError, one_line

MAX_NBYTES = 8 * 2**30  # a set that does not fit a laptop's memory is better given as a folder of images
_MAX_EXPANSION = 1100  # Deflate cannot expand beyond 1032 : 1, so a larger claim is false
_MAX_AXES = 8  # inputs have four or five; NumPy itself refuses more than 64
_MAX_HEADER = 10_000  # bytes of a .npy header, NumPy's own limit
_CHUNK = 1 << 20  # bytes a read; memory is touched only as data really arrives
_IDX_UINT8 = 0x08


class NpzReader:
    """The arrays of a .npz file, each checked against its own header before it is read.

    Args:
        path: the file.
        max_nbytes: most bytes that one array may declare.
    """

    def __init__(self, path: Path, max_nbytes: int) -> None:
        self._path, self._max_nbytes = path, max_nbytes
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory can raise anything from OSError to UnicodeDecodeError
            raise _damaged(path.name, error) from error
        self._members = {info.filename.removesuffix(".npy"): info for info in self._zip.infolist()}

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, in the file's order."""
        return tuple(self._members)

    def array(self, name: str) -> NDArray[Any]:
        """The array of this name.

        Raises:
            DataError: damaged, of a type that is not numbers or text, or larger than permitted.
        """
        where, info = f"{self._path.name}[{name}]", self._members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"data: {where!r} is compressed in an unusual way; save it with numpy.savez_compressed")
        if info.file_size > info.compress_size * _MAX_EXPANSION:
            raise DataError(
                f"data: {where!r} claims {info.file_size} bytes from {info.compress_size}; the file is damaged"
            )
        try:
            with self._zip.open(info) as stream:
                return _read_npy(cast(io.BufferedIOBase, stream), info.file_size, where, self._max_nbytes)
        except DataError:
            raise
        except Exception as error:  # zipfile and zlib raise a dozen kinds on damaged members
            raise _damaged(where, error) from error


def read_npy(path: Path, max_nbytes: int) -> NDArray[Any]:
    """The array of a .npy file.

    Args:
        path: the file.
        max_nbytes: most bytes that it may declare.

    Raises:
        DataError: damaged, of a type that is not numbers or text, or larger than permitted.
    """
    try:
        with open(path, "rb") as stream:
            return _read_npy(stream, os.fstat(stream.fileno()).st_size, path.name, max_nbytes)
    except DataError:
        raise
    except Exception as error:  # NumPy's header reader raises what ast and dtype raise
        raise _damaged(path.name, error) from error


def read_idx(path: Path, max_nbytes: int) -> NDArray[np.uint8]:
    """The bytes of an idx file (MNIST's format), plain or gzipped.

    Args:
        path: the file; gzipped where its name ends in .gz.
        max_nbytes: most bytes that it may declare.

    Returns:
        An array of the header's shape.

    Raises:
        DataError: damaged, not of unsigned bytes, or larger than permitted.
    """
    packed = path.suffix == ".gz"
    try:
        stored = os.path.getsize(path) * (_MAX_EXPANSION if packed else 1)
        with gzip.open(path) if packed else open(path, "rb") as stream:
            return _read_idx(stream, stored, path.name, max_nbytes)
    except DataError:
        raise
    except Exception as error:  # gzip and zlib raise several kinds on damaged streams
        raise _damaged(path.name, error) from error


def _read_idx(stream: io.BufferedIOBase, stored: int, where: str, max_nbytes: int) -> NDArray[np.uint8]:
    zero, kind, axes = struct.unpack(">HBB", stream.read(4))
    if zero != 0 or kind != _IDX_UINT8 or not 1 <= axes <= _MAX_AXES:
        raise DataError(f"data: {where!r} is not an idx file of unsigned bytes; give e.g. train-images-idx3-ubyte.gz")
    shape = struct.unpack(f">{axes}I", stream.read(4 * axes))
    _check_nbytes(math.prod(shape), where, max_nbytes)
    if math.prod(shape) > stored:
        raise DataError(f"data: {where!r} is too short for its shape {shape}; fetch it again")
    values = np.empty(math.prod(shape), np.uint8)
    _fill(stream, values, where)
    if stream.read(1):
        raise DataError(f"data: {where!r} holds more than its shape {shape} says; fetch it again")
    return values.reshape(shape)


def _read_npy(stream: io.BufferedIOBase, nbytes: int, where: str, max_nbytes: int) -> NDArray[Any]:
    shape, fortran, dtype = _npy_header(stream, where)
    if (
        dtype.hasobject
        or dtype.kind not in "biufUS"
        or dtype.itemsize == 0
        or (dtype.kind in "iuf" and dtype.itemsize > 8)
    ):
        raise DataError(f"data: {where!r} holds {dtype}; save it as float32, uint8 or integers")
    if len(shape) > _MAX_AXES or any(side < 0 for side in shape):
        raise DataError(f"data: {where!r} has the impossible shape {shape}; save it again with numpy.save")
    declared, held = math.prod(shape) * dtype.itemsize, nbytes - stream.tell()
    _check_nbytes(declared, where, max_nbytes)
    if declared != held:
        raise DataError(f"data: {where!r} holds {held} bytes and its header says {declared}; save or fetch it again")
    flat = np.empty(math.prod(shape), dtype)
    _fill(stream, flat.view(np.uint8), where)
    native = flat.astype(dtype.newbyteorder("="), copy=False)
    return native.reshape(shape, order="F" if fortran else "C")


def _npy_header(stream: io.BufferedIOBase, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    # Version 3 exists for field names in Unicode, and structured arrays are refused anyway.
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"data: {where!r} is a .npy of version {version}; save it again with numpy.save")
    return readers[version](stream, max_header_size=_MAX_HEADER)


def _check_nbytes(declared: int, where: str, max_nbytes: int) -> None:
    if declared == 0:
        raise DataError(f"data: {where!r} is empty; give at least one input")
    if declared > max_nbytes:
        raise DataError(
            f"data: {where!r} declares {declared} bytes, more than {max_nbytes}; give fewer inputs or a folder"
        )


def _fill(stream: io.BufferedIOBase, target: NDArray[np.uint8], where: str) -> None:
    at = 0
    while at < target.size:
        chunk = stream.read(min(_CHUNK, target.size - at))
        if not chunk:
            raise DataError(f"data: {where!r} ends after {at} of {target.size} bytes; fetch it again")
        target[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
        at += len(chunk)


def _damaged(where: str, error: Exception) -> DataError:
    reason = one_line(error, 120) or type(error).__name__
    return DataError(f"data: {where!r} cannot be read ({reason}); save or fetch it again")
