"""The bundle: a kernel's main.py and the kit's modules in one script, a pure function of the files it contains.

The modules are carried as text, line by line: no compressor, whose bytes would differ from one build of Python to the
next, and whoever opens the kernel on Kaggle can read what runs.
"""

import hashlib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clotkit import __version__
from clotkit.bundle.imports import PACKAGE, modules_needed
from clotkit.competitions import FOLDER as COMPETITIONS
from clotkit.config import RECIPES, load_recipe
from clotkit.errors import ConfigError, RehearsalError
from clotkit.files import atomic_write_text
from clotkit.typed_toml import typed

# The rooms whose verbs each job of a kernel runs; their imports decide which modules the bundle carries.
VERBS_OF = {"score": "clotkit.scoring.verbs", "tile": "clotkit.shards.verbs", "train": "clotkit.training.verbs"}
TEMPLATES = ("*.j2", "*.css", "*.js")  # package data that modules read
SETTINGS_FILE = "settings.toml"
SCORING = "infer"  # the kernel that is submitted
LIMIT_BYTES = 1_000_000  # Kaggle refuses a longer source, on the server only
FILES_LINE, SETTINGS_LINE = "FILES: dict[str, str] = {}\n", "SETTINGS: dict[str, Any] = {}\n"


@dataclass(frozen=True)
class KernelSettings:
    """What a kernel's settings.toml says; a kernel without one scores. `most_mb` bounds its output, 0: it does not."""

    job: str = "score"  # or tile, train
    recipes: tuple[str, ...] = ()  # names that ship with the kit, or .toml files in the kernel's folder
    rehearse: tuple[str, ...] = ()  # recipes that stand in for them in a rehearsal
    deadline_s: float = 0.0
    most_mb: float = 0.0

    @property
    def said(self) -> dict[str, Any]:
        """As SETTINGS has it: recipes by their names, as the unpacked kit knows them."""
        names = {key: [Path(recipe).stem for recipe in getattr(self, key)] for key in ("recipes", "rehearse")}
        return asdict(self) | names


def read_settings(kernel_dir: Path) -> KernelSettings:
    """The settings of a kernel. Raises ConfigError for an unknown key, job or recipe, or a file that is no TOML."""
    path = kernel_dir / SETTINGS_FILE
    if not path.is_file():
        return KernelSettings()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    settings = typed(KernelSettings, raw, str(path))
    if settings.job not in VERBS_OF:
        raise ConfigError(f"{path}: job is {settings.job!r}; allowed: {', '.join(VERBS_OF)}")
    if settings.job != "score" and not (settings.recipes and settings.rehearse and settings.deadline_s > 0):
        raise ConfigError(f"{path}: a kernel that is to {settings.job} needs recipes, rehearse and deadline_s")
    for recipe in (*settings.recipes, *settings.rehearse):
        load_recipe(_recipe_path(kernel_dir, recipe))
    return settings


def _recipe_path(kernel_dir: Path, recipe: str) -> Path:
    """The file of a recipe that a kernel names."""
    return kernel_dir / recipe if recipe.endswith(".toml") else RECIPES / f"{recipe}.toml"


def build_bundle(kernel_dir: Path, competition: str) -> str:
    """The text of the script for `kernel_dir` (with a main.py) and a competition (a name or the path of a TOML).

    The same files give the same text. Raises ConfigError for wrong settings, RehearsalError when main.py is missing or
    has no place for the modules, when the script is no Python, or when it passes Kaggle's limit.
    """
    main = kernel_dir / "main.py"
    try:
        body = main.read_text(encoding="utf-8")
    except OSError as error:
        raise RehearsalError(f"{main}: {error.strerror}; a kernel folder has main.py") from error
    for line in (FILES_LINE, SETTINGS_LINE):
        if body.count(line) != 1:
            raise RehearsalError(f"{main}: the line {line.strip()!r} stands {body.count(line)} times, once is needed")
    _check_python(body)
    toml = Path(competition) if competition.endswith(".toml") else COMPETITIONS / f"{competition}.toml"
    settings = read_settings(kernel_dir)
    files = module_files(settings.job, body)
    files |= {f"clotkit/competitions/{toml.name}": toml} | _recipe_files(kernel_dir, settings)
    body = body.replace(FILES_LINE, "".join(_literal(files)))
    body = body.replace(SETTINGS_LINE, f"SETTINGS: dict[str, Any] = {_said({'competition': toml.stem}, settings)!r}\n")
    digest = hashlib.sha256(body.encode()).hexdigest()
    script = (
        f"# clotkit {__version__}, kernel {kernel_dir.name}, {toml.stem}: {len(files)} files\n# sha256 {digest}\n{body}"
    )
    _check_size(script)
    _check_python(script)
    return script


def module_files(job: str, main: str) -> dict[str, Path]:
    """Return the files that a kernel of this job and its `main` need, by their names in the bundle.

    They are the modules that are imported, and the templates beside them.
    """
    modules = modules_needed(("clotkit.cli", VERBS_OF[job]), main)
    needed = [*modules, *(path for pattern in TEMPLATES for path in _beside(modules, pattern))]
    return {path.relative_to(PACKAGE.parent).as_posix(): path for path in needed}


def _beside(modules: Iterable[Path], pattern: str) -> list[Path]:
    """Return the files of a pattern in the packages of which some module is carried."""
    folders = {module.parent for module in modules if module.name != "__init__.py"}
    return sorted(path for folder in folders for path in folder.glob(pattern))


def _recipe_files(kernel_dir: Path, settings: KernelSettings) -> dict[str, Path]:
    paths = [_recipe_path(kernel_dir, recipe) for recipe in (*settings.recipes, *settings.rehearse)]
    return {f"clotkit/recipes/{path.name}": path for path in paths}


def _said(first: dict[str, Any], settings: KernelSettings) -> dict[str, Any]:
    """SETTINGS: of a scoring kernel only the competition."""
    if settings.job == "score":
        return first
    return first | settings.said


def write_bundle(kernel_dir: Path, competition: str, out: Path) -> str:
    """Build the bundle into `out` and return one line about it. Raises RehearsalError."""
    script = build_bundle(kernel_dir, competition)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out, script)
    return f"{out}: {len(script.encode()):,} bytes of {LIMIT_BYTES:,}, sha256 {bundle_sha256(script)}"


def rehearsal_dir(kernel: str) -> Path:
    """Where a kernel's rehearsal leaves what its push asks for, unless it is told another folder."""
    return Path("build") / ("rehearsal" if kernel == SCORING else f"rehearsal-{kernel}")


def bundle_sha256(script: str) -> str:
    """The sha256 in a bundle's header: of all that follows the header's two lines."""
    return script.split("\n", 2)[1].removeprefix("# sha256 ")


def _literal(files: dict[str, Path]) -> Iterator[str]:
    yield "FILES: dict[str, str] = {\n"
    for name in sorted(files):
        yield f"    {name!r}: (\n"
        for line in files[name].read_text(encoding="utf-8").splitlines(keepends=True) or [""]:
            yield f"        {line!r}\n"
        yield "    ),\n"
    yield "}\n"


def _check_python(script: str) -> None:
    try:
        compile(script, "script.py", "exec")
    except SyntaxError as error:
        raise RehearsalError(f"the bundle is no Python: line {error.lineno}: {error.msg}") from error


def _check_size(script: str) -> None:
    size = len(script.encode())
    if size > LIMIT_BYTES:
        raise RehearsalError(f"the bundle has {size:,} bytes, Kaggle takes {LIMIT_BYTES:,}; move data to a dataset")
