"""Versions that a result depends on: the tiling code and packages; workers need those of the client."""

import ast
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clotkit import __version__
from clotkit.errors import ClusterError

PACKAGE = Path(__file__).parent
PACKAGES = (PACKAGE / "slides", PACKAGE / "tiling")  # the packages of the code that cuts tiles
NOT_CUTTING = ("preview.py",)  # modules of these packages that change no tile
CUTTING = (
    "numpy", "scipy", "pyvips", "pyvips-binary", "openslide-python", "openslide-bin", "tifffile", "pillow",
    "imagecodecs", "simplejpeg",
)  # fmt: skip
SCORING = (*CUTTING, "keras", "tensorflow", "onnxruntime")
SOUND_OPENSLIDE = (4, 0, 1)  # the first that cannot show uninitialised pixels (with libtiff 4.7.1: CVE-2026-54604)


def is_old_openslide(version: str) -> bool:
    """Return whether a version of the OpenSlide library is older than the first sound one."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(SOUND_OPENSLIDE)])
    return numbers < SOUND_OPENSLIDE


@dataclass(frozen=True)
class Versions:
    """The versions on the client's machine, to be compared on a worker's."""

    code: str  # sha256 of the code that cuts tiles
    packages: tuple[tuple[str, str], ...]  # name and version

    def check(self) -> None:
        """Raise ClusterError if this machine, a worker, has other versions."""
        if code_version() != self.code:
            raise ClusterError("a worker's clotkit differs from this machine's; install the same version on both")
        here = dict(packages_here(tuple(name for name, _ in self.packages)))
        others = [f"{name} {here[name]} instead of {wanted}" for name, wanted in self.packages if here[name] != wanted]
        if others:
            raise ClusterError(
                f"a worker's packages differ from this machine's: {', '.join(others)}; install "
                "requirements/runtime.txt on both"
            )


def versions_here(packages: Sequence[str]) -> Versions:
    """Return the versions on this machine."""
    return Versions(code_version(), packages_here(tuple(packages)))


@cache
def packages_here(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the name and version of packages, "none" for one that is not installed."""
    return tuple((name, _version(name)) for name in names)


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes 7 ms, which a slide's process saves

    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@cache
def code_version(folders: tuple[Path, ...] = PACKAGES, version: str = __version__) -> str:
    """Return a sha256 of the kit's version and of the modules in `folders` that cut tiles.

    Docstrings and blank lines do not count: a bundle has the modules without them, and cuts the same tiles.
    """
    digest = hashlib.sha256(version.encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*.py") if path.name not in NOT_CUTTING):
            source = without_docstrings(path.read_text(encoding="utf-8"))
            lines = [line for line in source.split("\n") if line.strip()]
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            digest.update("\n".join([f"\n{name} {len(lines)}", *lines]).encode())
    return digest.hexdigest()


@cache
def without_docstrings(source: str) -> str:
    """Return a module's source with blank lines in place of its docstrings: all others keep their number.

    Answers are kept: a push builds the bundle, of the same modules, several times.
    """
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
            if first is None or first.end_lineno is None:
                continue
            rest = "" if len(node.body) > 1 or isinstance(node, ast.Module) else " " * first.col_offset + "pass"
            lines[first.lineno - 1 : first.end_lineno] = [rest] + [""] * (first.end_lineno - first.lineno)
    return "\n".join(lines)
