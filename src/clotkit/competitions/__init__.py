"""Read what is particular to one competition from its TOML file.

No other code knows a competition's names, classes or limits. The comment beside each field is its text in the
reference. Standard library only: the kernel's supervisor imports this.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from clotkit.errors import ConfigError
from clotkit.metric import METRICS
from clotkit.typed_toml import read_toml, typed

FOLDER = Path(__file__).parent
DEFAULT = "strip_ai"


@dataclass(frozen=True)
class Files:
    """File names in a split folder."""

    sample: str  # sample submission
    submission: str  # submission that a kernel writes
    table: str  # table of a split's slides; {split} stands for train or test
    slide: str  # one slide, by {split} and {image_id}


@dataclass(frozen=True)
class Columns:
    """Column names of the tables."""

    image: str  # image id, one row per slide
    patient: str  # patient id
    center: str  # id of the centre that scanned the slide
    number: str  # number of a slide among its patient's, from 0
    label: str  # class name; train only


@dataclass(frozen=True)
class Ids:
    """The form of ids."""

    patient: str  # regular expression of a patient id
    image: str  # image id, by {patient} and {number}
    twins: tuple[str, ...] = ()  # pairs "a = b" of image ids with the same pixels, in two tables


@dataclass(frozen=True)
class Classes:
    """The classes, each list with one entry per class."""

    names: tuple[str, ...]  # class names, in the submission's column order
    weights: tuple[float, ...]  # weights of the classes in the metric
    priors: tuple[float, ...]  # shares of patients; used to draw synthetic splits only
    fallback: tuple[float, ...]  # probabilities of a patient without a usable slide


@dataclass(frozen=True)
class Metric:
    """The metric that scores a submission."""

    name: str  # name of the metric in clotkit.metric
    clip: float  # probabilities are clipped to clip and 1 - clip


@dataclass(frozen=True)
class Limits:
    """Limits on time (seconds), memory (MB of 2**20 bytes) and tiles."""

    deadline_s: float  # time limit of a run
    slide_s: float  # time limit of one slide
    slide_memory_mb: int  # address space of one slide's process
    kernel_memory_mb: int  # memory of a Kaggle session
    kernel_wall_s: float  # time limit of a Kaggle session
    min_tiles: int  # fewest tiles for a slide whose process crashed to count as partial
    hidden_slides: int = 0  # slides that the scoring run sees; 0: unknown


@dataclass(frozen=True)
class Sizes:
    """The sizes of the slides to tile: what synthetic splits and plans are drawn from."""

    slides: int  # number of slides; 0: unknown
    total_bytes: float  # size of all files together
    area_levels: tuple[float, ...]  # levels of the quantiles of areas_px and aspects, from 0 to 1
    areas_px: tuple[float, ...]  # quantiles of width times height, in pixels
    aspects: tuple[float, ...]  # quantiles of long over short side
    largest_px: tuple[int, ...]  # width and height of the slide with the largest area, in pixels
    least_side_px: int  # lower bound of a side, in pixels
    most_side_px: int  # upper bound of a side, in pixels
    portrait_share: float  # share of slides that are taller than wide
    file_levels: tuple[float, ...]  # levels of the quantiles of file_bytes, from 0 to 1
    file_bytes: tuple[float, ...]  # quantiles of the file size


UNKNOWN = Sizes(0, 0.0, (), (), (), (), 0, 0, 0.0, (), ())


@dataclass(frozen=True)
class Competition:
    """One competition."""

    slug: str  # the competition's name in Kaggle's URLs
    title: str  # its name for people
    files: Files  # file names in a split folder
    columns: Columns  # column names of the tables
    ids: Ids  # form of patient and image ids
    classes: Classes  # classes, their weights and fallback
    metric: Metric  # metric that scores a submission
    limits: Limits  # limits on time, memory and tiles
    source: Path  # the TOML file itself; set by the reader
    sizes: Sizes = UNKNOWN  # sizes of the slides to tile

    @cached_property
    def header(self) -> tuple[str, ...]:
        """Return the submission's columns, in order."""
        return (self.columns.patient, *self.classes.names)

    def sample_path(self, split_dir: Path) -> Path:
        """Return the path of the sample submission in a split folder."""
        return split_dir / self.files.sample

    def table_path(self, split_dir: Path, split: str) -> Path:
        """Return the path of the table of `split` (train or test) in a split folder."""
        return split_dir / self.files.table.format(split=split)

    def slide_path(self, split_dir: Path, split: str, image_id: str) -> Path:
        """Return the path of a slide in a split folder."""
        return split_dir / self.files.slide.format(split=split, image_id=image_id)


def load_competition(name_or_path: str = DEFAULT) -> Competition:
    """Read a competition by name (one that ships with the kit) or by the path of its TOML file.

    Raises ConfigError for an unknown name, an unreadable file, a key that is unknown, missing or of a wrong type, or
    lists of unequal length.
    """
    path, raw = read_toml(name_or_path, FOLDER, "competition")
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
    """Raise ConfigError for sizes from which no slide can be drawn."""
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
