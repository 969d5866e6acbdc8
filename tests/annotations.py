"""Shape and type annotations of a package, enforced at calls of its functions and methods.

`jaxtyping.install_import_hook` does that too, but decorates functions within functions as well, anew whenever the outer
one is called: half of the time of all tests went there. So this hook leaves those out. And it checks every call, which
took half of what was left: here each function's first calls are checked, and one in so many of those that follow.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType, ModuleType
from typing import Any

import beartype
import jaxtyping

FIRST = 100  # calls of each function that are checked in a process,
EVERY = int(os.environ.get("SMIDGEN_CHECK_EVERY", "20"))  # and one of so many after them


def checked(what: Any) -> Any:
    """A class whose fields are checked, or a function of whose calls many are."""
    strict = jaxtyping.jaxtyped(typechecker=beartype.beartype)(what)
    return _sampled(what, strict) if isinstance(what, FunctionType) else strict


def _sampled(free: Callable[..., Any], strict: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    @wraps(strict)
    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return (strict if calls <= FIRST or calls % EVERY == 0 else free)(*args, **named)

    return call


def enforce(package: str) -> None:
    """From now on, modules of the package have their annotations enforced.

    Args:
        package: not yet imported.
    """
    if package in sys.modules:
        raise RuntimeError(f"enforce: '{package}' is imported already; call this before")
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Not from the cache, which holds what others compiled and is not to hold this."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in _outermost(tree):
            decorator = ast.parse("_annotations.checked", mode="eval").body
            # Nearest to a function itself; around what @dataclass makes of a class.
            place = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
            node.decorator_list.insert(place, decorator)
        tree.body[_first(tree) : _first(tree)] = ast.parse("from tests import annotations as _annotations").body
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def _outermost(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions, classes and methods, and nothing within a function."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _outermost(node)


def _first(tree: ast.Module) -> int:
    """The place after docstring and ``from __future__``."""
    return sum(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
    ) + (ast.get_docstring(tree, clean=False) is not None)  # fmt: skip
