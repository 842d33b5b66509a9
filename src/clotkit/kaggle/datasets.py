"""A folder as a Kaggle dataset: checked here, pushed when its content is new, waited for, compared afterwards."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clotkit.errors import RemoteError, RemoteMissing, UsageError
from clotkit.files import atomic_write_json, sha256, write_tar
from clotkit.kaggle.client import Answer, Kaggle
from clotkit.kaggle.public import unzipped
from clotkit.kaggle.uploads import upload
from clotkit.members.folder import MANIFEST, RECIPE

Attached = Mapping[str, Mapping[str, Path]]  # datasets by name, their files by the names they have there
PLACEHOLDER = "OWNER"  # in the metadata of this repository: whoever pushes
METADATA, CONTENT = "dataset-metadata.json", "CONTENT.json"
KEYS = {"id", "title", "subtitle", "description", "licenses"}
MOST_FILES = 1_000  # of one dataset; Kaggle's server refuses more
MOST_FILE_BYTES, MOST_BYTES = 20 * 2**30, 100 * 2**30  # the kit's own: far above its datasets, below Kaggle's quota
SCANNED_BYTES = 2**20  # a text up to this size is searched for secrets
READY_LIMIT_S = 3_600.0
POLLS_S = (2.0, 5.0, 10.0, 20.0, 30.0)  # between looks; the last one for ever
SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")  # of a file's path; others have failed after the upload
SECRET_NAME = re.compile(
    r"kaggle\.json|access_token.*|credentials.*|\.env.*|\.netrc|id_(?:rsa|dsa|ecdsa|ed25519)|.*\.(?:pem|key|p12|pfx)"
)
SECRET_TEXT = re.compile(
    rb"KGAT_[A-Za-z0-9_-]{8}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bgh[pousr]_[A-Za-z0-9]{20}|\bAKIA[A-Z0-9]{16}\b"
    rb"|\bhf_[A-Za-z0-9]{20}|\"key\"\s*:\s*\"[0-9a-f]{32}\""
)


@dataclass(frozen=True)
class Stage:
    """A dataset as it is to be: its metadata, and its files by their names in it."""

    slug: str
    title: str
    subtitle: str
    description: str
    license: str
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Pushed:
    """A dataset on Kaggle: owner/slug, the number of its newest version, and whether that was made now."""

    ref: str
    version: int
    new: bool


def files_in(folder: Path) -> dict[str, Path]:
    """Every file below `folder`, by its path in it, with forward slashes. Raises UsageError when there is none."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found.pop(CONTENT, None)  # of a dataset that was downloaded
    if not found:
        raise UsageError(f"{folder}: 0 files here, at least 1 is needed; name the folder that the dataset is made of")
    return found


def weights_files(weights: Path) -> dict[str, Path]:
    """The files of the weights dataset: a member under its own name, or all members of a folder; with MANIFEST.json."""
    single = (weights / RECIPE).is_file()
    found = {f"{weights.name}/{name}" if single else name: path for name, path in files_in(weights).items()}
    manifest = weights.parent / MANIFEST
    return {**found, MANIFEST: manifest} if single and manifest.is_file() else found


def wheels_files(wheels: Path) -> dict[str, Path]:
    """The files of the wheels dataset. Raises UsageError when there is no wheel."""
    found = {path.name: path for path in sorted(wheels.glob("*.whl"))}
    if not found:
        raise UsageError(f"{wheels}: no wheel here; make wheels collects them")
    return found


def read_stage(metadata_dir: Path, files: Mapping[str, Path]) -> Stage:
    """A dataset's metadata (`metadata_dir` has dataset-metadata.json) with its files. Raises UsageError."""
    path = metadata_dir / METADATA
    raw = json_object(path, "datasets_meta has a folder for every dataset")
    problem = next(_metadata_problems(raw), None)
    if problem:
        raise UsageError(f"{path}: {problem}")
    licence = raw["licenses"][0]["name"]
    slug = raw["id"].split("/")[1]
    return Stage(slug, raw["title"], raw.get("subtitle", ""), raw.get("description", ""), licence, files)


def json_object(path: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UsageError where there is none; `hint` says where it should be."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {hint}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: no JSON object: {error}") from error


def _metadata_problems(raw: Mapping[str, Any]) -> Iterator[str]:
    unknown = sorted(set(raw) - KEYS)
    if unknown:
        yield f"unknown key {', '.join(unknown)}; known: {', '.join(sorted(KEYS))}"
    owner, _, slug = str(raw.get("id", "")).partition("/")
    if owner != PLACEHOLDER and not SLUG.fullmatch(owner):
        yield f"id is {raw.get('id')!r}; {PLACEHOLDER}/slug is needed"
    if not (SLUG.fullmatch(slug) and 6 <= len(slug) <= 50):
        yield f"id is {raw.get('id')!r}; a slug of 6 to 50 of a-z, 0-9 and - is needed"
    for key, least, most in (("title", 6, 50), ("subtitle", 20, 80)):
        text = raw.get(key, "" if key == "title" else None)
        if text is not None and not (isinstance(text, str) and least <= len(text) <= most):
            length = len(text) if isinstance(text, str) else text
            yield f"{key} has {length} characters, {least} to {most} are allowed"
    licences = raw.get("licenses")
    named = isinstance(licences, list) and [one.get("name") for one in licences if isinstance(one, dict)]
    if not (named and len(licences or []) == 1 and isinstance(named[0], str) and named[0]):
        count = len(licences) if isinstance(licences, list) else 0
        yield f'licenses has {count} entries, exactly 1 is needed, like [{{"name": "CC0-1.0"}}]'


def check_files(files: Mapping[str, Path], secrets: Sequence[str] = ()) -> None:
    """Raise UsageError for what must not or cannot be published; `secrets` are texts that no file may have in it."""
    packed = {_blob(name) for name in files}
    if len(packed) + 1 > MOST_FILES:
        raise UsageError(f"{len(packed) + 1} files, {MOST_FILES} are allowed; put them into folders")
    total_bytes = sum(path.stat().st_size for path in files.values())
    if total_bytes > MOST_BYTES:
        raise UsageError(f"{total_bytes:,} bytes in all, {MOST_BYTES:,} are allowed; make two datasets of it")
    for name, path in files.items():
        problem = _file_problem(name, path, secrets)
        if problem:
            raise UsageError(f"{path}: {problem}")


def _file_problem(name: str, path: Path, secrets: Sequence[str]) -> str:
    parts = PurePosixPath(name).parts
    size_bytes = path.stat().st_size
    if any(SECRET_NAME.fullmatch(part.lower()) for part in parts):
        return "by its name it holds a secret; refused, move it elsewhere"
    if not all(PART.fullmatch(part) for part in parts):
        return f"the name {name!r} has characters that Kaggle stumbles over; letters, digits and ._+- are allowed"
    if not size_bytes:
        return "0 bytes, at least 1 is needed; Kaggle loses empty files"
    if size_bytes > MOST_FILE_BYTES:
        return f"{size_bytes:,} bytes, {MOST_FILE_BYTES:,} are allowed; split it"
    if size_bytes <= SCANNED_BYTES and has_secret(path.read_bytes(), secrets):
        return "there is a secret in it (a token or a private key); refused, take it out"
    return ""


def has_secret(content: bytes, secrets: Sequence[str] = ()) -> bool:
    """Whether a text has what looks like a token or a private key in it, or one of `secrets`; never says which."""
    if b"\0" in content[:4096]:
        return False
    return bool(SECRET_TEXT.search(content)) or any(secret.encode() in content for secret in secrets if secret)


def content_of(stage: Stage) -> dict[str, Any]:
    """What CONTENT.json says of a dataset: {"hash", "metadata", "files": {name: {"sha256", "bytes"}}}."""
    files = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in sorted(stage.files.items())}
    metadata = {
        "title": stage.title, "subtitle": stage.subtitle, "description": stage.description, "license": stage.license
    }  # fmt: skip
    text = json.dumps([metadata, [[name, *entry.values()] for name, entry in files.items()]], sort_keys=True)
    return {"hash": hashlib.sha256(text.encode()).hexdigest(), "metadata": metadata, "files": files}


def push_dataset(
    client: Kaggle,
    stage: Stage,
    clock: Callable[[], float] = time.monotonic,
    limit_s: float = READY_LIMIT_S,
) -> Pushed:
    """Make the newest version of the dataset have exactly these files, and wait until it can be used.

    Pushes nothing where it has them already. Raises UsageError for files that may not be published, before anything
    is asked; RemoteError when Kaggle refuses, fails, takes longer than `limit_s`, or lists something else afterwards.
    """
    check_files(stage.files, [client.credentials.key])
    owner, slug = client.username, stage.slug
    ref, content = f"{owner}/{slug}", content_of(stage)
    watch = _Watch(client, owner, slug, clock, limit_s)
    status = watch.settled()
    before = int(client.dataset(owner, slug).get("currentVersionNumber") or 0) if status else 0
    if status == "READY" and remote_content(client, owner, slug).get("hash") == content["hash"]:
        before = int(client.dataset(owner, slug).get("currentVersionNumber") or before)
        client.log(f"{ref}: unchanged, version {before}; nothing pushed")
        return Pushed(ref, before, new=False)
    with tempfile.TemporaryDirectory(prefix="clotkit-dataset-") as scratch:
        blobs = pack(stage.files, content, Path(scratch))
        client.log(f"{ref}: {len(stage.files)} files, {sum(path.stat().st_size for path in blobs.values()):,} bytes")
        tokens = [{"token": upload(client, path, name)} for name, path in blobs.items()]
    said = _publish(client, stage, tokens, content, watch, before, exists=bool(status))
    _check_answer(said, ref)
    version = watch.ready(before)
    _compare(client.dataset_files(owner, slug), blobs.keys(), content["files"], ref, version)
    client.log(f"{ref}: version {version} is ready, its files are those that were sent")
    return Pushed(ref, version, new=True)


def remote_content(client: Kaggle, owner: str, slug: str) -> dict[str, Any]:
    """What CONTENT.json of a dataset's newest version says; empty where it has none that can be read."""
    with tempfile.TemporaryDirectory(prefix="clotkit-dataset-") as scratch:
        path = Path(scratch) / CONTENT
        try:
            client.dataset_file(owner, slug, CONTENT, path)
            unzipped(path, CONTENT)
            said = json.loads(path.read_text(encoding="utf-8"))
        except (RemoteMissing, ValueError):
            return {}
    return said if isinstance(said, dict) else {}


def pack(files: Mapping[str, Path], content: Mapping[str, Any], scratch: Path) -> dict[str, Path]:
    """What is uploaded, by name: files as they are, each folder as one tar (Kaggle unpacks it under its name again).

    The same files give the same bytes.
    """
    atomic_write_json(scratch / CONTENT, content)
    blobs = {CONTENT: scratch / CONTENT}
    for name in sorted(files):
        blob = _blob(name)
        blobs[blob] = scratch / blob if "/" in name else files[name]
    for blob, path in blobs.items():
        folder = blob.removesuffix(".tar")
        inner = {name.partition("/")[2]: files[name] for name in sorted(files) if name.startswith(f"{folder}/")}
        if blob.endswith(".tar") and inner:
            write_tar(path, inner)
    return dict(sorted(blobs.items()))


def _blob(name: str) -> str:
    folder, slash, _ = name.partition("/")
    return f"{folder}.tar" if slash else name


def _publish(
    client: Kaggle,
    stage: Stage,
    tokens: list[Answer],
    content: Mapping[str, Any],
    watch: "_Watch",
    before: int,
    exists: bool,
) -> Answer:
    def look() -> Answer | None:
        return {} if watch.took_effect(before) else None

    texts = {"subtitle": stage.subtitle, "description": stage.description}
    if not exists:
        fields = {"owner_slug": watch.owner, "slug": stage.slug, "title": stage.title, "is_private": True}
        return client.create_dataset(look, tokens, **fields, **texts, license_name=stage.license)
    body = {"versionNotes": f"sha256 {content['hash']}", "files": tokens, "deleteOldVersions": False, **texts}
    return client.create_dataset_version(watch.owner, stage.slug, look, body)


def _check_answer(said: Answer, ref: str) -> None:
    """What Kaggle answered to a push; empty where the answer was lost and a look found it done."""
    if said.get("error") or str(said.get("status", "ok")).lower() == "error":
        raise RemoteError(f"dataset {ref}: Kaggle refused it: {' '.join(str(said.get('error')).split())[:200]}")
    filed = str(said.get("ref") or ref).strip("/").removeprefix("datasets/")
    if filed != ref:
        raise RemoteError(f"dataset {ref}: Kaggle filed it as {filed}: look at its page before anything else")


class _Watch:
    """One dataset, looked at until it is as it should be."""

    def __init__(self, client: Kaggle, owner: str, slug: str, clock: Callable[[], float], limit_s: float) -> None:
        self.client, self.owner, self.slug, self.clock, self.limit_s = client, owner, slug, clock, limit_s

    def settled(self) -> str:
        """The status once nothing is under way: READY or FAILED, or empty where there is no such dataset."""
        for status in self._statuses("settled"):
            if status == "DELETED":
                raise RemoteError(f"dataset {self._ref} was deleted; Kaggle makes no other of that name: rename it")
            if status in ("", "READY", "FAILED"):
                return status
        raise AssertionError

    def ready(self, before: int) -> int:
        """The number of the newest version, once it is higher than `before` and READY."""
        for status in self._statuses("ready"):
            if status == "FAILED":
                raise RemoteError(f"dataset {self._ref}: Kaggle could not process it (FAILED); see its page")
            number = int(self.client.dataset(self.owner, self.slug).get("currentVersionNumber") or 0)
            if status == "READY" and number > before:
                return number
        raise AssertionError

    def took_effect(self, before: int) -> bool:
        """Whether a push, whose answer is lost, was done: work is under way, or there is a newer version."""
        status = self.client.dataset_status(self.owner, self.slug)
        said = self.client.dataset(self.owner, self.slug)
        numbers = [int(one.get("versionNumber") or 0) for one in said.get("versions") or []]
        newer = max([int(said.get("currentVersionNumber") or 0), *numbers]) > before
        return newer or status not in ("", "READY", "FAILED")

    @property
    def _ref(self) -> str:
        return f"{self.owner}/{self.slug}"

    def _statuses(self, wanted: str) -> Iterator[str]:
        """The status, again and again, with growing pauses. Raises RemoteError when the limit is passed."""
        started, last, looks = self.clock(), "", 0
        while True:
            status = self.client.dataset_status(self.owner, self.slug)
            if status != last:
                self.client.log(f"{self._ref}: {status or 'not there yet'}")
            yield status
            last = status
            if self.clock() - started > self.limit_s:
                raise RemoteError(
                    f"dataset {self._ref}: {status or 'not there'} after {self.limit_s / 60:.0f} minutes, "
                    f"not {wanted}: see its page; the same command goes on from there"
                )
            self.client.wait(POLLS_S[min(looks, len(POLLS_S) - 1)])
            looks += 1


def _compare(
    listed: Sequence[tuple[str, int]], blobs: Iterator[str] | Any, files: Mapping[str, Any], ref: str, version: int
) -> None:
    """Hold the list of a version's files against what was sent. A tar may be there unpacked, perhaps one folder deeper.

    Raises RemoteError for a file that is missing or has another size.
    """
    sizes = dict(listed)
    for name, entry in files.items():
        if _blob(name) != name and _blob(name) in sizes:
            continue  # not unpacked: the kernel does it
        if name.endswith(".tar") and any(f"/{name.removesuffix('.tar')}/" in f"/{other}" for other in sizes):
            continue  # a tar that was sent as it is, unpacked
        found = [size for other, size in listed if other == name or other.endswith(f"/{name}")]
        if not found:
            raise RemoteError(
                f"dataset {ref} version {version}: {name} is missing, Kaggle lists {len(listed)} files; push again"
            )
        if entry["bytes"] not in found and any(found):
            raise RemoteError(
                f"dataset {ref} version {version}: {name} has {found[0]:,} bytes, {entry['bytes']:,} were sent; "
                "push again"
            )
    if CONTENT not in sizes:
        raise RemoteError(f"dataset {ref} version {version}: {CONTENT} is missing; push again")
