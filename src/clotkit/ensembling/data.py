"""Read out-of-fold predictions and labels, and refuse what would make a blend's estimate wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.data.groups import connected_groups
from clotkit.ensembling.candidates import FOLDS, Patients, auc_error, aucs, rarest
from clotkit.errors import ConfigError, SplitError
from clotkit.members.blending import Floats, Imputer, Ints
from clotkit.members.folder import OUT_OF_FOLD
from clotkit.metric import calibration_weights
from clotkit.splits import Row, read_table
from clotkit.splits.identity import joined, without_suffix
from clotkit.splits.labels import label_of, labels_of

PREDICTIONS, FOLD = "predictions", "fold"
MAX_MISSING = 0.5  # share of the labelled slides that a member may lack
MAX_LEAD, MAX_LEAD_ERRORS = 0.1, 4.0  # of a member's AUC over the others' median, absolute and in standard errors
MIN_PATIENTS = 10  # of each of two classes: five folds within four fifths of them
SAME = 1e-9  # probabilities that differ by less are equal


REPEATS, SEED = 10, 0


@dataclass(frozen=True)
class BlendSettings:
    """The settings of one `clotkit blend`."""

    predictions: Sequence[Path]  # one table of out-of-fold predictions a member
    labels: Path
    out: Path
    covariates: Path | None = None  # accepted for older scripts, and ignored
    trusted: Sequence[str] = ()  # members that skip the leakage check
    repeats: int = REPEATS
    tabular: Sequence[str] = ()  # columns of the labels' table that become inputs if they lower the nested loss


@dataclass(frozen=True)
class Predictions:
    """The members' predictions of labelled slides, checked one by one."""

    members: tuple[str, ...]
    p: Floats  # [slides, M, C], NaN where a member has not predicted a slide
    labels: pd.DataFrame  # by slide: patient, centre, label, and unit, whose answer a row of the submission is
    groups: Mapping[str, str]  # {patient: earlier patient} that shares pixels with it
    notes: list[str]  # one line for people on everything unusual
    labelled: pd.DataFrame  # as `labels`, with the slides that are left out

    def units(self) -> "UnitTable":
        """Return the units that the slides belong to."""
        names, first, owner = np.unique(self.labels["unit"].to_numpy(str), return_index=True, return_inverse=True)
        patients = self.labels["patient"].to_numpy(str)[first]
        groups = np.unique([self.groups.get(name, name) for name in patients], return_inverse=True)[1]
        label, centres = self.labels["label"].to_numpy(np.int64)[first], self.labels["centre"].to_numpy(str)[first]
        return UnitTable(tuple(names.tolist()), owner, label, centres, groups)


@dataclass(frozen=True)
class UnitTable:
    """The units that are scored: patients, or slides where each has its own answer."""

    names: tuple[str, ...]
    owner: Ints  # [slides], the index of each slide's unit
    label: Ints  # [n], class indices
    centres: npt.NDArray[np.str_]  # [n]
    groups: Ints  # [n]; units of one patient, and patients that share pixels, share a group


@dataclass(frozen=True)
class BlendInputs:
    """The checked inputs of a blend of two classes."""

    members: tuple[str, ...]
    imputer: Imputer
    patients: Patients
    names: tuple[str, ...]  # of the patients
    centres: npt.NDArray[np.str_]  # [n]
    groups: Ints  # [n]; patients that share pixels share a group
    slides: int
    notes: tuple[str, ...]  # one line for people on everything unusual


def imputer_of(p: Floats) -> Imputer:
    """Return the joint Gaussian of probabilities [slides, M, K], NaN where they are missing."""
    table = pd.DataFrame(p.reshape(len(p), -1))
    return Imputer(table.mean().to_numpy(), table.cov().fillna(0.0).to_numpy())


def read_inputs(
    paths: Sequence[Path], labels_path: Path, competition: Competition, trusted: Sequence[str] = ()
) -> BlendInputs:
    """Read and check predictions and labels of two classes, average tiles, and impute missing predictions.

    Raises as read_predictions, and ConfigError for too few patients, reversed classes, or predictions that are not out
    of fold (an AUC too far ahead of the others').
    """
    return two_class_inputs(read_predictions(paths, labels_path, competition), competition, trusted)


def two_class_inputs(read: Predictions, competition: Competition, trusted: Sequence[str]) -> BlendInputs:
    """Return the inputs of a blend of two classes. Raises ConfigError as read_inputs."""
    classes, imputer, units = competition.classes, imputer_of(read.p[:, :, 1:]), read.units()
    negative, positive = calibration_weights(competition.metric.name, classes.weights, classes.priors)
    patients = Patients(imputer.fill(read.p[:, :, 1]), units.owner, units.label, positive / negative)
    check_count(units.label, MIN_PATIENTS, competition)
    check_groups(units.label, units.groups, FOLDS)
    check_aucs(read.members, aucs(patients.means, units.label), auc_error(units.label), len(units.label), trusted)
    return BlendInputs(
        read.members, imputer, patients, units.names, units.centres, units.groups, len(read.p), tuple(read.notes)
    )


def read_predictions(paths: Sequence[Path], labels_path: Path, competition: Competition) -> Predictions:
    """Read and check predictions and labels, and average tiles.

    Raises:
        ConfigError: A table is malformed, or its predictions are not out of fold (a patient in two folds), or too few
            predictions are left.
        SplitError: The table of labels cannot be read.
    """
    labels, notes = read_labels(labels_path, competition), list[str]()
    slides: dict[str, pd.DataFrame] = {}
    for path in paths:
        name, table = member_name(path), _read_table(path, labels, competition)
        if name in slides:
            raise ConfigError(f"{path}: a second file of the member {name}; give each member its own name")
        slides[name] = table.groupby("image").mean()
        if len(slides[name]) < len(table):
            notes.append(f"{name}: {len(table)} tiles are averaged to {len(slides[name])} slides")
        if unlabelled := len(slides[name].index.difference(labels.index)):
            notes.append(f"{name}: {unlabelled} unlabelled slides are ignored")
    p = np.stack([one.reindex(labels.index).to_numpy() for one in slides.values()], axis=1)  # [slides, M, C]
    groups = _duplicates(p, labels["patient"], notes)
    valid = _is_valid(labels, slides, competition, notes)
    return _usable(Predictions(tuple(slides), p[valid], labels.iloc[np.flatnonzero(valid)], groups, notes, labels))


def read_labels(path: Path, competition: Competition) -> pd.DataFrame:
    """Read a table like train.csv: patient, centre, label (a class index) and unit of each image id.

    Where the competition has its labels in a table of their own, `path` is either of the two tables.

    Raises SplitError for an unreadable table, ConfigError for wrong labels, repeated images among them.
    """
    columns = competition.columns
    rows = read_table(path, [columns.image], [columns.label, *filter(None, [columns.patient, columns.center])])
    images = [without_suffix(row[columns.image]) for row in rows]
    for image, count in Counter(images).items():
        if count > 1:
            raise ConfigError(f"{path}: {image} has {count} rows, allowed: 1")
    if columns.label not in rows[0] and not competition.files.labels:
        raise SplitError(f"{path}: no column {columns.label}; it has: {', '.join(rows[0])}")
    frame = pd.DataFrame(
        {"centre": [row.get(columns.center, "") for row in rows], "label": _labels(rows, path, competition)},
        index=images,
    )
    frame["patient"] = [one.patient_id for one in joined(rows, str(path), competition, None)]
    frame["unit"] = frame.index if competition.by_image else frame["patient"]
    several = frame.groupby("unit")["label"].nunique()
    for unit in several.index[several > 1]:
        raise ConfigError(f"{path}: patient {unit} has slides of several classes, allowed: 1 class")
    return frame


def _labels(rows: Sequence[Row], path: Path, competition: Competition) -> Ints:
    """Return the class index of each row. Raises ConfigError for one that is none, or is missing."""
    try:
        if competition.columns.label in rows[0]:
            labels = [label_of(row, str(path), competition) for row in rows]
        else:
            identities = joined(rows, str(path), competition, None)
            labels = labels_of(identities, path.parent, str(path), competition, lambda _: None)
    except SplitError as error:
        raise ConfigError(str(error)) from error
    return np.array(labels, np.int64)


def read_facts(path: Path, images: Sequence[str], columns: Sequence[str], competition: Competition) -> list[Row]:
    """Return the row of each image that has the columns.

    It is in the table of labels, or in the table of slides beside it.

    Raises ConfigError for a column or an image that neither has.
    """
    beside = competition.table_path(path.parent, "train")
    for table in [path, *([beside] if beside != path and beside.is_file() else [])]:
        rows = read_table(table, [competition.columns.image], columns)
        if set(columns) <= rows[0].keys():
            of_image = {without_suffix(row[competition.columns.image]): row for row in rows}
            if missing := [image for image in images if image not in of_image]:
                raise ConfigError(f"{table}: no row of {missing[0]}, {len(missing)} in all; --tabular needs each one's")
            return [of_image[image] for image in images]
    lacking = ", ".join(name for name in columns if name not in rows[0])
    raise ConfigError(f"{table}: no column {lacking} for --tabular; it has: {', '.join(rows[0])}")


def member_name(path: Path) -> str:
    """Return a member's name: the folder's for the table that training writes, else the file's."""
    if path.name != OUT_OF_FOLD:
        return path.stem
    folder = path.parent  # a link to a member's folder keeps its own name
    return folder.name if folder.name not in {"", ".."} else folder.resolve().name


def _read_table(path: Path, labels: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Return the columns image and p of each class, one row a slide or a tile."""
    classes, columns = list(competition.classes.names), competition.columns
    try:
        raw = pd.DataFrame(read_table(path, [], [columns.image, PREDICTIONS, *classes, FOLD]))
    except SplitError as error:
        raise ConfigError(str(error)) from error
    image = "image" if columns.image not in raw and "image" in raw else columns.image
    wanted = [PREDICTIONS] if PREDICTIONS in raw and len(classes) == 2 else classes
    if not {image, *wanted} <= set(raw.columns):
        positive = f"{PREDICTIONS} (the probability of {classes[-1]}) or " * (len(classes) == 2)
        needed = f"{image}, and {positive}{', '.join(classes)}"
        raise ConfigError(f"{path}: columns are {', '.join(raw.columns)}; needed: {needed}")
    raw[image] = raw[image].map(without_suffix)
    known = raw[image].isin(labels.index)
    if not known.any():
        raise ConfigError(f"{path}: 0 of its {len(raw)} images are among the {len(labels)} labelled ones")
    numbers = raw[wanted].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    total = numbers.sum(axis=1) if len(wanted) > 1 else np.ones(len(raw))
    bad = ~((numbers >= 0) & (numbers <= 1)).all(axis=1) | ~(np.abs(total - 1) <= 0.01)
    if bad.any():
        first, *values = raw[[image, *wanted]].iloc[int(bad.argmax())]
        raise ConfigError(f"{path}: {first} has {', '.join(values)}: no probability; {int(bad.sum())} such rows")
    if FOLD in raw:
        folds = raw[known].groupby(raw[image].map(labels["patient"]))[FOLD].unique()
        for patient, seen in folds[folds.str.len() > 1].items():
            raise ConfigError(
                f"{path}: patient {patient} is in the folds {' and '.join(sorted(seen))}, allowed: 1; "
                "these predictions are not out of fold: train with folds by patient"
            )
    p = numbers / total[:, None] if len(wanted) > 1 else np.column_stack([1 - numbers, numbers])
    return pd.DataFrame(p, columns=range(len(classes))).assign(image=raw[image])


def _is_valid(
    labels: pd.DataFrame, slides: Mapping[str, pd.DataFrame], competition: Competition, notes: list[str]
) -> npt.NDArray[np.bool_]:
    """Return a mask of the slides: False if a member has also predicted the same pixels in another table."""
    valid = pd.Series(True, index=labels.index)
    for pair in competition.ids.twins:
        ids = pair.split(" = ")
        here = [image for image in ids if image in labels.index]
        leaky = [name for name, p in slides.items() if set(ids) <= set(p.index)]
        if len(here) == 1 and leaky:
            valid[here[0]] = False
            notes.append(f"{here[0]} is left out: {pair} have the same pixels, and {leaky[0]} predicts both")
        elif len(here) == 1:
            notes.append(f"{here[0]}: {pair} have the same pixels; valid unless a member was trained on the other one")
    return valid.to_numpy()


def _duplicates(p: Floats, patient: pd.Series, notes: list[str]) -> dict[str, str]:
    """Return {patient: earlier patient} where two or more members agree on slides: the same pixels.

    Patients that a chain of such slides links have the same one.
    """
    first, pairs = dict[bytes, str](), list[tuple[int, int]]()
    differ = (p.max(axis=1) - p.min(axis=1)).max(axis=1) >= SAME  # [slides]; False where a member is missing
    number, names = pd.factorize(patient)
    number_of = dict(zip(patient.index, number.tolist(), strict=True))
    for image, row in zip(patient.index[differ], p[differ], strict=True):
        other = first.setdefault((row + 0.0).tobytes(), image)
        if number_of[other] != number_of[image]:
            pairs.append((number_of[other], number_of[image]))
            notes.append(f"{image} and {other} have the same predictions: their patients share a fold")
    groups = connected_groups(len(names), np.array(pairs, np.int64).reshape(-1, 2))
    leaders = np.unique(groups, return_index=True)[1][groups]  # [patients], the first of each group
    return {names[at]: names[leader] for at, leader in enumerate(leaders) if leader != at}


def _usable(read: Predictions) -> Predictions:
    """Return the predictions without constant members and without slides that no member has predicted."""
    p, notes = read.p, read.notes
    missing = np.isnan(p[:, :, -1])  # [slides, M]
    for name, count in zip(read.members, missing.sum(axis=0).tolist(), strict=True):
        if count > MAX_MISSING * len(p):
            raise ConfigError(f"{name}: {count} of {len(p)} slides lack a prediction, allowed: {MAX_MISSING:.0%}")
        if count and len(read.members) > 1:
            notes.append(f"{name}: {count} slides without a prediction are imputed from the other members")
    constant = (np.nanmax(p, axis=0) - np.nanmin(p, axis=0)).max(axis=1) < SAME  # [M]
    for at in np.flatnonzero(constant).tolist():
        value = ", ".join(f"{one:.4f}" for one in np.nanmax(p[:, at, 1 if p.shape[2] == 2 else 0 :], axis=0))
        notes.append(f"{read.members[at]} is left out: it is constant, {value}")
    if constant.all():
        raise ConfigError(f"{', '.join(read.members)}: all members are constant, at least 1 must vary")
    kept = ~missing[:, ~constant].all(axis=1)
    if not kept.all():
        notes.append(f"{int((~kept).sum())} slides without any prediction are left out")
    members = tuple(name for name, is_flat in zip(read.members, constant, strict=True) if not is_flat)
    labels = read.labels.iloc[np.flatnonzero(kept)]
    return replace(read, members=members, p=p[kept][:, ~constant], labels=labels)


def check_count(label: Ints, least: int, competition: Competition) -> None:
    """Raise ConfigError for fewer than `least` units of a class."""
    unit = "slides" if competition.by_image else "patients"
    names = competition.classes.names
    for name, count in zip(names, np.bincount(label, minlength=len(names)), strict=True):
        if count < least:
            raise ConfigError(f"{count} {unit} of class {name}, at least {least} are needed")


def check_groups(label: Ints, groups: Ints, least: int) -> None:
    """Raise ConfigError if fewer than `least` groups have units of a class."""
    if (count := rarest(label, groups)) < least:
        raise ConfigError(f"a class has {count} groups of related slides, at least {least} are needed")


def check_aucs(members: Sequence[str], areas: Floats, error: float, units: int, trusted: Sequence[str]) -> None:
    """Raise ConfigError for reversed classes, or an AUC too good to be out of fold."""
    for at, (name, area) in enumerate(zip(members, areas, strict=True)):
        median = np.median(np.delete(areas, at)) if len(areas) > 1 else area
        if area < 0.5 - 2 * error:
            raise ConfigError(
                f"{name}: AUC {area:.3f} over {units} patients, chance is 0.5: its classes look "
                "reversed; give the probability of the last class"
            )
        if area - median > max(MAX_LEAD, MAX_LEAD_ERRORS * error) and name not in trusted:
            raise ConfigError(
                f"{name}: AUC {area:.3f}, the others' median is {median:.3f}: it seems to have been trained on these "
                f"labels; give out-of-fold predictions, or pass --trust {name}"
            )
