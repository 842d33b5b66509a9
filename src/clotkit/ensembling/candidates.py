"""The ways from members to a calibrated probability that `clotkit blend` tries, and fitting each to patients.

Everything is about two classes: label 1 is the positive one. A fit is the maximum likelihood at the patients' own
shares of the classes, moved from those shares to the metric's weights (Elkan 2001, "The foundations of cost-sensitive
learning"): on few patients of the rarer class that is steadier than weighting each of them up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

import numpy as np
import numpy.typing as npt

from clotkit.evaluation.scores import CLIP
from clotkit.members.blending import LINKS, Candidate, Covariate, Floats, Ints, Logistic, Pool, Steps, expit, logit

SLOPE_DOUBT = 1.0  # deviation of the Gaussian prior of a slope of a standardised link: moves a few dozen patients only
FLOORS = (0.1, 0.2, 0.3, 0.4)  # quantiles below which pooled probabilities are held to say no more than there
PSEUDO_SLIDES = (1.0, 4.0)  # as if a patient's slides shared a half, a fifth of what makes them differ from others'
RESCALED, CLIPPED = (0.15, 0.85), (0.25, 0.75)  # the competition's fifth place
NEWTON_STEPS, CLOSE = 25, 1e-7
COVARIATE_STEPS, COVARIATE_DOUBT = 6, 0.3  # a Gaussian prior's deviation, in log odds
BAGS, PICKS = 20, 10  # of the greedy selection
WEIGHT_DOUBT = 0.5  # standard deviation of the prior on the logarithms of member weights


@dataclass(frozen=True)
class Patients:
    """Slides and their patients: `p` [S, M] without NaN, `owner` [S], and a patient's `label`, 0 or 1, and centre.

    `covariates` [n, K] are what blending.covariates_of gives of the slides' `sizes`, K names; `odds` is the ratio of
    the metric's weights, positive to negative.
    """

    p: Floats
    owner: Ints
    label: Ints
    centres: npt.NDArray[np.str_]
    covariates: Floats
    sizes: tuple[str, ...]
    odds: float

    def part(self, chosen: Ints) -> "Patients":
        """Some of the patients, by their indices, with their slides."""
        new = np.full(len(self.label), -1)
        new[chosen] = np.arange(len(chosen))
        kept = new[self.owner] >= 0
        return replace(
            self,
            p=self.p[kept],
            owner=new[self.owner[kept]],
            label=self.label[chosen],
            centres=self.centres[chosen],
            covariates=self.covariates[chosen],
        )

    @property
    def shift(self) -> float:
        """Log odds of the metric's weights over those of the patients' own shares."""
        share = float(self.label.mean())
        return float(np.log(self.odds) - np.log(share / (1 - share)))

    @cached_property
    def balance(self) -> Floats:
        """A patient's weight in the metric: [n], summing to 1."""
        share = np.bincount(self.label, minlength=2)
        weight = np.where(self.label == 1, self.odds / share[1], 1 / share[0])
        balanced: Floats = weight / weight.sum()
        return balanced

    @cached_property
    def means(self) -> Floats:
        """Each member's mean over a patient's slides: [n, M]."""
        count = np.bincount(self.owner)
        return np.column_stack([np.bincount(self.owner, column) / count for column in self.p.T])

    @cached_property
    def informed(self) -> Floats:
        """1 for a member whose area under the curve is more than its standard error above one half, else 0; [M].

        All 1 where no member is. The error is that of ranks which say nothing.
        """
        good = (aucs(self.means, self.label) > 0.5 + auc_error(self.label)).astype(np.float64)
        return good if good.any() else np.ones_like(good)


def aucs(p: Floats, label: Ints) -> Floats:
    """The area under the ROC curve of each column of `p` [n, M], by ranks: [M]."""
    from scipy.stats import rankdata

    positive = label == 1
    many, others = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(p, axis=0)[positive].sum(axis=0)
    found: Floats = (ranks - many * (many + 1) / 2) / (many * others)
    return found


def auc_error(label: Ints) -> float:
    """The standard error of an area under the curve whose ranks say nothing of `label` [n] (Mann and Whitney 1947)."""
    negative, positive = np.bincount(label, minlength=2).tolist()
    return float(np.sqrt((negative + positive + 1) / (12 * negative * positive)))


def loss_terms(p: Floats, patients: Patients) -> Floats:
    """What each patient adds to the competition's weighted log loss: [n], of the positive class's probabilities [n]."""
    right = np.where(patients.label == 1, p, 1 - p)
    terms: Floats = -patients.balance * np.log(np.clip(right, CLIP, 1))
    return terms


def cross_fitted_platt(p: Floats, owner: Ints, label: Ints, odds: float) -> Floats:
    """The loss terms [n] of patients whose slides' `p` [S] are averaged, calibrated on five folds of others."""
    from sklearn.model_selection import StratifiedKFold

    found, nothing = np.zeros(len(label)), np.zeros((len(label), 0))
    patients = Patients(p[:, None], owner, label, np.full(len(label), ""), nothing, (), odds)
    for learn, score in StratifiedKFold(5, shuffle=True, random_state=0).split(label, label):
        new = patients.part(score)
        found[score] = mean_platt().fitted(patients.part(learn)).apply(new.p, new.owner, new.covariates)
    return loss_terms(found, patients)


Fit = Callable[[Floats, Patients], Logistic | Steps]
Weigh = Callable[[Patients], tuple[float, ...]]


@dataclass(frozen=True)
class Way:
    """A candidate before it is fitted: how members weigh, the pool, the calibration.

    The average is taken over the ways that are `core`; another one joins only where it is clearly better. The `usual`
    one is what stands where patients are too few to choose.
    """

    name: str
    weigh: Weigh
    pool: Pool
    fit: Fit
    core: bool = False
    usual: bool = False

    def fitted(self, patients: Patients) -> Candidate:
        """The candidate that these patients give."""
        weights = self.weigh(patients)
        pool = replace(self.pool, weights=weights, prior=float(np.mean(patients.p @ np.array(weights))))
        x = pool.apply(patients.p, patients.owner, len(patients.label))
        calibration = self.fit(x, patients)
        return Candidate(self.name, pool, calibration, covariate_slopes(calibration.log_odds(x), patients))


def ways() -> Iterator[Way]:
    """Every way that is tried."""
    pools = {f"{pseudo:g} pseudo-slides": Pool(pseudo_slides=pseudo) for pseudo in PSEUDO_SLIDES}
    pools["sum of slides"] = Pool(slides="sum")
    for (said, pool), link, floor in product(pools.items(), LINKS, FLOORS):
        fit = partial(fit_logistic, links=(link,), floor=floor)
        yield Way(f"mean, {said}, {link} above the {floor:.0%} quantile", alike, pool, fit, core=True)
    once, platt = Pool(pseudo_slides=1.0), partial(fit_logistic, links=("logit",))
    for link in LINKS:
        yield Way(f"mean, {link}", alike, Pool(), partial(fit_logistic, links=(link,)), usual=link == "logit")
    yield Way("mean, beta", alike, Pool(), partial(fit_logistic, links=("logit", "complement")))
    yield Way("mean, isotonic shrunk to Platt", alike, Pool(), fit_isotonic)
    yield Way("mean, rescaled and clipped", alike, Pool(), fit_rescaled)
    for how in ("logit_mean", "median", "trimmed"):
        yield Way(f"{how.replace('_', ' ')} of members, Platt", alike, Pool(members=how), platt)
    for how in ("max", "median", "noisy_or"):
        yield Way(f"{how.replace('_', '-')} of slides, Platt", alike, Pool(slides=how), platt)
    for weigh in (constrained, greedy):
        yield Way(f"{weigh.__name__} weights of members, Platt", weigh, once, platt)


def mean_platt() -> Way:
    """What is usual: the plain mean over members and slides, then balanced Platt scaling."""
    return Way("mean + Platt", _every_one, Pool(), fit_balanced)


def mean_raw() -> Way:
    """The plain mean over members and slides, as it is."""
    return Way("mean, as it is", _every_one, Pool(), lambda _x, _patients: Steps((0.0, 1.0), (0.0, 1.0)))


def alike(patients: Patients) -> tuple[float, ...]:
    """The same weight for every member that says something."""
    return tuple(float(value) for value in patients.informed / patients.informed.sum())


def _every_one(patients: Patients) -> tuple[float, ...]:
    many = int(patients.p.shape[1])
    return (1 / many,) * many


def constrained(patients: Patients) -> tuple[float, ...]:
    """Weights above 0 that sum to 1 and are held near each other, fitted together with Platt scaling."""
    from scipy.optimize import minimize

    many = patients.p.shape[1]
    means = patients.means
    weight, sign = patients.balance, 1 - 2 * patients.label

    def loss(parameters: Floats) -> tuple[float, Floats]:
        shares = np.exp(parameters[:many] - parameters[:many].max())
        shares /= shares.sum()
        x = np.clip(means @ shares, 1e-4, 1 - 1e-4)
        link = np.log(x / (1 - x))
        z = parameters[-2] * link + parameters[-1]
        value = float(weight @ np.logaddexp(0, sign * z))
        pull = weight * sign * expit(sign * z)  # d value / d z
        by_x = pull * parameters[-2] / (x * (1 - x))
        by_share = means.T @ by_x
        by_log = shares * (by_share - shares @ by_share)
        doubt = parameters[:many] / WEIGHT_DOUBT**2 / len(weight)
        return value + float(parameters[:many] @ doubt) / 2, np.concatenate([by_log + doubt, [pull @ link, pull.sum()]])

    found = minimize(loss, np.append(np.zeros(many), [1.0, 1.0]), jac=True, method="L-BFGS-B").x[:many]
    shares = np.exp(found - found.max())
    return tuple(float(value) for value in shares / shares.sum())


def greedy(patients: Patients) -> tuple[float, ...]:
    """Weights by how often greedy selection with replacement takes a member, over bags of patients and half the
    members each: Caruana et al. 2004, "Ensemble selection from libraries of models". The seed is fixed."""
    rng = np.random.default_rng(0)
    means, many = patients.means, patients.p.shape[1]
    calibrated = np.column_stack([_platt(means[:, member], patients) for member in range(many)])
    of_label = np.where(patients.label[:, None] == 1, calibrated, 1 - calibrated)  # [n, M]
    counts = np.zeros(many)
    for _ in range(BAGS):
        bag = rng.integers(len(patients.label), size=len(patients.label))
        weight = patients.balance[bag]
        choice = rng.permutation(many)[: max(1, (many + 1) // 2)]
        total = np.zeros(len(bag))
        for picked in range(1, PICKS + 1):
            losses = -weight @ np.log((total[:, None] + of_label[np.ix_(bag, choice)]) / picked)
            best = choice[int(losses.argmin())]
            total += of_label[bag, best]
            counts[best] += 1
    return tuple(float(value) for value in counts / counts.sum())


def fit_logistic(x: Floats, patients: Patients, links: Sequence[str], floor: float = 0.0) -> Logistic:
    """Maximum likelihood of log odds that are straight in `links` of x [n], flat below the `floor` quantile of x."""
    bound = float(np.quantile(x, floor)) if floor else 0.0
    design = np.column_stack([LINKS[link](np.maximum(x, bound)) for link in links])
    slopes, intercept = _newton(design, patients.label, np.full(len(x), 1 / len(x)))
    return Logistic(dict(zip(links, map(float, slopes), strict=True)), float(intercept) + patients.shift, bound)


def fit_balanced(x: Floats, patients: Patients) -> Logistic:
    """Balanced Platt scaling as it is usual: each class weighs what the metric gives it."""
    slopes, intercept = _newton(logit(x)[:, None], patients.label, patients.balance)
    return Logistic({"logit": float(slopes[0])}, float(intercept))


def fit_isotonic(x: Floats, patients: Patients) -> Steps:
    """Isotonic regression at the metric's weights, halfway back to Platt scaling in log odds."""
    from sklearn.isotonic import IsotonicRegression

    weight = patients.balance * len(x)
    platt = fit_logistic(x, patients, ("logit",))
    steps = IsotonicRegression(y_min=0.02, y_max=0.98, out_of_bounds="clip").fit(
        x, patients.label, sample_weight=weight
    )
    at = np.unique(np.quantile(x, np.linspace(0, 1, 33)))
    p = expit((logit(steps.predict(at)) + platt.log_odds(at)) / 2)
    return Steps(tuple(map(float, at)), tuple(map(float, p)))


def fit_rescaled(x: Floats, patients: Patients) -> Steps:
    """Moved to a balanced mean of one half, rescaled to [0.15, 0.85], clipped to [0.25, 0.75]: the competition's
    fifth place."""
    low, high = RESCALED
    move = 0.5 - float(patients.balance @ x)
    bounds = [(wanted - low) / (high - low) - move for wanted in CLIPPED]
    return Steps(tuple(bounds), CLIPPED)


def covariate_slopes(log_odds: Floats, patients: Patients) -> tuple[Covariate, ...]:
    """What each covariate adds to `log_odds` [n]: slopes under a Gaussian prior of COVARIATE_DOUBT a deviation."""
    values = patients.covariates
    if not values.shape[1]:
        return ()
    mean, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0) + 1e-9
    design = np.nan_to_num((values - mean) / scale)  # [n, K]
    slopes = np.zeros(values.shape[1])
    for _ in range(COVARIATE_STEPS):
        p = expit(log_odds - patients.shift + design @ slopes)
        curve = (design * (p * (1 - p))[:, None]).T @ design + np.eye(len(slopes)) / COVARIATE_DOUBT**2
        slopes = slopes + np.linalg.solve(curve, design.T @ (patients.label - p) - slopes / COVARIATE_DOUBT**2)
    found = zip(patients.sizes, mean.tolist(), scale.tolist(), slopes.tolist(), strict=True)
    return tuple(Covariate(*one) for one in found)


def _platt(x: Floats, patients: Patients) -> Floats:
    return expit(fit_balanced(x, patients).log_odds(x))


def _newton(design: Floats, label: Ints, weight: Floats) -> tuple[Floats, float]:
    """Logistic regression of `label` on the columns of `design` [n, k]: slopes [k] and the intercept."""
    centre, scale = design.mean(axis=0), design.std(axis=0) + 1e-9
    full = np.column_stack([(design - centre) / scale, np.ones(len(design))])
    ridge = np.append(np.full(design.shape[1], 1 / SLOPE_DOUBT**2 / len(design)), 1e-9)
    found = np.zeros(full.shape[1])
    for _ in range(NEWTON_STEPS):
        p = expit(full @ found)
        slope = full.T @ (weight * (p - label)) + ridge * found
        curve = (full * (weight * p * (1 - p))[:, None]).T @ full + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        found = found - step
        if np.abs(step).max() < CLOSE:
            break
    slopes = found[:-1] / scale
    return slopes, float(found[-1] - slopes @ centre)
