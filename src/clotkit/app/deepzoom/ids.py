"""Name files below the roots in addresses: an id is a root's number and a path below it, in base64."""

import base64
import binascii
import os
import re
from pathlib import Path

from clotkit.app.roots import Roots
from clotkit.errors import UsageError

ID = re.compile(r"[A-Za-z0-9_-]{3,5600}")  # of a path of at most 4,096 bytes


def id_of(path: Path, roots: Roots) -> str:
    """Return the id of a file or folder, whose path has no symlinks. Raises UsageError outside the roots."""
    for number, root in enumerate(roots.folders):
        if path.is_relative_to(root):
            return _encoded(number, path.relative_to(root))
    raise UsageError("the file is not below --root")


def path_of(text: str, roots: Roots) -> Path:
    """Return the file or folder of an id, with symlinks resolved.

    Raises UsageError if the text is no id, or the path is missing or outside the roots.
    """
    number, relative = _decoded(text)
    if number >= len(roots.folders) or _encoded(number, relative) != text:
        raise UsageError("no such slide or folder; choose one of the list")
    return roots.inside(roots.folders[number] / relative)


def _encoded(number: int, relative: Path) -> str:
    return base64.urlsafe_b64encode(os.fsencode(f"{number}/{relative}")).rstrip(b"=").decode()


def _decoded(text: str) -> tuple[int, Path]:
    wrong = UsageError("no such slide or folder; choose one of the list")
    if not ID.fullmatch(text):
        raise wrong
    try:
        name = os.fsdecode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError) as error:
        raise wrong from error
    number, _, relative = name.partition("/")
    parts = relative.split("/")
    if not re.fullmatch(r"[0-9]{1,4}", number) or (relative != "." and {"", ".", ".."} & {*parts}) or "\0" in relative:
        raise wrong
    return int(number), Path(relative)
