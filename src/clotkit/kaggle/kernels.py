"""Push a kernel: require its rehearsal, push it once, verify that Kaggle took all of it."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from clotkit.bundle.build import FILES_LINE, LIMIT_BYTES, SCORING_KERNEL, build_bundle, bundle_sha256, read_settings
from clotkit.bundle.notebook import KERNEL_METADATA, KernelType, code_of, type_of, without_outputs
from clotkit.bundle.places import competition_stem
from clotkit.competitions import DEFAULT, Competition, load_competition
from clotkit.errors import RehearsalError, RemoteError, RemoteFull, RemoteMissing, UsageError
from clotkit.files import atomic_write_json
from clotkit.kaggle.client import Answer, Kaggle
from clotkit.kaggle.datasets import (
    PLACEHOLDER,
    has_secret,
    owner_of,
    read_metadata,
    remote_content,
)
from clotkit.kaggle.follow import SHOW_WAITS_S
from clotkit.kaggle.listing import WAITS_S, differing_files, listing_problem
from clotkit.kaggle.metadata import (
    AS_DATASETS,
    INVALID,
    NO_QUOTA,
    SOURCES,
    Accelerator,
    Inputs,
    accelerator_of,
    foreign_sources,
    metadata_problems,
    missing_sources,
    normalised,
    same_sources,
    with_accelerator,
)
from clotkit.kaggle.models import check_model, place_of
from clotkit.kaggle.public import check_hosted
from clotkit.kaggle.states import DatasetState
from clotkit.progress import Log
from clotkit.reasons import RehearsalKind, RemoteKind

METADATA, MAIN = KERNEL_METADATA, "main.py"
PUSH_FIELDS = {  # key of kernel-metadata.json: field of a push
    **SOURCES, "keywords": "category_ids",
    "title": "new_title", "language": "language", "kernel_type": "kernel_type", "is_private": "is_private",
    "enable_gpu": "enable_gpu", "enable_tpu": "enable_tpu", "enable_internet": "enable_internet",
    "machine_shape": "machine_shape", "docker_image": "docker_image",
    "docker_image_pinning_type": "docker_image_pinning_type",
}  # fmt: skip
# Kaggle gives no code when all sessions are in use, only an error text with one of these.
NO_SESSION = re.compile(r"session count|maximum batch", re.IGNORECASE)
SESSION_WAIT_S, SESSION_TRIES = 120.0, 30  # an hour for a session to end


@dataclass(frozen=True)
class Kernel:
    """A kernel to push."""

    name: str  # of its folder
    source: str
    metadata: Mapping[str, Any]
    rehearsal: Mapping[str, Any] = field(default_factory=dict)  # the rehearsal.json of a bundle

    @property
    def sha256(self) -> str:
        """The sha256 of the source as it is sent."""
        return _sha256(self.source)


@dataclass(frozen=True)
class PushedKernel:
    """A version of a kernel on Kaggle, as pushed.json records it."""

    ref: str  # owner/slug
    version: int
    sha256: str  # of its source
    url: str
    # {owner/slug: version} of the datasets that it was pushed with, and of models {owner/model/framework/variation: …}.
    datasets: Mapping[str, int]
    request: str = ""  # sha256 of all that was sent
    missing: Sequence[str] = ()  # of what was sent; Kaggle runs the version without


def read_kernel(
    kernel_dir: Path,
    competition: str,
    rehearsal_dir: Path,
    chosen_type: str | None = None,
    inputs: Inputs | None = None,
) -> Kernel:
    """Read a kernel's folder, and check everything that can be checked here.

    A main.py with a line for the kit's modules is bundled, and exactly this bundle must have passed a rehearsal, whose
    rehearsal.json is in `rehearsal_dir`. Any other code file must be Python, or a notebook. `chosen_type`, script or
    notebook, replaces the type in the metadata; `inputs` (None: the competition's) are the forms of members and
    packages. Raises UsageError or RehearsalError.
    """
    path, known = kernel_dir / METADATA, load_competition(competition)
    inputs = inputs or Inputs.of(known)
    metadata = normalised(read_metadata(path, known, "a kernel folder has it beside main.py"))
    metadata |= {"kernel_type": chosen_type} if chosen_type else {}
    problem = next(metadata_problems(metadata), None)
    if problem:
        raise UsageError(f"{path}: {problem}")
    metadata = inputs.applied(metadata, known)
    code = kernel_dir / metadata["code_file"]
    main = kernel_dir / MAIN
    if not code.is_file() and main.is_file() and FILES_LINE in main.read_text(encoding="utf-8"):
        check_hosted(known)
        _check_sources(metadata, known, read_settings(kernel_dir, known).job, path)
        kernel_type = type_of(kernel_dir, chosen_type)
        source = build_bundle(kernel_dir, competition, kernel_type)
        passed = _rehearsed(kernel_dir.name, competition, source, rehearsal_dir, kernel_type)
        _check_inputs(passed, inputs, rehearsal_dir)
        return Kernel(kernel_dir.name, source, metadata, passed)
    return Kernel(kernel_dir.name, _plain_source(code, path, KernelType(metadata["kernel_type"])), metadata)


def datasets_attached(kernel_dir: Path, competition: Competition, inputs: Inputs = AS_DATASETS) -> list[str]:
    """Return the slugs of the datasets in a kernel's metadata."""
    metadata = read_metadata(kernel_dir / METADATA, competition, "a kernel folder has it beside main.py")
    return [source.split("/")[1] for source in inputs.applied(metadata, competition)["dataset_sources"]]


def models_attached(kernel_dir: Path, competition: Competition, inputs: Inputs = AS_DATASETS) -> list[str]:
    """Return the models of the user's own in a kernel's metadata, as model/framework/variation/version."""
    metadata = read_metadata(kernel_dir / METADATA, competition, "a kernel folder has it beside main.py")
    places = map(place_of, inputs.applied(metadata, competition)["model_sources"])
    return [f"{place.without_owner}/{version or 1}" for place, version in places if place.owner == PLACEHOLDER]


def _check_inputs(passed: Mapping[str, Any], inputs: Inputs, rehearsal_dir: Path) -> None:
    """Raise UsageError if members or packages were rehearsed in another form."""
    rehearsed = Inputs(**passed.get("inputs", {}))
    for key, variable in (("weights", "WEIGHTS_AS"), ("wheels", "WHEELS_AS")):
        seen, asked = getattr(rehearsed, key), getattr(inputs, key)
        if seen != asked:
            raise UsageError(
                f"{rehearsal_dir / 'rehearsal.json'}: the rehearsal had the {key} as a {seen}, this push as a {asked}; "
                f"run make dry-run {variable}={asked}, then push again"
            )


def running_on(kernel: Kernel, shape: str) -> Kernel:
    """Return the kernel for another machine shape; "none" is a CPU alone. Raises UsageError."""
    metadata = with_accelerator(kernel.metadata, shape)
    problem = next(metadata_problems(metadata), None)
    if problem:
        raise UsageError(f"--accelerator {shape}: {problem}")
    return replace(kernel, metadata=metadata)


def _check_sources(metadata: Mapping[str, Any], competition: Competition, job: str, path: Path) -> None:
    """Raise RehearsalError if a kernel would attach what belongs to another competition."""
    problem = next(foreign_sources(metadata, competition, job), "")
    if problem:
        raise RehearsalError(
            f"{path}: {problem} for the competition {competition.source.stem}: correct it, or the table kaggle of "
            f"{competition.source.name}",
            RehearsalKind.COMPETITION,
        )


def attaching(kernel: Kernel, slugs: Sequence[str]) -> Kernel:
    """Return the kernel with more of its owner's datasets attached.

    Such a dataset is the output of an earlier version, from which the kernel resumes; it was rehearsed without.
    """
    sources = [*kernel.metadata["dataset_sources"], *(f"{PLACEHOLDER}/{slug}" for slug in slugs)]
    return replace(kernel, metadata={**kernel.metadata, "dataset_sources": list(dict.fromkeys(sources))})


def _rehearsed(
    name: str, competition: str, source: str, rehearsal_dir: Path, kernel_type: KernelType
) -> dict[str, Any]:
    """Return the rehearsal.json of exactly this bundle.

    Raises UsageError if there is none, RehearsalError if it is of another competition.
    """
    digest, path = bundle_sha256(source), rehearsal_dir / "rehearsal.json"
    words = [f"KERNEL={name}"] * (name != SCORING_KERNEL) + [f"COMPETITION={competition}"] * (competition != DEFAULT)
    words += [f"KERNEL_TYPE={kernel_type}"] * (kernel_type is not KernelType.SCRIPT)
    again = f"run {' '.join(['make dry-run', *words])}, then push again"
    try:
        passed = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UsageError(f"{path}: the bundle {digest[:12]} has not passed a rehearsal; {again}") from None
    stem = competition_stem(competition)
    if passed.get("competition", stem) != stem:
        raise RehearsalError(
            f"{path}: the rehearsal was for {passed['competition']}, this kernel is for {stem}; {again}",
            RehearsalKind.COMPETITION,
        )
    if passed.get("bundle_sha256") != digest:
        seen = str(passed.get("bundle_sha256"))[:12]
        raise UsageError(f"{path}: the rehearsal was of the bundle {seen}, this one is {digest[:12]}; {again}")
    if passed.get("kernel_type", KernelType.SCRIPT) != kernel_type:
        raise UsageError(f"{path}: rehearsed as a {passed['kernel_type']}, to be pushed as a {kernel_type}; {again}")
    if not passed.get("slides", {}).get("done"):
        raise UsageError(f"{path}: 0 slides were done in the rehearsal, at least 1 is needed; {again}")
    rehearsed = rehearsal_dir / kernel_type.file_name
    if not rehearsed.is_file() or rehearsed.read_bytes() != source.encode():
        raise UsageError(f"{rehearsed}: not the {kernel_type} that would be pushed; {again}")
    return passed


def _plain_source(code: Path, metadata: Path, kernel_type: KernelType) -> str:
    """Return the source of a kernel that is not bundled.

    Raises UsageError if it is missing, or neither Python nor, for a kernel of that type, a notebook.
    """
    try:
        source = code.read_text(encoding="utf-8-sig")
        if kernel_type is KernelType.NOTEBOOK and code.suffix == ".ipynb":
            return without_outputs(source)
        compile(source, str(code), "exec")
    except OSError as error:
        raise UsageError(f"{metadata}: code_file {code.name}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{code}: not {'a notebook' if code.suffix == '.ipynb' else 'Python'}: {error}") from error
    return kernel_type.source_of(source)


def push_kernel(client: Kaggle, kernel: Kernel, record: Path, again: bool = False, log: Log = print) -> PushedKernel:
    """Push a kernel, verify that Kaggle accepted all of it, and write `record` (pushed.json).

    Pushes nothing if Kaggle's newest version has this source, these settings and these versions of the datasets, unless
    `again`.

    Raises:
        UsageError: The source cannot be pushed.
        RemoteError: A dataset, competition or kernel that it uses is missing or not ready; or Kaggle refuses, files
            the kernel elsewhere or leaves something out.
        RemoteFull: No GPU session becomes free.
    """
    _check_script(kernel, client)
    metadata = _owned(kernel.metadata, owner_of(client))
    ref = metadata["id"]
    datasets = _check_attached(metadata, kernel.rehearsal, client)
    metadata = _pinned(metadata, datasets)
    fields = _fields(kernel, metadata)
    pushed = PushedKernel(ref, 0, kernel.sha256, _url(ref), datasets, _sha256(json.dumps(fields, sort_keys=True)))
    known = read_record(record)
    remote = _shown(client, ref, known.version if known is not None and known.ref == ref else 0)
    before = _number(remote)
    _check_type(remote, metadata)
    unchanged = None if again or not before else _unchanged(client, remote, kernel, metadata, known, pushed)
    if unchanged is not None:
        _check_whole(_recorded(record, unchanged))
        log(f"{ref}: unchanged, version {before} has this source and these datasets; nothing pushed")
        return unchanged
    if not before:
        _check_free(client, ref)
    accelerator = accelerator_of(metadata)
    if accelerator:
        _check_quota(client, accelerator, log)
        log(f"{ref}: its rehearsal was on a CPU, not on {metadata['machine_shape']}")
    answer = _push_when_free(client, fields, before, log)
    version = check_answer(answer, metadata, before)
    missing = _distinct(left_out(answer), _confirm(client, kernel, metadata, version, before, log))
    url = str(answer.get("url") or pushed.url)
    pushed = _recorded(record, replace(pushed, version=version, url=url, missing=missing))
    _check_whole(pushed)
    log(f"{ref}: version {version} is pushed and runs, sha256 {kernel.sha256[:12]}: {pushed.url}")
    return pushed


def _check_type(remote: Answer, metadata: Mapping[str, Any]) -> None:
    """Raise UsageError if Kaggle has the kernel as one of another type, which it keeps."""
    wanted = metadata["kernel_type"]
    kept = str((remote.get("blob") or {}).get("kernelType") or wanted)
    if kept != wanted:
        raise UsageError(
            f"{metadata['id']}: Kaggle has it as a {kept}, and a kernel keeps its type: push it as a {kept} "
            f"(KERNEL_TYPE={kept}), or give it another id and title in {METADATA}"
        )


def _fields(kernel: Kernel, metadata: Mapping[str, Any]) -> Answer:
    """Return the fields of the push, under the library's names."""
    fields = {name: metadata[key] for key, name in PUSH_FIELDS.items() if metadata.get(key) not in (None, [])}
    return {"slug": metadata["id"], "text": kernel.source, **fields}


def _unchanged(
    client: Kaggle,
    remote: Answer,
    kernel: Kernel,
    metadata: Mapping[str, Any],
    known: PushedKernel | None,
    pushed: PushedKernel,
) -> PushedKernel | None:
    """Return the push that made Kaggle's newest version if it was this one, and None if it was another.

    By the record it was this one even if Kaggle has dropped or changed something: pushed once more, it would again.
    """
    pushed = replace(pushed, version=_number(remote))
    if known is not None and replace(known, missing=(), url="") == replace(pushed, url=""):
        return replace(known, missing=_distinct(known.missing, _lost(remote, kernel, metadata)))
    if _same(remote, kernel, metadata) and _same_data(client, remote, known, pushed.datasets):
        return pushed
    return None


def _distinct(*texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain(*texts)))


def _lost(remote: Answer, kernel: Kernel, metadata: Mapping[str, Any]) -> list[str]:
    """Return what was sent and Kaggle's newest version lacks."""
    source = [] if _same_source(remote, kernel.source) else ["the source as it was sent"]
    return [*source, *missing_sources(remote.get("metadata") or {}, metadata)]


def _check_whole(pushed: PushedKernel) -> None:
    """Raise RemoteError if Kaggle runs a version without something that was sent."""
    if pushed.missing:
        raise RemoteError(
            f"{pushed.ref}: version {pushed.version} was made and runs without {', '.join(pushed.missing)}: correct "
            f"{METADATA}, push again (the same once more: --again)",
            RemoteKind.MISMATCH,
        )


def _check_free(client: Kaggle, ref: str) -> None:
    """Raise RemoteError if a dataset has the name of a new kernel."""
    if client.dataset_status(*ref.split("/")) is not DatasetState.ABSENT:
        raise RemoteError(
            f"kernel {ref}: Kaggle has a dataset of that name: rename one of the two (id and title)", RemoteKind.TAKEN
        )


def read_record(record: Path) -> PushedKernel | None:
    """Return the last push, by pushed.json; None without the file. Raises UsageError if it is damaged."""
    if not record.is_file():
        return None
    try:
        raw = json.loads(record.read_text(encoding="utf-8"))
        texts = (str(raw["sha256"]), str(raw["url"]), dict(raw["datasets"]), str(raw.get("request", "")))
        return PushedKernel(str(raw["ref"]), int(raw["version"]), *texts, tuple(raw.get("missing", ())))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{record}: damaged ({type(error).__name__}); push again, or name a kernel") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _recorded(record: Path, pushed: PushedKernel) -> PushedKernel:
    """Write pushed.json, and return the push."""
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(record, asdict(pushed))
    except OSError as error:
        raise UsageError(
            f"{record}: {error.strerror}; {pushed.ref} version {pushed.version} is on Kaggle nevertheless: "
            f"continue with --kernel {pushed.ref} --version {pushed.version}"
        ) from error
    return pushed


def _url(ref: str) -> str:
    return f"https://www.kaggle.com/code/{ref}"


def _check_script(kernel: Kernel, client: Kaggle) -> None:
    """Raise UsageError for a source of a wrong size, or with a secret in it."""
    size_bytes = len(kernel.source.encode())
    if not 0 < size_bytes <= LIMIT_BYTES:
        raise UsageError(f"kernel {kernel.name}: {size_bytes:,} bytes, 1 to {LIMIT_BYTES:,} are allowed")
    if has_secret(kernel.source.encode(), client.secrets):
        raise UsageError(f"kernel {kernel.name}: it contains a secret (a token or a private key); remove it")


def _owned(metadata: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return the metadata with `owner` for the placeholder. Raises UsageError if it names another owner."""

    def owned(value: Any) -> Any:
        if isinstance(value, list):
            return [owned(entry) for entry in value]
        is_ours = isinstance(value, str) and value.startswith(f"{PLACEHOLDER}/")
        return owner + value[len(PLACEHOLDER) :] if is_ours else value

    result = {key: owned(value) for key, value in metadata.items()}
    if result["id"].split("/")[0] != owner:
        raise UsageError(
            f"id is {result['id']}, but the credentials are those of {owner}; begin it with {PLACEHOLDER}/"
        )
    return result


def _check_attached(metadata: Mapping[str, Any], rehearsal: Mapping[str, Any], client: Kaggle) -> dict[str, int]:
    """Return the versions of the datasets and models. Raises RemoteError if a source cannot be used now."""
    versions = {}
    for slug in metadata["competition_sources"]:
        if not client.competition(slug).get("userHasEntered"):
            page = f"kaggle.com/competitions/{slug}/rules"
            raise RemoteError(f"{slug}: you have not entered: accept the rules at {page}", RemoteKind.RULES)
    for source in metadata["dataset_sources"]:
        owner, slug = source.split("/")[:2]
        versions[f"{owner}/{slug}"] = _dataset_version(client, owner, slug)
        wanted = rehearsal.get("datasets", {}).get(slug)
        if wanted is not None or owner == client.username:
            files = remote_content(partial(client.dataset_file, owner, slug)).get("files", {})
            _check_rehearsed(f"{owner}/{slug}", files, wanted)
            _check_listed(client, owner, slug, files)
    for source in metadata["kernel_sources"]:
        owner, slug = source.split("/")[:2]
        if not client.get_kernel(owner, slug):
            raise RemoteMissing(f"kernel {source}: Kaggle has no such kernel, or it is private; see kernel_sources")
    for source in metadata["model_sources"]:
        place = place_of(source)[0]
        versions[str(place)] = check_model(client, source, rehearsal.get("models", {}).get(place.without_owner))
    return versions


def _pinned(metadata: Mapping[str, Any], versions: Mapping[str, int]) -> dict[str, Any]:
    """Return the metadata with the version of each model: Kaggle takes none without."""
    places = [place_of(source)[0] for source in metadata["model_sources"]]
    return {**metadata, "model_sources": [f"{place}/{versions[str(place)]}" for place in places]}


def _dataset_version(client: Kaggle, owner: str, slug: str) -> int:
    state = client.dataset_status(owner, slug)
    if state is DatasetState.ABSENT:
        name = slug.rpartition("-")[2]
        raise RemoteMissing(f"dataset {owner}/{slug}: Kaggle has none; run make datasets-push (DATASET={name})")
    number = int(client.dataset(owner, slug).get("currentVersionNumber") or 0)
    if state is not DatasetState.READY or not (number or owner != client.username):  # of others it may be hidden
        raise RemoteError(
            f"dataset {owner}/{slug}: {state}, version {number}; READY is needed: run make datasets-push, which waits",
            RemoteKind.NOT_READY,
        )
    return number


def _check_rehearsed(ref: str, files: Mapping[str, Any], wanted: Mapping[str, str] | None) -> None:
    """Raise RemoteError if a dataset's files are not those of the rehearsal, whose sha256 are in `wanted`."""
    if wanted is None:
        return
    differing = differing_files(files, wanted)
    if differing:
        raise RemoteError(
            f"dataset {ref}: {len(differing)} files are not those of the rehearsal ({differing[0]} …): "
            "run make datasets-push with the same WEIGHTS, or make dry-run again",
            RemoteKind.MISMATCH,
        )


def _check_listed(client: Kaggle, owner: str, slug: str, files: Mapping[str, Any]) -> None:
    """Raise RemoteError if Kaggle lists other files than the dataset was made of, where they are known."""
    problem = listing_problem(partial(client.dataset_files, owner, slug), files, client.wait) if files else ""
    if problem:
        raise RemoteError(
            f"dataset {owner}/{slug}: {problem}: run make datasets-push, which pushes it again", RemoteKind.MISMATCH
        )


def _number(remote: Answer) -> int:
    return int((remote.get("metadata") or {}).get("currentVersionNumber") or 0)


def _source(remote: Answer) -> str:
    return str((remote.get("blob") or {}).get("source") or "")


def _same_source(remote: Answer, source: str) -> bool:
    """Return whether Kaggle's newest version has this source, however a notebook is written out."""
    return code_of(_source(remote)) == code_of(source)


def _same(remote: Answer, kernel: Kernel, metadata: Mapping[str, Any]) -> bool:
    """Return whether Kaggle's newest version has this source and these settings."""
    saved = remote.get("metadata") or {}
    switches = {"isPrivate": "is_private", "enableGpu": "enable_gpu", "enableInternet": "enable_internet"}
    return (
        _same_source(remote, kernel.source)
        and all(bool(saved.get(name)) == metadata[key] for name, key in switches.items())
        and same_sources(saved, metadata)
        and str(saved.get("machineShape") or "") in ("", str(metadata.get("machine_shape") or ""))
    )


def _same_data(client: Kaggle, remote: Answer, known: PushedKernel | None, datasets: Mapping[str, int]) -> bool:
    """Return whether the newest version ran with these dataset versions: by the record, or by the dates."""
    if known is not None and known.version == _number(remote) and known.sha256 == _sha256(_source(remote)):
        return dict(known.datasets) == dict(datasets)
    ran = str(remote["metadata"].get("lastRunTime") or "")
    names = [ref.split("/") for ref in datasets]
    return bool(ran) and all(
        str(client.dataset(*name).get("lastUpdated") or "~") <= ran
        for name in names
        if len(name) == 2  # the version of a model is in the kernel's sources
    )


def _check_quota(client: Kaggle, kind: Accelerator, log: Log) -> None:
    """Log the accelerator's hours that are left this week. Raises RemoteError for none."""
    quota = client.quota()
    week = kind.week(quota)
    log(f"{kind.name} quota: {week or NO_QUOTA}")
    if week and not week.left_h:
        raise RemoteError(
            f"{kind.name} quota: all of {week.allowed_h:.0f} hours are used; it is renewed at "
            f"{quota.get('quotaRefreshTime')}",
            RemoteKind.NO_QUOTA,
        )


def _push_when_free(client: Kaggle, fields: Answer, before: int, log: Log) -> Answer:
    """Push, and try again while all GPU sessions are in use. Raises RemoteFull if none becomes free."""
    ref = fields["slug"]

    def lookup() -> Answer | None:
        remote = client.get_kernel(*ref.split("/"))
        if _number(remote) <= before or not _same_source(remote, fields["text"]):
            return None
        return {"versionNumber": _number(remote), "ref": ref}

    for _ in range(SESSION_TRIES):
        answer = client.save_kernel(lookup, fields)
        error = str(answer.get("error") or "")
        if not NO_SESSION.search(error):
            return answer
        log(f"{ref}: {error} Waiting {SESSION_WAIT_S:.0f} s for one to end")
        client.wait(SESSION_WAIT_S)
    raise RemoteFull(
        f"{ref}: {error} No session ended in {SESSION_TRIES * SESSION_WAIT_S / 60:.0f} minutes: "
        "end one, then push again"
    )


def check_answer(answer: Answer, metadata: Mapping[str, Any], before: int) -> int:
    """Return the version that a push made. Raises RemoteError if it is not the one that was meant."""
    ref, version = metadata["id"], int(answer.get("versionNumber") or 0)
    if answer.get("error"):
        text = " ".join(str(answer["error"]).split())[:200]
        raise RemoteError(f"{ref}: Kaggle did not accept the push: {text}", RemoteKind.REFUSED)
    filed = str(answer.get("ref") or "").strip("/").removeprefix("code/")
    if filed.lower() != ref.lower():
        raise RemoteError(
            f"{ref}: Kaggle filed it as {filed or 'nothing'}: make title and id agree, push again", RemoteKind.MISMATCH
        )
    if version <= before:
        raise RemoteError(
            f"{ref}: Kaggle names version {version}, {before} was there before: look at its page", RemoteKind.MISMATCH
        )
    return version


def left_out(answer: Answer) -> list[str]:
    """Return the sources and tags that Kaggle's answer to a push calls invalid, and runs it without."""
    lists = {key: answer[key] or [] for key in sorted(answer) if key.startswith("invalid")}
    return [f"{name} ({INVALID.get(key, key)})" for key, names in lists.items() for name in names]


def _confirm(
    client: Kaggle, kernel: Kernel, metadata: Mapping[str, Any], version: int, before: int, log: Log
) -> list[str]:
    """Return what a version lacks of what was sent, once Kaggle shows it; log other pushes since."""
    ref = metadata["id"]
    if before and version > before + 1:
        log(f"{ref}: {version - before - 1} other versions were pushed meanwhile; this one is {version}")
    remote = _shown(client, ref, version)
    for pause_s in WAITS_S:  # the record of a new version may be incomplete at first
        if _number(remote) == version and _lost(remote, kernel, metadata):
            client.wait(pause_s)
            remote = client.get_kernel(*ref.split("/"))
    if _number(remote) > version:
        log(f"{ref}: version {_number(remote)} is newer than this one, {version}: pushed meanwhile")
    elif _number(remote) < version:
        log(f"{ref}: Kaggle does not show version {version} yet, so that its sources are not checked")
    return _lost(remote, kernel, metadata) if _number(remote) == version else []


def _shown(client: Kaggle, ref: str, version: int) -> Answer:
    """Return Kaggle's record of a kernel once it has this version, or after some time as it is then."""
    remote = client.get_kernel(*ref.split("/"))
    for pause_s in SHOW_WAITS_S:
        if _number(remote) >= version:
            break
        client.log(f"{ref}: Kaggle does not show version {version} yet, looking again in {pause_s:.0f} s")
        client.wait(pause_s)
        remote = client.get_kernel(*ref.split("/"))
    return remote
