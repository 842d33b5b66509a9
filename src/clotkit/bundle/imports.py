"""Find the modules of the kit that a piece of code imports, directly or through others."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def modules_needed(roots: Iterable[str], code: str) -> list[Path]:
    """Return the files of `roots` (dotted names), of what `code` imports, and of everything these import.

    Imports inside functions count: a kernel that reaches one cannot do without it. Files are sorted, and each package
    brings its `__init__.py`.
    """
    waiting, needed = [*roots, *_imported(code)], dict[str, Path]()
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if path is not None and name not in needed:
            needed[name] = path
            waiting += [*_imports_of(path), *_packages_of(name)]
    return sorted(needed.values())


@cache
def _imports_of(path: Path) -> tuple[str, ...]:
    """Return the names that a file imports; every bundle reads the same files, so they are cached."""
    return tuple(_imported(path.read_text(encoding="utf-8")))


def _imported(code: str) -> Iterable[str]:
    """Yield every name that may be a module of the kit: `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _packages_of(name: str) -> list[str]:
    """Return the dotted names of the packages that a module is in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _path_of(name: str) -> Path | None:
    """Return the file of a module of the kit, None for any other name."""
    top, *rest = name.split(".")
    if top != PACKAGE.name:
        return None
    folder = PACKAGE.joinpath(*rest)
    candidates = (folder / "__init__.py", folder.with_suffix(".py") if rest else folder / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)
