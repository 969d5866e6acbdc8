"""The server over real sockets: its own addresses and no others, the headers, and how it refuses."""

from __future__ import annotations

import http.client
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from smidgen.errors import UserError
from smidgen.serve.certificate import own_names, secure_context
from smidgen.serve.folder import read_run
from smidgen.serve.routes import Route, build_routes
from smidgen.serve.samples import Samples
from smidgen.serve.server import HEADERS, PageServer, open_server
from smidgen.serve.vendor import PACKAGES
from tests.serve.conftest import Serving
from tests.serve.networks import saved_run

Raw = Callable[[bytes], tuple[int, bytes]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = saved_run(tmp_path / "out")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "notes.txt").write_text("secret")
    return folder


@pytest.fixture
def routes(folder: Path, tmp_path: Path) -> dict[str, Route]:
    runtimes = {}
    for package in PACKAGES:
        for name in package.files:
            path = tmp_path / "vendor" / package.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"stands for {name}")
            runtimes[f"{package.folder}/{name}"] = path
    samples = Samples(np.zeros((2, 1, 8, 8), np.float32), np.array([1, 2]), "set", None)
    return build_routes(read_run(folder), samples, runtimes, ["a", "b", "c", "d"])


@pytest.fixture
def server(routes: dict[str, Route]) -> Iterator[PageServer]:
    with Serving(open_server(routes, port=0)) as server:
        yield server


@pytest.fixture
def raw(server: PageServer) -> Raw:
    """Sends bytes as they are; the status and everything that came back."""

    def raw(request: bytes) -> tuple[int, bytes]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
        return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0, answer

    return raw


def get(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_every_address_answers_with_its_type_and_headers(server: PageServer, folder: Path) -> None:
    ends = {
        "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
        "mjs": "text/javascript; charset=utf-8", "wasm": "application/wasm", "json": "application/json",
        "svg": "image/svg+xml", "onnx": "application/octet-stream", "bin": "application/octet-stream",
    }  # fmt: skip
    seen = set()
    for path in server.routes:
        answer, body = get(server, path)
        end = "html" if path == "/" else path.rpartition(".")[2]
        seen.add(end)
        assert (answer.status, answer.headers["Content-Type"]) == (200, ends[end]), path
        assert int(answer.headers["Content-Length"]) == len(body) > 0
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert ("immutable" in answer.headers["Cache-Control"]) == path.startswith("/vendor/")
        assert answer.headers["Server"] == "smidgen", "no versions"
    assert seen == set(ends)
    assert get(server, "/networks/0.onnx")[1] == (folder / "small.onnx").read_bytes()
    assert get(server, "/networks/1.onnx?again=1")[1] == (folder / "model.onnx").read_bytes()
    assert get(server, "/samples.bin")[1] == bytes(2 * 64 * 4)


def test_the_policy_names_no_other_host() -> None:
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    allowed = {"'none'", "'self'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert policy["default-src"] == "'none'"
    assert set(" ".join(policy.values()).split()) <= allowed
    assert "blob:" not in policy["script-src"]


def test_the_page_itself_names_no_other_host(server: PageServer) -> None:
    for path, route in server.routes.items():
        if not path.startswith(("/vendor/", "/networks/")) and route.type.startswith("text/"):
            body = get(server, path)[1].decode()
            assert "://" not in body.replace("http://www.w3.org/2000/svg", ""), path
            assert "style=" not in body
            assert "onclick=" not in body, "the policy would refuse it"


ODD = [
    "/../secret.txt", "/../../../../etc/passwd", "//etc/passwd", "/etc/passwd", "/%2e%2e/secret.txt",
    "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "/%252e%252e/secret.txt", "/..%c0%afsecret.txt", "/..\\secret.txt",
    "/..%5csecret.txt", "/notes.txt", "/result.json", "/model.onnx", "/small.onnx", "/networks/../result.json",
    "/networks/", "/networks", "/vendor/", "/vendor", "/networks/%30.onnx", "/networks/0.onnx/", "/networks/0.onnx%00",
    "/networks//0.onnx", "/./", "/.", "/index.html", "/INDEX.HTML", "/networks/0.ONNX", "/networks/9.onnx",
    "/server.py", "/__init__.py", "/../serve/server.py", "/page/main.js", "*", "main.js", "../main.js",
    "http://127.0.0.1/notes.txt", "file:///etc/passwd", "/\u202e", "/%", "/%zz", "/;/notes.txt", "/~root/",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD)
def test_other_addresses_are_refused(raw: Raw, path: str) -> None:
    status, answer = raw(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status in (400, 404), answer
    assert b"secret" not in answer
    assert b"root:" not in answer
    assert answer.endswith((b"\r\n\r\n404 Not Found\n", b"\r\n\r\n400 Bad Request\n")), (
        "nothing of the request comes back"
    )
    assert b"X-Content-Type-Options: nosniff" in answer


def test_changed_addresses_are_refused(raw: Raw, routes: dict[str, Route]) -> None:
    generator = random.Random(0)
    for _ in range(300):
        path = bytearray(generator.choice(list(routes)).encode())
        for _ in range(generator.randint(1, 3)):
            place = generator.randrange(len(path) + 1)
            path[place : place + generator.randint(0, 1)] = bytes([generator.choice(b"./%\\\x002efFa~:@") or 1])
        plain = bytes(path).split(b"?")[0].decode("latin1")
        known = (f"/{plain.lstrip('/')}" if plain.startswith("/") else plain) in routes
        status, answer = raw(b"GET " + bytes(path) + b" HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n")
        assert status == (200 if known else 404), (path, answer[:200])


def test_head_has_no_body(server: PageServer, raw: Raw) -> None:
    for path in ("/", "/networks/0.onnx", "/none"):
        answer, body = get(server, path, "HEAD")
        assert body == b""
        assert answer.headers["Content-Length"] == get(server, path)[0].headers["Content-Length"]
    assert raw(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[1].endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(server: PageServer, method: str) -> None:
    answer, body = get(server, "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert body == b"405 Method Not Allowed\n"


NO_REQUESTS = [
    b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"noise\r\n\r\n", b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET / SPDY\r\nHost: x\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
]  # fmt: skip


@pytest.mark.parametrize("request_", NO_REQUESTS, ids=range(len(NO_REQUESTS)))
def test_what_is_no_request(raw: Raw, server: PageServer, request_: bytes) -> None:
    status, answer = raw(request_)
    assert status not in (200, 500), answer
    assert b"<" not in answer
    assert get(server, "/")[0].status == 200, "and the server goes on"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_a_name_that_is_not_this_machines(server: PageServer, host: str) -> None:
    answer, body = get(server, "/networks/0.onnx", Host=host)
    assert (answer.status, body) == (421, b"421 Misdirected Request\n")


def test_many_requests_on_one_connection(server: PageServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for _ in range(3):
        connection.request("GET", "/bench.json")
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:1]) == (200, b"{")
    connection.close()


def test_a_body_is_not_the_next_request(raw: Raw) -> None:
    inner = b"GET /bench.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    _, answer = raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner)
    assert answer.count(b"HTTP/1.1 200") == 1


def test_a_client_that_says_nothing_holds_up_no_other(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert get(server, "/")[0].status == 200


def test_a_file_that_goes_or_becomes_a_link(server: PageServer, folder: Path) -> None:
    (folder / "model.onnx").unlink()
    assert get(server, "/networks/1.onnx")[0].status == 404
    (folder / "model.onnx").symlink_to(folder.parent / "secret.txt")
    assert get(server, "/networks/1.onnx")[0].status == 404
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()
    assert get(server, "/networks/1.onnx")[0].status == 404


def test_ports_and_addresses_that_cannot_be_had(server: PageServer) -> None:
    with pytest.raises(UserError, match=f"port {server.port} is in use; give another with --port"):
        open_server({}, port=server.port)
    for port in (-1, 65536):
        with pytest.raises(UserError, match="not between 0 and 65535"):
            open_server({}, port=port)
    with pytest.raises(UserError, match=r"'192\.0\.2\.1' is no address of this machine"):
        open_server({}, "192.0.2.1", 0)


def test_only_loopback_unless_told(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url() == f"http://127.0.0.1:{server.port}/"


def test_https_with_its_own_certificate(routes: dict[str, Route], tmp_path: Path) -> None:
    try:
        context, fingerprint = secure_context(own_names("127.0.0.1"))
    except UserError as error:
        pytest.skip(str(error))
    with Serving(open_server(routes, port=0, tls=context)) as server:
        assert server.url("phone.local") == f"https://phone.local:{server.port}/"
        pem = ssl.get_server_certificate(("127.0.0.1", server.port))
        trusting = ssl.create_default_context(cadata=pem)
        for name in ("127.0.0.1", "localhost"):
            connection = http.client.HTTPSConnection(name, server.port, timeout=10, context=trusting)
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:15]) == (200, b"<!doctype html>")
            connection.close()
        assert len(fingerprint) == 95
        # Who speaks plain HTTP, says nothing or leaves in the middle holds up no other.
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" not in plain.recv(1 << 16)
            silent.sendall(b"\x16\x03\x01")
            connection = http.client.HTTPSConnection("localhost", server.port, timeout=10, context=trusting)
            connection.request("HEAD", "/")
            assert connection.getresponse().status == 200
            connection.close()
