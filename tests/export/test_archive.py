"""Archives: back to the bit, small, and refused in one line when something is wrong."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import helper, numpy_helper

import smidgen
from smidgen.errors import LoadError, VerificationError
from smidgen.export.archive import Packed, describe_archive, pack_archive, unpack, unpack_archive
from smidgen.export.archive_exponents import pack_exponents, unpack_exponents
from smidgen.export.archive_format import join, read_records, split
from smidgen.export.archive_primer import primer
from smidgen.export.archive_wire import initializers
from smidgen.forms import Codebook, Quantized, dense

Rounded = tuple[bytes, dict[str, Packed]]
AsModel = Callable[[Mapping[str, np.ndarray]], bytes]
# Written by the first version: whatever smidgen becomes, this stays readable.
GOLDEN = (
    "534d44470117663009070b00111f6a8975b390a31837b99e353c516d05f3547c7a43950101fda1bfc89065467d7fa5c19dfc"
    "c743992d255414b6662117656c6d4162177626494b1f28d9f4278247f07b8c37de010d06207147288bc000012705a016d004"
    "090101880f0751175a8b"
)
# The same of the first version with codebooks.
GOLDEN_SHARED = (
    "534d444702432d22040dcf462e250459f95a1ac7d88b3b066a33f5cc47e80101fe17461a4f72b00c033087035e3597dbf9bd"
    "ff1eee69472d4d2eab78efdfe3be034019f2040b01017892dbc312626feef8"
)


def golden_model(as_model: AsModel) -> tuple[bytes, dict[str, Packed]]:
    form = Quantized(
        np.array([[1, 0, -2], [0, 3, 1]], np.int32), np.array([-9, -7], np.int32), np.zeros(1, np.int32), 4
    )
    bias = Quantized(np.array([40, -7], np.int32), np.zeros(2, np.int32), np.array([-20], np.int32), 4)
    packed = {"w": Packed(form), "b": Packed(bias)}
    floats = {"f": np.array([1, 2, 3, 4], "f4")}
    return as_model({**{name: each.values for name, each in packed.items()}, **floats}), packed


def test_an_archive_of_the_first_version(as_model: AsModel) -> None:
    model, packed = golden_model(as_model)
    data = bytes.fromhex(GOLDEN)
    assert unpack_archive(data) == model
    assert pack_archive(model, packed) == data


def test_the_primer_is_this_on_every_machine() -> None:
    # A changed byte makes every archive written before unreadable.
    document = Path(__file__).resolve().parents[2] / "docs" / "archive.md"
    assert f"{len(primer())} bytes, crc32 `{zlib.crc32(primer()):08x}`" in document.read_text(encoding="utf-8")
    assert (len(primer()), zlib.crc32(primer())) == (5381, 0xFE31E655)


def test_the_header_by_hand(as_model: AsModel) -> None:
    model, packed = golden_model(as_model)
    data = pack_archive(model, packed)
    header, streams = split(data, 1000)
    assert data[:6] == b"SMDG\x01\x17"
    assert list(streams) == ["graph", "integers", "exponents", "float32"]
    assert [data[7 + i] for i in range(4)] == [len(stream) for stream in streams.values()]
    assert header.nbytes == 6 + 1 + 4 + 6 * 4
    assert data[11:15] == zlib.crc32(model).to_bytes(4, "little")
    assert data[31:35] == zlib.crc32(data[:31]).to_bytes(4, "little")
    assert data[35:] == b"".join(streams.values())


def test_one_of_everything(small: Rounded) -> None:
    model, packed = small
    data = pack_archive(model, packed)
    assert unpack_archive(data) == model
    contents = describe_archive(data)
    assert (contents.nbytes, contents.model_nbytes) == (len(data), len(model))
    assert sum(contents.streams.values()) == len(data)
    assert contents.tensors == {"float16": 1, "float32": 1, "float64": 1, "quantized": 7}
    shared = 48 + 30
    assert contents.weights == {"float16": 16, "float32": 20, "float64": 7, "quantized": 162 + 6 + 60 + 5 + 28 + shared}


def shared_model(as_model: AsModel) -> tuple[bytes, dict[str, Packed]]:
    form = Codebook(np.array([[0, 2, 1], [1, 1, 3]], np.uint8), np.array([-0.5, 0.0, 0.25, 1.0], np.float32))
    return as_model({"w": dense(form)}), {"w": Packed(form)}


def test_an_archive_of_the_second_version(as_model: AsModel) -> None:
    model, packed = shared_model(as_model)
    data = bytes.fromhex(GOLDEN_SHARED)
    assert unpack_archive(data) == model
    assert pack_archive(model, packed) == data
    assert list(describe_archive(data).streams) == ["header", "graph", "integers", "codebooks"]


def test_only_what_is_shared_needs_the_second_version(small: Rounded, as_model: AsModel) -> None:
    assert pack_archive(*small)[4] == 2
    assert pack_archive(*golden_model(as_model))[4] == 1
    older = bytearray(pack_archive(*shared_model(as_model)))
    header, streams = split(bytes(older), 10_000)
    older[4] = 1
    older[header.nbytes - 4 : header.nbytes] = zlib.crc32(older[: header.nbytes - 4]).to_bytes(4, "little")
    with pytest.raises(LoadError, match="not of format 1"):
        unpack_archive(bytes(older))
    assert "codebooks" in streams


@pytest.mark.parametrize("count", [1, 2, 17, 256])
@pytest.mark.parametrize("transposed", [False, True])
def test_codebooks_of_every_size(as_model: AsModel, count: int, transposed: bool) -> None:
    source = np.random.default_rng(count)
    values = np.sort(source.normal(size=count)).astype("f4")
    packed = Packed(Codebook(source.integers(0, count, (40, 30)).astype(np.uint8), values), transposed)
    model = as_model({"w": packed.values})
    data = pack_archive(model, {"w": packed})
    assert unpack_archive(data) == model
    assert len(data) < 1200 * np.log2(count) / 8 * 1.02 + 4 * count + 250


def test_indices_near_each_other_are_cheap(as_model: AsModel) -> None:
    """The coder is told which index is the likeliest: a Gaussian takes its entropy, not its bits."""
    values = np.linspace(-4, 4, 32).astype("f4")
    x = np.random.default_rng(0).normal(size=(300, 300))
    form = Codebook(np.abs(x[..., None] - values).argmin(2).astype(np.uint8), values)
    share = np.bincount(form.indices.ravel()) / x.size
    entropy = -float((share[share > 0] * np.log2(share[share > 0])).sum())
    data = pack_archive(as_model({"w": dense(form)}), {"w": Packed(form)})
    assert len(data) < 1.02 * entropy * x.size / 8 + 300 < 0.9 * 5 * x.size / 8


def test_a_codebook_that_does_not_give_the_weight(as_model: AsModel) -> None:
    model, packed = shared_model(as_model)
    form = packed["w"].form
    assert isinstance(form, Codebook)
    wrong = replace(form, values=form.values + np.float32(1))
    with pytest.raises(VerificationError, match="'w'"):
        pack_archive(model, {"w": Packed(wrong)})


def test_a_model_without_weights(as_model: AsModel) -> None:
    for arrays in ({}, {"shape": np.array([2, -1]), "none": np.zeros((0, 3), "f4"), "one": np.float32(3).reshape(())}):
        model = as_model(arrays)
        data = pack_archive(model, {})
        assert list(describe_archive(data).streams) == ["header", "graph"]
        assert unpack_archive(data) == model
    assert unpack_archive(pack_archive(b"", {})) == b""


def test_values_that_are_no_raw_bytes_stay_in_the_graph() -> None:
    tensor = helper.make_tensor("t", onnx.TensorProto.FLOAT, [40], list(np.linspace(0, 1, 40)))
    graph = helper.make_graph([], "g", [], [], [tensor])
    model = helper.make_model(graph).SerializeToString()
    assert describe_archive(pack_archive(model, {})).tensors["float32"] == 0
    assert unpack_archive(pack_archive(model, {})) == model


def test_tensors_that_other_writers_arrange_otherwise(round_one: Callable[..., Quantized]) -> None:
    # A note after the raw bytes; packed dims; raw bytes before the name: only the raw bytes are cut out.
    form = round_one(np.random.default_rng(0).normal(size=(4, 6)).astype("f4"))
    raw = dense(form).tobytes()
    noted = numpy_helper.from_array(dense(form), "w")
    noted.doc_string = "a note"
    turned = b"\x4a" + bytes([len(raw)]) + raw + b"\x08\x04\x08\x06\x10\x01\x42\x01w"
    packed_dims = b"\x0a\x02\x04\x06\x10\x01\x42\x01w\x4a" + bytes([len(raw)]) + raw
    for tensor in (noted.SerializeToString(), turned, packed_dims):
        assert numpy_helper.to_array(onnx.TensorProto.FromString(tensor)).tobytes() == raw
        graph = b"\x2a" + bytes([len(tensor)]) + tensor
        model = b"\x08\x08\x3a" + bytes([len(graph) & 127 | 128, len(graph) >> 7] if len(graph) > 127 else [len(graph)])
        model += graph
        (found,) = initializers(model)
        assert (found.name, found.dims, found.whole) == (b"w", (4, 6), False)
        data = pack_archive(model, {"w": Packed(form)})
        assert unpack_archive(data) == model
        assert describe_archive(data).tensors["quantized"] == 1


def test_integers_of_another_shape_than_the_tensor(as_model: AsModel, round_one: Callable[..., Quantized]) -> None:
    form = round_one(np.random.default_rng(0).normal(size=(4, 3, 5)).astype("f4"))
    model = as_model({"w": dense(form).swapaxes(0, 1).reshape(1, 60), "v": dense(form).reshape(2, 2, 15)})
    data = pack_archive(model, {"w": Packed(form, transposed=True), "v": Packed(form)})
    assert unpack_archive(data) == model
    assert describe_archive(data).tensors["quantized"] == 2


ARRAYS = st.one_of(
    npst.arrays(st.sampled_from(["f2", "f4", "f8", "i8", "u1"]), npst.array_shapes(min_dims=0, max_dims=4, max_side=5)),
    npst.arrays("f4", npst.array_shapes(max_dims=2, max_side=30), elements=st.floats(-4, 4, width=32)),
)
GRIDS = st.sampled_from([1, 2, 4, 8, 16])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays=st.lists(ARRAYS, max_size=5),
    integers=st.lists(
        npst.arrays(np.int32, npst.array_shapes(max_dims=4, max_side=6), elements=st.integers(-70, 70)), max_size=4
    ),
    data=st.data(),
)
def test_any_model_comes_back(
    as_model: AsModel, arrays: list[np.ndarray], integers: list[np.ndarray], data: Any
) -> None:
    named: dict[str, np.ndarray] = {f"float{i}.λ": array for i, array in enumerate(arrays)}
    packed = {}
    for i, each in enumerate(integers):
        width = each.size // len(each)
        count = data.draw(st.sampled_from([c for c in range(1, width + 1) if width % c == 0]))
        exponents = npst.arrays(np.int32, len(each) + count, elements=st.integers(-60, 20))
        drawn = data.draw(exponents)
        form = Quantized(each, drawn[: len(each)], drawn[len(each) :], data.draw(GRIDS))
        packed[f"w{i}"] = Packed(form, transposed=each.ndim > 1 and data.draw(st.booleans()))
        named[f"w{i}"] = packed[f"w{i}"].values
    model = as_model(named)
    archive = pack_archive(model, packed)
    assert unpack_archive(archive) == model
    assert describe_archive(archive).tensors["quantized"] == len(packed)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(npst.arrays(np.int32, st.integers(1, 9), elements=st.integers(-2000, 2000)), max_size=4),
    columns=st.lists(npst.arrays(np.int32, st.integers(1, 4)), max_size=5),
)
def test_any_exponents_come_back(rows: list[np.ndarray], columns: list[np.ndarray]) -> None:
    stream = pack_exponents(rows, columns)
    back = unpack_exponents(stream, [len(v) for v in rows], [len(v) for v in columns], 1000)
    for given_vectors, vectors in zip((rows, columns), back, strict=True):
        assert [v.tolist() for v in given_vectors] == [v.tolist() for v in vectors]


@pytest.mark.parametrize(
    "name",
    [
        "ai85cd_catsdogs",
        "resnet8_cifar10_mlperftiny",
        "mobilenet_v1_0.25_96_vww_mlperftiny",
        "resnet20_cifar10_jpegft",
        "ultraface_rfb320",
    ],
)
def test_real_networks_rounded(data_dir: Path, round_all: Callable[[bytes], Rounded], name: str) -> None:
    model, packed = round_all((data_dir / "models" / f"{name}.onnx").read_bytes())
    data = pack_archive(model, packed)
    assert unpack_archive(data) == model
    contents = describe_archive(data)
    # Eight bits a weight are a quarter; these take less than four, and what is not weights next to nothing.
    assert len(data) < len(model) / 8
    # Ultraface keeps some weights in fields that are no raw bytes.
    assert contents.streams["graph"] < (11_000 if name.startswith("ultraface") else 1_200)


@pytest.mark.parametrize("name", ["ai85cd_catsdogs", "resnet8_cifar10_mlperftiny"])
def test_real_networks_as_floats(data_dir: Path, name: str) -> None:
    model = (data_dir / "models" / f"{name}.onnx").read_bytes()
    data = pack_archive(model, {})
    assert unpack_archive(data) == model
    assert len(data) < 0.85 * len(model)


def test_what_is_not_the_same_to_the_bit_is_refused(as_model: AsModel, round_one: Callable[..., Quantized]) -> None:
    form = round_one(np.random.default_rng(0).normal(size=(4, 6)).astype("f4"))
    model = as_model({"w": dense(form), "double": dense(form).astype("f8")})
    wrong = [
        replace(form, integers=form.integers + (np.arange(24) == 7).reshape(4, 6).astype(np.int32)),
        replace(form, row=form.row + np.int32(1)),
        replace(form, integers=form.integers[:3], row=form.row[:3]),
        replace(form, column=np.zeros(5, np.int32)),
        replace(form, row=form.row + np.int32(10_000)),
    ]
    for other in wrong:
        with pytest.raises(VerificationError, match="'w'"):
            pack_archive(model, {"w": Packed(other)})
    for packed in ({"w": Packed(form, transposed=True)}, {"double": Packed(form)}):
        with pytest.raises(VerificationError, match="not, to the bit"):
            pack_archive(model, packed)
    # Dims that its raw bytes do not fill: no float tensor to cut out, and not what any integers give.
    odd = model.replace(b"\x08\x04\x08\x06\x10\x01", b"\x08\x04\x08\x07\x10\x01")
    assert unpack_archive(pack_archive(odd, {})) == odd != model
    with pytest.raises(VerificationError, match="not, to the bit"):
        pack_archive(odd, {"w": Packed(form)})
    with pytest.raises(ValueError, match="no initializer 'v'"):
        pack_archive(model, {"v": Packed(form)})


def test_what_is_no_onnx_file_is_refused() -> None:
    for model in (b"no protobuf at all", b"\x3a\x05\x2a\x7fabc", b"\x08", b"\x3b\x01", b"\x00\x01", b"\x3a\xff" * 9):
        with pytest.raises(LoadError, match="not an ONNX file"):
            pack_archive(model, {})


def test_each_part_is_checked(small: Rounded) -> None:
    data = pack_archive(*small)
    header, _ = split(data, 10_000)

    def refused(broken: bytes, told: str, limit: int = 10_000) -> None:
        for reader in (unpack_archive, describe_archive):
            with pytest.raises(LoadError, match=told) as caught:
                reader(broken, limit)
            assert "\n" not in str(caught.value)

    refused(b"", "starts with nothing")
    refused(b"PK\x03\x04" + data[4:], "not 'SMDG'")
    refused(data[:5], "no header")
    refused(data[:4] + b"\x04" + data[5:], "format 4")
    refused(data[:4] + b"\x01" + data[5:], "header is damaged")
    refused(data[:6] + bytes([data[6] ^ 1]) + data[7:], "header is damaged")
    refused(data[:-1], "where its header promises")
    refused(data + b"\0", "where its header promises")
    for name, (start, _) in header.places.items():
        refused(data[:start] + bytes([data[start] ^ 64]) + data[start + 1 :], f"its {name} stream")
    refused(data, "allowed", limit=len(small[0]) - 1)
    assert unpack_archive(data, len(small[0])) == small[0]


def test_other_values_are_not_taken_for_the_model(small: Rounded) -> None:
    header, streams = split(pack_archive(*small), 10_000)
    wrong = join(header.graph_nbytes, header.checksum ^ 1, streams)
    with pytest.raises(LoadError, match="not those that were packed"):
        unpack_archive(wrong)
    less = {name: stream for name, stream in streams.items() if name != "float16"}
    with pytest.raises(LoadError, match="streams"):
        unpack_archive(join(header.graph_nbytes, header.checksum, less))


def test_records_that_claim_too_much() -> None:
    big = b"\xff\xff\xff\xff\xff\xff\x3f"
    claims = {
        "tensors in": big,
        "allowed": b"\x01\x01\x00\x01" + big,
        "axes": b"\x01\x01\x00\x09" + b"\x01" * 9,
        "a name of": b"\x01\x05\x00\x01\x04" + big,
        "into a graph": b"\x01\x01" + big + b"\x01\x04",
        "flags": b"\x01\x11\x00\x01\x04",
        "5 values of": b"\x01\x09\x00\x01\x04\x05",
        "integers": b"\x01\x03\x00\x01\x04\x03",
        "at least 0 values": b"\x01\x01\x00\x02\x00\x04",
        "cut short": b"\x01\x01\x00\x02\x04",
    }
    for told, records in claims.items():
        with pytest.raises(LoadError, match=told):
            read_records(records, 1 << 30)
    # Each within the limit, together beyond it.
    many = b"\x03" + (b"\x01\x00\x01" + b"\x80\x80\x80\x60") * 3
    with pytest.raises(LoadError, match="allowed"):
        read_records(many, 1 << 30)


def test_unpacking_a_file(tmp_path: Path, small: Rounded) -> None:
    model, packed = small
    path = tmp_path / "model.smidgen"
    path.write_bytes(pack_archive(model, packed))
    assert smidgen.unpack(path) == unpack(str(path)) == model
    with pytest.raises(LoadError, match="larger than the 100 bytes"):
        unpack(path, limit=100)
    for wrong in (tmp_path / "none.smidgen", tmp_path):
        with pytest.raises(LoadError, match="give a"):
            unpack(wrong)


ALONE = """
import sys
from pathlib import Path
for name in ("torch", "onnx", "onnxruntime", "onnxscript", "google.protobuf"):
    sys.modules[name] = None
import smidgen
import smidgen.cli
model = smidgen.unpack(sys.argv[1])
assert smidgen.cli.main(["unpack", sys.argv[1], "-o", sys.argv[2]]) == 0
assert Path(sys.argv[2]).read_bytes() == model
from smidgen.export.archive import pack_archive
assert pack_archive(model, {})
"""


def alone(script: str, *arguments: Path) -> None:
    """Run in a process without the checks of annotations, which the plain coder feels."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch_and_onnx(tmp_path: Path, small: Rounded) -> None:
    model, packed = small
    archive, onnx_file = tmp_path / "model.smidgen", tmp_path / "model.onnx"
    archive.write_bytes(pack_archive(model, packed))
    alone(ALONE, archive, onnx_file)
    assert onnx_file.read_bytes() == model


TWIN = """
import sys
from pathlib import Path
from smidgen.coding import kernel
kernel._compiled = None
import smidgen
Path(sys.argv[2]).write_bytes(smidgen.unpack(sys.argv[1]))
"""


def test_without_the_compiled_kernel(tmp_path: Path, small: Rounded) -> None:
    model, packed = small
    archive, onnx_file = tmp_path / "model.smidgen", tmp_path / "model.onnx"
    archive.write_bytes(pack_archive(model, packed))
    alone(TWIN, archive, onnx_file)
    assert onnx_file.read_bytes() == model
