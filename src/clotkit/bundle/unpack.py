"""Unpack a bundle. The builder puts this function's source into main.py, in place of its import."""

import sys
from pathlib import Path


def unpack(files: dict[str, str], folder: Path) -> Path:
    """Write a bundle's files below `folder`, make its modules importable, and return the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    return folder
