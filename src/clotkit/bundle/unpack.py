"""Unpack a bundle. The builder puts this function's source into main.py, in place of its import."""

import sys
from pathlib import Path


def unpack(files: dict[str, str], folder: Path) -> Path:
    """Write a bundle's files below `folder`, make its modules importable, and return the folder.

    In a notebook whose cell is run a second time, the modules of the first time are forgotten: their files are gone.
    """
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name.split(".")[0] == "clotkit" and not Path(file).exists():
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    return folder
