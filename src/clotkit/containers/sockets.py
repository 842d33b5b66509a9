"""Find a job's images in /input, and write its answer to /output, as Grand Challenge lays them out.

/input/inputs.json lists the sockets of the job, each with its slug and its path below /input; templates up to 2025 call
a socket an interface. Standard library only.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.containers.config import ContainerConfig
from clotkit.files import atomic_write_json

INPUTS, IMAGES = "inputs.json", "images"
SUFFIXES = (".tif", ".tiff", ".mha")  # of the images that the platform's sockets carry
NO_IMAGE = ("", ".json", ".xml", ".txt", ".csv")  # of files that may lie beside an image
NUMBERED = re.compile(r"-[0-9]{1,3}$")
NO_SLIDE = "mask"  # in the slug of an image socket that is no slide


@dataclass(frozen=True)
class JobImage:
    """One image of a job."""

    name: str  # unique within the job: the stem of its file
    socket: str  # the slug
    path: Path

    @property
    def is_carried(self) -> bool:
        """True if the platform's image sockets carry its kind; other kinds are not read."""
        return self.path.suffix.lower() in SUFFIXES


def find_images(top: Path, wanted: Sequence[str]) -> list[JobImage]:
    """Return the images of a job's sockets: those of `wanted` slugs, or all that may be slides.

    They are in the order of their sockets, then of their names; those of a suffix that no socket carries come after the
    others of their socket. A case of several slides has numbered sockets: the slug `a` also stands for a-1, a-2 and so
    on. Without `wanted`, a socket with NO_SLIDE in its slug is left out unless it is the only one. Without an
    inputs.json that can be read, every folder of /input/images is a socket.
    """
    found: list[JobImage] = []
    sockets = list(_sockets(top))
    for slug, folder in sockets:
        if not {slug, NUMBERED.sub("", slug)} & set(wanted) if wanted else NO_SLIDE in slug and len(sockets) > 1:
            continue
        files = [folder] if folder.is_file() else sorted(folder.glob("*")) if folder.is_dir() else []
        # The others come last, so that an image that is read has the name of its file.
        for path in sorted(files, key=lambda path: path.suffix.lower() not in SUFFIXES):
            if _is_image(path):
                found.append(JobImage(_free_name(path.stem, {one.name for one in found}), slug, path))
    return found


def _is_image(path: Path) -> bool:
    """Return whether a file of an image socket is an image, of whatever kind."""
    suffix = path.suffix.lower()
    other = suffix not in NO_IMAGE and not path.name.startswith(".") and path.is_file()
    return suffix in SUFFIXES or other


def image_sockets(top: Path) -> list[str]:
    """Return the slugs of a job's image sockets, wanted or not."""
    return [slug for slug, _ in _sockets(top)]


def write_answer(
    out: Path, config: ContainerConfig, classes: Sequence[str], probabilities: Sequence[float], label: str
) -> None:
    """Write the files of the output sockets, each in one step."""
    by_class = dict(zip(classes, probabilities, strict=True))
    atomic_write_json(out / f"{config.probability}.json", by_class[config.number_of] if config.number_of else by_class)
    if config.label:
        atomic_write_json(out / f"{config.label}.json", label)


def _free_name(stem: str, taken: Set[str]) -> str:
    """Return a name that no image has: the stem, or the stem with the first free number."""
    return next(name for name in (stem, *(f"{stem}-{n}" for n in range(1, len(taken) + 2))) if name not in taken)


def _sockets(top: Path) -> Iterator[tuple[str, Path]]:
    """Yield the slug and the place of each image socket."""
    listed = list(_listed(top))
    if listed:
        yield from listed
    elif (top / IMAGES).is_dir():
        yield from ((folder.name, folder) for folder in sorted((top / IMAGES).iterdir()))


def _listed(top: Path) -> Iterator[tuple[str, Path]]:
    """Yield the image sockets of inputs.json; none if it cannot be read."""
    try:
        values = json.loads((top / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for value in values if isinstance(values, list) else ():
        socket = _socket(value)
        slug, path = socket.get("slug"), socket.get("relative_path")
        if isinstance(slug, str) and isinstance(path, str) and Path(path).parts[:1] == (IMAGES,):
            yield slug, top / path


def _socket(value: Any) -> Mapping[str, Any]:
    """Return the socket of an entry of inputs.json, under its new name or its old one."""
    for key in ("socket", "interface") if isinstance(value, dict) else ():
        if isinstance(value.get(key), dict):
            return dict(value[key])
    return {}
