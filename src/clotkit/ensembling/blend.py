"""Fit an ensemble to out-of-fold predictions, and estimate its score by nested cross-validation.

Nested: each fit, and the choice between candidates, is made without the patients that it is scored on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition, Form
from clotkit.ensembling.candidates import (
    CANDIDATES,
    FOLDS,
    PLATT,
    Patients,
    Split,
    aucs,
    choose,
    class_of_groups,
    folds_of,
    loss_terms,
)
from clotkit.ensembling.classes import class_lines, class_toml, fit_classes, mean_figures, rounded
from clotkit.ensembling.data import SEED, BlendInputs, BlendSettings, Predictions, read_predictions, two_class_inputs
from clotkit.errors import UsageError
from clotkit.evaluation.scores import metric_figures, metric_line
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.members.blending import BOUNDS, Blend, ClassBlend, Floats, Ints
from clotkit.members.ensemble import ENSEMBLE, ENSEMBLE_CALIBRATION
from clotkit.members.folder import RECIPE
from clotkit.metric import calibration_weights
from clotkit.progress import Log
from clotkit.typed_toml import toml_value

HIDDEN_PATIENTS, DRAWS = 235, 1000  # patients of a simulated hidden set, and random draws of each estimate


@dataclass(frozen=True)
class Nested:
    """The out-of-fold probabilities of nested cross-validation, one row per repeat."""

    p: Floats  # [R, n], by the candidate that the training patients chose
    of_candidates: Floats  # [R, len(CANDIDATES), n]
    platt: Floats  # [R, n], by plain Platt scaling, the reference
    chosen: Floats  # [len(CANDIDATES)], the share of the splits in which each was chosen


def blend(settings: BlendSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Fit, check and write an ensemble; return its figures, as --json prints them.

    Raises ConfigError or SplitError (see data.read_predictions) or UsageError before anything is written.
    """
    if (settings.out / RECIPE).is_file():
        raise UsageError(f"{settings.out}: is a member's folder; name the folder that holds the members")
    read = read_predictions(settings.predictions, settings.labels, competition)
    fit = _fit_two_classes if _is_platt(settings, competition) else _fit_classes
    fitted, figures, text = fit(read, settings, competition, log)
    settings.out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(settings.out / ENSEMBLE_CALIBRATION, fitted.to_json())  # first: ensemble.toml needs it
    atomic_write_text(settings.out / ENSEMBLE, text)
    return figures | {"cannot_run": _cannot_run(fitted, settings.out, log)}


def _cannot_run(fitted: Blend | ClassBlend, out: Path, log: Log) -> list[str]:
    """Return the members that have weight but no folder beside the ensemble, and name them in the log."""
    shares = zip(fitted.members, fitted.calibrator.weights, strict=True)
    names = [name for name, share in shares if share and not (out / name / RECIPE).is_file()]
    for name in names:
        log(f"{name}: no member's folder in {out}: clotkit run needs it, or --without {name}")
    return names


def _is_platt(settings: BlendSettings, competition: Competition) -> bool:
    """Return True for probabilities of two classes and nothing else, which Platt scaling calibrates."""
    is_label = competition.submission.form is Form.LABEL
    return len(competition.classes.names) == 2 and not is_label and not settings.tabular


def _fit_classes(
    read: Predictions, settings: BlendSettings, competition: Competition, log: Log
) -> tuple[ClassBlend, dict[str, Any], str]:
    """Return the ensemble, its figures and the text of ensemble.toml for any number of classes."""
    for note in read.notes:
        log(note)
    log(f"{len(read.members)} members, {len(read.p)} slides")
    fitted = fit_classes(read, competition, settings, log)
    _ignore_covariates(settings, fitted.figures, log)
    return fitted.blend, fitted.figures, class_toml(competition, fitted.figures)


def _fit_two_classes(
    read: Predictions, settings: BlendSettings, competition: Competition, log: Log
) -> tuple[Blend, dict[str, Any], str]:
    """Return the ensemble, its figures and the text of ensemble.toml for two classes."""
    inputs = two_class_inputs(read, competition, settings.trusted)
    for note in inputs.notes:
        log(note)
    log(f"{len(inputs.members)} members, {inputs.slides} slides, {len(inputs.names)} patients")
    log(f"{len(CANDIDATES)} candidates, {settings.repeats} x {FOLDS} folds of patients, each with {FOLDS} inner folds")
    patients, groups = inputs.patients, inputs.groups
    splits = [list(folds_of(patients, groups, SEED + repeat)) for repeat in range(settings.repeats)]
    nested = cross_validate(patients, groups, splits)
    centres = _centre_splits(inputs)
    by_centre = cross_validate(patients, groups, [centres]) if centres else None
    best = choose(patients, groups, SEED)
    fitted = Blend(inputs.members, inputs.imputer, CANDIDATES[best].fit(patients))
    figures = _figures(inputs, competition, nested, by_centre, best)
    _ignore_covariates(settings, figures, log)
    figures["weights"] = dict(zip(inputs.members, np.round(fitted.calibrator.weights, 4).tolist(), strict=True))
    return fitted, figures, _toml(competition, figures)


def _ignore_covariates(settings: BlendSettings, figures: dict[str, Any], log: Log) -> None:
    if settings.covariates is not None:
        log(f"{settings.covariates}: ignored; slide sizes raised the nested loss where they were measured")
        figures["covariates"] = {"used": False}


def cross_validate(patients: Patients, groups: Ints, splits: Sequence[Sequence[Split]]) -> Nested:
    """Choose and fit on one side of each split, predict the other; a repeat's splits cover all patients."""
    of_candidates = np.zeros((len(splits), len(CANDIDATES), len(patients.label)))
    p, chosen = np.zeros_like(of_candidates[:, 0]), np.zeros(len(CANDIDATES))
    for repeat, folds in enumerate(splits):
        of_candidates[repeat] = [candidate.cross_fit(patients, folds) for candidate in CANDIDATES]
        for train, test in folds:
            best = choose(patients.part(train), groups[train], SEED + repeat)
            p[repeat, test] = of_candidates[repeat, best, test]
            chosen[best] += 1
    return Nested(p, of_candidates, of_candidates[:, CANDIDATES.index(PLATT)], chosen / chosen.sum())


def _centre_splits(inputs: BlendInputs) -> list[Split]:
    """Return one split per centre, held out; none if one leaves fewer than FOLDS patients of a class."""
    held_out = [inputs.centres == centre for centre in np.unique(inputs.centres)]
    enough = all(np.bincount(inputs.patients.label[~mask], minlength=2).min() >= FOLDS for mask in held_out)
    return [(np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in held_out] if enough else []


def _losses(p: Floats, patients: Patients) -> Floats:
    """Return the weighted log loss of each row of `p` [R, n]."""
    return np.array([loss_terms(row, patients).sum() for row in p])


def _figures(
    inputs: BlendInputs, competition: Competition, nested: Nested, by_centre: Nested | None, best: int
) -> dict[str, Any]:
    patients, classes = inputs.patients, competition.classes
    weights = np.array(calibration_weights(competition.metric.name, classes.weights, classes.priors))
    weights /= weights.sum()
    scores, platt = _losses(nested.p, patients), _losses(nested.platt, patients)
    constant = float(-(weights * np.log(weights)).sum())
    numbers = {
        "nested_weighted_log_loss": scores.mean(),
        "nested_sd": scores.std(),
        "centre_weighted_log_loss": by_centre and _losses(by_centre.p, patients).mean(),
        "mean_platt": platt.mean(),
        "mean_platt_sd": platt.std(),
        "centre_mean_platt": by_centre and _losses(by_centre.platt, patients).mean(),
        "mean_raw": loss_terms(patients.means.mean(axis=1), patients).sum(),
        "constant": constant,
        "auc": aucs(nested.p.mean(axis=0)[:, None], patients.label)[0],
    }
    return {
        **rounded(numbers),
        "competition_metric": _judged(nested, patients, competition),
        "method": f"{CANDIDATES[best].name}, probabilities within {BOUNDS[0]} to {BOUNDS[1]}",
        "members": list(inputs.members),
        "gain": gain(nested, patients, inputs.groups),
        "hidden": _hidden(nested, patients, constant),
        "candidates": _table(nested, patients, best),
        "patients": len(patients.label),
        "slides": inputs.slides,
        "centres": len(np.unique(inputs.centres)),
        "folds": FOLDS,
        "repeats": len(nested.p),
        "seed": SEED,
        "notes": list(inputs.notes),
    }


def _judged(nested: Nested, patients: Patients, competition: Competition) -> dict[str, Any]:
    """Return the competition's metric, nested: mean and deviation over the repeats, and a constant's."""
    rows = [np.column_stack([1 - p, p]) for p in nested.p]
    return mean_figures([metric_figures(p, p.argmax(axis=1), patients.label, competition) for p in rows])


def gain(nested: Nested, patients: Patients, groups: Ints) -> dict[str, float]:
    """Return the loss of Platt scaling minus the blend's, with a bootstrap of the groups of each class."""
    pairs = zip(nested.platt, nested.p, strict=True)
    terms = np.mean([loss_terms(platt, patients) - loss_terms(p, patients) for platt, p in pairs], axis=0)  # [n]
    terms = np.bincount(np.unique(groups, return_inverse=True)[1], terms)  # [groups]
    of_group = class_of_groups(patients.label, groups)
    rng, draws = np.random.default_rng(SEED), np.zeros(DRAWS)
    for rows in (np.flatnonzero(of_group == label) for label in (0, 1)):
        draws += terms[rng.choice(rows, (DRAWS, len(rows)))].sum(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    spread = {"sd": np.std(draws), "low": low, "high": high, "share_above_0": np.mean(draws > 0)}
    return rounded({"mean": terms.sum(), **spread})


def _hidden(nested: Nested, patients: Patients, constant: float) -> dict[str, float]:
    """Return the score's spread over random hidden sets, and how often it beats a constant and Platt."""
    rng, count, losses = np.random.default_rng(SEED), min(HIDDEN_PATIENTS, len(patients.label)), []
    for _ in range(DRAWS):
        repeat, rows = rng.integers(len(nested.p)), rng.choice(len(patients.label), count, replace=False)
        drawn = replace(patients, label=patients.label[rows])
        if np.bincount(drawn.label, minlength=2).min():
            losses.append([loss_terms(p[repeat][rows], drawn).sum() for p in (nested.p, nested.platt)])
    scores, platt = np.array(losses).T
    beats = {"beats_constant": np.mean(scores < constant), "beats_mean_platt": np.mean(scores < platt)}
    numbers = {"mean": scores.mean(), "sd": scores.std(), **beats}
    return {"patients": count, "draws": len(losses), **rounded(numbers)}


def _table(nested: Nested, patients: Patients, best: int) -> list[dict[str, Any]]:
    """Return each candidate's cross-fitted loss, its spread, and how often it was chosen; best first."""
    rows = []
    for number, candidate in enumerate(CANDIDATES):
        losses = _losses(nested.of_candidates[:, number], patients)
        numbers = {"weighted_log_loss": losses.mean(), "sd": losses.std(), "taken_share": nested.chosen[number]}
        rows.append({"name": candidate.name, **rounded(numbers), "taken": number == best})
    return sorted(rows, key=lambda row: row["weighted_log_loss"])


def lines(figures: dict[str, Any], out: Path) -> Iterator[str]:
    """Yield the figures of a blend as lines for people."""
    if "gain" not in figures:
        yield from class_lines(figures, out)
        return
    yield f"{'cross-fitted weighted log loss of each candidate':58s} loss    spread  chosen"
    for row in figures["candidates"]:
        yield f"  {row['name']:56s} {row['weighted_log_loss']:.4f}  {row['sd']:.4f}  {'yes' if row['taken'] else ''}"
    one, gain, hidden = figures, figures["gain"], figures["hidden"]
    rows = {
        "nested, the choice included": f"{one['nested_weighted_log_loss']:.4f} +- {one['nested_sd']:.4f}",
        "  area under the curve": f"{one['auc']:.4f}",
        "mean + Platt, cross-fitted": f"{one['mean_platt']:.4f} +- {one['mean_platt_sd']:.4f}",
        "mean, uncalibrated": f"{one['mean_raw']:.4f}",
        "constant": f"{one['constant']:.4f}",
    }
    if one["centre_weighted_log_loss"] is not None:
        platt = f"mean + Platt {one['centre_mean_platt']:.4f}"
        rows["on centres held out"] = f"{one['centre_weighted_log_loss']:.4f}, {platt}"
    rows["gain over mean + Platt"] = (
        f"{gain['mean']:.4f}, 95 % by patient {gain['low']:.4f} to {gain['high']:.4f}, "
        f"above 0 in {gain['share_above_0']:.0%} of bootstraps"
    )
    if (metric := figures["competition_metric"])["name"] != "balanced_log_loss":
        rows["the competition's metric"] = metric_line(metric)
    rows[f"hidden sets of {hidden['patients']} patients"] = (
        f"{hidden['mean']:.4f} +- {hidden['sd']:.4f}; below the constant in {hidden['beats_constant']:.1%}, "
        f"below mean + Platt in {hidden['beats_mean_platt']:.1%} of {hidden['draws']}"
    )
    yield from (f"{name:34s}{value}" for name, value in rows.items())
    yield f"{out}: {figures['method']}"


def _toml(competition: Competition, figures: dict[str, Any]) -> str:
    """Return the text of ensemble.toml."""
    members = "".join(f"{toml_value(name)} = {weight}\n" for name, weight in figures["weights"].items())
    estimate = ("nested_weighted_log_loss", "nested_sd", "mean_platt", "constant", "auc", "patients", "seed")
    return (
        "# Written by clotkit blend: the members of an ensemble, and how they are combined.\n"
        f"competition = {toml_value(competition.slug)}\npositive = {toml_value(competition.classes.names[-1])}\n"
        f"calibration = {toml_value(ENSEMBLE_CALIBRATION)}\n\n[members]  # their weights\n{members}\n[estimate]\n"
        + "".join(f"{name} = {figures[name]}\n" for name in estimate)
    )
