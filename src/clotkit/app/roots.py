"""Confine the application to the folders that it was started with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from clotkit.errors import UsageError

DEPTH = 4  # levels of folders below a root that are searched
MOST_FOLDERS = 5000  # folders that are searched, below all roots


@dataclass(frozen=True)
class Roots:
    """The folders that may be opened."""

    folders: tuple[Path, ...]  # with symlinks resolved

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Roots":
        """Return the roots with these paths. Raises UsageError for a path that is not a folder."""
        for path in paths:
            if not path.is_dir():
                raise UsageError(f"--root {path}: not a folder; name a folder of splits or runs")
        return cls(tuple(path.resolve() for path in paths))

    def inside(self, path: str | Path) -> Path:
        """Return a path with symlinks resolved; a relative path is tried in each root.

        Raises UsageError if it is outside the roots or missing. The message is the same for both, so that it does not
        reveal which files exist.
        """
        for root in self.folders:
            try:
                found = (root / path).resolve(strict=True)
            except (OSError, ValueError, RuntimeError):  # missing, with a NUL, or a loop of links
                continue
            if any(found.is_relative_to(folder) for folder in self.folders):
                return found
        raise UsageError("no such file or folder below --root; choose one of the list")

    def holding(self, folder: Path, names: Iterable[str]) -> Path:
        """Return a folder. Raises UsageError if one of these files of it is outside the roots."""
        for name in names:
            if (folder / name).is_symlink() or (folder / name).exists():
                self.inside(folder / name)
        return folder

    def closed(self, folder: Path) -> Path:
        """Return a folder. Raises UsageError if any link that lies in it leads out of the roots."""
        return self.holding(folder, [path.name for path in folder.iterdir() if path.is_symlink()])

    def below(self, names: Sequence[str]) -> list[Path]:
        """Return the folders below the roots that have a file of one of these names, sorted.

        Symlinks are not followed.
        """
        return sorted({folder for folder in self._all() if any((folder / name).is_file() for name in names)})

    def with_tables(self) -> list[Path]:
        """Return the folders below the roots that have a CSV file, sorted. Symlinks are not followed."""
        return sorted({folder for folder in self._all() if any(folder.glob("*.csv"))})

    def _all(self) -> Iterator[Path]:
        return islice((folder for root in self.folders for folder in _folders(root, DEPTH)), MOST_FOLDERS)


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
