"""Read a competition from its TOML file, check it, and fill in what it leaves out.

Standard library only.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Any

from clotkit.competitions.schema import (
    COLUMNS_OF_TABLES,
    UNKNOWN,
    WEIGHTS_AS,
    WHEELS_AS,
    Competition,
    Form,
    Kaggle,
    Rule,
    Sizes,
    Unit,
    label_key,
)
from clotkit.errors import ConfigError
from clotkit.metric import METRICS, Takes, best_constant, best_label
from clotkit.typed_toml import read_toml, typed

FOLDER = Path(__file__).parent
DEFAULT_FILE = "default.txt"  # beside the TOML files; a kernel carries one with its own competition
DEFAULT = (FOLDER / DEFAULT_FILE).read_text(encoding="utf-8").strip()
KAGGLE_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
# A column that may be a placeholder: format would read dots and brackets otherwise.
COLUMN = re.compile(r"(?![0-9]+$)[^.\[\]]+")
ANY_PLACEHOLDER = "{split}, {image_id}, {patient_id}, or a column in braces"
PLACEHOLDERS = {  # of each name, those that are allowed and those of which one is needed
    "files.table": (("split",), ()),
    "ids.image": (("patient", "number"), ("patient",)),
}


def load_competition(name_or_path: str = DEFAULT) -> Competition:
    """Read a competition by name (one that ships with the kit) or by the path of its TOML file.

    Raises ConfigError for an unknown name, an unreadable file, a key that is unknown, missing or of a wrong type, a
    placeholder that is unknown, lists of unequal length, or an answer that does not fit the classes.
    """
    path, raw = read_toml(name_or_path, FOLDER, "competition")
    written = typed(Competition, {**_prepared(raw), "source": path}, str(path))
    if written.metric.name not in METRICS:
        raise ConfigError(f"{path}: metric.name is {written.metric.name!r}; known: {', '.join(METRICS)}")
    competition = _completed(written)
    _check_texts(competition, path)
    _check_numbers(competition, path)
    _check_placeholders(competition, path)
    _check_classes(competition, path)
    _check_submission(competition, path)
    _check_kaggle(competition.kaggle, path)
    if competition.sizes != UNKNOWN:
        _check_sizes(competition.sizes, path)
    return competition


def _prepared(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with one slide name as a list, and integer class names as text."""
    changed = dict(raw)
    for table, key in (("files", "slide"), ("classes", "names")):
        if not isinstance(raw.get(table), dict) or key not in raw[table]:
            continue
        value = raw[table][key]
        if key == "slide" and isinstance(value, str):
            value = [value]
        elif key == "names" and isinstance(value, list):
            value = [str(name) if type(name) is int else name for name in value]
        changed[table] = {**raw[table], key: value}
    return changed


def _completed(competition: Competition) -> Competition:
    """Return the competition with what its file leaves out."""
    classes, submission, columns = competition.classes, competition.submission, competition.columns
    equal = (1 / max(len(classes.names), 1),) * len(classes.names)
    weights, priors = classes.weights or equal, classes.priors or equal
    fallback = classes.fallback or best_constant(competition.metric.name, weights, priors)
    classes = replace(classes, weights=weights, priors=priors, fallback=fallback)
    by_image = submission.id == columns.image if submission.id else not columns.patient
    answer = classes.names if submission.form is Form.PROBABILITIES else (columns.label,)
    label = submission.fallback
    if submission.form is Form.LABEL and not label and len(priors) == len(classes.names) > 0:
        label = classes.names[best_label(competition.metric.name, priors)]
    submission = replace(
        submission,
        id=submission.id or columns.patient or columns.image,
        unit=submission.unit or (Unit.IMAGE if by_image else Unit.PATIENT),
        columns=submission.columns or answer,
        fallback=label,
    )
    return replace(
        competition, classes=classes, submission=submission, kaggle=_named(competition.kaggle, competition.slug)
    )


def _named(kaggle: Kaggle, slug: str) -> Kaggle:
    """Return the names on Kaggle, with those that follow from the competition's slug."""
    kernel = kaggle.kernel or f"clotkit-{re.sub('[^a-z0-9]+', '-', slug.lower()).strip('-')}"
    sources = kaggle.sources or ((slug,) if kaggle.hosted else ())
    return replace(kaggle, kernel=kernel, datasets=kaggle.datasets or kernel, sources=sources)


def _check_texts(competition: Competition, path: Path) -> None:
    """Raise ConfigError for a name that is empty or of a wrong form."""
    files, columns = competition.files, competition.columns
    texts = {"title": competition.title, "files.sample": files.sample, "files.submission": files.submission}
    texts |= {"files.table": files.table, "columns.image": columns.image, "columns.label": columns.label}
    texts |= {f"facts[{index}].name": fact.name for index, fact in enumerate(competition.facts)}
    texts |= {f"submission.columns[{index}]": name for index, name in enumerate(competition.submission.columns)}
    texts |= {f"classes.names[{index}]": name for index, name in enumerate(competition.classes.names)}
    for key, text in texts.items():
        if not text.strip():
            raise ConfigError(f"{path}: {key} is empty; write a name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", competition.slug):
        raise ConfigError(f"{path}: slug is {competition.slug!r}; allowed: letters, digits, '-', '_' and '.'")
    try:
        re.compile(competition.ids.patient)
    except re.error as error:
        raise ConfigError(
            f"{path}: ids.patient is {competition.ids.patient!r}, no regular expression: {error}"
        ) from error
    for pair in competition.ids.twins:
        if not re.fullmatch(r"\S+ = \S+", pair):
            raise ConfigError(f"{path}: ids.twins has {pair!r}; each must be two image ids, like 'a_0 = b_0'")


def _check_numbers(competition: Competition, path: Path) -> None:
    """Raise ConfigError for a limit or a clip out of its bounds."""
    for key, value in vars(competition.limits).items():
        least = 0 if key == "hidden_slides" else 1
        if not least <= value < math.inf:
            raise ConfigError(f"{path}: limits.{key} is {value}; at least {least} is needed")
    for key in ("deadline_s", "first_deadline_s", "startup_s"):
        seconds, low = getattr(competition.serving, key), 0 if key == "first_deadline_s" else 1
        if not low <= seconds < math.inf:
            raise ConfigError(f"{path}: serving.{key} is {seconds}; at least {low} is needed")
    if not 0 < competition.metric.clip < 0.5:
        raise ConfigError(f"{path}: metric.clip is {competition.metric.clip}; allowed: between 0 and 0.5")


def _check_placeholders(competition: Competition, path: Path) -> None:
    files = competition.files
    names = {"files.table": [files.table], "files.slide": files.slide, "ids.image": [competition.ids.image]}
    names["facts.missing_file"] = [fact.missing_file for fact in competition.facts]
    for key, patterns in names.items():
        for pattern in filter(None, patterns):
            _check_pattern(pattern, f"{path}: {key}", *PLACEHOLDERS.get(key, (None, ())))
    if not files.slide:
        raise ConfigError(f"{path}: files.slide has 0 names; at least 1 is needed, like {{split}}/{{image_id}}.tif")
    inside = {key: [getattr(files, key)] for key in ("sample", "submission", "table", "labels")}
    for key, patterns in {**inside, "slide": files.slide}.items():
        for pattern in patterns:
            if pattern.startswith("/") or ".." in pattern.split("/"):
                raise ConfigError(f"{path}: files.{key} has {pattern!r}; a name inside the split's folder is needed")
    if any("{" not in pattern.replace("{split}", "") for pattern in files.slide):
        raise ConfigError(f"{path}: files.slide is {list(files.slide)}; each needs {{image_id}} or another placeholder")


def _check_pattern(pattern: str, where: str, allowed: tuple[str, ...] | None, needed: tuple[str, ...]) -> None:
    """Raise ConfigError for a malformed or unknown placeholder; with `allowed` None any column is known."""
    try:
        fields = [field for _, field, form, change in _parsed(pattern) if not (form or change)]
        malformed = len(fields) < len(list(_parsed(pattern)))
    except ValueError as error:
        raise ConfigError(f"{where} is {pattern!r}: {error}; write a placeholder like {{split}}") from error
    known = ", ".join(f"{{{name}}}" for name in allowed) if allowed else ANY_PLACEHOLDER
    bad = [field for field in fields if (allowed is not None and field not in allowed) or not COLUMN.fullmatch(field)]
    if bad or malformed:
        raise ConfigError(f"{where} is {pattern!r}: {{{bad[0] if bad else '…'}}} is unknown; allowed: {known}")
    if needed and not set(needed) & set(fields):
        raise ConfigError(f"{where} is {pattern!r}; it needs {' or '.join(f'{{{name}}}' for name in needed)}")


def _parsed(pattern: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the placeholders of a pattern. Raises ValueError for one that is not closed."""
    for text, field, form, change in Formatter().parse(pattern):
        if field is not None:
            yield text, field, form or "", change or ""


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raise ConfigError for a class named as one of COLUMNS_OF_TABLES.

    `where` names the list of classes.
    """
    if taken := [name for name in names if name in COLUMNS_OF_TABLES]:
        raise ConfigError(
            f"{where} has {taken[0]!r}, as a column of the tables of predictions is named; rename the class; taken "
            f"are: {', '.join(COLUMNS_OF_TABLES)}"
        )


def _check_classes(competition: Competition, path: Path) -> None:
    classes = competition.classes
    if len(classes.names) < 2:
        raise ConfigError(f"{path}: classes.names has {len(classes.names)} entries, at least 2 are needed")
    if len({label_key(name) for name in classes.names}) < len(classes.names):
        raise ConfigError(f"{path}: classes.names is {', '.join(classes.names)}; each must be there once")
    check_class_names(classes.names, f"{path}: classes.names")
    for key in ("weights", "priors", "fallback"):
        values = getattr(classes, key)
        if len(values) != len(classes.names):
            raise ConfigError(f"{path}: classes.{key} has {len(values)} entries, classes.names {len(classes.names)}")
        if not (min(values) >= 0 and 0 < sum(values) < math.inf):
            raise ConfigError(f"{path}: classes.{key} is {list(values)}; it must be non-negative with a positive sum")
    if METRICS[competition.metric.name].balanced and min(classes.weights) <= 0:
        raise ConfigError(f"{path}: classes.weights is {list(classes.weights)}; each must be above 0")


def _check_submission(competition: Competition, path: Path) -> None:
    """Raise ConfigError for a form, a rule or columns that do not fit the classes."""
    wanted, names = competition.submission, competition.classes.names
    count = len(names) if wanted.form is Form.PROBABILITIES else 1
    if len(wanted.columns) != count or len(set(competition.header)) != count + 1:
        raise ConfigError(
            f"{path}: submission.columns is {list(wanted.columns)} beside the id {wanted.id}; the form "
            f"{wanted.form.value!r} needs {count}, each another"
        )
    if wanted.form is Form.PROBABILITY and len(names) != 2:
        raise ConfigError(f"{path}: submission.form is 'probability', which takes 2 classes; there are {len(names)}")
    if wanted.unit is Unit.PATIENT and not competition.columns.patient:
        raise ConfigError(f"{path}: submission.unit is 'patient', but columns.patient is empty; name the column")
    if wanted.id == (competition.columns.patient if competition.by_image else competition.columns.image):
        raise ConfigError(
            f"{path}: submission.id is {wanted.id!r}, but a row is one {wanted.unit}: name its column, or another unit"
        )
    settings: Mapping[str, bool] = {"rule": wanted.rule is not Rule.ARGMAX, "fallback": bool(wanted.fallback)}
    for key, is_set in settings.items():
        if is_set and wanted.form is not Form.LABEL:
            raise ConfigError(f'{path}: submission.{key} is set, form {wanted.form.value!r}; it takes form = "label"')
    if (METRICS[competition.metric.name].takes is Takes.LABELS) != (wanted.form is Form.LABEL):
        of_labels = ", ".join(name for name, one in METRICS.items() if one.takes is Takes.LABELS)
        raise ConfigError(
            f"{path}: metric.name is {competition.metric.name!r}, form {wanted.form.value!r}; {of_labels} take labels, "
            "the others of probabilities"
        )
    if bool(wanted.outlier) != (wanted.rule is Rule.OUTLIER) or wanted.outlier.casefold() in map(str.casefold, names):
        raise ConfigError(
            f"{path}: submission.outlier is {wanted.outlier!r}, rule {wanted.rule.value!r}; the rule 'outlier' needs a "
            "label that is not among classes.names, and no other rule takes one"
        )
    if wanted.fallback and wanted.fallback not in competition.answers:
        raise ConfigError(
            f"{path}: submission.fallback is {wanted.fallback!r}; allowed: {', '.join(competition.answers)}"
        )


def _check_kaggle(kaggle: Kaggle, path: Path) -> None:
    """Raise ConfigError for names that Kaggle would change, and so file a kernel or a dataset elsewhere."""
    for key in ("kernel", "datasets"):
        name = getattr(kaggle, key)
        if not KAGGLE_NAME.fullmatch(name):
            raise ConfigError(f"{path}: kaggle.{key} is {name!r}; words of a-z and 0-9 with hyphens between are needed")
    for key, allowed in (("weights_as", WEIGHTS_AS), ("wheels_as", WHEELS_AS)):
        if getattr(kaggle, key) not in allowed:
            raise ConfigError(f"{path}: kaggle.{key} is {getattr(kaggle, key)!r}; allowed: {', '.join(allowed)}")
    if kaggle.sources and not kaggle.hosted:
        raise ConfigError(f"{path}: kaggle.sources has {len(kaggle.sources)} entries, kaggle.hosted is false; 0 fit")


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
