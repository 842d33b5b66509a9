"""A competition's public files, fetched to a split folder."""

import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from clotkit.competitions import Competition
from clotkit.errors import RemoteError
from clotkit.files import atomic_write
from clotkit.kaggle.client import CHUNK, Kaggle
from clotkit.kaggle.credentials import find_credentials
from clotkit.splits import read_table


def fetch_public_split(
    competition: Competition,
    out: Path,
    client: Kaggle | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Fetch the public test split: table, sample submission and the table's slides; what is there already stays.

    Returns `out`. Raises RemoteError without credentials, or if a file cannot be had whole; SplitError for a table
    without image ids.
    """
    client = client or Kaggle(find_credentials())
    slug, files = competition.slug, competition.files
    sizes = client.sizes(slug)

    def fetch(name: str) -> None:
        fetched = download(client, slug, name, out, sizes.get(name, 0))
        log(f"{name}: {'fetched' if fetched else 'here already'}, {(out / name).stat().st_size} bytes")

    fetch(files.table.format(split="test"))
    fetch(files.sample)
    rows = read_table(competition.table_path(out, "test"), [competition.columns.image])
    for row in rows:
        fetch(files.slide.format(split="test", image_id=row[competition.columns.image]))
    return out


def download(client: Kaggle, slug: str, name: str, out: Path, size: int = 0) -> bool:
    """Fetch one of a competition's files to `out / name` in one step, unzipped if it came zipped; `size` in bytes,
    0 if unknown.

    Says whether it was fetched: a file of that size that is there already is left alone.
    Raises RemoteError if it cannot be had whole, or cannot be written; nothing of it stays then.
    """
    target = out / inside(name, slug, out)
    try:
        if size and target.is_file() and target.stat().st_size == size:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            received = client.data_file(slug, name, temporary)
            unzipped(temporary, name)
            # Of a zipped file the list may have either size; the zip's checksum has vouched for its content.
            if size and size not in (received, temporary.stat().st_size):
                raise RemoteError(f"{name}: {received} bytes came, Kaggle's list says {size}: run again")
    except OSError as error:
        raise RemoteError(f"{target}: {error.strerror}; free some space or choose another folder") from error
    return True


def inside(name: str, whose: str, out: Path) -> str:
    """`name`, which came from Kaggle, if it is that of a file below `out`. Raises RemoteError otherwise."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or not name.isprintable():
        raise RemoteError(f"{whose}: the file name {name!r} is empty or leads out of {out}: refused")
    return name


def unzipped(path: Path, name: str) -> None:
    """Put the one file in a zip into the zip's place; any other file, and one named .zip, stays as it is.

    Raises RemoteError if the zip is damaged or holds another.
    """
    if PurePosixPath(name).suffix.lower() == ".zip" or not _is_zip(path):
        return
    wanted = PurePosixPath(name).name
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if [PurePosixPath(member).name for member in members] != [wanted]:
                raise RemoteError(f"{name}: came as a zip of {len(members)} files, not of {wanted} alone")
            with archive.open(members[0]) as member, atomic_write(path) as unpacked, unpacked.open("wb") as file:
                shutil.copyfileobj(member, file, CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise RemoteError(f"{name}: came as a damaged zip ({error}): run again") from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
