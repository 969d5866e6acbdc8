"""Every address the server answers, and what lies behind it. No path is ever made from a request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.serve.folder import Network, Run
from smidgen.serve.samples import Samples
from smidgen.serve.vendor import LITERT, ONNXRUNTIME

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
_BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Route:
    """What an address answers with.

    Args:
        content: the bytes, or a file read when it is asked for.
        type: its MIME type.
        lasting: whether a browser may keep it for good; its address then holds its version.
    """

    content: bytes | Path
    type: str
    lasting: bool = False


def build_routes(
    run: Run, samples: Samples, runtimes: Mapping[str, Path], classes: Sequence[str] = ()
) -> dict[str, Route]:
    """All addresses of a run's page.

    Args:
        run: the networks.
        samples: their inputs.
        runtimes: the browser's runtimes by address below ``/vendor/``.
        classes: names of the classes.
    """
    routes = {f"/{path.name}": _file(path) for path in sorted(PAGE.iterdir()) if path.suffix in TYPES}
    routes["/"] = routes.pop("/index.html")
    routes |= {f"/vendor/{name}": _file(path, lasting=True) for name, path in runtimes.items()}
    networks = [run.original, *run.written]
    addresses = [f"/networks/{number}{network.path.suffix.lower()}" for number, network in enumerate(networks)]
    routes |= {at: _file(network.path) for at, network in zip(addresses, networks, strict=True)}
    routes["/samples.bin"] = Route(np.ascontiguousarray(samples.x, dtype="<f4").tobytes(), _BYTES)
    told = description(run, samples, [at.lstrip("/") for at in addresses], classes)
    routes["/bench.json"] = Route(json.dumps(told).encode(), TYPES[".json"])
    return routes


def description(run: Run, samples: Samples, addresses: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """What the page is told: the networks, the samples and how a picture becomes an input."""
    entries = [_network(network, at) for network, at in zip((run.original, *run.written), addresses, strict=True)]
    return {
        "name": run.name,
        "original": entries[0],
        "written": entries[1:],
        "classes": list(classes),
        "samples": {
            "url": "samples.bin",
            "count": len(samples.x),
            "shape": list(samples.x.shape[1:]),
            "labels": None if samples.labels is None else samples.labels.tolist(),
            "source": samples.source,
        },
        "preprocess": None if samples.preprocess is None else samples.preprocess.to_dict(),
        "runtimes": {
            "onnxruntime": {"url": f"vendor/{ONNXRUNTIME.folder}/", "name": f"ONNX Runtime Web {ONNXRUNTIME.version}"},
            "litert": {"url": f"vendor/{LITERT.folder}/", "name": f"LiteRT.js {LITERT.version}"},
        },
    }


def _network(network: Network, at: str) -> dict[str, Any]:
    return {
        "target": network.target, "file": network.path.name, "url": at, "nbytes": network.nbytes,
        "runtime": network.runtime, "accuracy": network.accuracy,
    }  # fmt: skip


def _file(path: Path, lasting: bool = False) -> Route:
    return Route(path.resolve(), TYPES.get(path.suffix.lower(), _BYTES), lasting)
