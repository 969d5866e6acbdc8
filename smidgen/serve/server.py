"""A small web server for one page: exact addresses, GET and HEAD, and headers that keep the page to its own origin."""

from __future__ import annotations

import errno
import ipaddress
import os
import shutil
import socket
import ssl
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase, BytesIO
from typing import Any, cast

from smidgen.errors import UserError
from smidgen.serve.routes import Route

LOOPBACK = "127.0.0.1"
PORT = 8000
_PATIENCE = 30  # seconds that a connection may say nothing
_KEPT = 365 * 24 * 3600  # seconds
HEADERS = {
    # Nothing from anywhere else, nothing inline. wasm-unsafe-eval lets WebAssembly be compiled, no text be run.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
        "media-src 'self' blob:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    # These three make the page cross-origin isolated: without it browsers give no threads and a coarse clock.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class PageServer(ThreadingHTTPServer):
    """Answers a page's addresses, a thread a connection; made by `open_server`.

    Args:
        routes: what there is, by address.
        host, port: where it listens; port 0 takes any free one.
        tls: for https.
    """

    daemon_threads = True
    block_on_close = False
    # Elsewhere it lets a restart take the port at once; on Windows it would let two servers share one.
    allow_reuse_address = os.name == "posix"

    def __init__(self, routes: Mapping[str, Route], host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.routes, self.secure = routes, tls is not None
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        if tls is not None:
            # The handshake waits for the first read, in the connection's own thread: a slow client holds up no other.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def url(self, host: str | None = None) -> str:
        """The page's address under a host's name; the one it listens on when None."""
        name = str(self.server_address[0]) if host is None else host
        return f"{'https' if self.secure else 'http'}://{f'[{name}]' if ':' in name else name}:{self.port}/"

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(self.allow_reuse_address))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, is slow or does not like the certificate is no fault; the rest is one line."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"smidgen: serve: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection from the server's routes."""

    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _refuse_method(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method

    def _answer(self, body: bool) -> None:
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            self.close_connection = True  # what follows would be read as the next request
        if not known_host(self.headers.get("host", "")):
            return self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        server = cast(PageServer, self.server)
        route = server.routes.get(self.path.partition("?")[0])
        stream = None if route is None else _opened(route)
        if route is None or stream is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        with stream:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", route.type)
            self.send_header("Content-Length", str(stream.seek(0, os.SEEK_END)))
            self.send_header("Cache-Control", f"max-age={_KEPT}, immutable" if route.lasting else "no-store")
            self.end_headers()
            stream.seek(0)
            if body:
                shutil.copyfileobj(stream, self.wfile)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The status alone, as text: nothing of the request comes back."""
        self.close_connection = True
        told = f"{int(code)} {HTTPStatus(code).phrase}\n".encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(told)))
        self.send_header("Connection", "close")
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)

    def version_string(self) -> str:
        return "smidgen"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _opened(route: Route) -> BufferedIOBase | None:
    """What a route answers with; None for a file that has gone, or became a link to another since the start."""
    if isinstance(route.content, bytes):
        return BytesIO(route.content)
    try:
        if route.content.resolve(strict=True) != route.content or not route.content.is_file():
            return None
        return open(route.content, "rb")
    except (OSError, RuntimeError):
        return None


def known_host(header: str) -> bool:
    """Whether a request's Host is an address or this machine's name.

    A page elsewhere can have its own name lead here (DNS rebinding) and then read what is served; its name shows.

    >>> known_host("127.0.0.1:8000"), known_host("[::1]:8000"), known_host("localhost"), known_host("example.com:8000")
    (True, True, True, False)
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        return True
    except ValueError:
        own = socket.gethostname().lower()
        return name.lower() in ("localhost", own, f"{own.partition('.')[0]}.local")


def open_server(
    routes: Mapping[str, Route], host: str = LOOPBACK, port: int = PORT, tls: ssl.SSLContext | None = None
) -> PageServer:
    """A server that listens; ``serve_forever`` answers.

    Args:
        routes: from `build_routes`.
        host: an IP address of this machine.
        port: 0 for any free one.
        tls: for https.

    Raises:
        UserError: the port is in use or not allowed, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"serve: port {port} is not between 0 and 65535; 0 takes any free one")
    try:
        return PageServer(routes, host, port, tls)
    except OSError as error:
        raise UserError(f"serve: {_reason(error, host, port)}") from None


def _reason(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; give another with --port, or --port 0 for any free one"
        case errno.EACCES | errno.EPERM:
            return f"port {port} is not allowed here; give one above 1023 with --port"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return f"'{host}' is no address of this machine; give --host alone for all of them"
        case _:
            return f"cannot listen on '{host}', port {port}: {error.strerror or error}"


def local_address() -> str | None:
    """This machine's address on the local network; None where it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737): only the route is looked up
            return str(probe.getsockname()[0])
        except OSError:
            return None
