"""Confine the application to the folders that it was started with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
            if not allowed(path.is_dir):
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
            if allowed((folder / name).is_symlink) or allowed((folder / name).exists):
                self.inside(folder / name)
        return folder

    def closed(self, folder: Path) -> Path:
        """Return a folder. Raises UsageError if it cannot be listed, or a link in it leads out of the roots."""
        try:
            names = [path.name for path in folder.iterdir() if path.is_symlink()]
        except OSError as error:
            raise UsageError(f"the folder cannot be listed: {error.strerror}; check its permissions") from error
        return self.holding(folder, names)

    def below(self, names: Sequence[str]) -> list[Path]:
        """Return the folders below the roots that have a file of one of these names, sorted.

        Symlinks are not followed, and what the system does not let us read is left out.
        """
        return sorted({folder for folder in self._all() if any(allowed((folder / name).is_file) for name in names)})

    def with_tables(self) -> list[Path]:
        """Return the folders below the roots that have a CSV file, sorted. Symlinks are not followed."""
        return sorted({folder for folder in self._all() if any(one.suffix == ".csv" for one in children(folder))})

    def _all(self) -> Iterator[Path]:
        return islice((folder for root in self.folders for folder in _folders(root, DEPTH)), MOST_FOLDERS)


def allowed(test: Callable[[], bool]) -> bool:
    """Return what a test of a path says; False if the system does not let us look.

    Path.is_file, is_dir, exists and is_symlink raise PermissionError then.
    """
    try:
        return test()
    except OSError:
        return False


def children(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted; nothing of one that cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    for child in children(folder) if depth else ():
        if not child.name.startswith(".") and allowed(child.is_dir) and not allowed(child.is_symlink):
            yield from _folders(child, depth - 1)
