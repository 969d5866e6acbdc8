"""HTML from Python values, everything escaped: names come from files that anybody may have written."""

from __future__ import annotations

import html
from typing import Any


class Safe(str):
    """Markup that was made here; any other string is text."""

    __slots__ = ()


def text(value: Any) -> Safe:
    """A value as text, without the characters that no document may hold.

    >>> text("<b>&\\x00")
    '&lt;b&gt;&amp;'
    """
    if isinstance(value, Safe):
        return value
    plain = "".join(c for c in str(value) if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff"))
    return Safe(html.escape(plain, quote=True))


def tag(name: str, /, *children: Any, **attributes: Any) -> Safe:
    """An element. Attributes that are None or False are left out, True stands alone, ``data_x`` becomes ``data-x``.

    >>> tag("a", "1 < 2", class_="mark", data_plan="fc", hidden=False)
    '<a class="mark" data-plan="fc">1 &lt; 2</a>'
    """
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in ("img", "meta", "br"):
        return Safe(f"<{name}{told}>")
    return Safe(f"<{name}{told}>{''.join(text(child) for child in children if child is not None)}</{name}>")


def table(caption: Any, heads: list[str], rows: list[list[Any]], *, words: int = 1, kind: str | None = None) -> Safe:
    """A table with a caption, a head to every column and to every row; it scrolls by itself where it is too wide.

    Args:
        caption: what it shows.
        heads: of the columns; the first may be empty.
        rows: cells, the first of each row its head.
        words: columns from the left that hold words; the others hold numbers.
        kind: class of the table.
    """
    top = tag("tr", *(
        tag("td") if not head else tag("th", head, scope="col", class_=None if i < words else "n")
        for i, head in enumerate(heads)
    ))  # fmt: skip
    body = [
        tag("tr", tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=None if i < words else "n") for i, cell in enumerate(row[1:], start=1)))
        for row in rows
    ]  # fmt: skip
    whole = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body), class_=kind)
    return tag("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def document(title: str, body: Safe, style: str, script: str = "") -> str:
    """A whole page in one file; its policy forbids it to load anything from anywhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    head = tag(
        "head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"), tag("title", title), tag("style", Safe(style)),
    )  # fmt: skip
    end = tag("script", Safe(script)) if script else ""
    return f"<!doctype html>\n{tag('html', head, tag('body', body, end), lang='en')}\n"
