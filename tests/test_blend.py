"""`clotkit blend`: what it refuses and names, that its fits are right, what it writes, and what it is worth."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.ensembling.blend import BlendSettings, blend, bounds_of, fit, folds_of, hold_out, lines
from clotkit.ensembling.candidates import (
    Patients,
    aucs,
    constrained,
    fit_balanced,
    fit_logistic,
    greedy,
    loss_terms,
    mean_platt,
    ways,
)
from clotkit.ensembling.data import member_name, read_material
from clotkit.errors import ConfigError, SplitError, UsageError
from clotkit.members.blending import Pool, expit, logit
from clotkit.members.ensemble import ENSEMBLE, ENSEMBLE_CALIBRATION, read_ensemble
from clotkit.scoring.pipeline import run
from clotkit.scoring.settings import RunSettings

from .test_pipeline import report_of, submission_of

OOF = Path(__file__).resolve().parents[2] / "shared" / "data" / "strip_oof"
real = pytest.mark.skipif(not OOF.exists(), reason="the published out-of-fold predictions are not here (../shared)")


def quiet(_line: str) -> None:
    """Progress, unread."""


class Study:
    """Labelled patients and members' predictions of their slides, drawn and written as files."""

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
        """A member's file: `extra` rows follow."""
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
    return read_material(study.files(), study.labels, competition).patients


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


def test_fits_are_scikit_learn_s(study: Study, strip_ai: Competition) -> None:
    """With a Gaussian prior of deviation 1 on the slope of the standardised link: its C of 1."""
    patients = patients_of(study, strip_ai)
    x = Pool(weights=(1 / 3,) * 3).apply(patients.p, patients.owner, len(patients.label))
    design = StandardScaler().fit_transform(logit(x)[:, None])
    balanced = LogisticRegression(C=1, tol=1e-9).fit(
        design, patients.label, sample_weight=patients.balance * len(patients.label)
    )
    assert fit_balanced(x, patients).log_odds(x) == pytest.approx(balanced.decision_function(design), abs=1e-3)
    plain = LogisticRegression(C=1, tol=1e-9).fit(design, patients.label)
    share = patients.label.mean()
    moved = plain.decision_function(design) - np.log(share / (1 - share))
    assert fit_logistic(x, patients, ("logit",)).log_odds(x) == pytest.approx(moved, abs=1e-3)


@pytest.mark.parametrize("weigh", [constrained, greedy])
def test_weights_prefer_the_member_that_knows(
    study: Study, strip_ai: Competition, weigh: Callable[[Patients], tuple[float, ...]]
) -> None:
    study.p[:, 0] = expit(logit(study.p[:, 0]) + 0.8 * (study.label[study.owner] - 0.5))
    found = weigh(patients_of(study, strip_ai))
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    assert found[0] > max(found[1:])


def test_members_that_say_nothing_have_no_weight(study: Study, strip_ai: Competition) -> None:
    study.p[:, 1] = study.rng.permutation(study.p[:, 1])
    patients = patients_of(study, strip_ai)
    assert aucs(patients.means, patients.label)[1] < 0.55
    assert patients.informed.tolist() == [1, 0, 1]


def test_nothing_of_the_scored_patients_is_in_the_fit(study: Study, strip_ai: Competition) -> None:
    """With labels that are noise no honest estimate is below the constant by more than luck; an in-sample one is."""
    material = read_material(study.files(), study.labels, strip_ai)
    shuffled = replace(material.patients, label=study.rng.permutation(material.patients.label))
    tried = list(ways())
    held = hold_out(shuffled, material.groups, tried, [list(folds_of(shuffled, material.groups, 0))])
    nested = loss_terms(held.p[0], shuffled).sum()
    inside = loss_terms(fit(shuffled, material.groups, tried, 0).apply(shuffled)[0], shuffled).sum()
    assert nested > np.log(2) - 0.01
    assert inside < nested


def test_bounds_are_wide_for_evidence_and_narrow_for_noise(tmp_path: Path, strip_ai: Competition) -> None:
    study = Study(tmp_path, patients=1200)
    patients = patients_of(study, strip_ai)
    low, high = bounds_of(study.rng.random(len(patients.label)), patients)
    assert 0.02 < low < 0.5 < high < 0.98
    perfect = np.where(patients.label == 1, 0.99, 0.01)
    wider = bounds_of(perfect, patients)
    assert 0 < wider[0] < low
    assert high < wider[1] < 1
    # What one patient who is wrong beyond doubt can cost is bounded by what was seen of the others.
    assert -np.log(wider[0]) * patients.balance.max() < 0.01


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
    one = read_material([folder / "oof.csv"], study.labels, strip_ai)
    other = read_material(study.files()[:1], study.labels, strip_ai)
    assert one.members == ("lite",)
    assert one.patients.p == pytest.approx(other.patients.p, abs=1e-7)


def test_tiles_are_pooled_as_suits_the_member(study: Study, strip_ai: Competition, tmp_path: Path) -> None:
    """A member that sees the class in one tile of eight: the largest tile says it, the mean hardly."""
    many, tiles = len(study.images), 8
    values = study.rng.beta(2, 6, (many, tiles))
    found = study.label[study.owner] == 1
    values[found, 0] = study.rng.beta(8, 2, int(found.sum()))
    path = study.write("tiles", values.reshape(-1), [image for image in study.images for _ in range(tiles)])
    material = read_material([path, *study.files()], study.labels, strip_ai, trusted=("tiles",))
    assert material.tile_pools == {"tiles": "max"}
    assert any("tiles of" in note for note in material.notes)
    blend(study.settings([path], out=tmp_path / "out"), strip_ai, quiet)
    ensemble = read_ensemble(tmp_path / "out", strip_ai)
    assert ensemble is not None
    assert ensemble.tile_pools == {"tiles": "max"}


def test_reversed_classes_are_refused(study: Study, strip_ai: Competition) -> None:
    refused(study, [*study.files(), study.write("back", 1 - study.p[:, 0])], strip_ai, "back: AUC 0.*reversed")


def test_predictions_of_known_labels_are_refused_unless_trusted(study: Study, strip_ai: Competition) -> None:
    seen = expit(logit(study.p[:, 0]) + 4 * (study.label[study.owner] - 0.5))
    files = [*study.files(), study.write("seen", seen)]
    refused(study, files, strip_ai, "seen: AUC 0.9.*--trust seen")
    assert blend(study.settings(files, trusted=("seen",)), strip_ai, quiet)["auc"] > 0.9


def test_a_patient_in_two_folds_is_refused(study: Study, strip_ai: Competition) -> None:
    rows = [f"{image},{p:.8f},{image[-1]}" for image, p in zip(study.images, study.p[:, 0], strict=True)]
    path = study.folder / "leaky.csv"
    path.write_text("image_id,predictions,fold\n" + "\n".join(rows) + "\n")
    refused(study, [path], strip_ai, "is in the folds 0 and 1")


def test_a_constant_column_is_left_out_and_named(study: Study, strip_ai: Competition) -> None:
    flat = study.write("flat", np.full(len(study.images), 0.3))
    material = read_material([*study.files(), flat], study.labels, strip_ai)
    assert material.members == ("net0", "net1", "net2")
    assert any(note.startswith("flat: is left out") for note in material.notes)
    refused(study, [flat], strip_ai, "constant")


def test_missing_slides_are_stood_in_for_and_named(study: Study, strip_ai: Competition) -> None:
    files = study.files()
    few = study.write("few", study.p[20:, 0], study.images[20:])
    material = read_material([*files, few], study.labels, strip_ai)
    assert "few: 20 slides without a prediction; the other members stand in" in material.notes
    assert np.isfinite(material.patients.p).all()
    half = study.write("half", study.p[:60, 0], study.images[:60])
    refused(study, [*files, half], strip_ai, "half.csv: [0-9]+ of [0-9]+ labelled slides have no prediction")
    lost = [study.write(f"lost{at}", study.p[3:, at], study.images[3:]) for at in range(2)]
    assert any(
        "3 slides have no prediction at all" in note for note in read_material(lost, study.labels, strip_ai).notes
    )


def test_twins_within_the_labels_share_folds(study: Study, strip_ai: Competition) -> None:
    singles = [at for at, owner in enumerate(study.owner) if (study.owner == owner).sum() == 1]
    one, two = singles[0], next(at for at in singles[1:] if study.label[study.owner[at]] == 1)
    study.p[two] = study.p[one]
    material = read_material(study.files(), study.labels, strip_ai)
    groups = dict(zip(material.names, material.groups.tolist(), strict=True))
    assert groups[study.patients[study.owner[one]]] == groups[study.patients[study.owner[two]]]
    assert len(set(groups.values())) == len(groups) - 1
    assert any(study.images[two] in note for note in material.notes)


def test_a_twin_in_the_other_table_is_left_out_where_a_member_saw_both(study: Study, strip_ai: Competition) -> None:
    here, there = study.images[0], "ffffff_0"
    known = replace(strip_ai, ids=replace(strip_ai.ids, twins=(f"{here} = {there}",)))
    files = study.files()
    assert read_material(files, study.labels, known).slides == len(study.images)
    both = study.write("both", study.p[:, 0], extra=f"{there},0.5\n")
    material = read_material([*files, both], study.labels, known)
    assert material.slides == len(study.images) - 1
    assert any(note.startswith(f"{here} is left out") for note in material.notes)
    assert "both: 1 rows are of images without a label: not used" in material.notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id,predictions\n000000_0,1.2\n", "no probability"),
        ("image_id,predictions\n000000_0,nan\n", "no probability"),
        ("image_id,predictions\n000000_0,\n", "no probability"),
        ("image_id,CE,LAA\n000000_0,0.5,0.9\n", "no probability"),
        ("image_id,p\n000000_0,0.5\n", "columns are image_id, p"),
        ("predictions\n0.5\n", "columns are predictions"),
        ("image_id,predictions\n", "0 rows"),
        ("image_id,predictions\nfffff0_0,0.5\n", "none of its 1 images"),
        ("", "cannot be read"),
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
    refused(study, [*files, files[0]], strip_ai, "2 files have this name")
    refused(study, [tmp_path / "gone.csv"], strip_ai, "gone.csv: cannot be read")
    for text, error in (
        ("image_id,label\n1_0,CE\n1_0,CE\n", "stands 2 times"),
        ("image_id,label\n1_0,Unknown\n", "'Unknown' is no class"),
        ("image_id,patient_id,label\n1_0,1,CE\n1_1,1,LAA\n", "slides of both classes"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        refused(study, files, strip_ai, error, labels=tmp_path / "labels.csv")
    with pytest.raises(SplitError, match=r"gone\.csv"):
        blend(study.settings(files, labels=tmp_path / "gone.csv"), strip_ai, quiet)
    with pytest.raises(UsageError, match="is a file"):
        blend(study.settings(files, out=study.labels), strip_ai, quiet)
    few = Study(tmp_path, patients=36)
    refused(few, few.files(), strip_ai, "9 patients of class LAA, at least 10")


def test_sizes_are_used_only_where_they_help(study: Study, strip_ai: Competition) -> None:
    table = study.folder / "sizes.csv"
    label = study.label[study.owner]
    for helps in (True, False):
        width = np.exp(study.rng.normal(10 + 1.5 * helps * label, 1))
        rows = [f"{image},{value:.0f}" for image, value in zip(study.images, width, strict=True)]
        table.write_text("image_id,width_px\n" + "\n".join(rows) + "\n")
        figures = blend(study.settings(study.files(), covariates=table), strip_ai, quiet)
        assert figures["covariates"]["used"] is helps
        ensemble = read_ensemble(study.folder / "out", strip_ai)
        assert ensemble is not None
        assert ensemble.committee.covariates == (("width_px",) if helps else ())
    table.write_text("image_id,colour\n000000_0,1\n")
    refused_settings = study.settings(study.files(), covariates=table)
    with pytest.raises(ConfigError, match="has none of the columns width_px, height_px"):
        blend(refused_settings, strip_ai, quiet)


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
    expected = ensemble.apply(scored, patient_of, {})
    assert submission_of(tmp_path / "run" / "submission.csv") == {
        patient: pytest.approx(row, abs=1e-6) for patient, row in expected.items()
    }

    (weights / "net1" / "model.weights.h5").write_bytes(b"damaged")
    run(RunSettings(split, weights, tmp_path / "again", 300.0, 4096, 2), strip_ai, said.append)
    assert any(line.startswith("member net1 left out") for line in said)
    fewer = submission_of(tmp_path / "again" / "submission.csv")
    alone = ensemble.apply({image: {"net0": row["net0"]} for image, row in scored.items()}, patient_of, {})
    assert fewer == {patient: pytest.approx(row, abs=1e-6) for patient, row in alone.items()}

    (weights / ENSEMBLE_CALIBRATION).write_text("{}")
    with pytest.raises(ConfigError, match="no calibration of an ensemble"):
        run(RunSettings(split, weights, tmp_path / "third", 300.0, 4096, 2), strip_ai, said.append)
    assert not (tmp_path / "third").exists()


def test_an_ensemble_without_any_of_its_members_is_refused(
    study: Study, split: Path, make_member: Callable[..., Path], strip_ai: Competition, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    make_member(weights / "stranger", strip_ai.classes.names)
    blend(study.settings(study.files(), out=weights), strip_ai, quiet)
    with pytest.raises(ConfigError, match="blends net0, net1, net2; found beside it: stranger"):
        run(RunSettings(split, weights, tmp_path / "run", 300.0, 4096, 2), strip_ai, quiet)
    with pytest.raises(UsageError, match="is a member's folder"):
        blend(study.settings(study.files(), out=weights / "stranger"), strip_ai, quiet)


@real
def test_the_published_predictions_come_below_0_640(strip_ai: Competition, tmp_path: Path) -> None:
    """Ten published nets of 632 patients: balanced Platt scaling of their mean has 0.6471."""
    files = sorted((OOF / "predictions").glob("*.csv"))
    figures = blend(BlendSettings(files, OOF / "train.csv", tmp_path), strip_ai, quiet)
    assert figures["mean_platt"] == pytest.approx(0.6471, abs=0.0005)
    assert figures["nested_weighted_log_loss"] < 0.640
    assert figures["centre_weighted_log_loss"] <= figures["centre_mean_platt"]
    assert figures["hidden"]["beats_mean_platt"] > 0.85


@real
@pytest.mark.parametrize("half", [0, 1])
def test_half_of_the_published_members_gain_too(strip_ai: Competition, tmp_path: Path, half: int) -> None:
    files = sorted((OOF / "predictions").glob("*.csv"))[half::2]
    figures = blend(BlendSettings(files, OOF / "train.csv", tmp_path, repeats=3), strip_ai, quiet)
    assert figures["nested_weighted_log_loss"] < figures["mean_platt"] - 0.003


def test_the_reference_is_plain_platt_scaling(study: Study, strip_ai: Competition) -> None:
    patients = patients_of(study, strip_ai)
    found = mean_platt().fitted(patients).apply(patients.p, patients.owner, patients.covariates)
    mean = Pool(weights=(1 / 3,) * 3).apply(patients.p, patients.owner, len(patients.label))
    assert found == pytest.approx(expit(fit_balanced(mean, patients).log_odds(mean)))
