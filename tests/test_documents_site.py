"""The site's generated parts: a page for each method, tables from records, links that lead where the site has them."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from smidgen.methods import methods, prunings, roundings, sharings

ROOT = Path(__file__).resolve().parents[1]
FIGURES = "<!-- figures -->", "<!-- end of figures -->"  # between them benchmarks/fastconv.py writes


@pytest.fixture(scope="module")
def site() -> dict[str, ModuleType]:
    """The modules of tools/site, which lies outside the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools" / "site")
        return {name: importlib.import_module(name) for name in ("records", "method_pages", "hooks")}


def test_examples_hold(site: dict[str, ModuleType]) -> None:
    tried = [doctest.testmod(module) for module in site.values()]
    assert sum(result.attempted for result in tried) >= 6
    assert sum(result.failed for result in tried) == 0


def test_every_method_has_a_page_that_says_when(site: dict[str, ModuleType]) -> None:
    found = {page.name: page.text for page in site["method_pages"].pages()}
    assert set(found) == {*methods(), *roundings(), *sharings(), *prunings(), "channels"}
    for name, text in found.items():
        told = re.split(r"^## ", text, flags=re.MULTILINE)
        heads = [part.partition("\n")[0] for part in told]
        assert heads[1:3] == ["When it helps", "When it does not"], name
        assert heads[-1] == "Measured", name
        assert all(len(part) > 60 for part in told), name
        assert "```text\n" in told[0], f"{name}: no formula"
        assert "arxiv" in text.lower() or name == "nearest", name


def test_a_method_shows_its_own_rows(site: dict[str, ModuleType]) -> None:
    text = next(page.text for page in site["method_pages"].pages() if page.name == "cp")
    record = site["records"].record("frontier")
    rows = [row for table in record["tables"].values() for row in table[1:]]
    assert all((row[2] in text) for row in rows if row[0] == "cp")
    others = {row[2] for row in rows if row[0] == "tucker2"} - {row[2] for row in rows if row[0] == "cp"}
    assert not any(nbytes in text for nbytes in others)


def test_docstring_without_its_sections_is_named(site: dict[str, ModuleType]) -> None:
    module = ModuleType("smidgen.methods.plain", "Plain.\n\n    w = w\n\nHelps: always.\n")
    with pytest.raises(LookupError, match=r"plain\.py: its docstring has no paragraph 'Does not help:"):
        site["method_pages"].page(module, "METHOD")


def test_marks_become_tables_of_what_was_measured(site: dict[str, ModuleType]) -> None:
    records = site["records"]
    claim = records.record("tflite")["claims"][0]
    text = records.filled("before\n\n<!-- record tflite: beside original -->\n\nafter", "../")
    assert claim["measured"] in text
    assert "(../benchmarks/tflite.py)" in text
    assert text.startswith("before\n\n| network | original")
    for wrong in ("nothing: claims", "tflite: claims nosuchline", "mobile: table nosuchtable"):
        with pytest.raises(LookupError, match="holds no"):
            records.filled(f"<!-- record {wrong} -->", "")


def test_documents_hold_no_mark_that_is_not_understood(site: dict[str, ModuleType]) -> None:
    for path in (ROOT / "docs").glob("*.md"):
        marks = re.findall(r"^<!--.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        known = {site["hooks"].METHODS, *FIGURES}
        assert all(site["records"].MARK.match(mark) or mark in known for mark in marks), path.name
