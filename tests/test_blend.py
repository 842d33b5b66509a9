"""`clotkit blend`: refused input, fits against scikit-learn, written files, and the measured score."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.ensembling.blend import Nested, blend, cross_validate, gain, lines
from clotkit.ensembling.candidates import (
    CANDIDATES,
    FOLDS,
    PLATT,
    SHRUNKEN,
    Candidate,
    Patients,
    aucs,
    choose,
    folds_of,
    loss_terms,
    rarest,
)
from clotkit.ensembling.data import BlendSettings, Predictions, member_name, read_inputs, two_class_inputs
from clotkit.errors import ConfigError, SplitError, UsageError
from clotkit.members.blending import logit, patient_means
from clotkit.members.ensemble import ENSEMBLE, ENSEMBLE_CALIBRATION, read_ensemble
from clotkit.reasons import Reason
from clotkit.scoring.pipeline import run
from clotkit.scoring.settings import RunSettings

from .test_pipeline import report_of, submission_of

OOF = Path(__file__).resolve().parents[2] / "shared" / "data" / "strip_oof"
real = pytest.mark.skipif(not OOF.exists(), reason="the published out-of-fold predictions are not here (../shared)")


def quiet(_line: str) -> None:
    """Discard a line of progress."""


class Study:
    """Random labelled patients, with members' predictions of their slides, as files."""

    def __init__(self, folder: Path, patients: int = 280, members: int = 3, strength: float = 1.0, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.folder, self.rng = folder, rng
        self.label = (np.arange(patients) % 4 == 0).astype(int)  # a quarter is positive
        slides = 1 + (rng.random(patients) < 0.2) + (rng.random(patients) < 0.05)
        self.owner = np.repeat(np.arange(patients), slides)
        number = np.concatenate([np.arange(count) for count in slides])
        self.patients = [f"{at:06x}" for at in range(patients)]
        self.images = [f"{self.patients[at]}_{count}" for at, count in zip(self.owner, number, strict=True)]
        truth = rng.normal(strength * (self.label - 0.5), 1)
        base = logit(np.full(1, 0.27))[0] + truth[self.owner][:, None]
        noise = rng.normal(0, 0.7, (len(self.owner), members))
        self.p = expit(base + noise)
        self.labels = folder / "train.csv"
        rows = [
            f"{image},{1 + at % 5},{self.patients[at]},{image[-1]},{'LAA' if self.label[at] else 'CE'}"
            for image, at in zip(self.images, self.owner.tolist(), strict=True)
        ]
        self.labels.write_text("image_id,center_id,patient_id,image_num,label\n" + "\n".join(rows) + "\n")

    def write(self, name: str, p: Any, images: Sequence[str] | None = None, extra: str = "") -> Path:
        """Write a member's predictions, with `extra` rows at the end."""
        path = self.folder / f"{name}.csv"
        rows = [f"{image},{value:.8f}" for image, value in zip(images or self.images, p, strict=True)]
        path.write_text("image_id,predictions\n" + "\n".join(rows) + "\n" + extra)
        return path

    def files(self) -> list[Path]:
        return [self.write(f"net{at}", column) for at, column in enumerate(self.p.T)]

    def settings(self, files: Sequence[Path], **changed: Any) -> BlendSettings:
        return replace(BlendSettings(files, self.labels, self.folder / "out", repeats=2), **changed)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def refused(study: Study, files: Sequence[Path], competition: Competition, said: str, **changed: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        blend(study.settings(files, **changed), competition, quiet)
    assert not (study.folder / "out").exists()


def patients_of(study: Study, competition: Competition) -> Patients:
    return read_inputs(study.files(), study.labels, competition).patients


def test_the_loss_is_scikit_learn_s(study: Study, strip_ai: Competition) -> None:
    patients = patients_of(study, strip_ai)
    p = np.clip(study.rng.random(len(patients.label)), 1e-6, 1 - 1e-6)
    weight = np.where(patients.label == 1, 0.5 / patients.label.sum(), 0.5 / (1 - patients.label).sum())
    assert loss_terms(p, patients).sum() == pytest.approx(log_loss(patients.label, p, sample_weight=weight))


def test_areas_under_the_curve_are_scikit_learn_s(study: Study) -> None:
    label = study.label[study.owner]
    rounded = study.p.round(1)  # with ties
    expected = [roc_auc_score(label, column) for column in rounded.T]
    assert aucs(rounded, label) == pytest.approx(expected)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_a_fit_is_balanced_platt_scaling(study: Study, strip_ai: Competition, candidate: Candidate) -> None:
    """The slope of the standardised logit has a Gaussian prior of deviation 1: scikit-learn's C of 1."""
    patients = patients_of(study, strip_ai)
    slides = patients.p.mean(axis=1)
    means = patient_means(slides, patients.owner, candidate.pseudo_slides, slides.mean())
    floored = np.maximum(means, np.quantile(means, candidate.floor_quantile))
    design = StandardScaler().fit_transform(logit(floored)[:, None])
    weights = patients.balance * len(patients.label)
    expected = LogisticRegression(C=1, tol=1e-9).fit(design, patients.label, sample_weight=weights)
    p = candidate.fit(patients).apply(patients.p, patients.owner)
    assert p == pytest.approx(np.clip(expected.predict_proba(design)[:, 1], 0.01, 0.99), abs=1e-3)


def test_the_reference_is_neither_shrunken_nor_floored(study: Study, strip_ai: Competition) -> None:
    fitted = PLATT.fit(patients_of(study, strip_ai))
    assert fitted.pseudo_slides == 0
    assert fitted.weights == pytest.approx((1 / 3,) * 3)
    p = np.linspace(0.02, 0.98, 49)[:, None].repeat(3, axis=1)
    log_odds = logit(fitted.apply(p, np.arange(49)))
    slopes = np.diff(log_odds) / np.diff(logit(p[:, 0]))
    inside = np.abs(log_odds[1:]) < 4
    assert slopes[inside] == pytest.approx(fitted.slope, rel=1e-2)


def test_uninformative_members_have_no_weight(study: Study, strip_ai: Competition) -> None:
    study.p[:, 1] = study.rng.permutation(study.p[:, 1])
    patients = patients_of(study, strip_ai)
    assert aucs(patients.means, patients.label)[1] < 0.55
    assert patients.member_weights.tolist() == [0.5, 0, 0.5]


def test_scored_patients_have_no_part_in_the_fit(study: Study, strip_ai: Competition) -> None:
    """With random labels an honest estimate is no better than a constant; an in-sample one is."""
    inputs = read_inputs(study.files(), study.labels, strip_ai)
    shuffled = replace(inputs.patients, label=study.rng.permutation(inputs.patients.label))
    nested = cross_validate(shuffled, inputs.groups, [list(folds_of(shuffled, inputs.groups, 0))])
    honest = loss_terms(nested.p[0], shuffled).sum()
    fitted = CANDIDATES[choose(shuffled, inputs.groups, 0)].fit(shuffled)
    assert honest > np.log(2) - 0.01
    assert loss_terms(fitted.apply(shuffled.p, shuffled.owner), shuffled).sum() < honest


def test_shrinking_is_chosen_only_where_it_helps(tmp_path: Path, strip_ai: Competition) -> None:
    """Slides that say little gain by it; sure slides of patients lose, and few patients choose nothing."""

    def chosen(folder: str, patients: int, strength: float) -> Candidate:
        (tmp_path / folder).mkdir()
        study = Study(tmp_path / folder, patients=patients, strength=strength)
        inputs = read_inputs(study.files(), study.labels, strip_ai)
        return CANDIDATES[choose(inputs.patients, inputs.groups, 0)]

    assert chosen("weak", 1200, 0.5) is SHRUNKEN
    assert chosen("strong", 1200, 1.0) is PLATT
    assert chosen("few", 120, 0.5) is PLATT


def test_groups_stay_together(study: Study, strip_ai: Competition) -> None:
    patients = patients_of(study, strip_ai)
    groups = np.arange(len(patients.label)) // 2
    for learn, score in folds_of(patients, groups, 0):
        assert not set(groups[learn]) & set(groups[score])
        assert len(learn) + len(score) == len(groups)


def test_a_blend_is_written_and_said(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ensemble"
    command = ["blend", *map(str, study.files()), "--labels", str(study.labels), "--out", str(out), "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert figures["members"] == ["net0", "net1", "net2"]
    assert figures["nested_weighted_log_loss"] < figures["mean_raw"] < figures["constant"]
    assert figures["constant"] == pytest.approx(np.log(2), abs=1e-6)
    assert figures["repeats"] == 10
    for key in ("nested_sd", "centre_weighted_log_loss", "mean_platt", "auc", "method", "gain", "hidden", "candidates"):
        assert figures[key] is not None
    assert "3 members" in said.err
    first = [(out / name).read_bytes() for name in (ENSEMBLE, ENSEMBLE_CALIBRATION)]
    assert main([part for part in command if part != "--json"]) == 0
    assert [(out / name).read_bytes() for name in (ENSEMBLE, ENSEMBLE_CALIBRATION)] == first
    table = capsys.readouterr().out
    assert f"{figures['nested_weighted_log_loss']:.4f}" in table
    assert "mean + Platt" in table


@pytest.mark.parametrize("centre", [lambda label: 1, lambda label: 1 + label])
def test_without_other_centres_there_is_no_figure_of_them(
    study: Study, strip_ai: Competition, centre: Callable[[int], int]
) -> None:
    """One centre for all, or one that has a class to itself."""
    rows = list(csv.DictReader(study.labels.read_text().splitlines()))
    text = [f"{row['image_id']},{centre(row['label'] == 'LAA')},{row['patient_id']},{row['label']}" for row in rows]
    study.labels.write_text("image_id,center_id,patient_id,label\n" + "\n".join(text) + "\n")
    figures = blend(study.settings(study.files(), repeats=1), strip_ai, quiet)
    assert figures["centre_weighted_log_loss"] is None
    assert not any(line.startswith("on centres") for line in lines(figures, study.folder))


def test_a_column_a_class_and_the_file_of_a_training_are_read_too(study: Study, strip_ai: Competition) -> None:
    folder = study.folder / "lite"
    folder.mkdir()
    rows = [f"{image},x,{1 - p:.8f},{p:.8f},0" for image, p in zip(study.images, study.p[:, 0], strict=True)]
    (folder / "oof.csv").write_text("image,patient,CE,LAA,fold\n" + "\n".join(rows) + "\n")
    assert member_name(folder / "oof.csv") == "lite"
    one = read_inputs([folder / "oof.csv"], study.labels, strip_ai)
    other = read_inputs(study.files()[:1], study.labels, strip_ai)
    assert one.members == ("lite",)
    assert one.patients.p == pytest.approx(other.patients.p, abs=1e-7)


def test_tiles_are_averaged(study: Study, strip_ai: Competition) -> None:
    count, tiles = len(study.images), 8
    values = study.rng.beta(2, 6, (count, tiles)) + 0.2 * study.label[study.owner][:, None]
    path = study.write("tiles", values.reshape(-1), [image for image in study.images for _ in range(tiles)])
    inputs = read_inputs([path], study.labels, strip_ai)
    means = dict(zip(study.images, values.mean(axis=1), strict=True))
    assert sorted(inputs.patients.p[:, 0]) == pytest.approx(sorted(means.values()), abs=1e-7)
    assert any(f"{count * tiles} tiles" in note for note in inputs.notes)


def test_reversed_classes_are_refused(study: Study, strip_ai: Competition) -> None:
    refused(study, [*study.files(), study.write("back", 1 - study.p[:, 0])], strip_ai, r"^back: AUC 0\.\d{3}")


def test_predictions_of_known_labels_are_refused_unless_trusted(study: Study, strip_ai: Competition) -> None:
    seen = expit(logit(study.p[:, 0]) + 4 * (study.label[study.owner] - 0.5))
    files = [*study.files(), study.write("seen", seen)]
    refused(study, files, strip_ai, "seen: AUC 0.9.*--trust seen")
    assert blend(study.settings(files, trusted=("seen",)), strip_ai, quiet)["auc"] > 0.9


def test_a_patient_in_two_folds_is_refused(study: Study, strip_ai: Competition) -> None:
    rows = [f"{image},{p:.8f},{image[-1]}" for image, p in zip(study.images, study.p[:, 0], strict=True)]
    path = study.folder / "leaky.csv"
    path.write_text("image_id,predictions,fold\n" + "\n".join(rows) + "\n")
    refused(study, [path], strip_ai, r"leaky\.csv: patient .* 0 and 1")


def test_a_constant_column_is_left_out_and_named(study: Study, strip_ai: Competition) -> None:
    flat = study.write("flat", np.full(len(study.images), 0.3))
    inputs = read_inputs([*study.files(), flat], study.labels, strip_ai)
    assert inputs.members == ("net0", "net1", "net2")
    assert any("flat" in note and "0.3000" in note for note in inputs.notes)
    refused(study, [flat], strip_ai, "^flat: ")


def test_missing_slides_are_imputed_and_named(study: Study, strip_ai: Competition) -> None:
    files = study.files()
    few = study.write("few", study.p[20:, 0], study.images[20:])
    inputs = read_inputs([*files, few], study.labels, strip_ai)
    assert any(note.startswith("few: 20 ") for note in inputs.notes)
    assert np.isfinite(inputs.patients.p).all()
    half = study.write("half", study.p[:60, 0], study.images[:60])
    refused(study, [*files, half], strip_ai, "half: [0-9]+ of [0-9]+ .*50%")
    lost = [study.write(f"lost{at}", study.p[3:, at], study.images[3:]) for at in range(2)]
    without = read_inputs(lost, study.labels, strip_ai)
    assert without.slides == len(study.images) - 3
    assert any(note.startswith("3 slides ") for note in without.notes)


def test_duplicates_within_the_labels_share_folds(study: Study, strip_ai: Competition) -> None:
    singles = [at for at, owner in enumerate(study.owner) if (study.owner == owner).sum() == 1]
    one, two = singles[0], next(at for at in singles[1:] if study.label[study.owner[at]] == 1)
    study.p[two] = study.p[one]
    inputs = read_inputs(study.files(), study.labels, strip_ai)
    groups = dict(zip(inputs.names, inputs.groups.tolist(), strict=True))
    assert groups[study.patients[study.owner[one]]] == groups[study.patients[study.owner[two]]]
    assert len(set(groups.values())) == len(groups) - 1
    assert any(study.images[two] in note for note in inputs.notes)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 0, 3, 1)])
def test_a_chain_of_duplicates_is_one_group(order: tuple[int, ...], study: Study, strip_ai: Competition) -> None:
    """Two slides of one patient each have the pixels of another patient's slide."""
    owners = [owner for owner in np.unique(study.owner) if (study.owner == owner).sum() == 2][:2]
    singles = [at for at, owner in enumerate(study.owner) if (study.owner == owner).sum() == 1]
    first, second = (np.flatnonzero(study.owner == owner) for owner in owners)
    linked = [(singles[0], first[0]), (first[1], second[0]), (second[1], singles[1])]
    for one, other in linked:
        study.p[one] = study.p[other]
    chain = {study.patients[study.owner[at]] for pair in linked for at in pair}
    header, *rows = study.labels.read_text().splitlines()
    parts = [rows[at::4] for at in order]  # a chain is found in any order of the rows
    study.labels.write_text("\n".join([header, *(row for part in parts for row in part)]) + "\n")
    inputs = read_inputs(study.files(), study.labels, strip_ai)
    groups = dict(zip(inputs.names, inputs.groups.tolist(), strict=True))
    assert len({groups[patient] for patient in chain}) == 1
    assert len(set(groups.values())) == len(groups) - len(chain) + 1


def test_groups_count_for_each_class_they_have() -> None:
    label = np.array([0, 1, 0, 1, 0, 1, 2, 0])
    assert rarest(label, np.array([0, 0, 1, 1, 2, 2, 2, 3])) == 1
    assert rarest(label[:6], np.array([0, 0, 1, 1, 2, 2])) == 3  # a class is only in second units


@pytest.mark.parametrize("patients", [1, 4, 5])
def test_classes_are_counted_by_patient_where_each_slide_has_its_answer(patients: int, strip_ai: Competition) -> None:
    label = np.repeat([0, 1], 60)
    owner = [f"n{at}" for at in range(60)] + [f"p{at % patients}" for at in range(60)]
    labels = pd.DataFrame({"patient": owner, "centre": "", "label": label, "unit": np.arange(120).astype(str)})
    p = np.random.default_rng(0).dirichlet([2, 2], (120, 2)) * 0.8 + 0.2 * np.eye(2)[label][:, None]
    read = Predictions(("one", "two"), p, labels, {}, [], labels)
    if patients < FOLDS:
        with pytest.raises(ConfigError):
            two_class_inputs(read, strip_ai, ())
        return
    inputs = two_class_inputs(read, strip_ai, ())
    for train, test in folds_of(inputs.patients, inputs.groups, 0):
        assert not set(inputs.groups[train]) & set(inputs.groups[test])
        assert set(inputs.patients.label[train]) == set(inputs.patients.label[test]) == {0, 1}


def gain_of(label: np.ndarray, groups: np.ndarray, p: np.ndarray, platt: np.ndarray) -> dict[str, float]:
    patients = Patients(p[:, None], np.arange(len(label)), label, 1.0)
    return gain(Nested(p[None], np.stack([p, platt])[None], platt[None], np.ones(2) / 2), patients, groups)


def test_an_interval_is_of_patients_not_of_slides() -> None:
    """Copies of a patient's slides tell nothing new; neither does the order of slides of two classes."""
    rng = np.random.default_rng(1)
    label, groups = rng.permutation(np.arange(120) % 2), np.arange(120)
    p, platt = (np.clip(0.5 + 0.3 * (label - 0.5) + rng.normal(0, 0.2, 120), 0.05, 0.95) for _ in range(2))
    single = gain_of(label, groups, p, platt)
    assert single["low"] < single["mean"] < single["high"]
    assert gain_of(*(np.repeat(one, 6) for one in (label, groups, p, platt))) == pytest.approx(single, abs=2e-6)
    several = groups // 2  # some have both classes
    found = [gain_of(label[at], several[at], p[at], platt[at]) for at in (np.arange(120), np.arange(120)[::-1])]
    assert found[0] == pytest.approx(found[1], abs=2e-6)


def test_a_group_counts_as_the_rarest_class_it_has() -> None:
    """The positive slides are second ones of their patients."""
    label, groups = np.array([0, 1] * 10 + [0] * 40), np.array([at // 2 for at in range(20)] + list(range(10, 50)))
    patients = Patients(np.full((60, 1), 0.5), np.arange(60), label, 1.0)
    for train, test in folds_of(patients, groups, 0):
        assert label[test].sum() == 2
        assert not set(groups[train]) & set(groups[test])


def test_a_duplicate_in_another_table_is_left_out_where_a_member_saw_both(study: Study, strip_ai: Competition) -> None:
    here, there = study.images[0], "ffffff_0"
    known = replace(strip_ai, ids=replace(strip_ai.ids, twins=(f"{here} = {there}",)))
    files = study.files()
    assert read_inputs(files, study.labels, known).slides == len(study.images)
    both = study.write("both", study.p[:, 0], extra=f"{there},0.5\n")
    inputs = read_inputs([*files, both], study.labels, known)
    assert inputs.slides == len(study.images) - 1
    assert any(note.startswith(here) and "both" in note for note in inputs.notes)
    assert any(note.startswith("both: 1 ") for note in inputs.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id,predictions\n000000_0,1.2\n", "odd.csv: 000000_0 has "),
        ("image_id,predictions\n000000_0,nan\n", "odd.csv: 000000_0 has "),
        ("image_id,predictions\n000000_0,\n", "odd.csv: 000000_0 has "),
        ("image_id,CE,LAA\n000000_0,0.5,0.9\n", "odd.csv: 000000_0 has "),
        ("image_id,p\n000000_0,0.5\n", "odd.csv: .*image_id, p"),
        ("predictions\n0.5\n", "odd.csv: .*predictions"),
        ("image_id,predictions\n", "odd.csv: 0 "),
        ("image_id,predictions\nfffff0_0,0.5\n", "odd.csv: 0 of its 1 "),
        ("", "odd.csv: "),
    ],
)
def test_a_file_that_is_no_table_of_predictions_is_named(
    study: Study, strip_ai: Competition, text: str, said: str
) -> None:
    path = study.folder / "odd.csv"
    path.write_text(text)
    refused(study, [path], strip_ai, said)


def test_wrong_input_costs_one_line(study: Study, strip_ai: Competition, tmp_path: Path) -> None:
    files = study.files()
    refused(study, [*files, files[0]], strip_ai, "net0.csv: ")
    refused(study, [tmp_path / "gone.csv"], strip_ai, "gone.csv: ")
    for text, error in (
        ("image_id,label\n1_0,CE\n1_0,CE\n", "labels.csv: 1_0 has 2"),
        ("image_id,label\n1_0,Unknown\n", "labels.csv: .*'Unknown'"),
        ("image_id,patient_id,label\n1_0,1,CE\n1_1,1,LAA\n", "labels.csv: patient 1 "),
    ):
        (tmp_path / "labels.csv").write_text(text)
        refused(study, files, strip_ai, error, labels=tmp_path / "labels.csv")
    with pytest.raises(SplitError, match=r"gone\.csv"):
        blend(study.settings(files, labels=tmp_path / "gone.csv"), strip_ai, quiet)
    few = Study(tmp_path, patients=36)
    refused(few, few.files(), strip_ai, "9 patients of class LAA, at least 10")


def test_covariates_are_accepted_and_ignored(study: Study, strip_ai: Competition) -> None:
    plain = blend(study.settings(study.files()), strip_ai, quiet)
    said: list[str] = []
    given = blend(study.settings(study.files(), covariates=study.folder / "sizes.csv"), strip_ai, said.append)
    assert given.pop("covariates") == {"used": False}
    assert given == plain
    assert any("sizes.csv" in line for line in said)


def test_a_run_applies_the_ensemble_as_it_is_and_without_a_member(
    study: Study, split: Path, make_member: Callable[..., Path], strip_ai: Competition, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    for at in range(2):
        make_member(weights / f"net{at}", strip_ai.classes.names, seed=at + 1)
    make_member(weights / "stranger", strip_ai.classes.names, seed=9)
    blend(study.settings(study.files()[:2], out=weights), strip_ai, quiet)
    said: list[str] = []
    lines = run(RunSettings(split, weights, tmp_path / "run", 300.0, 4096, 2), strip_ai, said.append)
    assert lines["done"] == 4
    reports = report_of(tmp_path / "run")
    assert all(set(line["p"]) == {"net0", "net1"} for line in reports.values())
    ensemble = read_ensemble(weights, strip_ai)
    assert ensemble is not None
    with (split / "test.csv").open(newline="") as file:
        patient_of = {row["image_id"]: row["patient_id"] for row in csv.DictReader(file)}
    scored = {image: {name: np.array(p) for name, p in line["p"].items()} for image, line in reports.items()}
    expected = ensemble.apply(scored, patient_of)
    assert submission_of(tmp_path / "run" / "submission.csv") == {
        patient: pytest.approx(row, abs=1e-6) for patient, row in expected.items()
    }

    (weights / "net1" / "model.weights.h5").write_bytes(b"damaged")
    run(RunSettings(split, weights, tmp_path / "again", 300.0, 4096, 2), strip_ai, said.append)
    assert any(line.startswith("member net1 left out") for line in said)
    fewer = submission_of(tmp_path / "again" / "submission.csv")
    alone = ensemble.apply({image: {"net0": row["net0"]} for image, row in scored.items()}, patient_of)
    assert fewer == {patient: pytest.approx(row, abs=1e-6) for patient, row in alone.items()}

    (weights / ENSEMBLE_CALIBRATION).write_text("{}")
    with pytest.raises(ConfigError, match=ENSEMBLE_CALIBRATION):
        run(RunSettings(split, weights, tmp_path / "third", 300.0, 4096, 2), strip_ai, said.append)
    assert not (tmp_path / "third").exists()


def test_a_run_refuses_an_ensemble_that_lacks_a_member_unless_told_to_score_without_it(
    study: Study, split: Path, make_member: Callable[..., Path], strip_ai: Competition, tmp_path: Path
) -> None:
    weights, out = tmp_path / "weights", tmp_path / "run"
    for at in range(2):
        make_member(weights / f"net{at}", strip_ai.classes.names, seed=at + 1)
    figures = blend(study.settings(study.files(), out=weights), strip_ai, quiet)
    assert figures["cannot_run"] == ["net2"]
    words = ["run", str(split), "--weights", str(weights), "--out", str(out)]
    for refused_words in ([], ["--without", "net0"], ["--without", "net2", "--without", "another"]):
        assert main([*words, *refused_words]) == 2
        assert not out.exists()
    assert main(["plan", *words[1:4]]) == 2  # of a run that would not begin

    assert main([*words, "--without", "net2"]) == 0
    facts = json.loads((out / "run.json").read_text())
    assert (facts["without"], facts["left_out"]) == (["net2"], {})
    submission = (out / "submission.csv").read_bytes()
    assert main([*words[:-1], str(tmp_path / "kernel"), "--without-missing"]) == 3
    assert (tmp_path / "kernel" / "submission.csv").read_bytes() == submission
    assert json.loads((tmp_path / "kernel" / "run.json").read_text())["left_out_codes"] == {"net2": Reason.MISSING}

    assert main([*words[:-1], str(tmp_path / "one"), "--without", "net1", "--without", "net2"]) == 0
    assert all(set(line["p"]) == {"net0"} for line in report_of(tmp_path / "one").values())


def test_a_member_of_no_weight_is_not_missed(
    study: Study, split: Path, make_member: Callable[..., Path], strip_ai: Competition, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    for at in range(2):
        make_member(weights / f"net{at}", strip_ai.classes.names, seed=at + 1)
    blend(study.settings(study.files(), out=weights), strip_ai, quiet)
    fitted = json.loads((weights / ENSEMBLE_CALIBRATION).read_text())
    fitted["calibrator"]["weights"] = [0.5, 0.5, 0.0]
    (weights / ENSEMBLE_CALIBRATION).write_text(json.dumps(fitted))
    assert main(["run", str(split), "--weights", str(weights), "--out", str(tmp_path / "run")]) == 0


def test_an_ensemble_without_any_of_its_members_is_refused(
    study: Study, split: Path, make_member: Callable[..., Path], strip_ai: Competition, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    make_member(weights / "stranger", strip_ai.classes.names)
    blend(study.settings(study.files(), out=weights), strip_ai, quiet)
    with pytest.raises(ConfigError, match=r"net0, net1, net2.*stranger"):
        run(RunSettings(split, weights, tmp_path / "run", 300.0, 4096, 2), strip_ai, quiet)
    with pytest.raises(UsageError, match="stranger: "):
        blend(study.settings(study.files(), out=weights / "stranger"), strip_ai, quiet)


@real
def test_the_published_predictions_score_0_640(strip_ai: Competition, tmp_path: Path) -> None:
    """Measured on ten published networks and 632 patients: 0.6397, plain Platt scaling 0.6471."""
    files = sorted((OOF / "predictions").glob("*.csv"))
    figures = blend(BlendSettings(files, OOF / "train.csv", tmp_path), strip_ai, quiet)
    assert figures["mean_platt"] == pytest.approx(0.6471, abs=0.0005)
    assert figures["nested_weighted_log_loss"] < 0.6400
    assert figures["centre_weighted_log_loss"] <= figures["centre_mean_platt"]
    assert figures["hidden"]["beats_mean_platt"] > 0.85


@real
@pytest.mark.parametrize("half", [0, 1])
def test_half_of_the_published_members_gain_too(strip_ai: Competition, tmp_path: Path, half: int) -> None:
    files = sorted((OOF / "predictions").glob("*.csv"))[half::2]
    figures = blend(BlendSettings(files, OOF / "train.csv", tmp_path, repeats=3), strip_ai, quiet)
    assert figures["nested_weighted_log_loss"] < figures["mean_platt"] - 0.003
