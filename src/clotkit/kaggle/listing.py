"""Compare the files that Kaggle lists for a dataset or a model with those that were sent."""

import tarfile
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from clotkit.errors import RemoteMissing

CONTENT = "CONTENT.json"  # in every dataset and model: the sha256 and the size of each file
WAITS_S = (2.0, 5.0, 10.0)  # before each further look: right after a version the list may be incomplete


def upload_name(name: str) -> str:
    """Return the name of the upload that a file is part of: its top folder's tar, or the file itself."""
    folder, slash, _ = name.partition("/")
    return f"{folder}.tar" if slash else name


def listing_problem(
    list_files: Callable[[], Collection[tuple[str, int]]], files: Mapping[str, Any], wait: Callable[[float], None]
) -> str:
    """Return how Kaggle's list differs from `files` {name: {"bytes": …}}; empty if it does not.

    `list_files` asks for the names and sizes. A difference that disappears within some seconds is none.
    """
    problem = ""
    for pause_s in (0.0, *WAITS_S):
        if pause_s:
            wait(pause_s)
        try:
            problem = next(differences(list_files(), files), "")
        except RemoteMissing:
            problem = "Kaggle lists no files"
        if not problem:
            break
    return problem


def differing_files(files: Mapping[str, Any], wanted: Mapping[str, str]) -> list[str]:
    """Return the names of `files` {name: {"sha256": …}} whose hashes are not the `wanted` ones."""
    return sorted(name for name in {*files, *wanted} if files.get(name, {}).get("sha256") != wanted.get(name))


def differences(listed: Collection[tuple[str, int]], files: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a list of names and sizes differs from the files that were sent, a line each.

    A size of 0 is unknown. A tar may be listed as it is, or unpacked, perhaps one folder deeper.
    """
    sizes = dict(listed)
    archives = {f"{name.removesuffix('.tar')}/" for name in files if name.endswith(".tar")}
    explained = {CONTENT}
    for name, entry in files.items():
        folder, tar = name.partition("/")[0], upload_name(name)
        spellings = {name} if tar == name else {name, f"{folder}/{name}"}
        explained |= {*spellings, tar}
        found = spellings & set(sizes)
        if tar != name and tar in sizes:
            continue  # not unpacked: the kernel does it
        if not found and not (name.endswith(".tar") and _below(f"{name.removesuffix('.tar')}/", sizes)):
            yield f"{name} is missing, Kaggle lists {len(sizes)} files"
        elif found and entry["bytes"] not in (seen := [sizes[one] for one in sorted(found)]) and any(seen):
            yield f"{name} has {seen[0]:,} bytes, {entry['bytes']:,} were sent"
    for tar, size_bytes in _tars(files).items():
        if sizes.get(tar) and sizes[tar] != size_bytes:
            yield f"{tar} has {sizes[tar]:,} bytes, {size_bytes:,} were sent"
    if CONTENT not in sizes:
        yield f"{CONTENT} is missing"
    unknown = [name for name in sizes if name not in explained and not any(_below(one, [name]) for one in archives)]
    if unknown:
        yield f"{len(unknown)} files were not sent ({unknown[0]} …)"


def _below(folder: str, names: Collection[str]) -> bool:
    """Return whether a name is in this folder, wherever the folder is."""
    return any(f"/{folder}" in f"/{name}" for name in names)


def _tars(files: Mapping[str, Any]) -> dict[str, int]:
    """Return the size in bytes of the tar of each folder, without making it; `files.write_tar` makes it."""
    sizes: dict[str, int] = {}
    for name, entry in files.items():
        if upload_name(name) != name:
            header = tarfile.TarInfo(name.partition("/")[2]).tobuf(tarfile.GNU_FORMAT)
            sizes[upload_name(name)] = sizes.get(upload_name(name), 0) + len(header) + _rounded(entry["bytes"], 512)
    return {name: _rounded(size + 1024, tarfile.RECORDSIZE) for name, size in sizes.items()}


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
