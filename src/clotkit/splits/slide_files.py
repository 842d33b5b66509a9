"""Find a slide's file by its name without the extension, where the expected name is not there."""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from clotkit.errors import SplitError
from clotkit.splits.identity import SLIDE_SUFFIXES, folded, without_suffix

Key = tuple[str, str]  # a folder, and the folded name of a slide in it, without zeros at its start


def matching_files(wanted: Sequence[str], names: Collection[str], where: str) -> dict[str, str]:
    """Return {expected name: the file that is there} of slides whose expected file is missing.

    A file is meant if its extension is a slide's and its name is the expected one but for the extension, capitals, the
    form of Unicode, an encoding that is not UTF-8, or zeros that a table program has lost.

    Args:
        wanted: the expected names; a "/" separates folders.
        names: the files that are there.
        where: the table, in errors.

    Raises:
        SplitError: two files may be meant by one row, or one file by two rows.
    """
    expected = set(wanted)
    found, by_key = dict[str, str](), defaultdict[Key, list[str]](list)
    for name in names:
        if name not in expected and PurePosixPath(name).suffix.casefold() in SLIDE_SUFFIXES:
            by_key[_key(name)].append(name)
    there = set(names)
    for name in dict.fromkeys(wanted):
        candidates = by_key.get(_key(name), []) if name not in there else []
        spellings = ([one for one in candidates if same(one) == same(name)] for same in (without_suffix, _folded))
        closest = next(filter(None, spellings), candidates)
        if len(closest) > 1:
            raise SplitError(f"{where}: {name} is not there, but {' and '.join(sorted(closest))} are; keep one of them")
        if closest:
            found[name] = closest[0]
    for one, count in Counter(found.values()).items():
        if count > 1:
            rivals = [name for name, taken in found.items() if taken == one]
            raise SplitError(f"{where}: {' and '.join(rivals)} are not there, but {one} is; correct the names")
    return found


def _key(name: str) -> Key:
    return PurePosixPath(name).parent.as_posix(), _folded(name).lstrip("0")


def _folded(name: str) -> str:
    return folded(without_suffix(_readable(PurePosixPath(name).name)).strip())


def _readable(name: str) -> str:
    """Return a file's name as text, also if its bytes are not UTF-8."""
    data = os.fsencode(name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")
