"""What a result depends on besides its inputs: the code that cuts tiles, and packages. Workers must have the same."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clotkit import __version__
from clotkit.errors import ClusterError

PACKAGE = Path(__file__).parent
ROOMS = (PACKAGE / "slides", PACKAGE / "tiling")  # the code that cuts tiles
NOT_CUTTING = ("preview.py",)  # modules of these rooms that change no tile
CUTTING = (
    "numpy", "scipy", "pyvips", "pyvips-binary", "openslide-python", "openslide-bin", "tifffile", "pillow",
    "imagecodecs", "simplejpeg",
)  # fmt: skip
SCORING = (*CUTTING, "keras", "tensorflow")


@dataclass(frozen=True)
class Versions:
    """The versions on the machine that asks: of the code that cuts tiles, a sha256, and of packages by name."""

    code: str
    packages: tuple[tuple[str, str], ...]

    def check(self) -> None:
        """Raise ClusterError where this machine, a worker, has others."""
        if code_version() != self.code:
            raise ClusterError("a worker has another clotkit than this machine; install the same on both")
        here = dict(packages_here(tuple(name for name, _ in self.packages)))
        others = [f"{name} {here[name]}, not {wanted}" for name, wanted in self.packages if here[name] != wanted]
        if others:
            raise ClusterError(
                f"a worker has {', '.join(others)} as this machine; install what requirements/runtime.txt says on both"
            )


def versions_here(packages: Sequence[str]) -> Versions:
    """The versions on this machine."""
    return Versions(code_version(), packages_here(tuple(packages)))


@cache
def packages_here(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Name and version of packages; "none" is the version of one that is not installed."""
    return tuple((name, _version(name)) for name in names)


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # 7 ms that a slide's process does not need

    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@cache
def code_version(rooms: tuple[Path, ...] = ROOMS, version: str = __version__) -> str:
    """Return a sha256 of the kit's version and of the modules in `rooms` that have a part in cutting tiles."""
    digest = hashlib.sha256(version.encode())
    for path in sorted(path for room in rooms for path in room.glob("*.py") if path.name not in NOT_CUTTING):
        source = path.read_bytes()
        digest.update(f"\n{path.parent.name}/{path.name} {len(source)}\n".encode() + source)
    return digest.hexdigest()
