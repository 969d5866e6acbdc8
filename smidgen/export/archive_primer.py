"""What every reader and writer of archives knows before the first byte: records and graphs of small made-up networks.

A network's graph is a few hundred bytes of which most are ONNX's own words. The model of bytes learns those, and the
habits of `smidgen.export.onnx_strip`, from these bytes; on six networks the graph then takes half of what it took.

They are part of format 1: a changed byte makes every archive written before unreadable (a test holds their checksum).
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Sequence

from smidgen.coding.varint import write_varint
from smidgen.export.archive_format import QUANTIZED, Record, write_records

_POOL = (
    "storage_order=0 dilations=1,1 ceil_mode=0 pads=0,0,0,0 auto_pad='NOTSET strides=2,2 kernel_shape={0},{0} "
    "count_include_pad=0"
)
_FLATTEN = "Reshape ?2 allowzero=1"
_MEAN = "ReduceMean ?2 keepdims=0 noop_with_empty_axes=0"
_DENSE = "Gemm {0}x{1} {0} transB=1"
# One line a node: the operator, its operands after the value before it (64x32: a weight; ?2: an integer tensor;
# ?: a number; -3: the value three nodes before), its attributes.
_NETWORKS: tuple[tuple[str, tuple[int, ...], int, tuple[str, ...]], ...] = (
    (
        "input", (3, 224, 224), 1000,
        (
            "Conv 32x3x3x3 32 kernel_shape=3,3 pads=1,1,1,1 strides=2,2", "Clip ? ?",
            "Conv 32x1x3x3 32 group=32 kernel_shape=3,3 pads=1,1,1,1", "Clip ? ?", "Conv 16x32x1x1 16 kernel_shape=1,1",
            *itertools.chain.from_iterable(
                (
                    f"Conv {wide}x{thin}x1x1 {wide} kernel_shape=1,1", "Clip ? ?",
                    f"Conv {wide}x1x3x3 {wide} group={wide} kernel_shape=3,3 pads=1,1,1,1 strides=2,2", "Clip ? ?",
                    f"Conv {thin}x{wide}x1x1 {thin} kernel_shape=1,1", "Add -6",
                )
                for thin, wide in ((16, 96), (24, 144), (32, 192), (64, 384), (96, 576), (160, 960))
            ),
            _MEAN, _DENSE.format(1000, 1280),
        ),
    ),
    (
        "x", (3, 32, 32), 10,
        (
            "Conv 16x3x3x3 16 kernel_shape=3,3 pads=1,1,1,1", "Relu",
            *itertools.chain.from_iterable(
                (
                    f"Conv {width}x{width}x3x3 {width} kernel_shape=3,3 pads=1,1,1,1", "Relu",
                    f"Conv {width}x{width}x3x3 {width} kernel_shape=3,3 pads=1,1,1,1", "Add -4", "Relu",
                )
                for width in (16, 16, 32, 64, 128)
            ),
            "GlobalAveragePool", "Flatten", _DENSE.format(10, 64), "Softmax axis=-1",
        ),
    ),
    (
        "input", (1, 28, 28), 10,
        (
            "Transpose perm=0,3,1,2",
            "Conv 20x1x5x5 20 kernel_shape=5,5 pads=2,2,2,2", "Relu", "MaxPool " + _POOL.format(2),
            "Conv 32x16x3x3 kernel_shape=3,3 pads=1,1,1,1", "Relu", "AveragePool " + _POOL.format(3),
            "Conv 64x32x3x3 kernel_shape=3,3 pads=1,1,1,1", "BatchNormalization 64 64 64 64 epsilon=#", "Relu",
            "Conv 8x64x1x1 kernel_shape=1,1", "Conv 64x8x1x1 64 kernel_shape=1,1", "Sigmoid", "Mul -3",
            "Concat -2 axis=1",
            _FLATTEN, _DENSE.format(128, 512), "Relu", "MatMul 128x64", "Add 64", _DENSE.format(10, 128),
        ),
    ),
)  # fmt: skip


@functools.cache
def primer() -> bytes:
    """Records and graph of each network, one after another."""
    return b"".join(_network(*network) for network in _NETWORKS)


def _network(given: str, shape: tuple[int, ...], classes: int, lines: Sequence[str]) -> bytes:
    fresh = ("".join(letters) for size in (1, 2) for letters in itertools.product(string.ascii_letters, repeat=size))
    values, nodes, records, kept = [given], b"", list[Record](), b""
    for number, line in enumerate(lines):
        operator, *words = line.split()
        operands = [values[-1]]
        for word in (word for word in words if "=" not in word):
            if word[0] == "-":
                operands.append(values[int(word)])
                continue
            operands.append(next(fresh))
            if word[0] == "?":
                kept += _constant(operands[-1], int(word[1:] or 0))
            else:
                dims = tuple(map(int, word.split("x")))
                records.append(Record(QUANTIZED, 0, dims, True, operands[-1].encode(), dims, 1, 4, flat=len(dims) == 1))
        values.append("output" if number + 1 == len(lines) else next(fresh))
        fields = [_text(1, name) for name in operands] + [_text(2, values[-1]), _text(4, operator)]
        nodes += _field(1, b"".join([*fields, *(_attribute(word) for word in words if "=" in word)]))
    front = nodes + _text(2, "g") + kept
    ends = _end(11, given, shape) + _end(12, "output", (classes,))
    graph = _field(7, front + ends)
    first = len(graph) - len(ends)
    records[0] = Record(**{**vars(records[0]), "gap": first})
    return write_records(records) + _number(1, 8) + graph + _field(8, _text(1, "") + _number(2, 20))


def _attribute(word: str) -> bytes:
    """name=1,1: integers; name=-1: one; name='A: text; name=#: a small number."""
    name, _, value = word.partition("=")
    if value == "#":
        return _field(5, _text(1, name) + b"\x15\xac\xc5\x27\x37" + _number(20, 1))
    if value[0] == "'":
        return _field(5, _text(1, name) + _text(4, value[1:]) + _number(20, 3))
    if "," in value:
        return _field(5, _text(1, name) + b"".join(_number(8, int(each)) for each in value.split(",")) + _number(20, 7))
    return _field(5, _text(1, name) + _number(3, int(value)) + _number(20, 2))


def _constant(name: str, size: int) -> bytes:
    """An integer tensor (−1, size) for a size, else a number; as large as a constant that stays in the graph."""
    if size:
        raw = b"\xff" * 8 + bytes([0, 2]) + bytes(6)
        return _field(5, _number(1, size) + _number(2, 7) + _text(8, name) + _field(9, raw))
    return _field(5, _number(2, 1) + _text(8, name) + _field(9, b"\0\0\xc0\x40"))


def _end(number: int, name: str, shape: Sequence[int]) -> bytes:
    sides = _field(1, _text(2, "batch")) + b"".join(_field(1, _number(1, side)) for side in shape)
    return _field(number, _text(1, name) + _field(2, _field(1, _number(1, 1) + _field(2, sides))))


def _number(field: int, value: int) -> bytes:
    return write_varint(field << 3) + write_varint(value % (1 << 64))


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode())


def _field(number: int, payload: bytes) -> bytes:
    return write_varint(number << 3 | 2) + write_varint(len(payload)) + payload
