"""Which folders the application may open: those that it was started with, and what lies in them, nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from clotkit.errors import UsageError

DEPTH = 4  # folders below a root that are looked through
MOST_FOLDERS = 5000  # that are looked at below all the roots


@dataclass(frozen=True)
class Roots:
    """The folders that may be opened, as they are once symlinks are followed."""

    folders: tuple[Path, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Roots":
        """The roots with these paths. Raises UsageError for one that is no folder."""
        for path in paths:
            if not path.is_dir():
                raise UsageError(f"--root {path}: is no folder; name one that holds splits or runs")
        return cls(tuple(path.resolve() for path in paths))

    def inside(self, path: str | Path) -> Path:
        """The path with symlinks followed; a relative one is looked for in each root.

        Raises UsageError where it leads out of the roots, or nowhere: the same line for both, which tells nothing.
        """
        for root in self.folders:
            try:
                found = (root / path).resolve(strict=True)
            except (OSError, ValueError, RuntimeError):  # missing; a NUL in it; a loop of links
                continue
            if any(found.is_relative_to(folder) for folder in self.folders):
                return found
        raise UsageError("no such file or folder in the folders that were given with --root; choose one of the list")

    def below(self, names: Sequence[str]) -> list[Path]:
        """The folders in the roots that hold a file of one of these names, sorted; links are not followed."""
        seen = islice((folder for root in self.folders for folder in _folders(root, DEPTH)), MOST_FOLDERS)
        return sorted({folder for folder in seen if any((folder / name).is_file() for name in names)})


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth:
        try:
            children = sorted(folder.iterdir())
        except OSError:
            return
        for child in children:
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _folders(child, depth - 1)
