"""Read out-of-fold predictions and labels, and refuse what would make a blend's estimate wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.ensembling.candidates import Patients, auc_error, aucs
from clotkit.errors import ConfigError, SplitError
from clotkit.members.blending import Imputer, Ints
from clotkit.members.folder import OUT_OF_FOLD
from clotkit.splits import read_table
from clotkit.splits.identity import joined, without_suffix

PREDICTIONS, FOLD = "predictions", "fold"
MAX_MISSING = 0.5  # share of the labelled slides that a member may lack
MAX_LEAD, MAX_LEAD_ERRORS = 0.1, 4.0  # of a member's AUC over the others' median, absolute and in standard errors
MIN_PATIENTS = 10  # of each class: five folds within four fifths of them
SAME = 1e-9  # probabilities that differ by less are equal


@dataclass(frozen=True)
class BlendInputs:
    """The checked inputs of one blend."""

    members: tuple[str, ...]
    imputer: Imputer
    patients: Patients
    names: tuple[str, ...]  # of the patients
    centres: npt.NDArray[np.str_]  # [n]
    groups: Ints  # [n]; patients that share pixels share a group
    slides: int
    notes: tuple[str, ...]  # one line for people on everything unusual


def read_inputs(
    paths: Sequence[Path], labels_path: Path, competition: Competition, trusted: Sequence[str] = ()
) -> BlendInputs:
    """Read and check predictions and labels, average tiles, and impute missing predictions.

    Raises:
        ConfigError: A table is malformed, or its predictions are not out of fold (a patient in two folds, an AUC too
            far ahead of the others'), or its classes are reversed, or too few patients or predictions are left.
        SplitError: The table of labels cannot be read.
    """
    labels, notes = read_labels(labels_path, competition), list[str]()
    slides: dict[str, pd.Series] = {}
    for path in paths:
        name, table = member_name(path), _read_predictions(path, labels, competition)
        if name in slides:
            raise ConfigError(f"{path}: a second file of the member {name}; give each member its own name")
        slides[name] = table.groupby("image")["p"].mean()
        if len(slides[name]) < len(table):
            notes.append(f"{name}: {len(table)} tiles are averaged to {len(slides[name])} slides")
        if unlabelled := len(slides[name].index.difference(labels.index)):
            notes.append(f"{name}: {unlabelled} unlabelled slides are ignored")
    p = pd.DataFrame(slides, index=labels.index)  # [slides, M]
    groups = _duplicates(p, labels["patient"], notes)
    p = _usable(p[_is_valid(labels, slides, competition, notes)], notes)
    labels = labels.loc[p.index]
    imputer = Imputer(p.mean().to_numpy(), p.cov().fillna(0.0).to_numpy())
    names, first, owner = np.unique(labels["patient"].to_numpy(str), return_index=True, return_inverse=True)
    negative, positive = competition.classes.weights
    patients = Patients(imputer.fill(p.to_numpy()), owner, labels["label"].to_numpy()[first], positive / negative)
    _check_signal(patients, list(p.columns), competition, trusted)
    return BlendInputs(
        members=tuple(p.columns),
        imputer=imputer,
        patients=patients,
        names=tuple(names.tolist()),
        centres=labels["centre"].to_numpy(str)[first],
        groups=np.unique([groups.get(name, name) for name in names], return_inverse=True)[1],
        slides=len(p),
        notes=tuple(notes),
    )


def read_labels(path: Path, competition: Competition) -> pd.DataFrame:
    """Read a table like train.csv: patient, centre and label (1: the last class) of each image id.

    Raises SplitError for an unreadable table, ConfigError for wrong classes or labels, repeated images among them.
    """
    columns, classes = competition.columns, competition.classes.names
    if len(classes) != 2:
        raise ConfigError(f"{path}: blend needs 2 classes, {competition.slug} has {len(classes)}")
    rows = read_table(path, [columns.image, columns.label], [columns.patient, columns.center])
    labels = pd.DataFrame(
        {
            "centre": [row.get(columns.center, "") for row in rows],
            "class": [row[columns.label] for row in rows],
        },
        index=[without_suffix(row[columns.image]) for row in rows],
    )
    for image in labels.index[labels.index.duplicated()]:
        raise ConfigError(f"{path}: {image} has {int((labels.index == image).sum())} rows, allowed: 1")
    for unknown in labels["class"][~labels["class"].isin(classes)]:
        raise ConfigError(f"{path}: {columns.label} is {unknown!r}, allowed: {', '.join(classes)}")
    labels["patient"] = [one.patient_id for one in joined(rows, str(path), competition, None)]
    of_patient = labels.groupby("patient")["class"].nunique()
    for patient in of_patient.index[of_patient > 1]:
        raise ConfigError(f"{path}: patient {patient} has slides of both classes, allowed: 1 class")
    return labels.assign(label=(labels.pop("class") == classes[-1]).astype(np.int64))


def member_name(path: Path) -> str:
    """Return a member's name: the folder's for the table that training writes, else the file's."""
    return path.resolve().parent.name if path.name == OUT_OF_FOLD else path.stem


def _read_predictions(path: Path, labels: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Return the columns image and p (of the last class), one row a slide or a tile."""
    classes, columns = list(competition.classes.names), competition.columns
    try:
        raw = pd.DataFrame(read_table(path, [], [columns.image, PREDICTIONS, *classes, FOLD]))
    except SplitError as error:
        raise ConfigError(str(error)) from error
    image = "image" if columns.image not in raw and "image" in raw else columns.image
    wanted = [PREDICTIONS] if PREDICTIONS in raw else classes
    if not {image, *wanted} <= set(raw.columns):
        needed = f"{image}, and {PREDICTIONS} (the probability of {classes[-1]}) or {', '.join(classes)}"
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
    return pd.DataFrame({"image": raw[image], "p": numbers[:, -1] / total})


def _is_valid(
    labels: pd.DataFrame, slides: Mapping[str, pd.Series], competition: Competition, notes: list[str]
) -> pd.Series:
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
    return valid


def _duplicates(p: pd.DataFrame, patient: pd.Series, notes: list[str]) -> dict[str, str]:
    """Return {patient: earlier patient} where two or more members agree on slides: the same pixels."""
    joined, first = dict[str, str](), dict[tuple[float, ...], str]()
    rows = p[p.notna().all(axis=1) & (p.max(axis=1) - p.min(axis=1) >= SAME)]
    for image, row in zip(rows.index, rows.itertuples(index=False, name=None), strict=True):
        other = first.setdefault(row, image)
        if (earlier := patient[other]) != patient[image]:
            joined[patient[image]] = joined.get(earlier, earlier)
            notes.append(f"{image} and {other} have the same predictions: their patients share a fold")
    return joined


def _usable(p: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Return the predictions without constant members and without slides that no member has predicted."""
    for name, missing in p.isna().sum().items():
        if missing > MAX_MISSING * len(p):
            raise ConfigError(f"{name}: {missing} of {len(p)} slides lack a prediction, allowed: {MAX_MISSING:.0%}")
        if missing:
            notes.append(f"{name}: {missing} slides without a prediction are imputed from the other members")
    constant = p.max() - p.min() < SAME
    notes += [f"{name} is left out: it is constant, {p[name].max():.4f}" for name in p.columns[constant]]
    if constant.all():
        raise ConfigError(f"{', '.join(p.columns)}: all members are constant, at least 1 must vary")
    found = p.loc[:, ~constant].dropna(how="all")
    if len(found) < len(p):
        notes.append(f"{len(p) - len(found)} slides without any prediction are left out")
    return found


def _check_signal(patients: Patients, members: Sequence[str], competition: Competition, trusted: Sequence[str]) -> None:
    """Raise ConfigError for too few patients, reversed classes, or an AUC too good to be out of fold."""
    for name, count in zip(competition.classes.names, np.bincount(patients.label, minlength=2), strict=True):
        if count < MIN_PATIENTS:
            raise ConfigError(f"{count} patients of class {name}, at least {MIN_PATIENTS} are needed")
    areas, error = aucs(patients.means, patients.label), auc_error(patients.label)
    for at, (name, area) in enumerate(zip(members, areas, strict=True)):
        median = np.median(np.delete(areas, at)) if len(areas) > 1 else area
        if area < 0.5 - 2 * error:
            raise ConfigError(
                f"{name}: AUC {area:.3f} over {len(patients.label)} patients, chance is 0.5: its classes look "
                "reversed; give the probability of the last class"
            )
        if area - median > max(MAX_LEAD, MAX_LEAD_ERRORS * error) and name not in trusted:
            raise ConfigError(
                f"{name}: AUC {area:.3f}, the others' median is {median:.3f}: it seems to have been trained on these "
                f"labels; give out-of-fold predictions, or pass --trust {name}"
            )
