"""Write the folder of a container, with all that its image is built from."""

import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clotkit.bundle.build import TEMPLATES
from clotkit.bundle.checkout import locks
from clotkit.bundle.imports import PACKAGE, modules_needed
from clotkit.competitions import DEFAULT_FILE, Competition, load_competition
from clotkit.containers import templates
from clotkit.containers.config import CONFIG, PROCESSES, SHARED_MB, Api, ContainerConfig, write_config
from clotkit.errors import ConfigError, UsageError
from clotkit.files import atomic_write_text
from clotkit.kaggle.datasets import weights_files
from clotkit.members.encoders.folder import check_encoders
from clotkit.members.folder import check_members
from clotkit.progress import Log
from clotkit.units import MB

# A Python that every locked wheel supports. The digest is that of the image for several platforms.
BASE = "python:3.12.13-slim-bookworm@sha256:d50fb7611f86d04a3b0471b46d7557818d88983fc3136726336b2a4c657aa30b"
ROOTS = ("clotkit.containers.entry", "clotkit.containers.case")  # what the container runs
SAVE_SCRIPT = "do_save.sh"
SCRIPTS = ("do_build.sh", "do_test_run.sh", SAVE_SCRIPT)
TAG = re.compile(r"(?=.{1,100}$)[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")  # also names files and volumes
TEST = "test"  # where do_test_run.sh has a job's input and output by default: the user's
SAVED = ".tar.gz"  # what do_save.sh writes
SAVES = re.compile(rf"""> "(\S+{re.escape(SAVED)})"|tar -czf (\S+{re.escape(SAVED)})""")  # in do_save.sh
REQUIREMENTS = {"requirements.txt": "container.txt", "build-requirements.txt": "build.txt"}
TEXTS = {
    "Dockerfile": templates.DOCKERFILE, "README.md": templates.README, ".dockerignore": f"*{SAVED}\n{TEST}\n"
}  # fmt: skip


@dataclass(frozen=True)
class Image:
    """Settings of the image itself. Raises UsageError for a name that no engine takes."""

    tag: str
    base: str = BASE
    model_in_image: bool = True  # else it is uploaded apart, and lies at /opt/ml/model

    def __post_init__(self) -> None:
        if not TAG.fullmatch(self.tag):
            raise UsageError(f"--tag {self.tag!r}: at most 100 lower-case letters and digits, with . _ or - between")
        if not re.fullmatch(r"\w\S*", self.base):
            raise UsageError(f"--base {self.base!r}: the name of an image is needed")


def write_container(weights: Path, config: ContainerConfig, image: Image, out: Path, log: Log) -> None:
    """Write the folder of a container for the members in `weights` to `out`, in place of an earlier one.

    Raises:
        ConfigError: A member, the competition or a class is wrong.
        UsageError: This is no checkout, or `out` holds something else, is in `weights`, or cannot be made.
    """
    competition = load_competition(config.competition)
    check_members(weights, competition.slug)
    check_encoders(weights)
    if config.number_of and config.number_of not in competition.classes.names:
        raise ConfigError(f"{config.number_of!r} is not a class; one of {', '.join(competition.classes.names)}")
    requirements = locks()
    if requirements is None:
        raise UsageError("the locked requirements are in a checkout of the repository: run this in one (git clone)")
    check_out(out, weights)
    files = weights_files(weights)
    with _in_place_of(out) as made:
        _copy({name: requirements / lock for name, lock in REQUIREMENTS.items()}, made)
        _copy(kit_files(competition), made / "app")
        _copy(files, made / "model")
        inside = ContainerConfig(**{**vars(config), "competition": competition.source.stem})
        _write_texts(made, inside, image, competition)
        write_config(made / "app" / CONFIG, inside)
    size = sum(path.stat().st_size for path in (out / "model").rglob("*") if path.is_file())
    log(f"{out}: the kit, {len(files)} files of members ({size / MB:.1f} MB), {', '.join(SCRIPTS)}")


def check_out(out: Path, weights: Path) -> None:
    """Raise UsageError if writing `out` anew would cost the user a file."""
    here, members = out.resolve(), weights.resolve()
    if here == members or here in members.parents or members in here.parents:
        raise UsageError(f"{out}: it is, has or is in the folder of the members, {weights}; give another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "app" / CONFIG).is_file():
        raise UsageError(f"{out}: not empty, and not a container's folder; give another --out")
    ours = {*SCRIPTS, *REQUIREMENTS, *TEXTS, "app", "model", TEST, *saved_by(out)}
    if others := sorted(one.name for one in out.iterdir() if one.name not in ours):
        raise UsageError(f"{out}: {', '.join(others)} would be deleted; move it, or give another --out")


def saved_by(folder: Path) -> set[str]:
    """Return the archives that do_save.sh of a folder has written; none if it cannot be read."""
    try:
        text = (folder / SAVE_SCRIPT).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return set()
    return {name for names in SAVES.findall(text) for name in names if name and (folder / name).is_file()}


@contextmanager
def _in_place_of(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`; on success it replaces `out`, whose test folder it takes over.

    On an error `out` stays as it was. Raises UsageError if the file system refuses.
    """
    place = out.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as beside:
            made, old = Path(beside) / "new", Path(beside) / "old"
            made.mkdir()
            yield made
            if place.exists():
                place.rename(old)
            try:
                made.rename(place)
            except BaseException:
                old.rename(place)
                raise
            if (old / TEST).exists():
                (old / TEST).rename(place / TEST)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}; give another --out") from error


def kit_files(competition: Competition) -> dict[str, Path]:
    """Return the files of the kit that a container carries, by their names in it."""
    modules = modules_needed(ROOTS, "")
    folders = {path.parent for path in modules if path.name != "__init__.py"}
    beside = [path for folder in sorted(folders) for pattern in TEMPLATES for path in sorted(folder.glob(pattern))]
    files = {path.relative_to(PACKAGE.parent).as_posix(): path for path in (*modules, *beside)}
    return files | {f"clotkit/competitions/{competition.source.name}": competition.source}


def _write_texts(out: Path, config: ContainerConfig, image: Image, competition: Competition) -> None:
    names = ", ".join(competition.classes.names)
    invoke = config.api is Api.INVOKE
    values = {
        "MODEL": templates.MODEL_IN_IMAGE if image.model_in_image else "",
        "MOUNT": "" if image.model_in_image else ' --volume "$here/model":/opt/ml/model:ro',
        "TARBALL": "" if image.model_in_image else templates.TARBALL,
        "RUN": templates.RUN_INVOKE if invoke else templates.RUN_EXEC,
        "LOGS": '"$engine" logs "$name" || true\n  ' if invoke else "",
        "BASE": image.base,
        "TAG": image.tag,
        "API": config.api,
        "MEMORY": str(config.memory_mb),
        "SHM": str(SHARED_MB),
        "PIDS": str(PROCESSES),
        "TIME": str(math.ceil(config.time_limit_s)),
        "IMAGES": ", ".join(config.images) or "every image socket without `mask` in its slug, or the only one",
        "PROBABILITY": config.probability,
        "LABELS": templates.LABEL if config.label else "",
        "LABEL": config.label,
        "FORM": f"the probability of {config.number_of}"
        if config.number_of
        else f"an object: probabilities of {names}",
        "CLASSES": names,
    }
    texts = dict(zip(SCRIPTS, (templates.BUILD, templates.TEST_RUN, templates.SAVE), strict=True))
    texts |= TEXTS
    texts |= {f"app/clotkit/competitions/{DEFAULT_FILE}": f"{config.competition}\n"}
    for name, text in texts.items():
        atomic_write_text(out / name, filled(text, values))
    for name in SCRIPTS:
        (out / name).chmod(0o755)


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with the values for its placeholders; a value may have placeholders that come later."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _copy(files: Mapping[str, Path], target: Path) -> None:
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
