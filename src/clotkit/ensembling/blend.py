"""`clotkit blend`: out-of-fold predictions in; out an ensemble that `clotkit run` applies, and what it is worth.

What it is worth is said by nested cross-validation: whatever is fitted or chosen, is so without the patients that it is
scored on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.ensembling.candidates import Patients, Way, aucs, loss_terms, mean_platt, mean_raw, ways
from clotkit.ensembling.data import Material, read_material
from clotkit.errors import UsageError
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.members.blending import Candidate, Committee, Floats, Ints
from clotkit.members.ensemble import ENSEMBLE, ENSEMBLE_CALIBRATION
from clotkit.members.folder import RECIPE
from clotkit.progress import Log

FOLDS, REPEATS, SEED = 5, 10, 0
SAME_ERRORS, JOIN_ERRORS = 2.0, 1.0  # standard errors of a paired difference
LEAST_TO_CHOOSE = 50  # patients of the rarer class
TAIL_SHARE, TAIL_PATIENTS = 0.05, 16  # at either end, that bound what may be said of any
BEYOND = 0.005  # of a posterior: what patients rule out
HIDDEN_PATIENTS, DRAWS = 235, 1000  # simulated hidden sets
Splits = list[tuple[Ints, Ints]]


@dataclass(frozen=True)
class BlendSettings:
    """What a blend is asked to do. `covariates`: a table of slide sizes; `trusted`: members not to suspect."""

    predictions: Sequence[Path]
    labels: Path
    out: Path
    covariates: Path | None = None
    trusted: Sequence[str] = ()
    repeats: int = REPEATS


@dataclass(frozen=True)
class Fitted:
    """What some patients give: every way's candidate, which of them are averaged, and the bounds of the average."""

    candidates: tuple[Candidate, ...]
    taken: npt.NDArray[np.bool_]  # [ways]
    bounds: tuple[float, float]

    def apply(self, patients: Patients) -> tuple[Floats, Floats]:
        """Of other patients: the average [n], and every candidate by itself [ways, n]."""
        each = np.array([one.apply(patients.p, patients.owner, patients.covariates) for one in self.candidates])
        return np.clip(each[self.taken].mean(axis=0), *self.bounds), each


@dataclass(frozen=True)
class Held:
    """Probabilities of patients that had no part in what gave them, a row a repeat: the blend's, each way's, of mean +
    Platt; and how often each way was taken."""

    p: Floats  # [R, n]
    of_ways: Floats  # [R, ways, n]
    usual: Floats  # [R, n]
    taken: Floats  # [ways]


def blend(settings: BlendSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Fit, check and write an ensemble; return its figures, as --json prints them.

    Raises ConfigError or SplitError (see blend_data.read_material) or UsageError before anything is written.
    """
    if settings.out.exists() and not settings.out.is_dir():
        raise UsageError(f"{settings.out}: is a file; name a folder")
    if (settings.out / RECIPE).is_file():
        raise UsageError(f"{settings.out}: is a member's folder; name the folder that holds the members")
    material = read_material(settings.predictions, settings.labels, competition, settings.trusted, settings.covariates)
    for note in material.notes:
        log(note)
    log(f"{len(material.members)} members, {material.slides} slides, {len(material.names)} patients")
    tried, patients = list(ways()), without_covariates(material.patients)
    log(f"{len(tried)} ways, {settings.repeats} x {FOLDS} folds of patients, each with {FOLDS} folds inside")
    splits = [list(folds_of(patients, material.groups, SEED + repeat)) for repeat in range(settings.repeats)]
    held, helped = hold_out(patients, material.groups, tried, splits), None
    if material.patients.sizes:
        with_sizes = hold_out(material.patients, material.groups, tried, splits)
        helped = _gain(held.p, with_sizes.p, patients.label, patients)
        if helped["mean"] > helped["sd"]:
            held, patients = with_sizes, material.patients
    centres = _centres(patients)
    by_centre = hold_out(patients, material.groups, tried, [centres]) if centres else None
    fitted = fit(patients, material.groups, tried, SEED)
    figures = _figures(material, patients, competition, tried, held, by_centre, fitted)
    if helped is not None:
        figures["covariates"] = {
            "names": list(material.patients.sizes),
            **helped,
            "used": bool(patients.sizes),
        }
    _write(settings.out, competition, material, fitted, figures)
    return figures


def fit(patients: Patients, groups: Ints, tried: Sequence[Way], seed: int) -> Fitted:
    """Fit every way, and choose among them by cross-validation within these patients.

    Of the ways that are core, all are averaged that are within SAME_ERRORS of the best and no worse than the usual one:
    patients cannot tell them apart, and choosing one of them costs more than they differ by. Another one joins that is
    ahead of them all. With fewer than LEAST_TO_CHOOSE patients of a class nothing is chosen: the usual way stands.
    """
    inner = np.zeros((len(tried), len(patients.label)))
    for learn, score in folds_of(patients, groups, seed + 1):
        inner[:, score] = _each(tried, patients.part(learn), patients.part(score))
    taken = chosen(np.array([loss_terms(p, patients) for p in inner]), tried)
    if np.bincount(patients.label, minlength=2).min() < LEAST_TO_CHOOSE:
        taken = np.array([way.usual for way in tried])
    candidates = tuple(way.fitted(patients) for way in tried)
    return Fitted(candidates, taken, bounds_of(inner[taken].mean(axis=0), patients))


def chosen(terms: Floats, tried: Sequence[Way]) -> npt.NDArray[np.bool_]:
    """Which ways are averaged [ways], by their held-out loss terms [ways, n]: see fit."""
    core, usual = (np.array([getattr(way, kind) for way in tried]) for kind in ("core", "usual"))
    totals = terms.sum(axis=1)
    best, best_core = int(totals.argmin()), int(np.where(core, totals, np.inf).argmin())
    taken: npt.NDArray[np.bool_] = core & (totals - totals[best] <= SAME_ERRORS * _errors(terms - terms[best]))
    taken &= totals <= totals[usual].min()
    ahead = terms[best_core] - terms
    taken |= ~core & (ahead.sum(axis=1) > JOIN_ERRORS * _errors(ahead))
    return taken if taken.any() else usual


def bounds_of(p: Floats, patients: Patients) -> tuple[float, float]:
    """How near 0 and 1 a probability may go: no nearer than what the most extreme patients leave possible.

    At either end the twentieth (16 patients at least) with the most extreme held-out probabilities `p` [n] is counted.
    The bound is the smallest share of the other class that this count leaves possible (BEYOND of a uniform prior's
    posterior), and never less than one patient more than were seen (Laplace's rule), at the metric's balance.
    """
    from scipy.stats import beta

    many = max(TAIL_PATIENTS, round(TAIL_SHARE * len(p)))
    order = np.argsort(p, kind="stable")

    def odds(chosen: Ints, other: int) -> float:
        wrong = int((patients.label[chosen] == other).sum())
        share = max(float(beta.ppf(BEYOND, wrong + 1, many - wrong + 1)), 1 / (many + 2))
        return share / (1 - share)

    low = odds(order[:many], 1) * np.exp(patients.shift)
    high = odds(order[-many:], 0) / np.exp(patients.shift)
    return round(min(low / (1 + low), 0.5), 6), round(max(1 / (1 + high), 0.5), 6)


def hold_out(patients: Patients, groups: Ints, tried: Sequence[Way], splits: Sequence[Splits]) -> Held:
    """Fit and choose on one side of each split, apply to the other; every repeat's splits cover all patients."""
    shape, usual_way = (len(splits), len(patients.label)), mean_platt()
    p, usual, of_ways = np.zeros(shape), np.zeros(shape), np.zeros((shape[0], len(tried), shape[1]))
    taken = []
    for repeat, folds in enumerate(splits):
        for learn, score in folds:
            known, new = patients.part(learn), patients.part(score)
            fitted = fit(known, groups[learn], tried, SEED + repeat)
            p[repeat, score], of_ways[repeat][:, score] = fitted.apply(new)
            usual[repeat, score] = _each([usual_way], known, new)[0]
            taken.append(fitted.taken)
    return Held(p, of_ways, usual, np.mean(taken, axis=0))


def folds_of(patients: Patients, groups: Ints, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """FOLDS splits of patients, stratified by class; patients of one group stay together."""
    from sklearn.model_selection import StratifiedKFold

    names, at = np.unique(groups, return_inverse=True)
    label = np.zeros(len(names), np.int64)
    np.maximum.at(label, at, patients.label)
    for _, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(names, label):
        out = np.isin(at, held)
        yield np.flatnonzero(~out), np.flatnonzero(out)


def without_covariates(patients: Patients) -> Patients:
    """The same patients, nothing known of their slides' sizes."""
    return replace(patients, covariates=np.zeros((len(patients.label), 0)), sizes=())


def _centres(patients: Patients) -> Splits:
    """Every centre against the others; nothing where one of them leaves too few patients of a class to fit to."""
    names, at = np.unique(patients.centres, return_inverse=True)
    splits = [(np.flatnonzero(at != one), np.flatnonzero(at == one)) for one in range(len(names))]
    enough = all(np.bincount(patients.label[learn], minlength=2).min() >= FOLDS for learn, _ in splits)
    return splits if enough else []


def _each(tried: Sequence[Way], known: Patients, new: Patients) -> Floats:
    return np.array([way.fitted(known).apply(new.p, new.owner, new.covariates) for way in tried])


def _errors(differences: Floats) -> Floats:
    """Standard errors of the sums of rows [k, n] of differences between patients' losses: [k]."""
    errors: Floats = differences.std(axis=1) * np.sqrt(differences.shape[1])
    return errors


def _figures(
    material: Material,
    patients: Patients,
    competition: Competition,
    tried: Sequence[Way],
    held: Held,
    by_centre: Held | None,
    fitted: Fitted,
) -> dict[str, Any]:
    label = patients.label
    scores, usual = _losses(held.p, patients), _losses(held.usual, patients)
    raw = _each([mean_raw()], patients, patients)
    weights = np.array(competition.classes.weights) / sum(competition.classes.weights)
    figures = {
        "nested_weighted_log_loss": scores.mean(),
        "nested_sd": scores.std(),
        "centre_weighted_log_loss": None if by_centre is None else _losses(by_centre.p, patients).mean(),
        "mean_platt": usual.mean(),
        "mean_platt_sd": usual.std(),
        "centre_mean_platt": None if by_centre is None else _losses(by_centre.usual, patients).mean(),
        "mean_raw": _losses(raw, patients).mean(),
        "constant": float(-(weights * np.log(weights)).sum()),
        "auc": float(aucs(held.p.mean(axis=0)[:, None], label)[0]),
    }
    taken = [way.name for way, yes in zip(tried, fitted.taken, strict=True) if yes]
    said = taken[0] if len(taken) == 1 else f"mean of {len(taken)} ways"
    return {
        **{name: None if value is None else round(float(value), 6) for name, value in figures.items()},
        "method": f"{said}, probabilities within {fitted.bounds[0]:.3f} to {fitted.bounds[1]:.3f}",
        "members": list(material.members),
        "weights": _shares(material, fitted),
        "gain": _gain(held.usual, held.p, label, patients),
        "hidden": _hidden(held, patients, figures["constant"]),
        "candidates": _table(tried, held, fitted, patients),
        "patients": len(label),
        "slides": material.slides,
        "centres": len(np.unique(patients.centres)),
        "folds": FOLDS,
        "repeats": len(held.p),
        "seed": SEED,
        "notes": list(material.notes),
    }


def _losses(p: Floats, patients: Patients) -> Floats:
    """The weighted log loss of each row of `p` [R, n]."""
    return np.array([loss_terms(row, patients).sum() for row in p])


def _shares(material: Material, fitted: Fitted) -> dict[str, float]:
    """Each member's weight, on average over the candidates that are averaged."""
    rows = [one.pool.weights for one, taken in zip(fitted.candidates, fitted.taken, strict=True) if taken]
    return dict(zip(material.members, np.mean(rows, axis=0).round(4).tolist(), strict=True))


def _gain(before: Floats, after: Floats, label: Ints, patients: Patients) -> dict[str, float]:
    """How much lower the loss is after, and how much of that is noise: a bootstrap by patient within each class."""
    terms = np.mean([loss_terms(row, patients) for row in before], axis=0)
    terms = terms - np.mean([loss_terms(row, patients) for row in after], axis=0)  # [n]
    rng = np.random.default_rng(SEED)
    draws = sum(
        terms[rng.choice(rows, (DRAWS, len(rows)))].sum(axis=1) for rows in (np.flatnonzero(label == c) for c in (0, 1))
    )
    low, high = np.quantile(draws, [0.025, 0.975])
    found = {"mean": terms.sum(), "sd": np.std(draws), "low": low, "high": high, "share_above_0": np.mean(draws > 0)}
    return {name: round(float(value), 6) for name, value in found.items()}


def _hidden(held: Held, patients: Patients, constant: float) -> dict[str, float]:
    """Hidden sets drawn from the patients: how much the score wanders, and how often it beats what is usual."""
    rng, many = np.random.default_rng(SEED), min(HIDDEN_PATIENTS, len(patients.label))
    found = []
    for _ in range(DRAWS):
        repeat, rows = rng.integers(len(held.p)), rng.choice(len(patients.label), many, replace=False)
        drawn = replace(patients, label=patients.label[rows])
        if np.bincount(drawn.label, minlength=2).min():
            found.append([loss_terms(p[repeat][rows], drawn).sum() for p in (held.p, held.usual)])
    scores, usual = np.array(found).T
    return {
        "patients": many,
        "draws": len(found),
        "mean": round(float(scores.mean()), 6),
        "sd": round(float(scores.std()), 6),
        "beats_constant": round(float((scores < constant).mean()), 4),
        "beats_mean_platt": round(float((scores < usual).mean()), 4),
    }


def _table(tried: Sequence[Way], held: Held, fitted: Fitted, patients: Patients) -> list[dict[str, Any]]:
    """Every candidate by itself, best first: its cross-fitted loss, the spread over repeats, how often it was taken."""
    rows = []
    for at, way in enumerate(tried):
        losses = _losses(held.of_ways[:, at], patients)
        rows.append(
            {
                "name": way.name,
                "weighted_log_loss": round(float(losses.mean()), 6),
                "sd": round(float(losses.std()), 6),
                "taken": bool(fitted.taken[at]),
                "taken_share": round(float(held.taken[at]), 3),
            }
        )
    return sorted(rows, key=lambda row: row["weighted_log_loss"])


def lines(figures: dict[str, Any], out: Path) -> Iterator[str]:
    """What a person reads of a blend's figures."""
    yield f"{'cross-fitted weighted log loss of each way by itself':58s} loss    spread  averaged"
    for row in figures["candidates"]:
        yield f"  {row['name']:56s} {row['weighted_log_loss']:.4f}  {row['sd']:.4f}  {'yes' if row['taken'] else ''}"
    gain, hidden = figures["gain"], figures["hidden"]
    said = {
        "nested, all choices included": _spread(figures["nested_weighted_log_loss"], figures["nested_sd"]),
        "  area under the curve": f"{figures['auc']:.4f}",
        "mean + Platt, cross-fitted": _spread(figures["mean_platt"], figures["mean_platt_sd"]),
        "mean, as it is": f"{figures['mean_raw']:.4f}",
        "constant": f"{figures['constant']:.4f}",
    }
    if figures["centre_weighted_log_loss"] is not None:
        said["on centres held out"] = (
            f"{figures['centre_weighted_log_loss']:.4f}, mean + Platt {figures['centre_mean_platt']:.4f}"
        )
    said["gain over mean + Platt"] = (
        f"{gain['mean']:.4f}, 95 % by patient {gain['low']:.4f} to {gain['high']:.4f}, "
        f"above 0 in {gain['share_above_0']:.0%} of bootstraps"
    )
    if "covariates" in figures:
        sizes = figures["covariates"]
        used = "used" if sizes["used"] else "not used"
        said[f"gain by {', '.join(sizes['names'])}"] = f"{_spread(sizes['mean'], sizes['sd'])}: {used}"
    said[f"hidden sets of {hidden['patients']} patients"] = (
        f"{_spread(hidden['mean'], hidden['sd'])}; below the constant in {hidden['beats_constant']:.1%}, "
        f"below mean + Platt in {hidden['beats_mean_platt']:.1%} of {hidden['draws']}"
    )
    yield from (f"{what:34s}{value}" for what, value in said.items())
    yield f"{out}: {figures['method']}"


def _spread(value: float, sd: float) -> str:
    return f"{value:.4f} +- {sd:.4f}"


def _write(out: Path, competition: Competition, material: Material, fitted: Fitted, figures: dict[str, Any]) -> None:
    """Write the calibration first: an ensemble.toml without it is none."""
    out.mkdir(parents=True, exist_ok=True)
    taken = tuple(one for one, yes in zip(fitted.candidates, fitted.taken, strict=True) if yes)
    committee = Committee(material.members, material.expectation, taken, fitted.bounds)
    atomic_write_json(out / ENSEMBLE_CALIBRATION, committee.to_json())
    atomic_write_text(out / ENSEMBLE, _toml(competition, material, figures))


def _toml(competition: Competition, material: Material, figures: dict[str, Any]) -> str:
    """What a person reads and `clotkit run` starts from. A string of JSON is one of TOML."""
    rows = [
        "# Written by clotkit blend: which members, and how their probabilities become one.",
        f"competition = {json.dumps(competition.slug)}",
        f"positive = {json.dumps(competition.classes.names[-1])}",
        f"calibration = {json.dumps(ENSEMBLE_CALIBRATION)}",
        "",
        "[members]  # their weights, on average over what is averaged",
        *(f"{json.dumps(name)} = {weight}" for name, weight in figures["weights"].items()),
        "",
        "[tile_pools]  # of members whose tiles are not averaged",
        *(f"{json.dumps(name)} = {json.dumps(pool)}" for name, pool in material.tile_pools.items() if pool != "mean"),
        "",
        "[estimate]",
        *(
            f"{name} = {figures[name]}"
            for name in ("nested_weighted_log_loss", "nested_sd", "mean_platt", "constant", "auc", "patients", "seed")
        ),
    ]
    return "\n".join(rows) + "\n"
