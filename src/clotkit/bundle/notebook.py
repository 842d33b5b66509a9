"""Write a bundle as a notebook of one cell, and read the source back from a notebook.

Nothing in the file depends on when or where it is written, so the same script gives the same bytes.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from clotkit.errors import ConfigError, described

KERNEL_METADATA = "kernel-metadata.json"
CELL_ID = "bundle"
BOM = "\ufeff"  # some editors begin a file with it
# Without a kernelspec Kaggle's run ends at once.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class KernelType(StrEnum):
    """Form of a kernel's source, as `kernel_type` of kernel-metadata.json spells it."""

    SCRIPT = "script"
    NOTEBOOK = "notebook"

    @property
    def file_name(self) -> str:
        """The name of a bundle of this type."""
        return "script.py" if self is KernelType.SCRIPT else "script.ipynb"

    def source_of(self, script: str) -> str:
        """Return the text that carries a script as a kernel of this type."""
        return script if self is KernelType.SCRIPT else as_notebook(script)


def type_of(kernel_dir: Path, chosen: str | None) -> KernelType:
    """Return the chosen type, or that of the kernel's metadata; a kernel without metadata is a script.

    Raises ConfigError for a type that Kaggle does not have, and for metadata that cannot be read.
    """
    path, known = kernel_dir / KERNEL_METADATA, ", ".join(KernelType)
    name: object = chosen
    if not chosen and path.is_file():
        try:
            metadata = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {described(error)}") from error
        if not isinstance(metadata, dict):
            raise ConfigError(f"{path}: {type(metadata).__name__}; an object is needed")
        name = metadata.get("kernel_type")
    if name is None:
        return KernelType.SCRIPT
    if name not in list(KernelType):
        raise ConfigError(f"{path}: kernel_type is {name!r}; allowed: {known}")
    return KernelType(str(name))


def as_notebook(script: str) -> str:
    """Return a notebook whose one cell is the script."""
    cell: dict[str, Any] = {
        "cell_type": "code", "execution_count": None, "id": CELL_ID, "metadata": {}, "outputs": [], "source": script
    }  # fmt: skip
    return _text({"cells": [cell], "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})


def without_outputs(notebook: str) -> str:
    """Return a notebook without what its cells have printed. Raises ValueError if it is not a notebook."""
    content = _parsed(notebook)
    for cell in content["cells"]:
        if cell.get("cell_type") == "code":
            cell |= {"outputs": [], "execution_count": None}
    return _text(content)


def code_of(source: str) -> str:
    """Return the code of a kernel's source: of a notebook that of its cells, one after the other."""
    source = source.removeprefix(BOM)
    if not source.lstrip().startswith("{"):
        return source
    try:
        cells = _parsed(source)["cells"]
    except ValueError:
        return source  # a script may start so too
    return "\n".join("".join(cell.get("source", "")) for cell in cells if cell.get("cell_type") == "code")


def _parsed(notebook: str) -> dict[str, Any]:
    """Return a notebook whose cells are objects with text. Raises ValueError if it is none."""
    try:
        content = json.loads(notebook.removeprefix(BOM))
    except RecursionError as error:
        raise ValueError("it is nested too deeply for a notebook") from error
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise ValueError("a notebook is an object with a list of cells")
    for number, cell in enumerate(content["cells"]):
        lines = cell.get("source", "") if isinstance(cell, dict) else None
        if not isinstance(lines, str | list) or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"cell {number} is not an object whose source is text or a list of lines")
    return content


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"
