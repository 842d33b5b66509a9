"""Fit an ensemble for any number of classes, for labels, or with columns of a table as further inputs.

As for two classes, every fit and every choice is made without the units that it is scored on. Where the competition
asks for labels, the decision is fitted to the out-of-fold probabilities and judged on other folds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition, Form
from clotkit.ensembling.candidates import Split, folds_of
from clotkit.ensembling.data import (
    SEED,
    BlendSettings,
    Predictions,
    UnitTable,
    check_aucs,
    check_count,
    check_groups,
    imputer_of,
    read_facts,
)
from clotkit.ensembling.units import (
    CLASS_CANDIDATES,
    MIN_UNITS,
    Units,
    choose_class,
    class_loss,
    fold_count,
    macro_auc_error,
    macro_aucs,
)
from clotkit.evaluation.scores import metric_figures, metric_line
from clotkit.members.blending import NO_COVARIATES, ClassBlend, Covariates, Floats, Ints, fill_classes, number_of
from clotkit.members.decision import Decision, fit_decision, leave_class_out, mean_decision, nested_answers
from clotkit.members.ensemble import ENSEMBLE_CALIBRATION
from clotkit.metric import calibration_weights, constant_score
from clotkit.progress import Log
from clotkit.splits.identity import BLANK
from clotkit.typed_toml import toml_value

LEAST_OF_CATEGORY = 2  # slides that a text needs to be a category of its own


@dataclass(frozen=True)
class NestedClasses:
    """The out-of-fold probabilities of nested cross-validation, one row per repeat."""

    p: Floats  # [R, n, C], by the candidate that the training units chose
    strangers: Floats  # [R, n, C], of the units without their class
    of_candidates: Floats  # [R, len(CLASS_CANDIDATES), n, C]
    fold: Ints  # [R, n]
    chosen: Floats  # [len(CLASS_CANDIDATES)], the share of the splits in which each was chosen


@dataclass(frozen=True)
class FittedClasses:
    """A fitted ensemble for any number of classes, with its figures."""

    blend: ClassBlend
    figures: dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """Units with some covariates, and their nested cross-validation."""

    units: Units
    nested: NestedClasses
    covariates: Covariates

    @property
    def loss(self) -> float:
        """Return the nested weighted log loss."""
        return float(_losses(self.nested.p, self.units).mean())


def fit_classes(read: Predictions, competition: Competition, settings: BlendSettings, log: Log) -> FittedClasses:
    """Fit and check an ensemble of the members whose predictions were read.

    Raises ConfigError for too few units of a class, predictions that are not out of fold, or an unknown column.
    """
    table = read.units()
    imputer, groups, label = imputer_of(read.p), table.groups, table.label
    units = _units(fill_classes(imputer, read.p), table, competition)
    _check(read, units, groups, competition, settings.trusted)
    folds = fold_count(label, groups)
    log(f"{len(CLASS_CANDIDATES)} candidates, {settings.repeats} x {folds} folds of {len(label)} {competition.unit}s")
    splits = [list(folds_of(units, groups, SEED + repeat, folds)) for repeat in range(settings.repeats)]
    estimate, extra = Estimate(units, cross_validate_classes(units, groups, splits), NO_COVARIATES), dict[str, Any]()
    if settings.tabular:
        facts = read_facts(settings.labels, list(read.labels.index), settings.tabular, competition)
        estimate, extra = _with_tabular(estimate, facts, settings.tabular, splits, groups, log)
    best = choose_class(estimate.units, groups, SEED)
    decision = _decision(estimate.nested, label, competition)
    calibrator = CLASS_CANDIDATES[best].fit(estimate.units)
    centres = _centre_splits(label, table)
    by_centre = cross_validate_classes(estimate.units, groups, [centres]) if centres else None
    figures = _figures(estimate, by_centre, best, competition) | {
        "members": list(read.members),
        "unit": competition.unit.value,
        "patients": len(label),
        "slides": len(read.p),
        "centres": len(np.unique(table.centres)),
        "folds": folds,
        "repeats": settings.repeats,
        "seed": SEED,
        "decision": decision and decision.to_json(),
        "notes": list(read.notes),
        "weights": dict(zip(read.members, np.round(calibrator.weights, 4).tolist(), strict=True)),
        **extra,
    }
    return FittedClasses(ClassBlend(read.members, imputer, calibrator, estimate.covariates, decision), figures)


def _units(p: Floats, table: UnitTable, competition: Competition) -> Units:
    classes = competition.classes
    weights = calibration_weights(competition.metric.name, classes.weights, classes.priors)
    return Units(p, table.owner, table.label, weights, np.zeros((len(p), 0)))


def _check(read: Predictions, units: Units, groups: Ints, competition: Competition, trusted: Sequence[str]) -> None:
    check_count(units.label, MIN_UNITS, competition)
    check_groups(units.label, groups, MIN_UNITS)
    areas = macro_aucs(units.means, units.label)
    check_aucs(read.members, areas, macro_auc_error(units.label), len(units.label), trusted)


def cross_validate_classes(units: Units, groups: Ints, splits: Sequence[Sequence[Split]]) -> NestedClasses:
    """Choose and fit on one side of each split, predict the other; a repeat's splits cover all units."""
    both = np.array([[one.cross_fit(units, folds) for one in CLASS_CANDIDATES] for folds in splits])  # [R, K, 2, n, C]
    chosen, fold = np.zeros(len(CLASS_CANDIDATES)), np.zeros((len(splits), len(units.label)), np.int64)
    best = np.zeros_like(fold)
    for repeat, folds in enumerate(splits):
        for number, (train, test) in enumerate(folds):
            fold[repeat, test] = number
            best[repeat, test] = choose_class(units.part(train), groups[train], repeat)
            chosen[best[repeat, test[0]]] += 1
    picked = np.take_along_axis(both, best[:, None, None, :, None], axis=1)[:, 0]  # [R, 2, n, C]
    return NestedClasses(picked[:, 0], picked[:, 1], both[:, :, 0], fold, chosen / chosen.sum())


def _losses(p: Floats, units: Units) -> Floats:
    """Return the weighted log loss of each repeat of `p` [R, n, C]."""
    return np.array([class_loss(rows, units) for rows in p])


def _with_tabular(
    plain: Estimate,
    facts: Sequence[Mapping[str, str]],
    columns: Sequence[str],
    splits: Sequence[Sequence[Split]],
    groups: Ints,
    log: Log,
) -> tuple[Estimate, dict[str, Any]]:
    """Return the estimate with the columns if they lower the nested loss, else the plain one; and figures."""
    covariates = covariates_of(facts, columns, log)
    units = replace(plain.units, inputs=covariates.inputs(facts))
    other = Estimate(units, cross_validate_classes(units, groups, splits), covariates)
    used = bool(covariates.columns) and other.loss < plain.loss
    said = "used" if used else "left out"
    log(f"{', '.join(columns)}: {said}; nested log loss {other.loss:.4f} with, {plain.loss:.4f} without")
    losses = rounded({"with": other.loss, "without": plain.loss})
    return other if used else plain, {"tabular": {"columns": list(columns), "used": used, **losses}}


def covariates_of(facts: Sequence[Mapping[str, str]], columns: Sequence[str], log: Log) -> Covariates:
    """Return how columns become inputs.

    A column has numbers if every cell is one or blank, as `NA` is, else texts by category. The commonest text is what
    the others are compared with, and has no input. A column that does not vary is left out.
    """
    numbers, texts = dict[str, tuple[float, float]](), dict[str, tuple[str, ...]]()
    for name in columns:
        filled = [cell for row in facts if (cell := row[name])]
        cells = [cell for cell in filled if cell.casefold() not in BLANK]
        values = np.array([number_of(cell) for cell in cells])
        frequent = [text for text, count in Counter(filled).most_common() if count >= LEAST_OF_CATEGORY]
        if cells and np.isfinite(values).all() and values.std() > 0:
            numbers[name] = round(float(values.mean()), 6), max(round(float(values.std()), 6), 1e-6)
        elif not np.isfinite(values).all() and len(frequent) > 1:
            texts[name] = tuple(sorted(frequent[1:]))
            no_number = next(cell for cell, value in zip(cells, values, strict=True) if not np.isfinite(value))
            log(f"{name}: taken as {len(frequent)} categories, because {no_number!r} is no number")
        else:
            log(f"{name}: left out: it does not vary")
    return Covariates(numbers, texts)


def _decision(nested: NestedClasses, label: Ints, competition: Competition) -> Decision | None:
    """Return the mean of the decisions that fit the repeats; None if answers are probabilities."""
    if competition.submission.form is not Form.LABEL:
        return None
    rule, metric = competition.submission.rule, competition.metric.name
    pairs = zip(nested.p, nested.strangers, strict=True)
    return mean_decision([fit_decision(rule, p, label, metric, leave_class_out(one, label)) for p, one in pairs])


def _judged(nested: NestedClasses, label: Ints, competition: Competition) -> dict[str, Any]:
    """Return the competition's metric, nested: mean and deviation over the repeats, and a constant's."""
    rule, metric = competition.submission.rule, competition.metric.name
    values = []
    for p, stranger, fold in zip(nested.p, nested.strangers, nested.fold, strict=True):
        answers = p.argmax(axis=1)
        if competition.submission.form is Form.LABEL:
            answers = nested_answers(rule, p, label, fold, metric, leave_class_out(stranger, label))
        values.append(metric_figures(p, answers, label, competition))
    return mean_figures(values)


def mean_figures(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of repeats of metric_figures, with their standard deviation."""
    numbers = [one["value"] for one in values]
    known = None not in numbers
    spread = {"value": np.mean(numbers) if known else None, "sd": np.std(numbers) if known else None}
    return {**values[0], **rounded(spread)}


def _centre_splits(label: Ints, table: UnitTable) -> list[Split]:
    """Return one split per centre, held out; none if one leaves fewer than MIN_UNITS of a class."""
    held_out, classes = [table.centres == centre for centre in np.unique(table.centres)], int(label.max()) + 1
    enough = all(np.bincount(label[~mask], minlength=classes).min() >= MIN_UNITS for mask in held_out)
    return [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in held_out] if enough else []


def _figures(
    estimate: Estimate, by_centre: NestedClasses | None, best: int, competition: Competition
) -> dict[str, Any]:
    units, nested, weights = estimate.units, estimate.nested, estimate.units.weights
    scores = _losses(nested.p, units)
    numbers = {
        "nested_weighted_log_loss": scores.mean(),
        "nested_sd": scores.std(),
        "centre_weighted_log_loss": by_centre and _losses(by_centre.p, units).mean(),
        "mean_raw": class_loss(units.means.mean(axis=1), units),
        "constant": constant_score("balanced_log_loss", weights, weights, competition.metric.clip),
        "auc": macro_aucs(nested.p.mean(axis=0)[:, None], units.label)[0],
    }
    candidates = []
    for number, candidate in enumerate(CLASS_CANDIDATES):
        losses = _losses(nested.of_candidates[:, number], units)
        row = {"weighted_log_loss": losses.mean(), "sd": losses.std(), "taken_share": nested.chosen[number]}
        candidates.append({"name": candidate.name, **rounded(row), "taken": number == best})
    return {
        **rounded(numbers),
        "competition_metric": _judged(nested, units.label, competition),
        "method": CLASS_CANDIDATES[best].name,
        "candidates": sorted(candidates, key=lambda row: row["weighted_log_loss"]),
    }


def rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures rounded to six digits; None stays."""
    return {name: None if value is None else round(float(value), 6) for name, value in numbers.items()}


def class_lines(figures: dict[str, Any], out: Path) -> Iterator[str]:
    """Yield the figures of an ensemble for any number of classes as lines for people."""
    metric = figures["competition_metric"]
    spread = "" if metric["sd"] is None else f", +- {metric['sd']:.4f} over the repeats"
    rows = {
        "nested": metric_line(metric) + spread,
        "  weighted log loss": f"{figures['nested_weighted_log_loss']:.4f} +- {figures['nested_sd']:.4f}",
        "  area under the curve": f"{figures['auc']:.4f}",
        "mean, uncalibrated": f"{figures['mean_raw']:.4f}",
        "constant": f"{figures['constant']:.4f}",
    }
    if figures["centre_weighted_log_loss"] is not None:
        rows["on centres held out"] = f"{figures['centre_weighted_log_loss']:.4f}"
    if decision := figures["decision"]:
        rows["decision"] = f"{decision['rule']} {', '.join(f'{value:.3f}' for value in decision['numbers'])}".strip()
    yield from (f"{name:34s}{value}" for name, value in rows.items())
    yield f"{out}: {figures['method']}"


def class_toml(competition: Competition, figures: dict[str, Any]) -> str:
    """Return the text of ensemble.toml."""
    members = "".join(f"{toml_value(name)} = {weight}\n" for name, weight in figures["weights"].items())
    metric = figures["competition_metric"]
    estimate = {name: figures[name] for name in ("nested_weighted_log_loss", "nested_sd", "constant", "auc", "seed")}
    estimate |= {"value": metric["value"], "sd": metric["sd"]}
    names = toml_value(list(competition.classes.names))
    return (
        "# Written by clotkit blend: the members of an ensemble, and how they are combined.\n"
        f"competition = {toml_value(competition.slug)}\nclasses = {names}\n"
        f"positive = {toml_value(competition.classes.names[-1])}\n"
        f"calibration = {toml_value(ENSEMBLE_CALIBRATION)}\n\n[members]  # their weights\n{members}\n[estimate]\n"
        f"metric = {toml_value(metric['name'])}\n"
        + "".join(f"{name} = {value}\n" for name, value in estimate.items() if value is not None)
    )
