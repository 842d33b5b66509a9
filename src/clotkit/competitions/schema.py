"""The keys of a competition's TOML file: its tables, ids, classes, answers, metric and limits.

The comment beside each field is its text in the reference. Standard library only: the kernel's supervisor imports this.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from pathlib import Path

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,5})?", re.ASCII)
# Columns of oof.csv and predictions.csv beside those of the classes.
COLUMNS_OF_TABLES = ("image", "patient", "centre", "label", "fold", "distance", "unlike_training")


class Form(StrEnum):
    """The form of an answer in a submission."""

    PROBABILITIES = "probabilities"  # one column a class
    PROBABILITY = "probability"  # one column: the probability of the last class
    LABEL = "label"  # one column: a class


class Unit(StrEnum):
    """The unit that a row of a submission stands for."""

    PATIENT = "patient"  # all slides of a patient
    IMAGE = "image"  # one slide


class Rule(StrEnum):
    """The rule that makes a label of probabilities."""

    ARGMAX = "argmax"  # the likeliest class
    CUT_POINTS = "cut_points"  # the expected class number between fitted cut points; classes are in order
    OUTLIER = "outlier"  # the likeliest class, or the outlier class below a fitted probability
    EXPECTED_VALUE = "expected_value"  # the class nearest to the expected class number; classes are in order

    @property
    def is_ordinal(self) -> bool:
        """Return True if it takes the classes to be in order."""
        return self in {Rule.CUT_POINTS, Rule.EXPECTED_VALUE}


def label_key(label: str) -> str:
    """Return a label as labels are compared: without case, numbers (2.0 for 2) by their value."""
    bare = label.strip()
    return str(Decimal(bare).normalize() + 0) if NUMBER.fullmatch(bare) else bare.casefold()


@dataclass(frozen=True)
class Files:
    """File names in a split folder."""

    sample: str  # sample submission
    # Submission that a kernel leaves: CSV, or the .parquet that the gateway of a serving kernel writes. Runs here write
    # CSV, under the name with .csv.
    submission: str
    # Table of a split's slides; {split} stands for train or test. Where there is none for the test split, its slides
    # are those of the sample submission.
    table: str
    # One slide, or a list of such names that are tried in order: by {split}, {image_id}, {patient_id} and the name of
    # any column of the table in braces.
    slide: tuple[str, ...]
    labels: str = ""  # table of the labels of the train split, joined by image id; empty: they are in `table`
    test_table: bool = True  # whether the test split has a table; synthetic splits have one accordingly


@dataclass(frozen=True)
class Columns:
    """Column names of the tables."""

    image: str  # image id, one row per slide
    label: str  # class name; train only
    patient: str = ""  # patient id; empty: there is none, and every slide is a patient of its own
    center: str = ""  # id of the centre that scanned the slide; empty: there is none
    number: str = ""  # number of a slide among its patient's, from 0; empty: there is none


@dataclass(frozen=True)
class Ids:
    """The form of ids."""

    patient: str = ""  # regular expression of a patient id; empty: any text
    image: str = ""  # image id, by {patient} and {number}; empty: an image id does not have its patient in it
    has_extension: bool = False  # whether image ids in tables are file names with their extension
    twins: tuple[str, ...] = ()  # pairs "a = b" of image ids with the same pixels, in two tables


@dataclass(frozen=True)
class Classes:
    """The classes that training has slides of, each list with one entry per class."""

    names: tuple[str, ...]  # class names, or integers, in the submission's column order
    weights: tuple[float, ...] = ()  # weights of the classes in the metric; empty: equal ones
    priors: tuple[float, ...] = ()  # shares of patients, for the fallback and synthetic splits; empty: equal ones
    # Probabilities of a patient without a usable slide; empty: the constant with the best expected score.
    fallback: tuple[float, ...] = ()


@dataclass(frozen=True)
class Submission:
    """The form of a submission. The sample submission has the order of its columns and rows."""

    form: Form = Form.PROBABILITIES  # `probabilities`, `probability` (of the last class) or `label`
    id: str = ""  # column of ids; empty: that of the patient, or without patients that of the image
    unit: Unit | None = None  # what a row is: `patient` or `image`; without the key by `id`
    columns: tuple[str, ...] = ()  # columns of the answer; empty: the classes' names, or columns.label
    rule: Rule = Rule.ARGMAX  # of a label: `argmax`, `cut_points`, `outlier` or `expected_value`
    outlier: str = ""  # label that no slide of train has, for the rule `outlier`
    fallback: str = ""  # label of a patient without a usable slide; empty: the one with the best expected score


@dataclass(frozen=True)
class Fact:
    """A fact of a slide that its table may lack."""

    name: str  # a column, in the tables that have it
    # Where the table lacks it: `True` for a slide without this file, named like `files.slide`; else `False`.
    missing_file: str


@dataclass(frozen=True)
class Metric:
    """The metric that scores a submission."""

    # Of probabilities: `balanced_log_loss`, `log_loss` or `auc`. Of labels: `quadratic_weighted_kappa`,
    # `balanced_accuracy`, `accuracy` or `macro_f1`.
    name: str
    clip: float = 1e-15  # probabilities are clipped to clip and 1 - clip


@dataclass(frozen=True)
class Limits:
    """Limits on time (seconds), memory (MB of 2**20 bytes) and tiles."""

    deadline_s: float = 28_800  # time limit of a run
    slide_s: float = 300  # time limit of one slide
    slide_memory_mb: int = 4_096  # address space of one slide's process
    kernel_memory_mb: int = 30_000  # memory of a Kaggle session
    kernel_wall_s: float = 32_400  # time limit of a Kaggle session
    min_tiles: int = 4  # fewest tiles for a slide whose process crashed to count as partial
    hidden_slides: int = 0  # slides that the scoring run sees; 0: unknown


WEIGHTS_AS, WHEELS_AS = ("dataset", "model"), ("dataset", "script")


@dataclass(frozen=True)
class Kaggle:
    """The names of kernels and datasets on Kaggle."""

    kernel: str = ""  # a kernel's name is this, a hyphen and its folder in kernels/; empty: clotkit- and the slug
    # The datasets weights, tiles and progress are named by this, a hyphen and that word; empty: `kernel`.
    datasets: str = ""
    sources: tuple[str, ...] = ()  # competitions whose data the kernels attach; empty: the slug
    hosted: bool = True  # whether Kaggle has the competition; false: nothing can be pushed or submitted there
    weights_as: str = "dataset"  # how kernels get the members: dataset, or model (a Kaggle Model)
    wheels_as: str = "dataset"  # how kernels get their packages: dataset, or script (Kaggle's Dependency Manager)


class BatchRows(StrEnum):
    """The rows of the answer to a gateway's batch."""

    SLIDE = "slide"  # one for each row of the batch
    ID = "id"  # one for each id of the submission, in their order in the batch


class AnswerForm(StrEnum):
    """The form of the answer to a gateway's batch."""

    VALUES = "values"  # a frame with the columns of the answer
    ROWS = "rows"  # the same, after the column of ids
    VALUE = "value"  # a bare number or label, for batches of one row


@dataclass(frozen=True)
class Serving:
    """The inference server of a competition whose test set comes in batches, through a gateway."""

    # Module of the inference server in the folder kaggle_evaluation of the competition's data; empty: the only file
    # there that ends with _inference_server.py.
    module: str = ""
    server: str = ""  # class in it; empty: the only subclass of InferenceServer
    deadline_s: float = 300  # seconds that the gateway waits for the answer to a batch
    # Seconds for the gateway's very first batch, while members are loaded; 0: as for any other.
    first_deadline_s: float = 0
    startup_s: float = 900  # seconds within which the gateway wants the server to be up
    rows: BatchRows = BatchRows.SLIDE  # rows of the answer to a batch: `slide` or `id`
    answer: AnswerForm = AnswerForm.VALUES  # `values`, `rows` (with ids) or `value`
    path: str = ""  # column of the batch with the path of the slide; empty: paths follow from `files.slide`
    data_paths: tuple[str, ...] = ()  # files of the competition's data for its local gateway; empty: its own


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
    classes: Classes  # classes, their weights and fallback
    metric: Metric  # metric that scores a submission
    source: Path  # the TOML file itself; set by the reader
    ids: Ids = field(default=Ids())  # form of patient and image ids
    submission: Submission = field(default=Submission())  # form of an answer
    facts: tuple[Fact, ...] = ()  # facts of slides that a table may lack
    limits: Limits = field(default=Limits())  # limits on time, memory and tiles
    kaggle: Kaggle = field(default=Kaggle())  # names of kernels and datasets
    serving: Serving = field(default=Serving())  # inference server of a competition with a gateway
    sizes: Sizes = UNKNOWN  # sizes of the slides to tile

    @cached_property
    def header(self) -> tuple[str, ...]:
        """Return the columns of a submission: the id, then the answer's."""
        return (self.submission.id, *self.submission.columns)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Return the labels that an answer may be: the classes, and the outlier if there is one."""
        return (*self.classes.names, *filter(None, [self.submission.outlier]))

    @property
    def unit(self) -> Unit:
        """Return what a row of the submission stands for."""
        return self.submission.unit or Unit.PATIENT

    @property
    def by_image(self) -> bool:
        """Return True if a row of the submission stands for one slide."""
        return self.unit is Unit.IMAGE

    @property
    def submission_csv(self) -> str:
        """Return the name of the submission of a run: clotkit writes CSV, whatever a gateway writes on Kaggle."""
        name = self.files.submission
        return f"{name.removesuffix('.parquet')}.csv" if name.endswith(".parquet") else name

    def sample_path(self, split_dir: Path) -> Path:
        """Return the path of the sample submission in a split folder."""
        return split_dir / self.files.sample

    def table_path(self, split_dir: Path, split: str) -> Path:
        """Return the path of the table of `split` (train or test) in a split folder."""
        return split_dir / self.files.table.format(split=split)

    def tables(self) -> list[str]:
        """Return the names of all files that reading a split opens beside its slides, in its folder."""
        names = [self.files.table.format(split=split) for split in ("test", "train")]
        return [*names, self.files.sample, *filter(None, [self.files.labels])]

    def slide_path(
        self, split_dir: Path, split: str, image_id: str, patient_id: str = "", facts: Mapping[str, str] | None = None
    ) -> Path:
        """Return the path of a slide in a split folder, by the first of the patterns."""
        return split_dir / self.slide_names(split, image_id, patient_id, facts or {})[0]

    def slide_names(self, split: str, image_id: str, patient_id: str, facts: Mapping[str, str]) -> list[str]:
        """Return the names that a slide's file may have in a split folder, in the order to try them.

        Raises KeyError for a pattern with a column that `facts` lack.
        """
        return [self.named(pattern, split, image_id, patient_id, facts) for pattern in self.files.slide]

    def named(self, pattern: str, split: str, image_id: str, patient_id: str, facts: Mapping[str, str]) -> str:
        """Return the name of a slide's file by one pattern. Raises KeyError for a column that `facts` lack."""
        names: dict[str, str] = {**facts}
        if self.columns.patient or self.ids.image:  # else a column may have this name
            names.update(patient_id=patient_id)
        names.update(split=split, image_id=image_id)
        return pattern.format_map(names)
