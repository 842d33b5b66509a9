"""Push members as a Kaggle Model if their content is new, and verify models that kernels attach."""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.errors import RemoteError, RemoteMissing, UsageError
from clotkit.kaggle.client import Answer, Kaggle, Variation, framework_name
from clotkit.kaggle.datasets import (
    READY_LIMIT_S,
    SLUG,
    check_files,
    content_with,
    notes_of,
    owner_of,
    owner_problems,
    pack,
    read_metadata,
    remote_content,
)
from clotkit.kaggle.listing import CONTENT, WAITS_S, differing_files, listing_problem
from clotkit.kaggle.polling import Poller
from clotkit.kaggle.uploads import upload
from clotkit.reasons import RemoteKind

METADATA, VARIATION_METADATA = "model-metadata.json", "model-instance-metadata.json"  # as Kaggle's client names them
KEYS = {"ownerSlug", "slug", "title", "subtitle", "isPrivate", "description"}
VARIATION_KEYS = {
    "ownerSlug", "modelSlug", "instanceSlug", "framework", "overview", "usage", "licenseName", "fineTunable"
}  # fmt: skip
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a variation


@dataclass(frozen=True)
class ModelStage:
    """A variation of a model to push: its metadata, and its files by their names in it."""

    place: Variation
    title: str
    subtitle: str
    description: str
    body: Mapping[str, Any]  # of the variation: overview, usage, licenseName, fineTunable
    files: Mapping[str, Path]

    @property
    def source(self) -> str:
        """The variation as model_sources has it, without a version."""
        return str(self.place)


@dataclass(frozen=True)
class PushedModel:
    """A model's variation on Kaggle."""

    ref: str  # owner/model/framework/variation
    version: int  # the newest
    new: bool  # this push made that version


def read_model_stage(metadata_dir: Path, files: Mapping[str, Path], competition: Competition) -> ModelStage:
    """Return a model's variation from the two files in `metadata_dir`, and its files. Raises UsageError."""
    hint = "models_meta has a folder for every model"
    model = read_metadata(metadata_dir / METADATA, competition, hint)
    variation = read_metadata(metadata_dir / VARIATION_METADATA, competition, hint)
    for name, problems in ((METADATA, _model_problems(model)), (VARIATION_METADATA, _problems(variation, model))):
        problem = next(problems, None)
        if problem:
            raise UsageError(f"{metadata_dir / name}: {problem}")
    place = Variation(model["ownerSlug"], model["slug"], variation["framework"], variation["instanceSlug"])
    body: Answer = {
        key: variation[key] for key in ("overview", "usage", "licenseName", "fineTunable") if key in variation
    }
    return ModelStage(place, model["title"], model.get("subtitle", ""), model.get("description", ""), body, files)


def _model_problems(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a model's metadata, a line each."""
    if unknown := sorted(set(raw) - KEYS):
        yield f"unknown key {', '.join(unknown)}; known: {', '.join(sorted(KEYS))}"
    slug, title = str(raw.get("slug", "")), raw.get("title")
    yield from owner_problems(f"{raw.get('ownerSlug')}/{slug}")
    if not SLUG.fullmatch(slug) or len(slug) > 50:
        yield f"slug is {slug!r}; one of up to 50 of a-z, 0-9 and - is needed"
    if not isinstance(title, str) or not title:
        yield f"title is {title!r}; a text is needed"
    if raw.get("isPrivate") is not True:
        yield f"isPrivate is {raw.get('isPrivate')!r}; true is needed: make the model public on its page if you want to"


def _problems(raw: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a variation's metadata, a line each."""
    if unknown := sorted(set(raw) - VARIATION_KEYS):
        yield f"unknown key {', '.join(unknown)}; known: {', '.join(sorted(VARIATION_KEYS))}"
    if (raw.get("ownerSlug"), raw.get("modelSlug")) != (model["ownerSlug"], model["slug"]):
        yield f"ownerSlug and modelSlug are not those of {METADATA}"
    if not WORD.fullmatch(str(raw.get("instanceSlug", ""))):
        yield f"instanceSlug is {raw.get('instanceSlug')!r}; a word like default is needed"
    if not raw.get("licenseName"):
        yield "licenseName is missing; a license like Apache 2.0 is needed"
    framework_name(str(raw.get("framework", "")))


def push_model(
    client: Kaggle,
    stage: ModelStage,
    clock: Callable[[], float] = time.monotonic,
    limit_s: float = READY_LIMIT_S,
) -> PushedModel:
    """Make the newest version of a model's variation have exactly these files.

    Waits until Kaggle lists them. Pushes nothing if it has them already. The texts of a model or a variation that
    exists stay as they are there.

    Raises:
        UsageError: A file may not be published; this is checked before Kaggle is asked anything.
        RemoteError: Kaggle refuses, fails, takes longer than `limit_s`, or lists other files afterwards.
    """
    check_files(stage.files, client.secrets)
    place = stage.place._replace(owner=owner_of(client, stage.place.owner))
    stage, content = replace(stage, place=place), content_with(stage.files, {})
    before = _version(client.variation(place))
    if before:
        problem = _difference(client, place, before, content)
        if not problem:
            client.log(f"{place}: unchanged, version {before}; nothing pushed")
            return PushedModel(str(place), before, new=False)
        client.log(f"{place}: version {before}: {problem}; pushing")
    with tempfile.TemporaryDirectory(prefix="clotkit-model-") as scratch:
        uploads = pack(stage.files, content, Path(scratch))
        size_bytes = sum(path.stat().st_size for path in uploads.values())
        client.log(f"{place}: {len(stage.files)} files, {size_bytes:,} bytes")
        tokens = [{"token": upload(client, path, name, "MODEL")} for name, path in uploads.items()]
    _publish(client, stage, {"versionNotes": notes_of(content), "files": tokens}, before)
    version = _shown(client, place, before, clock, limit_s)
    problem = _list_problem(client, place, version, content["files"])
    if problem:
        raise RemoteError(f"model {place} version {version}: {problem}; push again", RemoteKind.MISMATCH)
    client.log(f"{place}: version {version} is there and has the files that were sent")
    return PushedModel(str(place), version, new=True)


def _difference(client: Kaggle, place: Variation, version: int, content: Mapping[str, Any]) -> str:
    """Return how a version differs from the content to push; empty if it does not."""
    remote = remote_content(partial(client.model_file, place, version))
    for pause_s in WAITS_S if not remote else ():  # Kaggle may not have the files of a new version yet
        client.wait(pause_s)
        remote = remote or remote_content(partial(client.model_file, place, version))
    if remote.get("hash") != content["hash"]:
        return f"the content in {CONTENT} is another"
    return _list_problem(client, place, version, content["files"])


def _list_problem(client: Kaggle, place: Variation, version: int, files: Mapping[str, Any]) -> str:
    return listing_problem(partial(client.model_files, place, version), files, client.wait)


def _publish(client: Kaggle, stage: ModelStage, body: Answer, before: int) -> None:
    """Create the model, its variation, or the variation's next version, from uploaded files."""
    place = stage.place

    def lookup() -> Answer | None:
        return {} if _version(client.variation(place)) > before else None

    if before:
        _check_answer(client.create_model_version(place, lookup, body), str(place))
        return
    ref = f"{place.owner}/{place.model}"
    if not client.model(place.owner, place.model):
        answer = client.create_model(
            lambda: client.model(place.owner, place.model) or None,
            owner_slug=place.owner,
            slug=place.model,
            title=stage.title,
            subtitle=stage.subtitle,
            description=stage.description,
            is_private=True,
        )
        _check_answer(answer, ref)
    del body["versionNotes"]  # the first version has none
    _check_answer(client.create_variation(place, lookup, {**stage.body, **body}), str(place))


def _check_answer(answer: Answer, ref: str) -> None:
    """Raise RemoteError for an error in the answer to a push; an answer that was lost is empty."""
    if answer.get("error"):
        text = " ".join(str(answer["error"]).split())[:200]
        raise RemoteError(f"model {ref}: Kaggle refused it: {text}", RemoteKind.REFUSED)


def _shown(client: Kaggle, place: Variation, before: int, clock: Callable[[], float], limit_s: float) -> int:
    """Return the number of the newest version once Kaggle shows one after `before`."""

    def look() -> str:
        version = _version(client.variation(place))
        return f"version {version}" if version > before else ""

    poller = Poller(look, f"model {place}", client.log, client.wait, lambda _: limit_s, "its page", clock=clock)
    return int(next(filter(None, poller)).removeprefix("version "))


def _version(variation: Answer) -> int:
    return int(variation.get("versionNumber") or 0)


def place_of(source: str) -> tuple[Variation, int]:
    """Return the variation in an entry of model_sources, and its version; 0: the newest."""
    owner, model, framework, variation, *version = source.split("/")
    return Variation(owner, model, framework, variation), int(version[0]) if version else 0


def check_model(client: Kaggle, source: str, wanted: Mapping[str, str] | None) -> int:
    """Return the version of a model that a kernel attaches: the one in `source`, or the newest.

    Raises RemoteError if Kaggle has none, or if it has other files than the rehearsal; their sha256 are in `wanted`. A
    version of somebody else's model is taken as it is: the answer to the push says whether Kaggle accepts it.
    """
    place, version = place_of(source)
    others = wanted is None and place.owner != client.username
    if others and version:
        return version
    newest = _version(client.variation(place))
    if not newest or version > newest:
        raise RemoteMissing(
            f"model {source}: Kaggle has {f'{newest} versions' if newest else 'none'}; run make models-push, or see "
            "model_sources"
        )
    version = version or newest
    if others:
        return version
    files = remote_content(partial(client.model_file, place, version)).get("files", {})
    differing = differing_files(files, wanted) if wanted is not None else []
    if differing:
        raise RemoteError(
            f"model {place}/{version}: {len(differing)} files are not those of the rehearsal ({differing[0]} …): "
            "run make models-push with the same WEIGHTS, or make dry-run again",
            RemoteKind.MISMATCH,
        )
    problem = _list_problem(client, place, version, files) if files else ""
    if problem:
        raise RemoteError(
            f"model {place}/{version}: {problem}: run make models-push, which pushes it again", RemoteKind.MISMATCH
        )
    return version
