"""The browser's runtimes: exact versions from the npm registry, checked and unpacked beside this file, once.

    python -m smidgen.serve.vendor          # or: make web

Nothing is fetched while the page is served, and nothing from another host. npm knows where its registry is; what it
brings is checked against the SHA-512 below before anything is unpacked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from smidgen.errors import LoadError, OutputError, UserError

FOLDER = Path(__file__).parent / "vendor"
COMMAND = "python -m smidgen.serve.vendor"
LARGEST_FILE = 64 << 20  # bytes of one unpacked file; the largest here has 14 million
_NPM_SECONDS = 600


@dataclass(frozen=True)
class Package:
    """One npm package.

    Args:
        name, version: as npm knows them.
        integrity: SHA-512 of its archive in base64, as npm publishes it.
        files: those that the page needs, by the path they get to that in the archive.
        edits: by path, texts to replace in it, which occur once each, and what replaces them.
    """

    name: str
    version: str
    integrity: str
    files: Mapping[str, str]
    edits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Folder of its files; the version is part of it, so browsers may keep them for good.

        >>> PACKAGES[0].folder
        'onnxruntime-web-1.30.0'
        """
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"


_LITERT_WASM = ("litert_wasm_internal", "litert_wasm_compat_internal", "litert_wasm_threaded_internal")
ONNXRUNTIME = Package(
    name="onnxruntime-web",
    version="1.30.0",
    integrity="q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    files={
        "ort.mjs": "dist/ort.wasm.min.mjs",
        "ort-wasm-simd-threaded.mjs": "dist/ort-wasm-simd-threaded.mjs",
        "ort-wasm-simd-threaded.wasm": "dist/ort-wasm-simd-threaded.wasm",
        "package.json": "package.json",
    },
)
LITERT = Package(
    name="@litertjs/core",
    version="2.5.3",
    integrity="PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
    files={
        "litert.js": "dist/index.js",
        **{f"wasm/{name}.{end}": f"wasm/{name}.{end}" for name in _LITERT_WASM for end in ("js", "wasm")},
        "package.json": "package.json",
    },
    edits={
        "litert.js": {
            # A browser has no search path for a bare name, and an import map would be an inline script.
            '"@litertjs/wasm-utils"': '"../litertjs-wasm-utils-2.5.3/wasm-utils.js"',
            # Networks run on the processor here: no graphics device is asked for, and none is missed aloud.
            "await Environment.create()": "await Environment.create({ webGpuDevice: null })",
        }
    },
)
LITERT_LOADER = Package(
    name="@litertjs/wasm-utils",
    version="2.5.3",
    integrity="4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
    files={"wasm-utils.js": "dist/index.js", "package.json": "package.json"},
)
PACKAGES = (ONNXRUNTIME, LITERT, LITERT_LOADER)


def vendored(folder: Path = FOLDER) -> dict[str, Path]:
    """The runtimes' files by their address below ``/vendor/``.

    Args:
        folder: where they were unpacked.

    Raises:
        LoadError: one is missing; the message names the command that fetches them.
    """
    found = {
        f"{package.folder}/{name}": folder / package.folder / name for package in PACKAGES for name in package.files
    }
    missing = next((path for path in found.values() if not path.is_file()), None)
    if missing is not None:
        raise LoadError(
            f"serve: the browser's runtimes are not here ({missing.name} is missing); fetch them: {COMMAND}"
        )
    return found


def fetch(
    folder: Path = FOLDER, packages: tuple[Package, ...] = PACKAGES, pack: Callable[[str, Path], Path] | None = None
) -> None:
    """Fetch, check and unpack every package that is not there yet; each appears whole or not at all.

    Args:
        folder: where to.
        packages: those wanted.
        pack: brings the archive of ``name@version`` into a folder; ``npm pack`` when None.

    Raises:
        UserError: npm is missing or fails.
        LoadError: an archive that is not the one expected.
        OutputError: the folder cannot be written.
    """
    for package in packages:
        place = folder / package.folder
        if all((place / name).is_file() for name in package.files):
            continue
        with tempfile.TemporaryDirectory(prefix="smidgen-npm-") as scratch:
            archive = (pack or npm_pack)(f"{package.name}@{package.version}", Path(scratch)).read_bytes()
        contents = unpacked(archive, package)
        try:
            _place(contents, place)
        except OSError as error:
            raise OutputError(
                f"vendor: cannot write '{place}': {error.strerror}; run it as who installed smidgen"
            ) from error


def npm_pack(what: str, folder: Path) -> Path:
    """The archive of ``name@version``, fetched by npm.

    Raises:
        UserError: npm is not installed, or says no.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("vendor: npm is not installed, and it fetches the browser's runtimes; install Node.js with npm")
    command = [npm, "pack", what, "--silent", "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"vendor: npm did not bring {what} in {_NPM_SECONDS} seconds; check the network") from None
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = " ".join(done.stderr.split())[-200:] or f"exit code {done.returncode}"
        raise UserError(f"vendor: npm cannot bring {what}: {reason}; check the network and npm's registry")
    return archives[0]


def unpacked(archive: bytes, package: Package) -> dict[str, bytes]:
    """The files of a package that the page needs, by the paths they get.

    Args:
        archive: the npm package's archive.
        package: what it must be.

    Raises:
        LoadError: another checksum, or a file that is not there.
    """
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if not hmac.compare_digest(digest, package.integrity):
        raise LoadError(
            f"vendor: {package.name}@{package.version} came with sha512-{digest}, not the one known; it is not used"
        )
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for name, inside in package.files.items():
            try:
                member = tar.getmember(f"package/{inside}")
            except KeyError:
                raise LoadError(f"vendor: {package.name}@{package.version} holds no {inside}") from None
            stream = tar.extractfile(member) if member.isreg() and member.size <= LARGEST_FILE else None
            if stream is None:
                raise LoadError(f"vendor: {inside} of {package.name}@{package.version} is no plain file, or too large")
            contents[name] = stream.read()
    for name, old, new in ((name, *pair) for name, pairs in package.edits.items() for pair in pairs.items()):
        if contents[name].count(old.encode()) != 1:
            raise LoadError(f"vendor: {name} of {package.name}@{package.version} does not hold {old} once")
        contents[name] = contents[name].replace(old.encode(), new.encode())
    return contents


def _place(contents: Mapping[str, bytes], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=place.parent) as scratch:
        draft = Path(scratch) / place.name
        for name, content in contents.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(content)
        if place.exists():
            shutil.rmtree(place)
        draft.replace(place)


def main() -> int:
    """Fetch the runtimes; the exit code."""
    try:
        fetch()
    except UserError as error:
        print(f"smidgen: error: {error}", file=sys.stderr)
        return 2
    print(f"the browser's runtimes are in {FOLDER}: {', '.join(f'{p.name} {p.version}' for p in PACKAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
