"""Push a folder as a Kaggle dataset if its content is new, wait for it, and compare it."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from clotkit.competitions import Competition
from clotkit.errors import RemoteError, RemoteMissing, UsageError
from clotkit.files import atomic_write_json, sha256, write_tar
from clotkit.kaggle.client import Answer, Kaggle
from clotkit.kaggle.listing import CONTENT, listing_problem, upload_name
from clotkit.kaggle.polling import Poller
from clotkit.kaggle.public import unzip_in_place
from clotkit.kaggle.states import DatasetState
from clotkit.kaggle.uploads import upload
from clotkit.members.encoders.folder import encoder_beside
from clotkit.members.folder import MANIFEST, RECIPE, check_clashes
from clotkit.reasons import RemoteKind

# {dataset's slug, or model/framework/variation/version: {name of a file in it: file here}}
Attached = Mapping[str, Mapping[str, Path]]
PLACEHOLDER = "OWNER"  # stands for the user in this repository's metadata
SOURCES = "{sources}"  # stands for the competitions whose data a kernel attaches
METADATA = "dataset-metadata.json"
KEYS = {"id", "title", "subtitle", "description", "licenses"}
MAX_FILES = 1_000  # of one dataset; Kaggle's server refuses more
MAX_FILE_BYTES, MAX_BYTES = 20 * 2**30, 100 * 2**30  # clotkit's own: far above its datasets, below Kaggle's quota
SCANNED_BYTES = 2**20  # a text up to this size is searched for secrets
READY_LIMIT_S = 3_600.0
OWNER_NAME = re.compile(r"[a-z0-9_-]+")  # as Kaggle's own client checks it
SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")  # uploads with other characters have failed
SECRET_NAME = re.compile(
    r"kaggle\.json|access_token.*|credentials.*|\.env.*|\.netrc|id_(?:rsa|dsa|ecdsa|ed25519)|.*\.(?:pem|key|p12|pfx)"
)
SECRET_TEXT = re.compile(
    rb"KGAT_[A-Za-z0-9_-]{8}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bgh[pousr]_[A-Za-z0-9]{20}|\bAKIA[A-Z0-9]{16}\b"
    rb"|\bhf_[A-Za-z0-9]{20}|\"key\"\s*:\s*\"[0-9a-f]{32}\""
)


@dataclass(frozen=True)
class Stage:
    """A dataset to push: its metadata, and its files by their names in it."""

    slug: str
    title: str
    subtitle: str
    description: str
    license: str
    files: Mapping[str, Path]
    owner: str = PLACEHOLDER


@dataclass(frozen=True)
class PushedDataset:
    """A dataset on Kaggle."""

    ref: str  # owner/slug
    version: int  # the newest
    new: bool  # this push made that version


def files_in(folder: Path) -> dict[str, Path]:
    """Return every file below `folder`, by its relative path with slashes. Raises UsageError for none."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(CONTENT, None)  # of a dataset that was downloaded
    if not files:
        raise UsageError(f"{folder}: 0 files here, at least 1 is needed; name the folder with the dataset's files")
    return files


def weights_files(weights: Path) -> dict[str, Path]:
    """Return the files of the weights dataset: one member below its own name, or all members of a folder.

    MANIFEST.json comes with them, and with one member its encoder. Raises UsageError if there is no file.
    """
    single = (weights / RECIPE).is_file()
    files = {f"{weights.name}/{name}" if single else name: path for name, path in files_in(weights).items()}
    if single and (encoder := encoder_beside(weights)) is not None:
        below = files_in(encoder) if encoder.is_dir() else {"": encoder}
        files |= {f"{encoder.name}/{name}".rstrip("/"): path for name, path in below.items()}
    manifest = weights.parent / MANIFEST
    return {**files, MANIFEST: manifest} if single and manifest.is_file() else files


def wheels_files(wheels: Path) -> dict[str, Path]:
    """Return the files of the wheels dataset. Raises UsageError if there is no wheel."""
    files = {path.name: path for path in sorted(wheels.glob("*.whl"))}
    if not files:
        raise UsageError(f"{wheels}: no wheel here; run make wheels, which collects them")
    return files


def read_stage(metadata_dir: Path, files: Mapping[str, Path], competition: Competition) -> Stage:
    """Return a dataset from the metadata in `metadata_dir` and its files. Raises UsageError."""
    path = metadata_dir / METADATA
    raw = read_metadata(path, competition, "datasets_meta has a folder for every dataset")
    problem = next(_metadata_problems(raw), None)
    if problem:
        raise UsageError(f"{path}: {problem}")
    licence = raw["licenses"][0]["name"]
    owner, slug = raw["id"].split("/")
    return Stage(slug, raw["title"], raw.get("subtitle", ""), raw.get("description", ""), licence, files, owner)


def read_metadata(path: Path, competition: Competition, hint: str) -> dict[str, Any]:
    """Return the metadata in a file, with the names of a competition for its placeholders.

    They are {kernel} and {datasets}, the same as titles with _title, and as an entry of its own in a list {sources}.
    Raises UsageError for no JSON object; `hint` tells where the file should be.
    """
    kaggle = competition.kaggle
    names = {"kernel": kaggle.kernel, "datasets": kaggle.datasets}
    names |= {f"{key}_title": name.replace("-", " ") for key, name in names.items()}

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [one for entry in value for one in (kaggle.sources if entry == SOURCES else [filled(entry)])]
        for key, name in names.items() if isinstance(value, str) else ():
            value = value.replace(f"{{{key}}}", name)
        return value

    return {key: filled(value) for key, value in json_object(path, hint).items()}


def json_object(path: Path, hint: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises UsageError for none; `hint` tells where the file should be."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {hint}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: no JSON object: {error}") from error


def _metadata_problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a dataset's metadata, a line each."""
    unknown = sorted(set(raw) - KEYS)
    if unknown:
        yield f"unknown key {', '.join(unknown)}; known: {', '.join(sorted(KEYS))}"
    slug = str(raw.get("id", "")).partition("/")[2]
    yield from owner_problems(str(raw.get("id", "")))
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


def owner_problems(ref: str) -> Iterator[str]:
    """Yield what is wrong with the owner in an id of metadata."""
    owner = ref.partition("/")[0]
    if owner != PLACEHOLDER and not OWNER_NAME.fullmatch(owner):
        yield (
            f"id is {ref!r}, but a Kaggle user name has only a-z, 0-9, - and _; begin it with {PLACEHOLDER}/, which "
            "becomes the user of your credentials"
        )


def owner_of(client: Kaggle, owner: str = PLACEHOLDER) -> str:
    """Return the user name of the credentials.

    Raises UsageError if it cannot be one of Kaggle's, under which everything would be filed elsewhere, or if it is
    another one than `owner`. A token's name comes from Kaggle itself.
    """
    name = client.username
    if client.credentials.username and not OWNER_NAME.fullmatch(name):
        raise UsageError(
            f"the user name {name!r} of the credentials: Kaggle's have only a-z, 0-9, - and _; take yours from the "
            "address of your page, kaggle.com/NAME"
        )
    if owner not in (PLACEHOLDER, name):
        raise UsageError(f"id begins with {owner}/, but the credentials are those of {name}; write {PLACEHOLDER}/")
    return name


def check_names(stage: Stage, kernels: Path, competition: Competition) -> None:
    """Raise UsageError if a kernel in the folder `kernels` has the name of a dataset."""
    for path in sorted(kernels.glob("*/kernel-metadata.json")):
        ref = read_metadata(path, competition, "a kernel folder has it beside main.py").get("id")
        if str(ref).partition("/")[2] == stage.slug:
            raise UsageError(f"{path}: id is {ref}, which is also a dataset's: two things of one name; rename one")


def check_files(files: Mapping[str, Path], secrets: Sequence[str] = ()) -> None:
    """Raise UsageError for a file that must not be published, such as one with one of `secrets` in it."""
    uploads = {upload_name(name) for name in files}
    folders = sorted({PurePosixPath(name).parts[0] for name in files if "/" in name})
    check_clashes({PurePosixPath(name).parts[0] for name in files}, folders, "the dataset")
    if len(uploads) + 1 > MAX_FILES:
        raise UsageError(f"{len(uploads) + 1} files, {MAX_FILES} are allowed; put them into folders")
    total_bytes = sum(path.stat().st_size for path in files.values())
    if total_bytes > MAX_BYTES:
        raise UsageError(f"{total_bytes:,} bytes in all, {MAX_BYTES:,} are allowed; make two datasets")
    for name, path in files.items():
        problem = _file_problem(name, path, secrets)
        if problem:
            raise UsageError(f"{path}: {problem}")


def _file_problem(name: str, path: Path, secrets: Sequence[str]) -> str:
    """Return why a file cannot be published, empty if it can."""
    parts = PurePosixPath(name).parts
    size_bytes = path.stat().st_size
    if any(SECRET_NAME.fullmatch(part.lower()) for part in parts):
        return "its name is that of a file with a secret; refused: move it elsewhere"
    if not all(PATH_PART.fullmatch(part) for part in parts):
        return f"the name {name!r} has characters that Kaggle cannot handle; letters, digits and ._+- are allowed"
    if not size_bytes:
        return "0 bytes, at least 1 is needed; Kaggle loses empty files"
    if size_bytes > MAX_FILE_BYTES:
        return f"{size_bytes:,} bytes, {MAX_FILE_BYTES:,} are allowed; split it"
    if size_bytes <= SCANNED_BYTES and has_secret(path.read_bytes(), secrets):
        return "it contains a secret (a token or a private key); refused: remove it"
    return ""


def has_secret(content: bytes, secrets: Sequence[str] = ()) -> bool:
    """Return whether a text contains one of `secrets`, or something like a token or a private key."""
    if b"\0" in content[:4096]:
        return False
    return bool(SECRET_TEXT.search(content)) or any(secret.encode() in content for secret in secrets if secret)


def content_of(stage: Stage) -> dict[str, Any]:
    """Return the object for CONTENT.json: {"hash", "metadata", "files": {name: {"sha256", "bytes"}}}."""
    metadata = {
        "title": stage.title, "subtitle": stage.subtitle, "description": stage.description, "license": stage.license
    }  # fmt: skip
    return content_with(stage.files, metadata)


def content_with(paths: Mapping[str, Path], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the object for CONTENT.json of these files with this metadata."""
    files = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in sorted(paths.items())}
    text = json.dumps([metadata, [[name, *entry.values()] for name, entry in files.items()]], sort_keys=True)
    return {"hash": hashlib.sha256(text.encode()).hexdigest(), "metadata": metadata, "files": files}


def push_dataset(
    client: Kaggle,
    stage: Stage,
    clock: Callable[[], float] = time.monotonic,
    limit_s: float = READY_LIMIT_S,
) -> PushedDataset:
    """Make a dataset's newest version have exactly these files, and wait until it can be used.

    Pushes nothing if it has them already.

    Raises:
        UsageError: A file may not be published; this is checked before Kaggle is asked anything.
        RemoteError: Kaggle refuses, fails, takes longer than `limit_s`, or lists other files afterwards.
    """
    check_files(stage.files, client.secrets)
    owner, slug = owner_of(client, stage.owner), stage.slug
    ref, content = f"{owner}/{slug}", content_of(stage)
    poller = _DatasetPoller(client, owner, slug, clock, limit_s)
    state = poller.settled()
    record = {} if state is DatasetState.ABSENT else client.dataset(owner, slug)
    before = _version_number(record)
    if state is DatasetState.ABSENT:
        _check_free(client, owner, slug)
    elif state is DatasetState.READY:
        problem = _difference(client, owner, slug, content)
        if not problem:
            before = _version_number(client.dataset(owner, slug)) or before
            client.log(f"{ref}: unchanged, version {before}; nothing pushed")
            return PushedDataset(ref, before, new=False)
        _check_not_repeated(record, content, f"{ref} version {before}: {problem}")
        client.log(f"{ref}: version {before}: {problem}; pushing")
    with tempfile.TemporaryDirectory(prefix="clotkit-dataset-") as scratch:
        uploads = pack(stage.files, content, Path(scratch))
        client.log(f"{ref}: {len(stage.files)} files, {sum(path.stat().st_size for path in uploads.values()):,} bytes")
        tokens = [{"token": upload(client, path, name)} for name, path in uploads.items()]
    answer = _publish(client, stage, tokens, content, poller, before, exists=state is not DatasetState.ABSENT)
    _check_answer(answer, ref)
    version = poller.ready(before)
    problem = listing_problem(partial(client.dataset_files, owner, slug), content["files"], client.wait)
    if problem:
        raise RemoteError(f"dataset {ref} version {version}: {problem}; push again", RemoteKind.MISMATCH)
    client.log(f"{ref}: version {version} is ready and has the files that were sent")
    return PushedDataset(ref, version, new=True)


def _difference(client: Kaggle, owner: str, slug: str, content: Mapping[str, Any]) -> str:
    """Return how a dataset's newest version differs from the content to push; empty if it does not."""
    if remote_content(partial(client.dataset_file, owner, slug)).get("hash") != content["hash"]:
        return f"the content in {CONTENT} is another"
    return listing_problem(partial(client.dataset_files, owner, slug), content["files"], client.wait)


def _check_free(client: Kaggle, owner: str, slug: str) -> None:
    """Raise RemoteError if a kernel has the name of a new dataset: Kaggle refuses that after the upload."""
    if client.get_kernel(owner, slug):
        raise RemoteError(
            f"dataset {owner}/{slug}: Kaggle has a kernel of that name: rename one of the two (id and title)",
            RemoteKind.TAKEN,
        )


def notes_of(content: Mapping[str, Any]) -> str:
    """Return the notes of a version, by which its content is known."""
    return f"sha256 {content['hash']}"


def _check_not_repeated(record: Answer, content: Mapping[str, Any], problem: str) -> None:
    """Raise RemoteError if the two newest versions were made of these files: a third would be the same."""
    newest = sorted(record.get("versions") or [], key=lambda one: -int(one.get("versionNumber") or 0))[:2]
    if [one.get("versionNotes") for one in newest] == [notes_of(content)] * 2:
        raise RemoteError(
            f"dataset {problem}, as in the version before: rename that file, or put it into a folder, and push again",
            RemoteKind.MISMATCH,
        )


def remote_content(fetch: Callable[[str, Path], None]) -> dict[str, Any]:
    """Return the CONTENT.json that `fetch` writes to a path; empty if Kaggle has none that can be read."""
    with tempfile.TemporaryDirectory(prefix="clotkit-dataset-") as scratch:
        path = Path(scratch) / CONTENT
        try:
            fetch(CONTENT, path)
            unzip_in_place(path, CONTENT)
            content = json.loads(path.read_text(encoding="utf-8"))
        except (RemoteMissing, ValueError):
            return {}
    return content if isinstance(content, dict) else {}


def pack(files: Mapping[str, Path], content: Mapping[str, Any], scratch: Path) -> dict[str, Path]:
    """Return what is uploaded, by name: single files as they are, and each folder as a tar in `scratch`.

    Kaggle unpacks a tar below its name. The same files give the same bytes.
    """
    atomic_write_json(scratch / CONTENT, content)
    uploads = {CONTENT: scratch / CONTENT}
    for name in sorted(files):
        uploads[upload_name(name)] = scratch / upload_name(name) if "/" in name else files[name]
    for sent_as, path in uploads.items():
        folder = sent_as.removesuffix(".tar")
        inner = {name.partition("/")[2]: files[name] for name in sorted(files) if name.startswith(f"{folder}/")}
        if sent_as.endswith(".tar") and inner:
            write_tar(path, inner)
    return dict(sorted(uploads.items()))


def _version_number(dataset: Answer) -> int:
    return int(dataset.get("currentVersionNumber") or 0)


def _publish(
    client: Kaggle,
    stage: Stage,
    tokens: list[Answer],
    content: Mapping[str, Any],
    poller: "_DatasetPoller",
    before: int,
    exists: bool,
) -> Answer:
    """Create the dataset, or its next version, from uploaded files."""

    def lookup() -> Answer | None:
        return {} if poller.took_effect(before) else None

    texts = {"subtitle": stage.subtitle, "description": stage.description}
    if not exists:
        fields = {"owner_slug": poller.owner, "slug": stage.slug, "title": stage.title, "is_private": True}
        return client.create_dataset(lookup, tokens, **fields, **texts, license_name=stage.license)
    body = {"versionNotes": notes_of(content), "files": tokens, "deleteOldVersions": False, **texts}
    return client.create_dataset_version(poller.owner, stage.slug, lookup, body)


def _check_answer(answer: Answer, ref: str) -> None:
    """Raise RemoteError for an error in the answer to a push.

    The answer is empty if it was lost and the push took effect.
    """
    if answer.get("error") or str(answer.get("status", "ok")).lower() == "error":
        text = " ".join(str(answer.get("error")).split())[:200]
        raise RemoteError(f"dataset {ref}: Kaggle refused it: {text}", RemoteKind.REFUSED)
    filed = str(answer.get("ref") or ref).strip("/").removeprefix("datasets/")
    if filed.lower() != ref.lower():
        raise RemoteError(
            f"dataset {ref}: Kaggle filed it as {filed}: look at its page before anything else", RemoteKind.MISMATCH
        )


class _DatasetPoller:
    """One dataset, polled until it is in the wanted state."""

    def __init__(self, client: Kaggle, owner: str, slug: str, clock: Callable[[], float], limit_s: float) -> None:
        self.client, self.owner, self.slug, self.clock, self.limit_s = client, owner, slug, clock, limit_s

    def settled(self) -> DatasetState:
        """Return the state once no work is under way: READY, FAILED or ABSENT. Raises RemoteError for DELETED."""
        for state in self._states():
            if state is DatasetState.DELETED:
                raise RemoteError(
                    f"dataset {self._ref} was deleted; Kaggle makes no other of that name: rename it",
                    RemoteKind.REFUSED,
                )
            if state.settled:
                return state
        raise AssertionError

    def ready(self, before: int) -> int:
        """Return the number of the newest version once it is higher than `before` and READY."""
        for state in self._states():
            if state is DatasetState.FAILED:
                raise RemoteError(
                    f"dataset {self._ref}: Kaggle could not process it (FAILED); see its page", RemoteKind.FAILED
                )
            number = _version_number(self.client.dataset(self.owner, self.slug))
            if state is DatasetState.READY and number > before:
                return number
        raise AssertionError

    def took_effect(self, before: int) -> bool:
        """Return whether a lost push took effect: work is under way, or a version is newer."""
        state = self.client.dataset_status(self.owner, self.slug)
        dataset = self.client.dataset(self.owner, self.slug)
        numbers = [int(one.get("versionNumber") or 0) for one in dataset.get("versions") or []]
        return max([_version_number(dataset), *numbers]) > before or not state.settled

    @property
    def _ref(self) -> str:
        return f"{self.owner}/{self.slug}"

    def _states(self) -> Poller[DatasetState]:
        """Return the dataset's poller. Iterating raises RemoteError after the limit."""
        return Poller(
            lambda: self.client.dataset_status(self.owner, self.slug),
            f"dataset {self._ref}",
            self.client.log,
            self.client.wait,
            lambda _: self.limit_s,
            "its page",
            clock=self.clock,
        )
