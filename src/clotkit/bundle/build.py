"""Build the bundle: a kernel's main.py and the kit's modules in one script.

The bundle is a pure function of the files it contains.
The modules are carried as text. A compressor would give other bytes under another build of Python, and
text lets whoever opens the kernel on Kaggle read what runs.
"""

import ast
import hashlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clotkit import __version__
from clotkit.bundle.imports import PACKAGE, modules_needed
from clotkit.bundle.notebook import KernelType, code_of
from clotkit.bundle.places import build_path
from clotkit.competitions import DEFAULT_FILE, Competition, load_competition
from clotkit.config import RECIPES, load_recipe
from clotkit.errors import ConfigError, RehearsalError
from clotkit.files import atomic_write_text
from clotkit.reasons import RehearsalKind
from clotkit.typed_toml import typed
from clotkit.versions import without_docstrings

# The package whose verbs each job of a kernel runs; their imports decide which modules the bundle carries.
VERBS_OF = {
    "score": "clotkit.scoring.verbs",
    "serve": "clotkit.serving.verbs",
    "tile": "clotkit.shards.verbs",
    "train": "clotkit.training.mil.verbs",
}
SCORING = ("score", "serve")  # jobs that run members, and no recipes
TEMPLATES = ("*.j2", "*.css", "*.js")  # package data that modules read
SETTINGS_FILE = "settings.toml"
SCORING_KERNEL = "infer"  # the kernel that is submitted
LIMIT_BYTES = 1_000_000  # Kaggle's server refuses a longer source, its client does not check
# Lines of a main.py that the builder replaces; the first two must be there.
FILES_LINE, SETTINGS_LINE = "FILES: dict[str, str] = {}\n", "SETTINGS: dict[str, Any] = {}\n"
UNPACK_LINE = "from clotkit.bundle.unpack import unpack\n"


@dataclass(frozen=True)
class KernelSettings:
    """The settings.toml of a kernel; a kernel without one scores."""

    job: str = "score"  # or serve, tile, train
    # Names that ship with the kit, or .toml files in the kernel's folder; {competition} is the competition's name.
    recipes: tuple[str, ...] = ()
    rehearse: tuple[str, ...] = ()  # recipes that replace them in a rehearsal
    deadline_s: float = 0.0
    most_mb: float = 0.0  # limit of its output; 0: none

    @property
    def bundled(self) -> dict[str, Any]:
        """The settings for SETTINGS: recipes have their names in the unpacked kit."""
        names = {key: [Path(recipe).stem for recipe in getattr(self, key)] for key in ("recipes", "rehearse")}
        return asdict(self) | names


def read_settings(kernel_dir: Path, competition: Competition) -> KernelSettings:
    """Return the settings of a kernel for a competition. Raises ConfigError if they are wrong or not TOML."""
    path = kernel_dir / SETTINGS_FILE
    if not path.is_file():
        return KernelSettings()
    try:
        text = path.read_text(encoding="utf-8").replace("{competition}", competition.source.stem)
        raw = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    settings = typed(KernelSettings, raw, str(path))
    if settings.job not in VERBS_OF:
        raise ConfigError(f"{path}: job is {settings.job!r}; allowed: {', '.join(VERBS_OF)}")
    if settings.job not in SCORING and not (settings.recipes and settings.rehearse and settings.deadline_s > 0):
        raise ConfigError(f"{path}: the job {settings.job} needs recipes, rehearse and deadline_s")
    for recipe in (*settings.recipes, *settings.rehearse):
        load_recipe(_recipe_path(kernel_dir, recipe))
    return settings


def _recipe_path(kernel_dir: Path, recipe: str) -> Path:
    """Return the file of a recipe that a kernel names."""
    return kernel_dir / recipe if recipe.endswith(".toml") else RECIPES / f"{recipe}.toml"


def build_bundle(kernel_dir: Path, competition: str, kernel_type: KernelType = KernelType.SCRIPT) -> str:
    """Return the script of the kernel in `kernel_dir`, or its notebook; the same files give the same text.

    Args:
        kernel_dir: A folder with main.py, and perhaps settings.toml and recipes.
        competition: A name that ships with the kit, or the path of a .toml.
        kernel_type: The form of the text. A notebook carries the same script.

    Raises:
        ConfigError: The settings or the competition are wrong.
        RehearsalError: main.py is missing, lacks a marker line or is not Python, or the script is too large for Kaggle.
    """
    body = _read_main(kernel_dir / "main.py").replace(UNPACK_LINE, _unpack_source())
    known = load_competition(competition)
    toml, settings = known.source, read_settings(kernel_dir, known)
    if settings.job == "score" and known.submission_csv != known.files.submission:
        raise ConfigError(
            f"{toml}: files.submission is {known.files.submission}, which a gateway writes: the kernel for it is "
            f"kernels/serve; {kernel_dir.name} writes CSV"
        )
    files = module_files(settings.job, body)
    files |= {f"clotkit/competitions/{toml.name}": toml} | _recipe_files(kernel_dir, settings)
    texts = {name: _carried(name, path) for name, path in files.items()}
    texts[f"clotkit/competitions/{DEFAULT_FILE}"] = f"{toml.stem}\n"  # no other competition is in a kernel
    values = {"competition": toml.stem} | ({} if settings.job in SCORING else settings.bundled)
    body = body.replace(FILES_LINE, "".join(literal(texts)))
    body = body.replace(SETTINGS_LINE, f"SETTINGS: dict[str, Any] = {values!r}\n")
    digest = hashlib.sha256(body.encode()).hexdigest()
    script = (
        f"# clotkit {__version__}, kernel {kernel_dir.name}, {toml.stem}: {len(texts)} files\n# sha256 {digest}\n{body}"
    )
    source = kernel_type.source_of(script)
    _check_size(source)
    _check_python(script, "the bundle")
    return source


def _read_main(path: Path) -> str:
    """Return the source of a main.py that can be bundled."""
    try:
        body = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RehearsalError(
            f"{path}: {error.strerror}; a kernel's folder needs a main.py", RehearsalKind.SOURCE
        ) from error
    for line in (FILES_LINE, SETTINGS_LINE):
        if body.count(line) != 1:
            raise RehearsalError(
                f"{path}: the line {line.strip()!r} stands there {body.count(line)} times, once is needed",
                RehearsalKind.SOURCE,
            )
    _check_python(body, str(path))
    return body


def _unpack_source() -> str:
    """Return the source of the function that unpacks a bundle."""
    text = (PACKAGE / "bundle" / "unpack.py").read_text(encoding="utf-8")
    function = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return f"\n\n{ast.get_source_segment(text, function)}\n\n"


def module_files(job: str, main: str) -> dict[str, Path]:
    """Return the files that a kernel of this job and its `main` need, by their names in the bundle.

    They are the modules that are imported, and the templates beside them.
    """
    modules = modules_needed(("clotkit.cli", VERBS_OF[job]), main)
    needed = [*modules, *(path for pattern in TEMPLATES for path in _beside(modules, pattern))]
    return {path.relative_to(PACKAGE.parent).as_posix(): path for path in needed}


def _beside(modules: Iterable[Path], pattern: str) -> list[Path]:
    """Return the files of a pattern that a carried module in their folder names."""
    texts: dict[Path, str] = {}
    for module in modules:
        texts[module.parent] = texts.get(module.parent, "") + module.read_text(encoding="utf-8")
    return sorted(path for folder, text in texts.items() for path in folder.glob(pattern) if f'"{path.name}"' in text)


def _recipe_files(kernel_dir: Path, settings: KernelSettings) -> dict[str, Path]:
    paths = [_recipe_path(kernel_dir, recipe) for recipe in (*settings.recipes, *settings.rehearse)]
    return {f"clotkit/recipes/{path.name}": path for path in paths}


def write_bundle(kernel_dir: Path, competition: str, out: Path, kernel_type: KernelType = KernelType.SCRIPT) -> str:
    """Write the bundle to `out` and return one line about it. Raises ConfigError and RehearsalError."""
    source = build_bundle(kernel_dir, competition, kernel_type)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out, source)
    return f"{out}: {len(source.encode()):,} bytes of {LIMIT_BYTES:,}, sha256 {bundle_sha256(source)}"


def rehearsal_dir(kernel: str, competition: str) -> Path:
    """Return the default folder of a kernel's rehearsal for a competition, which its push reads."""
    return build_path("rehearsal" if kernel == SCORING_KERNEL else f"rehearsal-{kernel}", competition)


def bundle_sha256(source: str) -> str:
    """Return the sha256 in a bundle's header: that of all text after the header's two lines."""
    return code_of(source).split("\n", 2)[1].removeprefix("# sha256 ")


def _carried(name: str, path: Path) -> str:
    """Return a file's text as a bundle carries it: modules without docstrings, a fourth of their size."""
    text = path.read_text(encoding="utf-8")
    return without_docstrings(text) if name.endswith(".py") else text


def literal(texts: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of FILES, with the text of every file as it is where Python can quote it so."""
    yield "FILES: dict[str, str] = {\n"
    for name in sorted(texts):
        yield from (f"{name!r}: ", *_quoted(texts[name]), ",\n")
    yield "}\n"


def _quoted(text: str) -> Iterator[str]:
    """Yield a raw string in triple quotes, or a string for every line if the text has such quotes itself."""
    if "'''" not in text and "\r" not in text and not text.endswith(("'", "\\")):
        yield f"r'''{text}'''"
        return
    yield "(\n"
    for line in text.splitlines(keepends=True) or [""]:
        yield f"{line!r}\n"  # not indented: an indent would make the bundle a sixth longer
    yield ")"


def _check_python(script: str, where: str) -> None:
    try:
        compile(script, "script.py", "exec")
    except SyntaxError as error:
        raise RehearsalError(
            f"{where} is not Python: line {error.lineno}: {error.msg}", RehearsalKind.SOURCE
        ) from error


def _check_size(script: str) -> None:
    size = len(script.encode())
    if size > LIMIT_BYTES:
        raise RehearsalError(
            f"the bundle has {size:,} bytes, Kaggle accepts {LIMIT_BYTES:,}; move data to a dataset",
            RehearsalKind.TOO_LARGE,
        )
