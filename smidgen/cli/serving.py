"""``smidgen serve``: a run's networks in a browser, side by side."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Mapping
from pathlib import Path

from smidgen.cli.inputs import open_scored
from smidgen.data import Dataset, Preprocess
from smidgen.errors import DataError, UserError
from smidgen.runtimes.opening import open_file
from smidgen.serve.certificate import own_names, secure_context
from smidgen.serve.folder import Run, read_classes, read_run
from smidgen.serve.routes import Route, build_routes
from smidgen.serve.samples import Samples, noise, take_samples
from smidgen.serve.server import LOOPBACK, PageServer, local_address, open_server
from smidgen.serve.vendor import vendored


def serve(options: argparse.Namespace) -> int:
    """``smidgen serve``: until Ctrl-C."""
    runtimes = vendored()
    run = _chosen(read_run(options.folder, options.against), options.target)
    samples, outputs = _samples(options, run)
    classes = _classes(options, outputs)
    for note in run.notes:
        _say(note)
    with _server(options, build_routes(run, samples, runtimes, classes)) as server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)  # behind the terminal's ^C
    return 0


def _chosen(run: Run, target: str | None) -> Run:
    """The run with the asked network in front."""
    if target is None:
        return run
    names = [network.target for network in run.written]
    if target not in names:
        raise UserError(f"serve: there is no '{target}' that a browser runs; there is {', '.join(names)}")
    written = sorted(run.written, key=lambda network: network.target != target)
    return Run(run.name, run.original, tuple(written), run.preprocess, run.notes)


def _samples(options: argparse.Namespace, run: Run) -> tuple[Samples, int]:
    """Samples that fit the original, told now and not in a browser; and how many numbers it answers with."""
    data, preprocess = _inputs(options, run)
    with open_file(run.original.path) as runner:
        shape = runner.input_shape
        samples = (
            noise(shape, preprocess, options.samples, options.seed)
            if data is None
            else take_samples(data, shape, preprocess, options.samples, options.seed)
        )
        return samples, int(runner.run(samples.x[:1])[0].size)


def _inputs(options: argparse.Namespace, run: Run) -> tuple[Dataset | None, Preprocess | None]:
    """The data, and how a picture becomes an input: as said here, else as in the run."""
    data = open_scored(options, run.preprocess)
    stored = None if data is None else data.items.declared()
    return data, run.preprocess if stored is None else Preprocess.from_dict(stored)


def _classes(options: argparse.Namespace, outputs: int) -> tuple[str, ...]:
    """Names from a file, else those of a folder's sub-folders, which are its classes."""
    if options.classes is not None:
        names = read_classes(options.classes)
        if len(names) != outputs:
            raise DataError(
                f"serve: '{options.classes}' names {len(names)} classes, the network gives {outputs} numbers"
            )
        return names
    folder = Path(options.data) if options.data is not None else None
    if folder is None or not folder.is_dir() or options.label_offset:
        return ()
    names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    return tuple(names) if len(names) == outputs else ()


def _server(options: argparse.Namespace, routes: Mapping[str, Route]) -> PageServer:
    """Listening, and its address told."""
    host = LOOPBACK if options.host is None else options.host
    if ipaddress.ip_address(host).is_loopback:
        server = open_server(routes, host, options.port)
        print(f"serving {options.folder} at {server.url()}  (Ctrl-C ends it)", flush=True)
        return server
    address = local_address() if ipaddress.ip_address(host).is_unspecified else host
    tls, fingerprint = secure_context(own_names(address))
    server = open_server(routes, host, options.port, tls)
    print(f"serving {options.folder} to the local network at {server.url(address or 'localhost')}  (Ctrl-C ends it)")
    print("the browser will warn of the certificate, which is self-signed; its SHA-256 fingerprint:", flush=True)
    print(f"  {fingerprint}", flush=True)
    return server


def _say(note: str) -> None:
    print(f"smidgen: serve: {note}", file=sys.stderr)
