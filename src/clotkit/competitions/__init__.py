"""What is particular to one competition: read from one TOML, known nowhere else. Standard library only."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from clotkit.config import typed
from clotkit.errors import ConfigError
from clotkit.metric import METRICS

FOLDER = Path(__file__).parent
DEFAULT = "strip_ai"


@dataclass(frozen=True)
class Files:
    """File names in a split folder; `table` has {split} in it, `slide` {split} and {image_id}."""

    sample: str
    submission: str
    table: str
    slide: str


@dataclass(frozen=True)
class Columns:
    """Column names of the tables."""

    image: str
    patient: str
    center: str
    number: str
    label: str


@dataclass(frozen=True)
class Ids:
    """The form of ids: `patient` is a regular expression, `image` has {patient} and {number} in it.

    `twins` are pairs "a = b" of image ids with the same pixels, in two tables.
    """

    patient: str
    image: str
    twins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """Class names in the submission's column order, with a number for each."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    priors: tuple[float, ...]
    fallback: tuple[float, ...]


@dataclass(frozen=True)
class Metric:
    """How the competition scores: the metric's name, and where it clips probabilities."""

    name: str
    clip: float


@dataclass(frozen=True)
class Limits:
    """Time in seconds and memory in megabytes (2**20 bytes)."""

    deadline_s: float
    slide_s: float
    slide_memory_mb: int
    kernel_memory_mb: int
    kernel_wall_s: float
    min_tiles: int
    hidden_slides: int = 0  # that the scoring run sees; 0: unknown


@dataclass(frozen=True)
class Sizes:
    """How large the slides are that there are to tile; 0 `slides`: unknown.

    `areas_px` (width times height) and `aspects` (long over short side) are quantiles at `area_levels`, `file_bytes` at
    `file_levels`. The largest slide by area is `largest_px` (width, height); no side is below or above the limits.
    """

    slides: int
    total_bytes: float
    area_levels: tuple[float, ...]
    areas_px: tuple[float, ...]
    aspects: tuple[float, ...]
    largest_px: tuple[int, ...]
    least_side_px: int
    most_side_px: int
    portrait_share: float
    file_levels: tuple[float, ...]
    file_bytes: tuple[float, ...]


UNKNOWN = Sizes(0, 0.0, (), (), (), (), 0, 0, 0.0, (), ())


@dataclass(frozen=True)
class Competition:
    """One competition, as its TOML has it."""

    slug: str
    title: str
    files: Files
    columns: Columns
    ids: Ids
    classes: Classes
    metric: Metric
    limits: Limits
    source: Path
    sizes: Sizes = UNKNOWN

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The submission's columns, in order."""
        return (self.columns.patient, *self.classes.names)

    def sample_path(self, split_dir: Path) -> Path:
        """Where the sample submission stands in a split folder."""
        return split_dir / self.files.sample

    def table_path(self, split_dir: Path, split: str) -> Path:
        """Where the table of `split` (train or test) stands in a split folder."""
        return split_dir / self.files.table.format(split=split)

    def slide_path(self, split_dir: Path, split: str, image_id: str) -> Path:
        """Where a slide stands in a split folder."""
        return split_dir / self.files.slide.format(split=split, image_id=image_id)


def load_competition(name_or_path: str = DEFAULT) -> Competition:
    """Read a competition by name (a TOML that ships with the kit) or by the path of a TOML.

    Raises ConfigError for an unknown name, an unreadable file, an unknown, missing or mistyped key, or class lists
    of unequal length.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else FOLDER / f"{name_or_path}.toml"
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ConfigError(f"competition {name_or_path}: {error.strerror}; known: {known}, or give a .toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    competition = typed(Competition, {**raw, "source": path}, str(path))
    _check_classes(competition, path)
    if competition.sizes != UNKNOWN:
        _check_sizes(competition.sizes, path)
    if competition.metric.name not in METRICS:
        raise ConfigError(f"{path}: metric.name is {competition.metric.name!r}; known: {', '.join(METRICS)}")
    return competition


def _check_classes(competition: Competition, path: Path) -> None:
    classes = competition.classes
    if len(classes.names) < 2:
        raise ConfigError(f"{path}: classes.names has {len(classes.names)} entries, at least 2 are needed")
    for key in ("weights", "priors", "fallback"):
        values = getattr(classes, key)
        if len(values) != len(classes.names):
            raise ConfigError(f"{path}: classes.{key} has {len(values)} entries, classes.names {len(classes.names)}")
        if min(values) < 0 or sum(values) <= 0:
            raise ConfigError(f"{path}: classes.{key} is {list(values)}; it must be non-negative with a positive sum")


def _check_sizes(sizes: Sizes, path: Path) -> None:
    """Raise ConfigError for a table from which no slide can be drawn."""
    if sizes.slides < 1 or len(sizes.largest_px) != 2 or not 0 <= sizes.portrait_share <= 1:
        raise ConfigError(
            f"{path}: sizes has {sizes.slides} slides, largest_px {list(sizes.largest_px)}, portrait_share "
            f"{sizes.portrait_share}; at least 1, a width and a height, and 0 to 1 are needed"
        )
    if not 0 < sizes.least_side_px < min(sizes.largest_px) or max(sizes.largest_px) > sizes.most_side_px:
        raise ConfigError(
            f"{path}: sizes.largest_px is {list(sizes.largest_px)}; it must lie between least_side_px "
            f"{sizes.least_side_px} and most_side_px {sizes.most_side_px}"
        )
    for levels, key in (("area_levels", "areas_px"), ("area_levels", "aspects"), ("file_levels", "file_bytes")):
        _check_quantiles(getattr(sizes, levels), getattr(sizes, key), f"{path}: sizes.{key}", levels)


def _check_quantiles(levels: tuple[float, ...], values: tuple[float, ...], where: str, name: str) -> None:
    if len(values) != len(levels):
        raise ConfigError(f"{where} has {len(values)} entries, sizes.{name} {len(levels)}; give one for each level")
    rising = all(a < b for a, b in pairwise(levels)) and all(a <= b for a, b in pairwise(values))
    if len(levels) < 2 or (levels[0], levels[-1]) != (0, 1) or not rising or values[0] <= 0:
        raise ConfigError(f"{where} is {list(values)} at {list(levels)}; both must rise, above 0, from level 0 to 1")
