"""Check a kernel's metadata for known traps, and compare its sources however Kaggle spells them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

from clotkit.bundle.checkout import in_checkout
from clotkit.bundle.notebook import KernelType
from clotkit.competitions import Competition
from clotkit.competitions.schema import WEIGHTS_AS, WHEELS_AS
from clotkit.kaggle.datasets import PLACEHOLDER, SLUG, owner_problems
from clotkit.kaggle.models import read_model_stage

KEYS = {  # of kernel-metadata.json; Kaggle silently ignores any other
    "id", "title", "code_file", "language", "kernel_type", "is_private", "enable_gpu", "enable_tpu",
    "enable_internet", "machine_shape", "dataset_sources", "competition_sources", "kernel_sources", "model_sources",
    "keywords", "docker_image", "docker_image_pinning_type",
}  # fmt: skip
# The machine shapes that Kaggle's client 2.2.5 documents; some are for certain competitions only.
GPU_SHAPES = ("NvidiaTeslaT4", "NvidiaL4", "NvidiaL4X1", "NvidiaTeslaA100", "NvidiaH100", "NvidiaRtxPro6000")
TPU_SHAPES = ("TpuV5E8", "TpuV6E8")
SHAPES = (*GPU_SHAPES, *TPU_SHAPES)
# Kaggle runs a kernel that asks for one of these on another machine, or without an accelerator.
RETIRED = ("NvidiaTeslaP100", "TpuV38", "Tpu1VmV38", "TpuV232", "TpuV2256")
RESERVED = ("NvidiaTeslaT4Highmem",)  # in the lists of older clients; for Kaggle's own staff
NO_ACCELERATOR = "none"
NO_QUOTA = "Kaggle names no quota"
TITLE_LENGTHS = (5, 50)
MODELS_META = Path("models_meta")
SOURCES = {  # key of kernel-metadata.json: field of a push
    "dataset_sources": "dataset_data_sources",
    "competition_sources": "competition_data_sources",
    "kernel_sources": "kernel_data_sources",
    "model_sources": "model_data_sources",
}
SAVED = {  # key of kernel-metadata.json: field of Kaggle's record of a kernel
    "dataset_sources": "datasetDataSources",
    "competition_sources": "competitionDataSources",
    "kernel_sources": "kernelDataSources",
    "model_sources": "modelDataSources",
}
INVALID = {  # field of the answer to a push, of the sources that Kaggle drops: key of kernel-metadata.json
    f"invalid{key.removesuffix('_sources').title()}Sources": key for key in SOURCES
}
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
    "model_sources": (
        r"{s}/{s}/[A-Za-z0-9]+/[A-Za-z0-9._-]+(/[1-9][0-9]*)?",
        "owner/model/framework/variation or owner/model/framework/variation/version",
    ),
}
ADDRESS = re.compile(r"(?:https?://(?:www\.)?kaggle\.com)?/*")  # before a source that was copied from a browser
OWN_DATASETS = ("weights", "tiles", "progress")  # last words of the names of datasets that no two competitions share
PARTS = {"dataset_sources": 2, "competition_sources": 1, "kernel_sources": 2, "model_sources": 4}  # without version


@dataclass(frozen=True)
class Inputs:
    """The forms in which a kernel gets its members and its packages, as rehearsal.json records them."""

    weights: str = WEIGHTS_AS[0]
    wheels: str = WHEELS_AS[0]

    @classmethod
    def of(cls, competition: Competition, weights_as: str | None = None, wheels_as: str | None = None) -> Self:
        """Return the forms that the options name, and where they name none those of the competition."""
        return cls(weights_as or competition.kaggle.weights_as, wheels_as or competition.kaggle.wheels_as)

    def applied(self, metadata: Mapping[str, Any], competition: Competition) -> dict[str, Any]:
        """Return the metadata of a kernel with the sources in these forms; what it lacks is not added."""
        weights, datasets = f"{PLACEHOLDER}/{competition.kaggle.datasets}-weights", list(metadata["dataset_sources"])
        models = list(metadata["model_sources"])
        if self.weights == "model" and weights in datasets:
            datasets.remove(weights)
            models.append(weights_model(competition))
        if self.wheels == "script":
            datasets = [source for source in datasets if not source.endswith("-wheels")]
        return {**metadata, "dataset_sources": datasets, "model_sources": models}


AS_DATASETS = Inputs()


def weights_model(competition: Competition) -> str:
    """Return the model with the members, as model_sources has it, without a version."""
    folder = in_checkout(MODELS_META, "--metadata DIR") / "weights"
    return read_model_stage(folder, {}, competition).source


class Week(NamedTuple):
    """Hours of an accelerator in this week."""

    left_h: float
    allowed_h: float

    def __str__(self) -> str:
        return f"{self.left_h:.1f} of {self.allowed_h:.0f} hours left this week"


class Accelerator(StrEnum):
    """Kind of accelerator; the values are those of Kaggle's quota."""

    GPU = "gpu"
    TPU = "tpu"

    def week(self, quota: Mapping[str, Any]) -> Week | None:
        """Return this week's hours by Kaggle's answer; None if it allows none or does not name them."""
        hours = quota.get(f"{self}Quota") or {}
        used, reserved, allowed = (
            float(str(hours.get(key) or "0s").rstrip("s")) / 3600
            for key in ("timeUsed", "timeReserved", "totalTimeAllowed")
        )
        return Week(max(allowed - used - reserved, 0.0), allowed) if allowed else None


def normalised(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with its sources as a push needs them: without the prefixes that a pull writes."""
    lists = {key: raw.get(key, []) for key in PREFIXES}
    return {
        **raw,
        **{
            key: [_bare(key, one) for one in value] if isinstance(value, list) else value
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
    if metadata.get("kernel_type") not in list(KernelType):
        yield f"kernel_type is {metadata.get('kernel_type')!r}; script or notebook is needed"
    for key in ("is_private", "enable_gpu", "enable_tpu", "enable_internet"):
        if not isinstance(metadata.get(key), bool):
            yield f"{key} is {metadata.get(key)!r}; true or false is needed, because Kaggle's defaults differ"
    if metadata.get("enable_internet") and metadata.get("competition_sources"):
        yield "enable_internet is true; with a competition's data it must be false, or the kernel cannot be submitted"
    yield from _machine_problems(metadata)
    yield from _source_problems(metadata)


def _name_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    from slugify import slugify

    yield from owner_problems(str(metadata.get("id", "")))
    slug = str(metadata.get("id", "")).partition("/")[2]
    if not SLUG.fullmatch(slug):
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


def accelerator_of(metadata: Mapping[str, Any]) -> Accelerator | None:
    """Return the kind of accelerator that a kernel asks for; None for a CPU alone."""
    shape = metadata.get("machine_shape")
    if shape in TPU_SHAPES or metadata.get("enable_tpu"):
        return Accelerator.TPU
    return Accelerator.GPU if shape in GPU_SHAPES or metadata.get("enable_gpu") else None


def with_accelerator(metadata: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """Return the metadata of a kernel with another machine shape; "none" is a CPU alone."""
    asked = {"machine_shape": None if shape == NO_ACCELERATOR else shape}
    kind = accelerator_of(asked)
    return {**metadata, **asked, "enable_gpu": kind is Accelerator.GPU, "enable_tpu": kind is Accelerator.TPU}


def _machine_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    shape, known = metadata.get("machine_shape"), ", ".join(SHAPES)
    gpu, tpu = bool(metadata.get("enable_gpu")), bool(metadata.get("enable_tpu"))
    if shape is not None and shape not in SHAPES:
        plain = str(shape).lower()
        if plain in map(str.lower, RETIRED):
            yield f"machine_shape is {shape}, which Kaggle no longer has; one of {known}"
        elif plain in map(str.lower, RESERVED):
            yield f"machine_shape is {shape}, which only Kaggle's staff may use; one of {known}"
        else:
            yield f"machine_shape is {shape!r}; one of {known}"
    if (gpu or tpu) and not shape:
        yield f"an accelerator without machine_shape is any that Kaggle has; name one of {known}"
    if (gpu and (tpu or shape in TPU_SHAPES)) or (tpu and shape in GPU_SHAPES):
        yield f"enable_gpu is {gpu} and enable_tpu is {tpu}, but machine_shape is {shape}: set the one of its kind"
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
        if key != "competition_sources" and metadata.get("id") in sources:
            yield f"{key} has {metadata['id']}, which is also the kernel's id: two things of one name; rename one"


def foreign_sources(metadata: Mapping[str, Any], competition: Competition, job: str) -> Iterator[str]:
    """Yield which sources of a kernel are not those of its competition, a line each."""
    kaggle, attached = competition.kaggle, metadata["competition_sources"]
    if sorted(map(str.lower, attached)) != sorted(map(str.lower, kaggle.sources)) and (attached or job != "train"):
        yield f"competition_sources has {', '.join(attached) or 'nothing'}, {', '.join(kaggle.sources)} is needed"
    for owner, slug in (source.split("/")[:2] for source in metadata["dataset_sources"]):
        word = slug.rpartition("-")[2]
        if owner == PLACEHOLDER and word in OWN_DATASETS and slug != f"{kaggle.datasets}-{word}":
            yield f"dataset_sources has {slug}, {kaggle.datasets}-{word} is needed"
    for owner, slug in (source.split("/")[:2] for source in metadata["model_sources"]):
        if owner == PLACEHOLDER and slug.endswith("-members") and slug != f"{kaggle.datasets}-members":
            yield f"model_sources has {slug}, {kaggle.datasets}-members is needed"


def missing_sources(saved: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    """Return the sources in the metadata that Kaggle's record of the kernel lacks."""
    return [
        f"{source} ({key})"
        for key, field in SAVED.items()
        for source in metadata[key]
        if not any(_agree(key, source, other) for other in saved.get(field) or [])
    ]


def same_sources(saved: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Return whether Kaggle's record of a kernel has the sources in the metadata, and no others."""
    return not missing_sources(saved, metadata) and all(
        any(_agree(key, source, other) for source in metadata[key])
        for key, field in SAVED.items()
        for other in saved.get(field) or []
    )


def _bare(key: str, source: Any) -> Any:
    """Return a source without the prefix or the address before it."""
    if not isinstance(source, str):
        return source
    path = ADDRESS.sub("", source, count=1)
    prefix = next((one for one in PREFIXES[key] if path.startswith(one)), "")
    return path.removeprefix(prefix)


def _agree(key: str, source: str, other: str) -> bool:
    """Return whether two spellings mean one source; a spelling without a version means any."""
    (name, version), (other_name, other_version) = _named(key, source), _named(key, other)
    return name == other_name and (version == other_version or not (version and other_version))


def _named(key: str, source: Any) -> tuple[str, str]:
    """Return the name of a source, without regard to case, and its version, empty if it has none."""
    parts = str(_bare(key, source)).strip("/").lower().split("/")
    return "/".join(parts[: PARTS[key]]), "/".join(parts[PARTS[key] :]).removeprefix("versions/").removeprefix("v")
