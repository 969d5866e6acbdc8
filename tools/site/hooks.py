"""Hooks of mkdocs: what the site holds beside docs/, and links that lead where the site has it.

The pages of docs/ link to each other and to files of the repository by relative paths, so that they can be read in any
checkout. In the site README.md is the front page, scripts are plain text, and methods have generated pages. These are
made while the site is built and not kept in the repository, so they cannot be out of date.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from method_pages import index, pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from records import ROOT, filled

# Files of the repository that are pages of the site, by their place there; benchmarks and tools are added as text.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "benchmarks/RESULTS.md": "benchmarks/results.md",
}
TEXTS = ("LICENSE", "benchmarks/*.py", "tools/site/*.py", "smidgen/site.py", "smidgen/calibrate/*.py",
         "smidgen/methods/*.py", "smidgen/planning/*.py")  # fmt: skip
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
METHODS = "<!-- methods -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in sorted(path for pattern in TEXTS for path in ROOT.glob(pattern)):
        source = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, text_place(source), content=path.read_bytes()))
    for made in pages():
        files.append(File.generated(config, f"methods/{made.name}.md", content=made.text))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the methods' pages behind that of all methods."""
    for entry in config.nav or []:
        if "Methods" in entry:
            entry["Methods"] += [f"methods/{made.name}.md" for made in pages()]
    return config


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Tables of records and of methods, then links."""
    source = repository_path(page.file.src_uri)
    up = "../" * source.count("/")
    # The pages themselves are made in the site: the table's links are of it already, so it comes last.
    return linked(filled(markdown, up), source).replace(METHODS, index(pages()))


def linked(markdown: str, source: str) -> str:
    """A page's links, told for the repository, for the site.

    >>> linked("[a](docs/archive.md#limits), [b](benchmarks/int8.py)", "README.md")
    '[a](archive.md#limits), [b](benchmarks/int8.py.txt)'
    >>> linked("[c](../CONTRIBUTING.md) [d](methods/svd.md)", "docs/theory.md")
    '[c](contributing.md) [d](methods/svd.md)'
    """
    here = posixpath.dirname(site_path(source)) or "."

    def there(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        return posixpath.relpath(site_path(target), here) + (link[2] or "")

    return LINK.sub(there, markdown)


def site_path(source: str) -> str:
    """Where the site has a file of the repository."""
    if source in PAGES:
        return PAGES[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return text_place(source)


def text_place(source: str) -> str:
    """A script's place: browsers show a text and would download a script."""
    return f"{source}.txt"


def repository_path(place: str) -> str:
    """Where the repository has a page of the site."""
    return next((source for source, page in PAGES.items() if page == place), f"docs/{place}")
