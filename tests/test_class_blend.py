"""`clotkit blend` for other competitions: many classes, labels, other tables, columns as inputs."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from clotkit.competitions import Competition, Unit, load_competition
from clotkit.ensembling.blend import blend, lines
from clotkit.ensembling.classes import covariates_of
from clotkit.ensembling.data import BlendSettings, read_labels, read_predictions
from clotkit.errors import ConfigError, WeightsError
from clotkit.members.blending import CLASS_METHOD, ClassBlend, Covariates, read_blend
from clotkit.members.calibration import fit_calibration, fit_with_covariates
from clotkit.members.decision import fit_decision
from clotkit.members.ensemble import ENSEMBLE, ENSEMBLE_CALIBRATION, Ensemble, read_ensemble
from clotkit.reasons import TableRepair
from clotkit.scoring.inputs import Inputs, with_missing_facts
from clotkit.splits import Sample, SlideRow


def quiet(_line: str) -> None:
    """Discard a line of progress."""


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class Study:
    """Labelled slides of a competition in its own form, with members' predictions, as files."""

    def __init__(
        self, folder: Path, competition: Competition, slides: int = 60, members: int = 2, strength: float = 1.5
    ) -> None:
        rng = np.random.default_rng(len(competition.classes.names))
        self.folder, self.competition, self.rng = folder, competition, rng
        names = competition.classes.names
        self.label = np.arange(slides) % len(names)
        self.images = [f"{at + 100}" for at in range(slides)]
        distance = -((np.arange(len(names)) - rng.normal(self.label, 0.7)[:, None]) ** 2)  # classes are in order
        noise = rng.normal(0, 0.5, (slides, members, len(names)))
        self.p = softmax(strength * distance[:, None] + noise)  # [slides, M, C]
        self.labels = folder / competition.files.table.format(split="train")

    def write_labels(self, extra: str = "", cells: Sequence[str] = ()) -> Path:
        """Write the table of slides, with an extra column; the labels in it, or in a table of their own."""
        columns, names = self.competition.columns, self.competition.classes.names
        suffix = ".tif" * self.competition.ids.has_extension
        apart = self.competition.files.labels
        more = list(cells) if extra else [""] * len(self.images)
        header = [columns.image, extra, *([] if apart else [columns.label])]
        rows = [
            [image + suffix, cell, *([] if apart else [names[label]])]
            for image, cell, label in zip(self.images, more, self.label.tolist(), strict=True)
        ]
        write_table(self.labels, header, rows)
        if apart:
            pairs = zip(self.images, self.label.tolist(), strict=True)
            write_table(self.folder / apart, [columns.image, columns.label], [[a + suffix, names[b]] for a, b in pairs])
        return self.labels

    def files(self) -> list[Path]:
        """Write each member's table as training does."""
        paths = []
        for member in range(self.p.shape[1]):
            path = self.folder / f"net{member}" / "oof.csv"
            path.parent.mkdir(exist_ok=True)
            rows = [
                [image, image, *(f"{value:.6f}" for value in row), str(at // self.p.shape[2] % 3)]
                for at, (image, row) in enumerate(zip(self.images, self.p[:, member], strict=True))
            ]
            write_table(path, ["image", "patient", *self.competition.classes.names, "fold"], rows)
            paths.append(path)
        return paths

    def blend(self, **changed: Any) -> dict[str, Any]:
        settings = BlendSettings(self.files(), self.labels, self.folder / "out", repeats=2)
        return blend(replace(settings, **changed), self.competition, quiet)

    def ensemble(self) -> Ensemble:
        found = read_ensemble(self.folder / "out", self.competition)
        assert found is not None
        return found

    def scored(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            image: {f"net{member}": row for member, row in enumerate(rows)}
            for image, rows in zip(self.images, self.p, strict=True)
        }


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    kept = [at for at, name in enumerate(header) if name]
    text = "\n".join(",".join(row[at] for at in kept) for row in (header, *rows))
    path.write_text(text + "\n")


def test_grades_are_blended_and_judged_by_kappa(tmp_path: Path) -> None:
    study = Study(tmp_path, load_competition("panda"))
    study.write_labels()
    figures = study.blend()
    judged = figures["competition_metric"]
    assert judged["name"] == "quadratic_weighted_kappa"
    assert judged["value"] > 0.7 > judged["constant"] == 0
    assert judged["sd"] >= 0
    assert figures["nested_weighted_log_loss"] < figures["constant"]
    assert figures["members"] == ["net0", "net1"]
    assert figures["folds"] == 5
    ensemble = study.ensemble()
    decision = ensemble.decision
    assert decision is not None
    assert decision.to_json() == figures["decision"]
    answers = ensemble.apply(study.scored(), dict(zip(study.images, study.images, strict=True)))
    p = np.array([answers[image] for image in study.images])
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)))
    assert cohen_kappa_score(study.label, decision.apply(p), weights="quadratic") > judged["value"] - 0.05
    assert any("quadratic weighted kappa" in line for line in lines(figures, tmp_path))


def test_a_missing_member_is_imputed(tmp_path: Path) -> None:
    study = Study(tmp_path, load_competition("panda"))
    study.write_labels()
    study.blend()
    same, scored = dict(zip(study.images, study.images, strict=True)), study.scored()
    whole = study.ensemble().apply(scored, same)
    for means in list(scored.values())[:30]:
        del means["net1"]
    partial = study.ensemble().apply(scored, same)
    differences = [np.abs(np.array(whole[image]) - partial[image]).max() for image in study.images]
    assert max(differences[30:]) == 0
    assert 0 < np.mean(differences[:30]) < 0.15
    assert study.ensemble().apply({study.images[0]: {}}, same) == {}


def test_outliers_are_answered_by_a_fitted_confidence(tmp_path: Path) -> None:
    study = Study(tmp_path, load_competition("ubc_ocean"), slides=50)
    study.p = softmax(6 * np.eye(5)[study.label][:, None] + study.rng.normal(0, 1, study.p.shape))
    study.write_labels()
    figures = study.blend()
    decision = study.ensemble().decision
    assert decision is not None
    strange = softmax(study.rng.normal(0, 1, study.p.shape))
    images = {f"s{at}": {"net0": row[0], "net1": row[1]} for at, row in enumerate(strange)}
    unknown = list(study.ensemble().apply(images, {image: image for image in images}).values())
    assert (decision.apply(unknown) == 5).mean() > 0.6
    assert figures["competition_metric"]["value"] > 0.9


def test_three_probabilities_have_no_decision(tmp_path: Path) -> None:
    toml = tmp_path / "prob.toml"
    toml.write_text(
        'slug = "prob"\ntitle = "Prob"\n[files]\nsample = "s.csv"\nsubmission = "submission.csv"\n'
        'table = "{split}.csv"\nslide = "{split}/{image_id}.svs"\n[columns]\nimage = "case"\nlabel = "diagnosis"\n'
        '[classes]\nnames = ["benign", "atypical", "malignant"]\n[metric]\nname = "auc"\n'
    )
    study = Study(tmp_path, load_competition(str(toml)), slides=24)
    study.write_labels()
    figures = study.blend()
    assert figures["decision"] is None
    assert study.ensemble().decision is None
    assert figures["competition_metric"]["name"] == "auc"
    assert figures["competition_metric"]["value"] == pytest.approx(figures["auc"], abs=0.05)
    found = study.ensemble().apply(study.scored(), dict(zip(study.images, study.images, strict=True)))
    area = roc_auc_score(study.label, [found[image] for image in study.images], multi_class="ovr")
    assert area > 0.8


@pytest.mark.parametrize(("slides", "folds"), [(24, 4), (18, 3)])
def test_few_slides_have_few_folds(tmp_path: Path, slides: int, folds: int) -> None:
    study = Study(tmp_path, load_competition("panda"), slides=slides)
    study.write_labels()
    assert study.blend()["folds"] == folds


def test_fewer_than_three_of_a_class_are_refused(tmp_path: Path) -> None:
    study = Study(tmp_path, load_competition("panda"), slides=12)
    study.write_labels()
    with pytest.raises(ConfigError, match=r"^2 slides of class 0, at least 3"):
        study.blend()
    assert not (tmp_path / "out").exists()


def test_uninformative_members_have_no_weight(tmp_path: Path) -> None:
    study = Study(tmp_path, load_competition("panda"), members=3)
    study.p[:, 1] = study.rng.permutation(study.p[:, 1])
    study.write_labels()
    assert study.blend()["weights"] == {"net0": 0.5, "net1": 0, "net2": 0.5}


def relapses(folder: Path, seed: int = 0) -> Study:
    """Return slides of two classes with weak members, whose ages say more."""
    study = Study(folder, load_competition("visiomel"), slides=80, strength=0.3)
    study.rng = np.random.default_rng(seed)
    return study


@pytest.mark.parametrize("labels", ["train_metadata.csv", "train_labels.csv"])
def test_columns_that_help_are_used_in_a_run_too(tmp_path: Path, labels: str) -> None:
    study = relapses(tmp_path)
    noise = study.rng.normal(0, 6, len(study.label))
    study.write_labels("age", [f"{age:.1f}" for age in 60 + 12 * study.label + noise])
    figures = study.blend(labels=tmp_path / labels, tabular=("age",))
    tabular = figures["tabular"]
    assert (tabular["columns"], tabular["used"]) == (["age"], True)
    assert tabular["with"] < tabular["without"] - 0.1
    assert figures["nested_weighted_log_loss"] == tabular["with"]
    ensemble, same = study.ensemble(), dict(zip(study.images, study.images, strict=True))
    assert ensemble.columns == ("age",)
    young, old, unknown = (
        ensemble.apply(study.scored(), same, {image: {"age": age} for image in study.images})["100"][1]
        for age in ("50", "80", "n/a")
    )
    assert young < unknown < old
    assert ensemble.apply(study.scored(), same)["100"][1] == unknown


def test_columns_that_do_not_help_are_left_out(tmp_path: Path) -> None:
    study = relapses(tmp_path)
    study.write_labels("sex", study.rng.choice(["m", "f"], 80).tolist())
    figures = study.blend(tabular=("sex",))
    assert figures["tabular"]["used"] is False
    assert study.ensemble().columns == ()
    assert figures["nested_weighted_log_loss"] == figures["tabular"]["without"]
    with pytest.raises(ConfigError, match="height"):
        study.blend(tabular=("height",))


def test_how_columns_become_inputs() -> None:
    facts = [{"age": "10", "site": "arm", "one": "x"}, {"age": "30", "site": "leg", "one": "x"}]
    facts += [{"age": "", "site": "leg", "one": "x"}, {"age": "20", "site": "arm", "one": "x"}]
    facts += [{"age": "20", "site": "leg", "one": "x"}, {"age": "20", "site": "ear", "one": "x"}]
    said: list[str] = []
    covariates = covariates_of(facts, ["age", "site", "one"], said.append)
    assert covariates.columns == ("age", "site")
    assert covariates.texts == {"site": ("arm",)}  # leg is the commonest, and one ear is no category
    assert len(said) == 2  # on a column of texts, and on one that does not vary
    inputs = covariates.inputs([*facts, {"site": "nose"}, {}])
    assert inputs[:, 0] == pytest.approx(np.array([-10, 10, 0, 0, 0, 0, 0, 0]) / math.sqrt(40), abs=1e-5)
    assert inputs[:, 1].tolist() == [1, 0, 0, 1, 0, 0, 0, 0]


def test_blanks_of_other_programs_leave_a_column_its_numbers() -> None:
    facts = [{"age": age} for age in ("10", "NA", "30", "#N/A", "nan")]
    assert covariates_of(facts, ["age"], quiet).numbers == {"age": (20.0, 10.0)}


def test_a_word_for_blank_is_a_category_among_texts() -> None:
    facts = [{"therapy": text} for text in ["none"] * 3 + ["chemo", "radio"] * 2]
    assert covariates_of(facts, ["therapy"], quiet).texts == {"therapy": ("chemo", "radio")}


def test_columns_that_differ_in_signs_are_not_mixed_up() -> None:
    covariates = Covariates({"CD3+": (0.0, 1.0)}, {})
    rows = [{"CD3+": "1", "CD3-": "2"}, {"CD3-": "2", "CD3+": "1"}, {"CD3-": "2"}, {"cd3": "2", "CD3-": "3"}]
    assert covariates.inputs(rows)[:, 0].tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("name", ["Age", "AGE ", "age"])
def test_a_column_is_known_whatever_its_spelling(tmp_path: Path, name: str) -> None:
    study = relapses(tmp_path)
    study.write_labels("age", [f"{age}" for age in 60 + 12 * study.label])
    study.blend(tabular=("age",))
    ensemble, same = study.ensemble(), dict(zip(study.images, study.images, strict=True))
    young, old = (
        ensemble.apply(study.scored(), same, {image: {name: age} for image in study.images})["100"][1]
        for age in ("50", "80")
    )
    assert young < old
    assert ensemble.missing_columns({name: ""}) == []
    assert ensemble.missing_columns({"site": "arm"}) == ["age"]


def test_a_run_says_which_slides_lack_a_column_of_the_ensemble(tmp_path: Path) -> None:
    study = relapses(tmp_path)
    study.write_labels("age", [f"{age}" for age in 60 + 12 * study.label])
    study.blend(tabular=("age",))
    slides = [
        SlideRow(name, name, tmp_path, None, facts={column: "60"}) for name, column in (("a", "AGE"), ("b", "site"))
    ]
    sample = Sample(["id", "p"], ["id", "p"], ["a", "b"], ["a", "b"])
    inputs = Inputs(slides, sample, {}, study.ensemble(), [], None, "key")
    noted = with_missing_facts(inputs, [], quiet)
    assert noted.repairs_of == {"b": (TableRepair.NO_FACT,)}


@pytest.mark.parametrize("name", ["a\U0001f600", "“quoted”", 'a"b\\c'])
def test_members_of_any_name_are_read_again(tmp_path: Path, name: str) -> None:
    study = relapses(tmp_path)
    study.write_labels()
    first, second = study.files()
    folder = first.parent.rename(tmp_path / name)
    study.blend(predictions=[folder / first.name, second])
    assert set(study.ensemble().shares) == {name, "net1"}


def test_a_member_that_is_a_link_has_the_links_name(tmp_path: Path) -> None:
    study = relapses(tmp_path)
    study.write_labels()
    first, second = study.files()
    (tmp_path / "link").symlink_to(first.parent)
    assert study.blend(predictions=[tmp_path / "link" / first.name, second])["members"] == ["link", "net1"]
    (first.parent / "sub").mkdir()
    below = first.parent / "sub" / ".." / first.name
    assert study.blend(predictions=[below, second])["members"] == ["net0", "net1"]


def test_a_fit_without_covariates_is_the_calibration_of_a_member() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    p = softmax(rng.normal(0, 1, (300, 4)) + 1.5 * np.eye(4)[labels])
    weights = (0.1, 0.4, 0.3, 0.2)
    one, coefficients = fit_with_covariates(p, np.zeros((300, 0)), labels, weights, 0.01)
    other = fit_calibration(p, labels, weights, 0.01)
    assert coefficients.shape == (0, 4)
    assert (one.slope, *one.offsets) == pytest.approx((other.slope, *other.offsets), abs=1e-3)


def test_coefficients_are_those_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    inputs, p = rng.normal(0, 1, (6000, 2)), softmax(rng.normal(0, 1, (6000, 3)))
    truth = np.array([[1.0, -0.5, 0.0], [0.0, 0.8, 0.0]])
    chances = softmax(np.log(p) + inputs @ truth)
    labels = (rng.random(6000)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    shares = tuple((np.bincount(labels) / 6000).tolist())
    fitted, coefficients = fit_with_covariates(p, inputs, labels, shares, 0.0)
    assert coefficients == pytest.approx(truth, abs=0.12)
    assert fitted.slope == pytest.approx(1, abs=0.1)


def test_labels_are_read_in_every_form(tmp_path: Path) -> None:
    panda = load_competition("panda")
    path = tmp_path / "train.csv"
    path.write_text("image_id,isup_grade,data_provider\na,2.0,radboud\nb,0,karolinska\n")
    found = read_labels(path, panda)
    assert found["label"].tolist() == [2, 0]
    assert found["unit"].tolist() == found["patient"].tolist() == ["a", "b"]
    assert found["centre"].tolist() == ["radboud", "karolinska"]
    path.write_text("image_id,isup_grade\na,6\n")
    with pytest.raises(ConfigError, match="'6'"):
        read_labels(path, panda)


def test_slides_of_one_patient_share_a_fold_where_each_has_an_answer(tmp_path: Path, strip_ai: Competition) -> None:
    by_slide = replace(strip_ai, submission=replace(strip_ai.submission, id="image_id", unit=Unit.IMAGE))
    names = [f"{at // 2:06x}_{at % 2}" for at in range(40)]
    write_table(
        tmp_path / "train.csv",
        ["image_id", "patient_id", "label"],
        [[name, name[:6], ("CE", "LAA")[at // 2 % 2]] for at, name in enumerate(names)],
    )
    write_table(
        tmp_path / "net.csv", ["image_id", "predictions"], [[name, f"0.{at + 10}"] for at, name in enumerate(names)]
    )
    table = read_predictions([tmp_path / "net.csv"], tmp_path / "train.csv", by_slide).units()
    assert len(table.names) == 40
    assert len(set(table.groups.tolist())) == 20


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Any]]:
    study = Study(tmp_path_factory.mktemp("written"), load_competition("panda"), slides=36)
    study.write_labels("site", [("arm", "leg")[at % 2] for at in range(36)])
    study.blend()
    content: dict[str, Any] = json.loads((study.folder / "out" / ENSEMBLE_CALIBRATION).read_text())
    return study, content


def test_json_and_back_gives_the_same_ensemble(written: tuple[Study, dict[str, Any]]) -> None:
    content = written[1]
    found = read_blend(content, "here")
    assert isinstance(found, ClassBlend)
    assert content["method"] == CLASS_METHOD
    assert found.to_json() == content
    other = replace(
        found,
        covariates=Covariates({"age": (50.0, 10.0)}, {"site": ("arm",)}),
        calibrator=replace(found.calibrator, coefficients=((0.1,) * 6, (0.2,) * 6)),
    )
    assert read_blend(json.loads(json.dumps(other.to_json())), "here").to_json() == other.to_json()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"members": ["net0"]}, ConfigError),
        ({"members": []}, ConfigError),
        ({"means": [0.1]}, ConfigError),
        ({"covariance": [[0.1]]}, ConfigError),
        ({"prior": [0.5, 0.5]}, ConfigError),
        ({"weights": [1.0]}, ConfigError),
        ({"coefficients": [[0.1] * 6]}, ConfigError),
        ({"calibration": {}}, ConfigError),
        ({"texts": []}, ConfigError),
        ({"decision": {"rule": "vote"}}, ConfigError),
        ({"pseudo_slides": None}, ConfigError),
        ({"weights": [0.9, 0.9]}, WeightsError),
        ({"weights": [math.nan, 1.0]}, WeightsError),
        ({"prior": [math.nan] * 6}, WeightsError),
        ({"members": ["net0", "net0"]}, WeightsError),
        ({"decision": {"rule": "cut_points", "classes": 6, "numbers": [3, 2, 1, 0, 0]}}, WeightsError),
    ],
)
def test_a_damaged_ensemble_is_refused_in_one_line(
    written: tuple[Study, dict[str, Any]], change: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=r"^here: ") as caught:
        read_blend(written[1] | change, "here")
    assert "\n" not in str(caught.value)


def test_an_ensemble_of_another_competition_is_refused(written: tuple[Study, dict[str, Any]]) -> None:
    study, _ = written
    out, panda = study.folder / "out", study.competition
    assert (out / ENSEMBLE).is_file()
    for other in (
        replace(panda, slug="ubc"),
        replace(panda, classes=replace(panda.classes, names=("a", "b", "c", "d", "e", "5"))),
        load_competition("strip_ai"),
    ):
        with pytest.raises(ConfigError, match="is for"):
            read_ensemble(out, other)


def test_the_decision_is_that_of_the_out_of_fold_probabilities(written: tuple[Study, dict[str, Any]]) -> None:
    """Fitted to in-sample probabilities it would be another one."""
    study, content = written
    found = study.ensemble().apply(study.scored(), dict(zip(study.images, study.images, strict=True)))
    p = np.array([found[image] for image in study.images])
    inside = fit_decision(study.competition.submission.rule, p, study.label, "quadratic_weighted_kappa")
    assert content["decision"]["numbers"] != list(inside.numbers)
