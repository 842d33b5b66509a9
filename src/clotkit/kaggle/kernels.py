"""Push a kernel: check its metadata for known traps, require its rehearsal, verify the push."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clotkit.bundle.build import FILES_LINE, LIMIT_BYTES, SCORING_KERNEL, build_bundle, bundle_sha256
from clotkit.errors import RemoteError, RemoteFull, RemoteMissing, UsageError
from clotkit.files import atomic_write_json
from clotkit.kaggle.client import Answer, Kaggle
from clotkit.kaggle.datasets import PLACEHOLDER, SLUG, has_secret, json_object, remote_content
from clotkit.kaggle.states import DatasetState
from clotkit.progress import Log
from clotkit.reasons import RemoteKind

METADATA, MAIN = "kernel-metadata.json", "main.py"
KEYS = {  # of kernel-metadata.json; Kaggle silently ignores any other
    "id", "title", "code_file", "language", "kernel_type", "is_private", "enable_gpu", "enable_tpu",
    "enable_internet", "machine_shape", "dataset_sources", "competition_sources", "kernel_sources", "model_sources",
    "keywords", "docker_image", "docker_image_pinning_type",
}  # fmt: skip
SHAPES = (
    "NvidiaTeslaT4", "NvidiaL4", "NvidiaL4X1", "NvidiaTeslaA100", "NvidiaH100", "NvidiaRtxPro6000", "TpuV5E8", "TpuV6E8"
)  # fmt: skip
RETIRED = ("NvidiaTeslaP100", "TpuV38", "Tpu1VmV38")  # replaced by other machines since 2026-09
TITLE_LENGTHS = (5, 50)
PREFIXES = {  # of sources in a pulled metadata file; Kaggle drops a source that is pushed with its prefix
    "dataset_sources": ("datasets/", "d/"),
    "competition_sources": ("competitions/", "c/"),
    "kernel_sources": ("code/",),
    "model_sources": ("models/",),
}
FORMS = {
    "dataset_sources": (r"{s}/{s}(/[1-9][0-9]*)?", "owner/slug or owner/slug/version"),
    "competition_sources": (r"{s}", "a slug"),
    "kernel_sources": (r"{s}/{s}(/[1-9][0-9]*)?", "owner/slug or owner/slug/version"),
    "model_sources": (r"{s}/{s}/[A-Za-z0-9]+/[A-Za-z0-9._-]+/[1-9][0-9]*", "owner/model/framework/variation/version"),
}
PUSH_FIELDS = {  # key of kernel-metadata.json: field of a push
    "dataset_sources": "dataset_data_sources", "competition_sources": "competition_data_sources",
    "kernel_sources": "kernel_data_sources", "model_sources": "model_data_sources", "keywords": "category_ids",
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
    datasets: Mapping[str, int]  # {owner/slug: version} of the datasets that it was pushed with


def read_kernel(kernel_dir: Path, competition: str, rehearsal_dir: Path) -> Kernel:
    """Read a kernel's folder, and check everything that can be checked here.

    A main.py with a line for the kit's modules is bundled, and exactly this bundle must have passed a rehearsal, whose
    rehearsal.json is in `rehearsal_dir`. Any other code file must be Python. Raises UsageError or RehearsalError.
    """
    path = kernel_dir / METADATA
    raw = json_object(path, "a kernel folder has it beside main.py")
    metadata = normalised(raw)
    problem = next(metadata_problems(metadata), None)
    if problem:
        raise UsageError(f"{path}: {problem}")
    code = kernel_dir / metadata["code_file"]
    main = kernel_dir / MAIN
    if not code.is_file() and main.is_file() and FILES_LINE in main.read_text(encoding="utf-8"):
        source = build_bundle(kernel_dir, competition)
        return Kernel(kernel_dir.name, source, metadata, _rehearsed(kernel_dir.name, source, rehearsal_dir))
    return Kernel(kernel_dir.name, _plain_source(code, path), metadata)


def attaching(kernel: Kernel, slugs: Sequence[str]) -> Kernel:
    """Return the kernel with more of its owner's datasets attached.

    Such a dataset is the output of an earlier version, from which the kernel resumes; it was rehearsed without.
    """
    sources = [*kernel.metadata["dataset_sources"], *(f"{PLACEHOLDER}/{slug}" for slug in slugs)]
    return replace(kernel, metadata={**kernel.metadata, "dataset_sources": list(dict.fromkeys(sources))})


def normalised(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with its sources as a push needs them: without the prefixes that a pull writes."""

    def bare(source: Any, prefixes: tuple[str, ...]) -> Any:
        prefix = next((one for one in prefixes if isinstance(source, str) and source.startswith(one)), "")
        return source[len(prefix) :] if prefix else source

    lists = {key: raw.get(key, []) for key in PREFIXES}
    return {
        **raw,
        **{
            key: [bare(one, PREFIXES[key]) for one in value] if isinstance(value, list) else value
            for key, value in lists.items()
        },
    }


def metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield what Kaggle would refuse, change or ignore in a kernel's metadata, a line each."""
    unknown = sorted(set(metadata) - KEYS)
    if "id_no" in unknown:
        yield "id_no is set, and may be the number of another kernel: remove it"
    if unknown:
        yield f"unknown key {', '.join(unknown)}, which Kaggle ignores; known: {', '.join(sorted(KEYS))}"
    yield from _name_problems(metadata)
    if metadata.get("language") != "python":
        yield f"language is {metadata.get('language')!r}; python is needed"
    if metadata.get("kernel_type") != "script":
        yield f"kernel_type is {metadata.get('kernel_type')!r}; script is needed"
    for key in ("is_private", "enable_gpu", "enable_tpu", "enable_internet"):
        if not isinstance(metadata.get(key), bool):
            yield f"{key} is {metadata.get(key)!r}; true or false is needed, because Kaggle's defaults differ"
    if metadata.get("enable_internet") and metadata.get("competition_sources"):
        yield "enable_internet is true; with a competition's data it must be false, or the kernel cannot be submitted"
    yield from _machine_problems(metadata)
    yield from _source_problems(metadata)


def _name_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    from slugify import slugify

    owner, _, slug = str(metadata.get("id", "")).partition("/")
    if not SLUG.fullmatch(slug) or (owner != PLACEHOLDER and not SLUG.fullmatch(owner)):
        yield f"id is {metadata.get('id')!r}; {PLACEHOLDER}/slug is needed, with a slug of a-z, 0-9 and -"
    least, most = TITLE_LENGTHS
    title = metadata.get("title")
    if not isinstance(title, str) or not least <= len(title) <= most:
        length = len(title) if isinstance(title, str) else title
        yield f"title has {length} characters, {least} to {most} are allowed"
    elif slugify(title) != slug:
        yield f"the title {title!r} gives the slug {slugify(title)}, id has {slug}: Kaggle would file it elsewhere"
    code = metadata.get("code_file")
    if not isinstance(code, str) or not code or Path(code).name != code:
        yield f"code_file is {code!r}; the name of one file is needed"


def _machine_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    shape = metadata.get("machine_shape")
    if shape in RETIRED:
        yield f"machine_shape is {shape}, which Kaggle no longer has; one of {', '.join(SHAPES)}"
    elif shape is not None and shape not in SHAPES:
        yield f"machine_shape is {shape!r}; one of {', '.join(SHAPES)}"
    if (metadata.get("enable_gpu") or metadata.get("enable_tpu")) and not shape:
        yield f"an accelerator without machine_shape is any that Kaggle has; name one of {', '.join(SHAPES)}"
    image = metadata.get("docker_image")
    if image is not None and not re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", str(image)):
        yield f"docker_image is {image!r}; an image with its digest is needed, …/python@sha256:…"
    if image is not None and shape:
        yield "docker_image overrides the accelerator's own image: leave one of docker_image and machine_shape out"
    if metadata.get("docker_image_pinning_type") not in (None, "original", "latest"):
        yield f"docker_image_pinning_type is {metadata['docker_image_pinning_type']!r}; original or latest is needed"


def _source_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    slug = r"[A-Za-z0-9][A-Za-z0-9_-]*"
    for key, (form, words) in FORMS.items():
        sources = metadata.get(key)
        if not isinstance(sources, list):
            yield f"{key} is {sources!r}; a list is needed"
            continue
        for source in sources:
            if not isinstance(source, str) or not re.fullmatch(form.format(s=slug), source):
                yield f"{key} has {source!r}; {words} is needed"
        if len(set(map(str, sources))) < len(sources):
            yield f"{key} has a source twice"


def _rehearsed(name: str, source: str, rehearsal_dir: Path) -> dict[str, Any]:
    """Return the rehearsal.json of exactly this bundle. Raises UsageError if there is none."""
    digest, path = bundle_sha256(source), rehearsal_dir / "rehearsal.json"
    target = "make dry-run" if name == SCORING_KERNEL else f"make dry-run KERNEL={name}"
    again = f"run {target}, then push again"
    try:
        passed = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UsageError(f"{path}: the bundle {digest[:12]} has not passed a rehearsal; {again}") from None
    if passed.get("bundle_sha256") != digest:
        seen = str(passed.get("bundle_sha256"))[:12]
        raise UsageError(f"{path}: the rehearsal was of the bundle {seen}, this one is {digest[:12]}; {again}")
    if not passed.get("slides", {}).get("done"):
        raise UsageError(f"{path}: 0 slides were done in the rehearsal, at least 1 is needed; {again}")
    script = rehearsal_dir / "script.py"
    if not script.is_file() or script.read_bytes() != source.encode():
        raise UsageError(f"{script}: not the script that would be pushed; {again}")
    return passed


def _plain_source(code: Path, metadata: Path) -> str:
    """Return the source of a kernel that is not bundled. Raises UsageError if it is missing or not Python."""
    try:
        source = code.read_text(encoding="utf-8")
        compile(source, str(code), "exec")
    except OSError as error:
        raise UsageError(f"{metadata}: code_file {code.name}: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{code}: not Python: {error}") from error
    return source


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
    metadata = _owned(kernel.metadata, client.username)
    owner, slug = metadata["id"].split("/")
    datasets = _check_attached(metadata, kernel.rehearsal, client)
    remote = client.get_kernel(owner, slug)
    before = _number(remote)
    if before and not again and _same(remote, kernel, metadata) and _same_data(client, remote, record, datasets):
        log(f"{metadata['id']}: unchanged, version {before} has this source and these datasets; nothing pushed")
        return _recorded(record, PushedKernel(metadata["id"], before, kernel.sha256, _url(metadata["id"]), datasets))
    if metadata.get("machine_shape", "").startswith("Nvidia"):
        _check_quota(client, log)
    answer = _push_when_free(client, kernel, metadata, before, log)
    version = check_answer(answer, metadata, before)
    _confirm(client, kernel, metadata["id"], version, before, log)
    pushed = PushedKernel(
        metadata["id"], version, kernel.sha256, str(answer.get("url") or _url(metadata["id"])), datasets
    )
    log(f"{pushed.ref}: version {version} is pushed and runs, sha256 {kernel.sha256[:12]}: {pushed.url}")
    return _recorded(record, pushed)


def read_record(record: Path) -> PushedKernel | None:
    """Return the last push, by pushed.json; None without the file. Raises UsageError if it is damaged."""
    if not record.is_file():
        return None
    try:
        raw = json.loads(record.read_text(encoding="utf-8"))
        return PushedKernel(
            str(raw["ref"]), int(raw["version"]), str(raw["sha256"]), str(raw["url"]), dict(raw["datasets"])
        )
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
    if has_secret(kernel.source.encode(), [client.credentials.key]):
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
    """Return the versions of the datasets. Raises RemoteError if a source cannot be used now."""
    versions = {}
    for source in metadata["dataset_sources"]:
        owner, slug = source.split("/")[:2]
        versions[f"{owner}/{slug}"] = _dataset_version(client, owner, slug)
        _check_rehearsed(client, owner, slug, rehearsal.get("datasets", {}).get(slug))
    for slug in metadata["competition_sources"]:
        if not client.competition(slug).get("userHasEntered"):
            page = f"kaggle.com/competitions/{slug}/rules"
            raise RemoteError(f"{slug}: you have not entered: accept the rules at {page}", RemoteKind.RULES)
    for source in metadata["kernel_sources"]:
        owner, slug = source.split("/")[:2]
        if not client.get_kernel(owner, slug):
            raise RemoteMissing(f"kernel {source}: Kaggle has no such kernel, or it is private; see kernel_sources")
    return versions


def _dataset_version(client: Kaggle, owner: str, slug: str) -> int:
    state = client.dataset_status(owner, slug)
    if state is DatasetState.ABSENT:
        name = slug.rpartition("-")[2]
        raise RemoteMissing(f"dataset {owner}/{slug}: Kaggle has none; run make datasets-push (DATASET={name})")
    number = int(client.dataset(owner, slug).get("currentVersionNumber") or 0)
    if state is not DatasetState.READY or not number:
        raise RemoteError(
            f"dataset {owner}/{slug}: {state}, version {number}; READY is needed: run make datasets-push, which waits",
            RemoteKind.NOT_READY,
        )
    return number


def _check_rehearsed(client: Kaggle, owner: str, slug: str, wanted: Mapping[str, str] | None) -> None:
    """Raise RemoteError if a dataset's files are not those of the rehearsal, whose sha256 are in `wanted`."""
    if wanted is None:
        return
    files = remote_content(client, owner, slug).get("files", {})
    differing = sorted(name for name in {*files, *wanted} if files.get(name, {}).get("sha256") != wanted.get(name))
    if differing:
        raise RemoteError(
            f"dataset {owner}/{slug}: {len(differing)} files are not those of the rehearsal ({differing[0]} …): "
            "run make datasets-push with the same WEIGHTS, or make dry-run again",
            RemoteKind.MISMATCH,
        )


def _number(remote: Answer) -> int:
    return int((remote.get("metadata") or {}).get("currentVersionNumber") or 0)


def _source(remote: Answer) -> str:
    return str((remote.get("blob") or {}).get("source") or "")


def _same(remote: Answer, kernel: Kernel, metadata: Mapping[str, Any]) -> bool:
    """Return whether Kaggle's newest version has this source and these settings."""
    saved = remote.get("metadata") or {}
    switches = {"isPrivate": "is_private", "enableGpu": "enable_gpu", "enableInternet": "enable_internet"}
    lists = {
        "datasetDataSources": "dataset_sources", "competitionDataSources": "competition_sources",
        "kernelDataSources": "kernel_sources", "modelDataSources": "model_sources",
    }  # fmt: skip
    return (
        _source(remote) == kernel.source
        and all(bool(saved.get(name)) == metadata[key] for name, key in switches.items())
        and all(set(saved.get(name) or []) == set(metadata[key]) for name, key in lists.items())
        and str(saved.get("machineShape") or "") in ("", str(metadata.get("machine_shape") or ""))
    )


def _same_data(client: Kaggle, remote: Answer, record: Path, datasets: Mapping[str, int]) -> bool:
    """Return whether the newest version ran with these dataset versions: by the record, or by the dates."""
    known = read_record(record)
    if known is not None and known.version == _number(remote) and known.sha256 == _sha256(_source(remote)):
        return dict(known.datasets) == dict(datasets)
    ran = str(remote["metadata"].get("lastRunTime") or "")
    return bool(ran) and all(str(client.dataset(*ref.split("/")).get("lastUpdated") or "~") <= ran for ref in datasets)


def _check_quota(client: Kaggle, log: Log) -> None:
    """Log the GPU hours that are left this week. Raises RemoteError for none."""
    quota = client.quota()
    gpu = quota.get("gpuQuota") or {}
    used_s, allowed_s = (float(str(gpu.get(key) or "0s").rstrip("s")) for key in ("timeUsed", "totalTimeAllowed"))
    left_h = (allowed_s - used_s) / 3600
    log(f"GPU quota: {left_h:.1f} of {allowed_s / 3600:.0f} hours left this week")
    if allowed_s and left_h <= 0:
        raise RemoteError(
            f"GPU quota: {used_s / 3600:.1f} of {allowed_s / 3600:.0f} hours are used; it is renewed at "
            f"{quota.get('quotaRefreshTime')}",
            RemoteKind.NO_QUOTA,
        )


def _push_when_free(client: Kaggle, kernel: Kernel, metadata: Mapping[str, Any], before: int, log: Log) -> Answer:
    """Push, and try again while all GPU sessions are in use. Raises RemoteFull if none becomes free."""

    def lookup() -> Answer | None:
        remote = client.get_kernel(*metadata["id"].split("/"))
        if _number(remote) <= before or _source(remote) != kernel.source:
            return None
        attached = remote["metadata"].get("datasetDataSources") or []
        lost = [source for source in metadata["dataset_sources"] if source not in attached]
        return {"versionNumber": _number(remote), "ref": metadata["id"], "invalidDatasetSources": lost}

    fields = {name: metadata[key] for key, name in PUSH_FIELDS.items() if metadata.get(key) not in (None, [])}
    fields = {"slug": metadata["id"], "text": kernel.source, **fields}
    for _ in range(SESSION_TRIES):
        answer = client.save_kernel(lookup, fields)
        error = str(answer.get("error") or "")
        if not NO_SESSION.search(error):
            return answer
        log(f"{metadata['id']}: {error} Waiting {SESSION_WAIT_S:.0f} s for one to end")
        client.wait(SESSION_WAIT_S)
    raise RemoteFull(
        f"{metadata['id']}: {error} No session ended in {SESSION_TRIES * SESSION_WAIT_S / 60:.0f} minutes: "
        "end one, then push again"
    )


def check_answer(answer: Answer, metadata: Mapping[str, Any], before: int) -> int:
    """Return the version that a push made. Raises RemoteError if it is not the one that was meant."""
    ref, version = metadata["id"], int(answer.get("versionNumber") or 0)
    if answer.get("error"):
        text = " ".join(str(answer["error"]).split())[:200]
        raise RemoteError(f"{ref}: Kaggle did not accept the push: {text}", RemoteKind.REFUSED)
    left_out = [
        f"{key}: {', '.join(map(str, answer[key]))}"
        for key in sorted(answer)
        if key.startswith("invalid") and answer[key]
    ]
    if left_out:
        raise RemoteError(
            f"{ref}: version {version} was made and runs without {'; '.join(left_out)}: correct {METADATA}, push again",
            RemoteKind.MISMATCH,
        )
    filed = str(answer.get("ref") or "").strip("/").removeprefix("code/")
    if filed != ref:
        raise RemoteError(
            f"{ref}: Kaggle filed it as {filed or 'nothing'}: make title and id agree, push again", RemoteKind.MISMATCH
        )
    if version <= before:
        raise RemoteError(
            f"{ref}: Kaggle names version {version}, {before} was there before: look at its page", RemoteKind.MISMATCH
        )
    return version


def _confirm(client: Kaggle, kernel: Kernel, ref: str, version: int, before: int, log: Log) -> None:
    """Log other pushes since; raise RemoteError if the newest version is ours and has another source."""
    if before and version > before + 1:
        log(f"{ref}: {version - before - 1} other versions were pushed meanwhile; this one is {version}")
    remote = client.get_kernel(*ref.split("/"))
    if _number(remote) > version:
        log(f"{ref}: version {_number(remote)} is newer than this one, {version}: pushed meanwhile")
    elif _number(remote) == version and _source(remote) != kernel.source:
        raise RemoteError(
            f"{ref}: version {version} has another source than was sent: look at its page, push again",
            RemoteKind.MISMATCH,
        )
