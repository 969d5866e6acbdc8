"""The archive's coder of integers against NNCodec's, on the very same tensors.

Counted are the tensors of two axes or more. Ours: the whole stream of `pack_many`, its method, learning rate and the
walk of each tensor included. Theirs: the arithmetic code of each tensor, what it says of its own contexts included;
unit headers, shapes and steps are not, and rows of zeros are skipped where that is smaller. Neither stores shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from claims import Claim
from nncodec_client import Network, Peer

from smidgen.coding import pack_many, unpack_bytes, unpack_many
from smidgen.export.archive import LIMIT
from smidgen.export.archive_format import QUANTIZED, read_records, split
from smidgen.export.archive_primer import primer

QPS = (-32, -28, -24, -20)
PLAIN, PRICED, ARCHIVE, DEPENDENT = "plain", "plain, λ 3", "archive", "dependent"
# NNCodec's own quantization: scalar, scalar with a price on bits, and dependent, its default.
QUANTIZED_BY: dict[str, dict[str, Any]] = {
    PLAIN: {"use_dq": False},
    PRICED: {"use_dq": False, "lambda_scale": 3.0},
    DEPENDENT: {},
}
SAYS = {
    PLAIN: "integers of NNCodec's scalar quantization",
    PRICED: "the same with a price on bits (λ 3)",
    ARCHIVE: "integers of .smidgen files",
    DEPENDENT: "indices of NNCodec's dependent quantization, whose states its coder alone follows",
}


def coded(name: str, network: Network, peer: Peer, archives: Sequence[Path]) -> list[dict[str, Any]]:
    """Bytes of both coders on NNCodec's integers of a network at several steps, and on those of its archives."""
    weights = {key: value for key, value in network.weights.items() if value.ndim > 1}
    entries = []
    for kind, settings in QUANTIZED_BY.items():
        for qp in QPS:
            made = peer.code(weights, {"qp": qp, **settings})
            entries.append(_entry(kind, f"qp {qp}", list(made.integers.values()), sum(made.payload.values())))
    for path in archives:
        integers = [tensor for tensor in integers_of(path.read_bytes()) if tensor.ndim > 1]
        made = peer.code({str(number): tensor for number, tensor in enumerate(integers)}, {})
        entries.append(_entry(ARCHIVE, path.name, integers, sum(made.payload.values())))
    for entry in entries:
        print(f"{name} coder, {entry['kind']} {entry['what']}: smidgen {entry['smidgen']} bytes, NNCodec "
              f"{entry['nncodec']}: {entry['smidgen'] / entry['nncodec']:.4f}", flush=True)  # fmt: skip
    return entries


def _entry(kind: str, what: str, integers: Sequence[np.ndarray], theirs: int) -> dict[str, Any]:
    tensors = [np.ascontiguousarray(tensor, np.int32) for tensor in integers]
    stream = pack_many(tensors)
    back = unpack_many(stream, [tensor.shape for tensor in tensors])
    if not all(np.array_equal(a, b) for a, b in zip(back, tensors, strict=True)):
        raise SystemExit(f"{kind} {what}: the integers do not come back")
    count = sum(tensor.size for tensor in tensors)
    return {"kind": kind, "what": what, "tensors": len(tensors), "values": count, "smidgen": len(stream),
            "nncodec": theirs}  # fmt: skip


def integers_of(data: bytes) -> list[np.ndarray]:
    """The integers in an archive, in the order in which they are coded: tensors of two axes or more, then vectors."""
    header, streams = split(data, LIMIT)
    records, _ = read_records(unpack_bytes(streams["graph"], header.graph_nbytes, LIMIT, primer()), LIMIT)
    shapes = sorted((r.shape for r in records if r.kind == QUANTIZED), key=lambda shape: len(shape) < 2)
    return unpack_many(streams["integers"], shapes, LIMIT)


def coder_claims(name: str, entries: Sequence[dict[str, Any]]) -> list[Claim]:
    """One line for each kind of integers: our bytes as a share of theirs."""
    claims = []
    for kind, says in SAYS.items():
        shares = [entry["smidgen"] / entry["nncodec"] for entry in entries if entry["kind"] == kind]
        if shares:
            asked = "" if kind == DEPENDENT else "≤ 1×"
            claims.append(Claim(f"{name}: coder, {says}", asked,
                                f"{min(shares):.3f} to {max(shares):.3f}× in {len(shares)}",
                                max(shares) <= 1 if asked else None))  # fmt: skip
    return claims
