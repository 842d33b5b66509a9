"""Out-of-fold predictions and their labels, read and looked at closely before anything is fitted to them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.ensembling.candidates import Patients, auc_error, aucs, cross_fitted_platt
from clotkit.errors import ConfigError
from clotkit.members.blending import COVARIATES, Expectation, Floats, Ints, covariates_of
from clotkit.members.folder import OUT_OF_FOLD
from clotkit.members.pooling import TILE_POOLS
from clotkit.splits import patient_in, read_table

PREDICTIONS, FOLD = "predictions", "fold"
MOST_MISSING = 0.5  # of the slides, in a member that is still used
JUMP, JUMP_ERRORS = 0.1, 4.0  # how far ahead of the others, in AUC and in its standard errors, nobody is honestly
MIN_PATIENTS = 10  # of each class: five folds within four fifths of them
SAME = 1e-9


@dataclass(frozen=True)
class Labels:
    """The labelled slides, in the order of their table."""

    images: tuple[str, ...]
    patients: tuple[str, ...]
    centres: tuple[str, ...]
    positive: Ints  # 0 or 1 a slide


@dataclass(frozen=True)
class Member:
    """One member's predictions by image id, and the fold of each where its file says so."""

    name: str
    path: Path
    p: Mapping[str, float]
    seen: frozenset[str]  # every image id of its file
    folds: Mapping[str, str]
    tile_pool: str = ""  # how its tiles were pooled, where the file has tiles


@dataclass(frozen=True)
class Material:
    """What a blend is fitted to: patients without gaps, who they are, and what was found on the way."""

    members: tuple[str, ...]
    expectation: Expectation
    patients: Patients
    names: tuple[str, ...]  # of the patients
    groups: Ints  # patients that share pixels share a group
    slides: int
    tile_pools: Mapping[str, str]
    notes: tuple[str, ...]


def read_material(
    paths: Sequence[Path],
    labels_path: Path,
    competition: Competition,
    trusted: Sequence[str] = (),
    covariates: Path | None = None,
) -> Material:
    """Read predictions and labels, refuse what cannot be right, and name what is odd.

    Raises ConfigError for a file that is no table of predictions, for predictions that a member made of patients it was
    trained on (as far as that shows), for reversed classes, for a patient in two folds; SplitError for bad labels.
    """
    labels = read_labels(labels_path, competition)
    notes: list[str] = []
    members = [_read_member(path, labels, competition, notes) for path in paths]
    _check_names(members)
    for member in members:
        _check_folds(member, labels)
    kept = _without_twins(labels, members, competition, notes)
    table = np.array([[member.p.get(image, np.nan) for member in members] for image in labels.images])  # [S, M]
    groups = _twin_groups(labels, members, table, notes)
    used = _used_members(members, table[kept], notes)
    members, table = [members[at] for at in used], table[:, used]
    silent = np.isnan(table).all(axis=1)
    if (silent & kept).any():
        notes.append(f"{int((silent & kept).sum())} slides have no prediction at all and are left out")
    kept &= ~silent
    material = _gathered(labels, members, table, kept, groups, competition, covariates, notes)
    _check_signal(material, trusted)
    return material


def read_labels(path: Path, competition: Competition) -> Labels:
    """Read a table like train.csv. Raises SplitError where it is none, ConfigError for other classes than two."""
    columns, classes = competition.columns, competition.classes.names
    if len(classes) != 2:
        raise ConfigError(f"{path}: blend tells two classes apart, {competition.slug} has {len(classes)}")
    rows = read_table(path, [columns.image, columns.label])
    unknown = sorted({row[columns.label] for row in rows} - set(classes))
    if unknown:
        raise ConfigError(f"{path}: {columns.label} {unknown[0]!r} is no class; classes: {', '.join(classes)}")
    images = tuple(row[columns.image] for row in rows)
    _refuse_repeats(images, path)
    patients = tuple(row.get(columns.patient) or patient_in(row[columns.image], competition) for row in rows)
    centres = tuple(row.get(columns.center, "") for row in rows)
    positive = np.array([classes.index(row[columns.label]) for row in rows])
    seen: dict[str, int] = {}
    for patient, label in zip(patients, positive.tolist(), strict=True):
        if seen.setdefault(patient, label) != label:
            raise ConfigError(f"{path}: patient {patient} has slides of both classes; a patient has one")
    return Labels(images, patients, centres, positive)


def member_name(path: Path) -> str:
    """A member's name: its folder's for the file that training leaves there, else the file's."""
    return path.resolve().parent.name if path.name == OUT_OF_FOLD else path.stem


def _read_member(path: Path, labels: Labels, competition: Competition, notes: list[str]) -> Member:
    table = _table(path, competition)
    name, known = member_name(path), set(labels.images)
    strangers = int((~table["image"].isin(known)).sum())
    if strangers == len(table):
        raise ConfigError(f"{path}: none of its {len(table)} images is among the {len(known)} labelled ones")
    if strangers:
        notes.append(f"{name}: {strangers} rows are of images without a label: not used")
    tile_pool = ""
    if table["image"].duplicated().any():
        tile_pool = _best_tile_pool(table, labels, competition, name, notes)
        p = table.groupby("image", sort=False)["p"].agg(TILE_POOLS[tile_pool])
    else:
        p = table.set_index("image")["p"]
    folds = dict(zip(table["image"], table[FOLD].astype(str), strict=True)) if FOLD in table else {}
    return Member(name, path, dict(zip(p.index, p.tolist(), strict=True)), frozenset(table["image"]), folds, tile_pool)


def _table(path: Path, competition: Competition) -> pd.DataFrame:
    """image, p (of the positive class) and, where there is one, fold: a row a slide or a tile."""
    try:
        raw = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ConfigError(f"{path}: cannot be read: {why}") from error
    image = next((column for column in (competition.columns.image, "image") if column in raw), None)
    classes = competition.classes.names
    wanted = [PREDICTIONS] if PREDICTIONS in raw else list(classes)
    if image is None or not set(wanted) <= set(raw.columns):
        raise ConfigError(
            f"{path}: columns are {', '.join(raw.columns)}; needed: {competition.columns.image}, and "
            f"{PREDICTIONS} (the probability of {classes[-1]}) or {', '.join(classes)}"
        )
    if raw.empty:
        raise ConfigError(f"{path}: 0 rows, at least 1 is needed")
    numbers = raw[wanted].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~(np.isfinite(numbers) & (numbers >= 0) & (numbers <= 1)).all(axis=1)
    if len(wanted) > 1:
        bad |= np.abs(numbers.sum(axis=1) - 1) > 0.01
    if bad.any():
        at = int(bad.argmax())
        said = ", ".join(raw[wanted].iloc[at])
        raise ConfigError(f"{path}: {raw[image].iloc[at]} has {said}: no probability; {int(bad.sum())} rows like it")
    found = pd.DataFrame(
        {"image": raw[image], "p": numbers[:, -1] / numbers.sum(axis=1) if len(wanted) > 1 else numbers[:, 0]}
    )
    return found.assign(**{FOLD: raw[FOLD]}) if FOLD in raw else found


def _best_tile_pool(table: pd.DataFrame, labels: Labels, competition: Competition, name: str, notes: list[str]) -> str:
    """How tiles become a slide: the mean, unless another way is better by more than its standard error."""
    losses = {}
    for pool, function in TILE_POOLS.items():
        p = table.groupby("image")["p"].agg(function)
        rows = np.array([at for at, image in enumerate(labels.images) if image in p.index])
        names, owner = np.unique(np.array(labels.patients)[rows], return_inverse=True)
        label = np.zeros(len(names), np.int64)
        label[owner] = labels.positive[rows]
        slides = p.loc[[labels.images[at] for at in rows]].to_numpy()
        losses[pool] = cross_fitted_platt(slides, owner, label, _odds(competition))
    mean, best = losses["mean"], min(losses, key=lambda pool: losses[pool].sum())
    ahead = mean - losses[best]
    error = float(ahead.std() * np.sqrt(len(ahead)))
    found = best if ahead.sum() > error else "mean"
    scores = ", ".join(f"{pool} {loss.sum():.4f}" for pool, loss in losses.items())
    notes.append(f"{name}: {len(table)} tiles of {table['image'].nunique()} slides, pooled by their {found} ({scores})")
    return found


def _check_names(members: Sequence[Member]) -> None:
    for name, count in Counter(member.name for member in members).items():
        if count > 1:
            paths = ", ".join(str(member.path) for member in members if member.name == name)
            raise ConfigError(f"{name}: {count} files have this name ({paths}); a member has a name of its own")


def _check_folds(member: Member, labels: Labels) -> None:
    """Refuse a patient in two folds: then one of its slides was predicted by a network that had seen another."""
    found: dict[str, str] = {}
    for image, patient in zip(labels.images, labels.patients, strict=True):
        if image in member.folds and found.setdefault(patient, member.folds[image]) != member.folds[image]:
            raise ConfigError(
                f"{member.path}: patient {patient} is in the folds {found[patient]} and {member.folds[image]}; "
                "its predictions are not out of fold: train with folds by patient"
            )


def _without_twins(
    labels: Labels, members: Sequence[Member], competition: Competition, notes: list[str]
) -> npt.NDArray[np.bool_]:
    """Which slides are used: not one whose pixels the competition has twice, where a member was shown both."""
    kept = np.ones(len(labels.images), bool)
    for pair in competition.ids.twins:
        ids = pair.split(" = ")
        here = [image for image in ids if image in labels.images]
        if len(here) != 1:
            continue
        seen = [member.name for member in members if set(ids) <= member.seen]
        if seen:
            kept[labels.images.index(here[0])] = False
            notes.append(f"{here[0]} is left out: {pair} are the same pixels, and {seen[0]} was shown both")
        else:
            notes.append(f"{here[0]}: {pair} are the same pixels; sound unless a member was trained on the other table")
    return kept


def _twin_groups(labels: Labels, members: Sequence[Member], table: Floats, notes: list[str]) -> dict[str, str]:
    """Patients whose slides are the same to every member, and so the same pixels: {patient: the first such patient}."""
    joined: dict[str, str] = {}
    if len(members) < 2:
        return joined
    first: dict[bytes, int] = {}
    for at, row in enumerate(table):
        if np.isnan(row).any() or np.ptp(row) < SAME:
            continue
        other = first.setdefault(row.tobytes(), at)
        one, two = labels.patients[other], labels.patients[at]
        if one != two:
            joined[two] = joined.get(one, one)
            notes.append(f"{labels.images[at]} is {labels.images[other]} to every member: their patients share folds")
    return joined


def _used_members(members: Sequence[Member], table: Floats, notes: list[str]) -> list[int]:
    """Which members are used: not constant ones. Raises ConfigError where too much is missing, or nothing is left."""
    used = []
    for at, member in enumerate(members):
        values = table[:, at]
        missing = int(np.isnan(values).sum())
        if missing > MOST_MISSING * len(values):
            raise ConfigError(
                f"{member.path}: {missing} of {len(values)} labelled slides have no prediction, "
                f"at most {MOST_MISSING:.0%} may; predict them, or leave the file out"
            )
        if missing:
            notes.append(f"{member.name}: {missing} slides without a prediction; the other members stand in")
        if np.nanmax(values) - np.nanmin(values) < SAME:
            notes.append(f"{member.name}: is left out: it says {np.nanmax(values):.4f} of every slide")
        else:
            used.append(at)
    if not used:
        raise ConfigError(f"{', '.join(member.name for member in members)}: constant, every one; nothing to blend")
    return used


def _gathered(
    labels: Labels,
    members: Sequence[Member],
    table: Floats,
    kept: npt.NDArray[np.bool_],
    joined: Mapping[str, str],
    competition: Competition,
    covariates: Path | None,
    notes: list[str],
) -> Material:
    patients, owner = np.unique(np.array(labels.patients)[kept], return_inverse=True)
    label, centre = np.zeros(len(patients), np.int64), np.array([""] * len(patients), object)
    label[owner] = labels.positive[kept]
    centre[owner] = np.array(labels.centres, object)[kept]
    for at, name in enumerate(competition.classes.names):
        if (count := int((label == at).sum())) < MIN_PATIENTS:
            raise ConfigError(f"{count} patients of class {name}, at least {MIN_PATIENTS} are needed to fit and check")
    p = table[kept]
    expectation = Expectation(np.nanmean(p, axis=0), pd.DataFrame(p).cov().fillna(0.0).to_numpy())
    sizes = _sizes(covariates, [image for image, used in zip(labels.images, kept, strict=True) if used], competition)
    names = patients.tolist()
    return Material(
        members=tuple(member.name for member in members),
        expectation=expectation,
        patients=Patients(
            p=expectation.filled(p),
            owner=owner,
            label=label,
            centres=centre.astype(np.str_),
            covariates=covariates_of(owner, len(names), sizes),
            sizes=tuple(sizes),
            odds=_odds(competition),
        ),
        names=tuple(names),
        groups=np.unique([joined.get(name, name) for name in names], return_inverse=True)[1],
        slides=int(kept.sum()),
        tile_pools={member.name: member.tile_pool for member in members if member.tile_pool},
        notes=tuple(notes),
    )


def _check_signal(material: Material, trusted: Sequence[str]) -> None:
    """Refuse reversed classes, and a member that is too far ahead of the others to be out of fold."""
    patients = material.patients
    found = aucs(patients.means, patients.label)
    error = auc_error(patients.label)
    for at, name in enumerate(material.members):
        others = np.delete(found, at)
        if found[at] < 0.5 - 2 * error:
            raise ConfigError(
                f"{name}: AUC {found[at]:.3f} over {len(patients.label)} patients, 0.5 is chance: its classes look "
                "reversed; the column is the probability of the last class"
            )
        ahead = found[at] - np.median(others) if len(others) else 0.0
        if ahead > max(JUMP, JUMP_ERRORS * error) and name not in trusted:
            raise ConfigError(
                f"{name}: AUC {found[at]:.3f}, the others' median is {np.median(others):.3f}: that far ahead, it has "
                f"seen these labels; give out-of-fold predictions, or say --trust {name}"
            )


def _sizes(path: Path | None, images: Sequence[str], competition: Competition) -> dict[str, list[float]]:
    """Those of COVARIATES that a table has, a value a slide; NaN where it says nothing."""
    if path is None:
        return {}
    rows = {row[competition.columns.image]: row for row in read_table(path, [competition.columns.image])}
    present = [name for name in COVARIATES if name in next(iter(rows.values()))]
    if not present:
        raise ConfigError(f"{path}: has none of the columns {', '.join(COVARIATES)}")
    return {name: [_number(rows.get(image, {}).get(name, "")) for image in images] for name in present}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _odds(competition: Competition) -> float:
    return competition.classes.weights[1] / competition.classes.weights[0]


def _refuse_repeats(images: Sequence[str], path: Path) -> None:
    image, count = Counter(images).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{path}: {image} stands {count} times; a slide has one row")
