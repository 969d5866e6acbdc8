"""The format of an archive: golden files, headers and records by hand, claims that are refused."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smidgen.errors import LoadError, VerificationError
from smidgen.export.archive import Packed, describe_archive, pack_archive, unpack_archive
from smidgen.export.archive_format import join, read_records, split
from smidgen.export.archive_primer import primer
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


def test_a_codebook_that_does_not_give_the_weight(as_model: AsModel) -> None:
    model, packed = shared_model(as_model)
    form = packed["w"].form
    assert isinstance(form, Codebook)
    wrong = replace(form, values=form.values + np.float32(1))
    with pytest.raises(VerificationError, match="'w'"):
        pack_archive(model, {"w": Packed(wrong)})
