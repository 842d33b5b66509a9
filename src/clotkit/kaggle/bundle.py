"""The bundle: a kernel's main.py and the kit's modules in one script, a pure function of the files it contains.

The modules are carried as text, line by line: no compressor, whose bytes would differ from one build of Python to the
next, and whoever opens the kernel on Kaggle can read what runs.
"""

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clotkit import __version__
from clotkit.competitions import FOLDER as COMPETITIONS
from clotkit.config import RECIPES, load_recipe, typed
from clotkit.errors import ConfigError, RehearsalError
from clotkit.files import publish_text

PACKAGE = Path(__file__).parents[1]
CUTTING = (  # what every kernel has: the command line, slides to tiles, a process a slide
    "__init__.py",
    "errors.py",
    "files.py",
    "config.py",
    "metric.py",
    "scratch.py",
    "splits.py",
    "stores.py",
    "supervise.py",
    "versions.py",
    "cli.py",
    "competitions/__init__.py",
    "slides/__init__.py",
    "slides/pixels.py",
    "slides/tiff.py",
    "slides/segments.py",
    "slides/bands.py",
    "slides/direct.py",
    "slides/reader.py",
    "slides/index.py",
    "slides/marks.py",
    "slides/tissue.py",
    "slides/views.py",
    "slides/sketch.py",
    "slides/sections.py",
    "slides/stain.py",
    "slides/squares.py",
    "slides/pieces.py",
    "slides/tiling.py",
    "learn/__init__.py",
    "infer/__init__.py",
    "infer/report.py",
    "infer/workers.py",
)
MODULES = (  # of the scoring kernel
    *CUTTING,
    "learn/backbones.py",
    "learn/models.py",
    "learn/networks.py",
    "learn/predict.py",
    "engines.py",
    "infer/afar.py",
    "infer/ahead.py",
    "infer/blending.py",
    "infer/effort.py",
    "infer/ensemble.py",
    "infer/pipeline.py",
    "infer/pooling.py",
    "infer/report_drawing.py",
    "infer/report_page.py",
    "infer/report_style.py",
    "infer/scoring.py",
    "infer/shift.py",
    "infer/sidecar.py",
    "infer/submission.py",
    "slides/preview.py",
)
TILING = (
    *CUTTING,
    "slides/preview.py",
    "engines.py",
    "learn/cut.py",
    "learn/shard_folder.py",
    "learn/shard_table.py",
    "learn/shards.py",
    "learn/tile.py",
)
TRAINING = (
    *TILING,
    "infer/blending.py",
    "infer/ensemble.py",
    "infer/pooling.py",
    "learn/augment.py",
    "learn/backbones.py",
    "learn/calibrate.py",
    "learn/contours.py",
    "learn/devices.py",
    "learn/feed.py",
    "learn/figures.py",
    "learn/fit.py",
    "learn/folds.py",
    "learn/images.py",
    "learn/lanes.py",
    "learn/loop.py",
    "learn/manifest.py",
    "learn/meeting.py",
    "learn/member.py",
    "learn/models.py",
    "learn/networks.py",
    "learn/plots.py",
    "learn/predict.py",
    "learn/scores.py",
    "learn/shard_cache.py",
    "learn/shard_tiles.py",
    "learn/sources.py",
    "learn/tiles.py",
    "learn/train.py",
    "learn/twins.py",
)
MODULES_OF = {"score": MODULES, "tile": TILING, "train": TRAINING}  # by a kernel's job
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
    if settings.job not in MODULES_OF:
        raise ConfigError(f"{path}: job is {settings.job!r}; allowed: {', '.join(MODULES_OF)}")
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
    toml = Path(competition) if competition.endswith(".toml") else COMPETITIONS / f"{competition}.toml"
    settings = read_settings(kernel_dir)
    files = {f"clotkit/{name}": PACKAGE / name for name in MODULES_OF[settings.job]}
    files |= {f"clotkit/competitions/{toml.name}": toml} | _recipe_files(kernel_dir, settings)
    body = body.replace(FILES_LINE, "".join(_literal(files)))
    body = body.replace(SETTINGS_LINE, f"SETTINGS: dict[str, Any] = {_said({'competition': toml.stem}, settings)!r}\n")
    digest = hashlib.sha256(body.encode()).hexdigest()
    script = (
        f"# clotkit {__version__}, kernel {kernel_dir.name}, {toml.stem}: {len(files)} files\n# sha256 {digest}\n{body}"
    )
    _check(script)
    return script


def _recipe_files(kernel_dir: Path, settings: KernelSettings) -> dict[str, Path]:
    paths = [_recipe_path(kernel_dir, recipe) for recipe in (*settings.recipes, *settings.rehearse)]
    return {f"clotkit/learn/recipes/{path.name}": path for path in paths}


def _said(first: dict[str, Any], settings: KernelSettings) -> dict[str, Any]:
    """SETTINGS: of a scoring kernel only the competition."""
    if settings.job == "score":
        return first
    return first | settings.said


def write_bundle(kernel_dir: Path, competition: str, out: Path) -> str:
    """Build the bundle into `out` and return one line about it. Raises RehearsalError."""
    script = build_bundle(kernel_dir, competition)
    out.parent.mkdir(parents=True, exist_ok=True)
    publish_text(out, script)
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


def _check(script: str) -> None:
    size = len(script.encode())
    if size > LIMIT_BYTES:
        raise RehearsalError(f"the bundle has {size:,} bytes, Kaggle takes {LIMIT_BYTES:,}; move data to a dataset")
    try:
        compile(script, "script.py", "exec")
    except SyntaxError as error:
        raise RehearsalError(f"the bundle is no Python: line {error.lineno}: {error.msg}") from error
