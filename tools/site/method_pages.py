"""A page for each method, from the docstring of its module and the benchmarks' records.

The docstring says what it is (first line), its formula (indented), and then, in paragraphs that begin with these words,
when it helps, when it does not, how it differs from its paper, and which records hold it beside the others.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from records import claims, markdown_table, record, script, told

import smidgen.methods

# Paragraphs that begin so become sections; all but the paper's have to be there.
HELPS, NOT, DIFFERS, RECORDS = "Helps:", "Does not help:", "Differs from the paper", "Records:"
PAPERS = re.compile(r"\barXiv:(\d{4}\.\d{4,5})")
# What a module defines, and what that is called on the page.
KINDS = {
    "METHOD": ("Decompositions", "`--methods {0}`"),
    "ROUNDING": ("Roundings to integers", "`--rounding {0}`"),
    "SHARING": ("Sharing of weights", "`--target onnx-shared`, or `--rounding {0}`"),
    "PRUNING": ("Pruning of single weights", "`--sparsity 70% --methods {0}`"),
    "CRITERIA": ("Pruning of channels", "`smidgen prune`, or `--methods auto,{0}`"),
}


@dataclass(frozen=True)
class Page:
    """A method's page.

    Args:
        name: what the user types.
        kind: its heading in the list of all.
        title: the first line of the docstring.
        text: the page's Markdown.
    """

    name: str
    kind: str
    title: str
    text: str


def pages() -> list[Page]:
    """All pages, in the order of `KINDS` and then of names.

    Raises:
        LookupError: a docstring lacks a section, or names a record that is not there.
    """
    found = [page(module, kind) for module, kind in _modules()]
    return sorted(found, key=lambda made: ([heading for heading, _ in KINDS.values()].index(made.kind), made.name))


def _modules() -> Iterator[tuple[ModuleType, str]]:
    for entry in pkgutil.iter_modules(smidgen.methods.__path__):
        module = importlib.import_module(f"smidgen.methods.{entry.name}")
        yield from ((module, kind) for kind in KINDS if hasattr(module, kind))


def page(module: ModuleType, kind: str) -> Page:
    """The page of one module."""
    name = module.__name__.rpartition(".")[2]
    heading, typed = KINDS[kind]
    title, *paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    parts = sections(paragraphs)
    for needed in (HELPS, NOT, RECORDS):
        if needed not in parts:
            raise LookupError(f"smidgen/methods/{name}.py: its docstring has no paragraph '{needed} …'")
    lines = [
        f"# `{name}`", block(title), f"Typed: {typed.format(name)}.", *map(block, parts[""]),
        "## When it helps", sentence(parts[HELPS][0]),
        "## When it does not", sentence(parts[NOT][0]),
    ]  # fmt: skip
    if DIFFERS in parts:
        lines += ["## How it differs from the paper", *map(sentence, parts[DIFFERS])]
    lines += [*settings(getattr(module, kind)), "## Measured", *measured(name, parts[RECORDS][0])]
    source = f"smidgen/methods/{name}.py"
    lines.append(f"*Written from the docstring of [{source}](../../{source}).*")
    return Page(name, heading, block(title), "\n\n".join(lines) + "\n")


def sections(paragraphs: Sequence[str]) -> dict[str, list[str]]:
    """Paragraphs by the words they begin with, those words taken off; the others under "".

    >>> sections(["Helps: always.", "Plain."])
    {'': ['Plain.'], 'Helps:': ['always.']}
    """
    parts: dict[str, list[str]] = {"": []}
    for paragraph in paragraphs:
        told_by = next((words for words in (HELPS, NOT, DIFFERS, RECORDS) if paragraph.startswith(words)), "")
        rest = paragraph[len(told_by) :]
        parts.setdefault(told_by, []).append(re.sub(r"^s?:\s*", "", rest).lstrip() if told_by else paragraph)
    return parts


def block(paragraph: str) -> str:
    """A paragraph of a docstring as Markdown: indented lines are a formula, which stays as it is."""
    if paragraph.startswith("    "):
        return f"```text\n{inspect.cleandoc(paragraph)}\n```"
    return linked(one_line(paragraph))


def sentence(paragraph: str) -> str:
    """A paragraph whose first words were taken off, with a capital."""
    text = block(paragraph)
    return text[:1].upper() + text[1:]


def one_line(paragraph: str) -> str:
    """A paragraph without its breaks, and with code as Markdown has it."""
    return " ".join(paragraph.split()).replace("``", "`")


def linked(text: str) -> str:
    """Papers' numbers as links.

    >>> linked("Kim 2016, arXiv:1511.06530.")
    'Kim 2016, [arXiv:1511.06530](https://arxiv.org/abs/1511.06530).'
    """
    return PAPERS.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def settings(member: Any) -> list[str]:
    """What can be set, with its default; nothing for a list of criteria."""
    if not hasattr(member, "settings"):
        return []
    told_of: dict[str, str] = {}
    for holder in reversed(type(member.settings).__mro__):
        told_of |= _arguments(holder.__dict__.get("__doc__") or "")
    rows = [
        (f"`{field.name}`", f"`{getattr(member.settings, field.name)!r}`", linked(told_of.get(field.name, "")))
        for field in fields(member.settings)
    ]
    return ["## Settings", markdown_table(("setting", "default", "meaning"), rows)]


def _arguments(docstring: str) -> dict[str, str]:
    """What the ``Args:`` of a docstring say, by name."""
    listed = inspect.cleandoc(docstring).partition("Args:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return {name: one_line(text) for name, text in found}


def measured(name: str, listed: str) -> list[str]:
    """The lines of each record that name the method: all of its claims where none of them does."""
    wanted_of = re.findall(r"\w+", listed)
    if wanted_of == ["none"]:
        return ["No benchmark keeps a record of it; what was measured of it is told above."]
    lines = []
    for wanted in wanted_of:
        path = script(wanted).name
        if not record(wanted):
            lines.append(f"[benchmarks/{path}](../../benchmarks/{path}) measures it; no record of a run is kept yet.")
            continue
        lines += [f"### {record(wanted)['title']}", *_excerpt(name, wanted), told(wanted, "../../")]
    return lines


def _excerpt(name: str, wanted: str) -> Iterator[str]:
    tables = record(wanted).get("tables", {})
    named = {
        title: [row[1:] for row in rows if row[0] == name]
        for title, (head, *rows) in tables.items()
        if head[0] == "method"
    }
    lines = claims(wanted, rf"\b{name}\b")
    if lines or not any(named.values()):
        yield markdown_table(("what", "asked", "measured", ""), lines or claims(wanted))
    for title, rows in named.items():
        # A record of many points shows them in its own page; a method's curve is short enough for its own.
        if rows and not lines:
            yield f"**{title}**"
            yield markdown_table(tables[title][0][1:], rows)


def index(found: Sequence[Page]) -> str:
    """The list of all methods, by kind."""
    lines = []
    for kind in dict.fromkeys(made.kind for made in found):
        rows = [(f"[`{made.name}`](methods/{made.name}.md)", made.title) for made in found if made.kind == kind]
        lines += [f"### {kind}", markdown_table(("name", "what it is"), rows)]
    return "\n\n".join(lines)
