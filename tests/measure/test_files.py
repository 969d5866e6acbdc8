"""Sizes and hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from smidgen.errors import LoadError
from smidgen.measure.files import nbytes, sha256


def test_size_and_hash_of_a_file_larger_than_one_read(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    assert nbytes(path) == len(content)
    assert sha256(str(path)) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("function", [nbytes, sha256])
def test_a_missing_file_is_named(tmp_path: Path, function) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(LoadError, match="no file"):
            function(path)
