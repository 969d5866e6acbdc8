"""Runtimes are unpacked only when they are the very ones expected, and wholly."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from smidgen.errors import LoadError, OutputError, UserError
from smidgen.serve.vendor import COMMAND, PACKAGES, Package, fetch, npm_pack, unpacked, vendored


def archive(files: dict[str, bytes], link: str | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(f"package/{link}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return stream.getvalue()


def package(content: bytes, **changes: object) -> Package:
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    files = {"a.js": "dist/index.js", "wasm/a.wasm": "wasm/a.wasm"}
    return replace(Package("@some/thing", "1.2.3", digest, files), **changes)  # type: ignore[arg-type]


FILES = {"dist/index.js": b'import x from "y";', "wasm/a.wasm": b"\0asm", "extra.js": b"never unpacked"}


def brought(content: bytes):
    def pack(what: str, folder: Path) -> Path:
        assert what == "@some/thing@1.2.3"
        (folder / "thing.tgz").write_bytes(content)
        return folder / "thing.tgz"

    return pack


def test_the_files_wanted_and_no_others(tmp_path: Path) -> None:
    content = archive(FILES)
    wanted = package(content, edits={"a.js": {'"y"': '"./y.js"'}})
    fetch(tmp_path / "vendor", (wanted,), brought(content))
    place = tmp_path / "vendor" / "some-thing-1.2.3"
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        "a.js",
        "wasm/a.wasm",
    }
    assert (place / "a.js").read_bytes() == b'import x from "./y.js";'
    assert [path.name for path in (tmp_path / "vendor").iterdir()] == [place.name], "nothing half done is left"


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    content = archive(FILES)
    fetch(tmp_path, (package(content),), brought(content))

    def never(what: str, folder: Path) -> Path:
        raise AssertionError("fetched again")

    fetch(tmp_path, (package(content),), never)
    (tmp_path / "some-thing-1.2.3" / "a.js").unlink()
    fetch(tmp_path, (package(content),), brought(content))
    assert (tmp_path / "some-thing-1.2.3" / "a.js").is_file(), "what was damaged is made whole"


def test_another_archive_is_not_unpacked(tmp_path: Path) -> None:
    good, other = archive(FILES), archive({**FILES, "dist/index.js": b"evil"})
    with pytest.raises(LoadError, match="not the one known"):
        fetch(tmp_path / "vendor", (package(good),), brought(other))
    assert not (tmp_path / "vendor").exists()


def test_archives_that_hold_something_else() -> None:
    short = archive({"dist/index.js": b"x"})
    with pytest.raises(LoadError, match=r"holds no wasm/a\.wasm"):
        unpacked(short, package(short))
    linked = archive({"wasm/a.wasm": b"x"}, link="dist/index.js")
    with pytest.raises(LoadError, match="no plain file"):
        unpacked(linked, package(linked))
    content = archive(FILES)
    with pytest.raises(LoadError, match="does not hold"):
        unpacked(content, package(content, edits={"a.js": {"absent": "x"}}))


def test_missing_runtimes_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=COMMAND):
        vendored(tmp_path)


def test_no_npm_and_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="npm is not installed"):
        npm_pack("thing@1", tmp_path)
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho '404 not found' >&2\nexit 1\n")
    (tmp_path / "bin" / "npm").chmod(0o755)
    with pytest.raises(UserError, match="npm cannot bring thing@1: 404 not found"):
        npm_pack("thing@1", tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    content = archive(FILES)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        fetch(tmp_path / "file", (package(content),), brought(content))


def test_addresses_are_plain_and_apart() -> None:
    names = [f"{each.folder}/{name}" for each in PACKAGES for name in each.files]
    assert len(names) == len(set(names))
    assert all(name.isascii() and not set(name) & set("%?# @\\") and ".." not in name for name in names)
    for each in PACKAGES:
        assert len(base64.b64decode(each.integrity)) == 64
