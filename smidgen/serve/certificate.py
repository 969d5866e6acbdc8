"""A self-signed certificate for the local network: browsers give a camera to secure pages only.

Made anew for every run, its key is on disk no longer than it takes to read it.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from smidgen.errors import UserError

DAYS = 30
_OPENSSL_SECONDS = 60

Maker = Callable[[Sequence[str], Path, Path], None]


def secure_context(names: Sequence[str]) -> tuple[ssl.SSLContext, str]:
    """What a server needs for https under these names.

    Args:
        names: host names and IP addresses.

    Returns:
        The context, and the certificate's SHA-256 fingerprint as browsers show it.

    Raises:
        UserError: nothing here can make a certificate.
    """
    maker = available_maker()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory(prefix="smidgen-tls-") as folder:  # readable by its owner alone
        certificate, key = Path(folder) / "certificate.pem", Path(folder) / "key.pem"
        maker(names, certificate, key)
        context.load_cert_chain(certificate, key)
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))
    return context, hashlib.sha256(der).digest().hex(":").upper()


def available_maker() -> Maker:
    """What makes certificates here: the package ``cryptography``, else the ``openssl`` program.

    Raises:
        UserError: neither is here.
    """
    try:
        import cryptography  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        if shutil.which("openssl") is None:
            raise UserError(
                "serve: --host needs a certificate, and neither the package cryptography nor the program openssl is "
                "here to make it; pip install 'smidgen[serve]'"
            ) from None
        return with_openssl
    return with_cryptography


def with_openssl(names: Sequence[str], certificate: Path, key: Path) -> None:
    """Write a certificate and its key (PEM), made by the ``openssl`` program."""
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256",
        "-days", str(DAYS), "-subj", "/CN=smidgen", "-addext", f"subjectAltName={_alternatives(names)}",
        "-addext", "extendedKeyUsage=serverAuth", "-keyout", str(key), "-out", str(certificate),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_OPENSSL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"serve: openssl cannot make a certificate: {error}; pip install 'smidgen[serve]'") from error
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:]
        raise UserError(f"serve: openssl cannot make a certificate: {reason}; pip install 'smidgen[serve]'")


def _alternatives(names: Sequence[str]) -> str:
    return ",".join(f"{'IP' if _address(name) else 'DNS'}:{name}" for name in names)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def with_cryptography(names: Sequence[str], certificate: Path, key: Path) -> None:
    """Write a certificate and its key (PEM), made by the package ``cryptography``."""
    from cryptography import x509  # pyright: ignore[reportMissingImports]
    from cryptography.hazmat.primitives import hashes, serialization  # pyright: ignore[reportMissingImports]
    from cryptography.hazmat.primitives.asymmetric import ec  # pyright: ignore[reportMissingImports]
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # pyright: ignore[reportMissingImports]

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "smidgen")])
    addresses = [(name, _address(name)) for name in names]
    alternatives = [x509.DNSName(name) if at is None else x509.IPAddress(at) for name, at in addresses]
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # a phone's clock may be slow
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def own_names(address: str | None) -> list[str]:
    """What this machine may be called in a browser."""
    own = socket.gethostname()
    names = ["localhost", "127.0.0.1", own, f"{own.partition('.')[0]}.local"]
    return list(dict.fromkeys([*([address] if address else []), *(name for name in names if name)]))
