"""Prepare output folders for synthetic data, and write their tables."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from clotkit.files import atomic_write_text


def make_folder(out: Path) -> bool:
    """Create the folder `out` if needed; return whether it holds anything."""
    out.mkdir(parents=True, exist_ok=True)
    return any(out.iterdir())


def remove_inside(folder: Path, paths: Iterable[Path]) -> None:
    """Remove those of `paths` that lie inside `folder`: a tampered marker cannot delete anything else."""
    for path in paths:
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)


def write_table(path: Path, header: Sequence[str], body: Iterable[Sequence[object]]) -> None:
    """Write a CSV file atomically, with Unix line ends; create its folder if needed."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *body])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text.getvalue())
