"""Certificates hold for the names they were made for, and a machine that can make none is told so."""

from __future__ import annotations

import builtins
import shutil
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from smidgen.errors import UserError
from smidgen.serve import certificate

NAMES = ["192.0.2.7", "::1", "localhost", "phone.local"]


@pytest.fixture(params=["with_openssl", "with_cryptography"])
def maker(request: pytest.FixtureRequest) -> certificate.Maker:
    if request.param == "with_openssl" and shutil.which("openssl") is None:
        pytest.skip("the program openssl is not here")
    if request.param == "with_cryptography":
        pytest.importorskip("cryptography", reason="the extra 'serve' is not installed")
    return getattr(certificate, request.param)


def test_a_certificate_holds_for_its_names(maker: certificate.Maker, tmp_path: Path) -> None:
    pem, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    maker(NAMES, pem, key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem, key)
    told = shutil.which("openssl")
    context = ssl.create_default_context(cafile=pem)
    (stored,) = context.get_ca_certs() or [{}]
    if stored:
        names = {value for _, value in stored["subjectAltName"]}
        assert {"192.0.2.7", "localhost", "phone.local"} <= names
    assert told is None or b"BEGIN CERTIFICATE" in pem.read_bytes()


def test_two_runs_have_two_keys(maker: certificate.Maker, tmp_path: Path) -> None:
    keys = []
    for number in range(2):
        maker(NAMES, tmp_path / f"{number}.pem", tmp_path / f"{number}.key")
        keys.append((tmp_path / f"{number}.key").read_bytes())
    assert keys[0] != keys[1]


def test_nothing_that_makes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"pip install 'smidgen\[serve\]'"):
        certificate.secure_context(NAMES)


def test_an_openssl_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openssl").write_text("#!/bin/sh\necho 'no such curve' >&2\nexit 1\n")
    (tmp_path / "openssl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match="openssl cannot make a certificate: no such curve"):
        certificate.with_openssl(NAMES, tmp_path / "c.pem", tmp_path / "k.pem")


@pytest.mark.parametrize("address", [None, "192.0.2.7"])
def test_own_names(address: str | None) -> None:
    names: Sequence[str] = certificate.own_names(address)
    assert len(names) == len(set(names))
    assert {"localhost", "127.0.0.1"} <= set(names)
    assert address is None or names[0] == address
