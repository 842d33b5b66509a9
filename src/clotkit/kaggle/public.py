"""Fetch a competition's public files into a split folder."""

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from clotkit.competitions import Competition
from clotkit.errors import RemoteError
from clotkit.files import atomic_write
from clotkit.kaggle.client import CHUNK_BYTES, Kaggle, sign_in
from clotkit.progress import Log
from clotkit.reasons import RemoteKind
from clotkit.splits import read_slides


def fetch_public_split(competition: Competition, out: Path, client: Kaggle | None = None, log: Log = print) -> Path:
    """Fetch the public test split to `out`: sample submission, table and slides; return `out`.

    A slide comes by the first of its names that Kaggle lists, with the files that facts follow from. Files that are
    there already, with the listed size, are kept. Raises RemoteError without credentials, for a competition that Kaggle
    does not have, or if a file does not come whole; SplitError for a table that cannot be read.
    """
    check_hosted(competition)
    client = client or sign_in(log)
    slug, files = competition.slug, competition.files
    sizes = client.sizes(slug)

    def fetch(name: str) -> None:
        fetched = download(client, slug, name, out, sizes.get(name, 0))
        log(f"{name}: {'fetched' if fetched else 'here already'}, {(out / name).stat().st_size} bytes")

    fetch(files.sample)
    table = files.table.format(split="test")
    if table in sizes or not competition.by_image:  # else the sample lists the slides
        fetch(table)
    for slide in read_slides(out, "test", competition, log):
        fetch(next((name for name in slide.names if name in sizes), slide.names[0]))
        for fact in competition.facts:
            beside = competition.named(fact.missing_file, "test", slide.image_id, slide.patient_id, slide.facts)
            if beside in sizes:
                fetch(beside)
    return out


def check_hosted(competition: Competition) -> None:
    """Raise RemoteError for a competition of another platform; Kaggle may have another one of that name."""
    if not competition.kaggle.hosted:
        raise RemoteError(
            f"{competition.source.stem}: not a competition of Kaggle (kaggle.hosted is false in "
            f"{competition.source.name}); write its submission here with clotkit run",
            RemoteKind.MISSING,
        )


def download(client: Kaggle, slug: str, name: str, out: Path, size_bytes: int = 0) -> bool:
    """Fetch one of a competition's files to `out / name` in one step, unzipped if it comes zipped.

    Returns False if a file of `size_bytes` (0: unknown) is there already. Raises RemoteError if the file does not come
    whole or cannot be written; nothing of it remains then.
    """
    target = out / check_name(name, slug, out)
    try:
        if size_bytes and target.is_file() and target.stat().st_size == size_bytes:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            received_bytes = client.data_file(slug, name, temporary)
            unzip_in_place(temporary, name)
            # For a zipped file the list may have either size; the zip's checksum has vouched for its content.
            if size_bytes and size_bytes not in (received_bytes, temporary.stat().st_size):
                raise RemoteError(
                    f"{name}: {received_bytes} bytes came, Kaggle's list says {size_bytes}: run again",
                    RemoteKind.MISMATCH,
                )
    except OSError as error:
        raise RemoteError(
            f"{target}: {error.strerror}; free some space or choose another folder", RemoteKind.DISK
        ) from error
    return True


def check_name(name: str, owner: str, out: Path) -> str:
    """Return a file name that came from Kaggle. Raises RemoteError if it leads out of the folder `out`.

    `owner` is the kernel or the competition of the file, for the message.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or not name.isprintable():
        raise RemoteError(f"{owner}: the file name {name!r} is empty or leads out of {out}: refused", RemoteKind.UNSAFE)
    return name


def unzip_in_place(path: Path, name: str) -> None:
    """Replace a zip by the one file in it; a file that is no zip, or is named .zip, stays as it is.

    Raises RemoteError if the zip is damaged, or holds another file than `name`.
    """
    if PurePosixPath(name).suffix.lower() == ".zip" or not _is_zip(path):
        return
    wanted = PurePosixPath(name).name
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if [PurePosixPath(member).name for member in members] != [wanted]:
                raise RemoteError(
                    f"{name}: came as a zip of {len(members)} files, not of {wanted} alone", RemoteKind.MISMATCH
                )
            with archive.open(members[0]) as member, atomic_write(path) as unpacked, unpacked.open("wb") as file:
                shutil.copyfileobj(member, file, CHUNK_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise RemoteError(f"{name}: came as a damaged zip ({error}): run again", RemoteKind.MISMATCH) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
