"""Test the report page for every form of a submission."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clotkit.cli import main
from clotkit.competitions import load_competition
from clotkit.report.answers import read_answers
from clotkit.report.page import write_page
from clotkit.report.records import PAGE, REPORT, ReportFile, SlideReport
from clotkit.report.shown import Kind, Shown

from .test_errors_page import Page

P = [[0.7, 0.1, 0.1, 0.05, 0.05, 0.0], [0.0, 0.1, 0.1, 0.1, 0.3, 0.4], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]]
LABELS = {"form": "label", "unit": "image", "id": "image_id", "columns": ["grade"]}
GRADES: dict[str, Any] = {
    **LABELS,
    "title": "Grades",
    "submission": "submission.csv",
    "classes": list("012345"),
    "answers": list("012345"),
    "rule": "cut_points",
    "shown": "expected_class",
    "weights": [1 / 6] * 6,
    "priors": [0.3, 0.2, 0.2, 0.1, 0.1, 0.1],
    "fallback": [1 / 6] * 6,
    "fallback_label": "2",
    "clip": 1e-15,
    "metric": "quadratic_weighted_kappa",
}


def page_of(
    folder: Path, scoring: dict[str, Any], submission: str, rows: list[list[float]], *, probabilities: str = ""
) -> tuple[str, Page]:
    """Make the page of a run of one slide a row of probabilities, s0, s1, …, in `scoring`'s form."""
    folder.mkdir(exist_ok=True)
    lines = [
        SlideReport(f"s{k}", f"s{k}", "done", reason="", tiles=9, seconds=1, peak_mb=9, p={"m": p})
        for k, p in enumerate(rows)
    ]
    (folder / "report.jsonl").write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))
    facts = {"state": "ended", "scoring": scoring, "patients": {"asked": len(rows), "scored": len(rows)}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "submission.csv").write_text(submission)
    if probabilities:
        (folder / "probabilities.csv").write_text(probabilities)
    text = write_page(folder).read_text(encoding="utf-8")
    return text, Page(text)


def csv_of(header: str, rows: list[list[float]], suffix: str = "") -> str:
    return header + "\n" + "".join(f"s{k}{suffix},{','.join(map(str, p))}\n" for k, p in enumerate(rows))


def cells(page: Page, label: str) -> list[str]:
    return [attributes["data-v"] or "" for _, attributes in page.elements if attributes.get("data-label") == label]


def test_labels_of_ordered_classes(tmp_path: Path) -> None:
    known = csv_of("image_id,0,1,2,3,4,5", P, ".tif")
    text, page = page_of(tmp_path, GRADES, "image_id,grade\ns0.tif,0\ns1.tif,4\ns2.tif,2\n", P, probabilities=known)
    assert [float(value) for value in cells(page, "Expected class")] == pytest.approx([0.65, 3.8, 2.1])
    assert cells(page, "Rows") == ["1", "0", "1", "0", "1", "0"]
    assert cells(page, "Answer") == ["0", "4", "2"]
    assert cells(page, "Patient") == []
    assert "quadratic_weighted_kappa" in text
    assert 'data-verdict="complete"' in text


def test_an_outlier_is_counted_and_a_row_without_probabilities_is_shown(tmp_path: Path) -> None:
    names = ["CC", "EC", "HGSC"]
    scoring = {**GRADES, "classes": names, "answers": [*names, "Other"], "rule": "outlier", "shown": "likeliest_class"}
    scoring |= {"weights": [1 / 3] * 3, "priors": [0.2, 0.3, 0.5], "fallback": [1 / 3] * 3}
    scoring |= {"metric": "balanced_accuracy", "fallback_label": "HGSC"}
    rows = [[0.8, 0.1, 0.1], [0.34, 0.33, 0.33], [0.1, 0.2, 0.7]]
    known = csv_of("image_id,CC,EC,HGSC", rows[:2])
    text, page = page_of(tmp_path, scoring, "image_id,grade\ns0,CC\ns1,Other\ns2,HGSC\n", rows, probabilities=known)
    assert cells(page, "Rows") == ["1", "0", "1", "1"]
    assert cells(page, "Share in train, %") == ["20", "30", "50", "0"]
    assert cells(page, "p(EC)") == ["0.1", "0.33", ""]
    assert [float(value) for value in cells(page, "p(likeliest)")] == pytest.approx([0.8, 0.34, 0.7])
    assert "balanced_accuracy" in text


def test_one_probability_a_slide_in_the_samples_order_of_columns(tmp_path: Path) -> None:
    scoring = {**GRADES, "form": "probability", "columns": ["p"], "classes": ["normal", "tumor"], "answers": ["a", "b"]}
    scoring |= {"weights": [0.5, 0.5], "priors": [0.6, 0.4], "fallback": [0.6, 0.4], "metric": "auc"}
    scoring |= {"shown": "last_class"}
    rows = [[0.9, 0.1], [0.2, 0.8]]
    text, page = page_of(tmp_path, scoring, "p,image_id\n0.1,s0\n0.8,s1\n", rows)
    assert cells(page, "p(tumor)") == ["0.1", "0.8", "0.1", "0.8"]  # by slide, and in the answers
    assert cells(page, "p(normal)") == []
    assert "auc, higher is better" in text


def test_columns_of_probabilities_are_read_by_their_names(tmp_path: Path) -> None:
    names = ["benign", "malignant"]
    scoring = {"form": "probabilities", "id": "case", "unit": "image", "classes": names, "columns": ["pb", "pm"]}
    path = tmp_path / "submission.csv"
    path.write_text("case,pm,pb\na.svs,0.25,0.75\n")
    answers = read_answers(path, scoring)
    assert answers.rows == {"a.svs": [0.75, 0.25]}
    assert answers.key("a.svs") == "a"


@pytest.mark.parametrize("text", ["", "case,pm\n", "case,pm,pb\na,x,1\n", "case,pm,pb\na,1\n", "case,pm,pm\na,1,0\n"])
def test_a_submission_that_cannot_be_read_has_no_answers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(text)
    assert not read_answers(path, {"form": "of another kit", "unit": 3}).ids
    assert not read_answers(tmp_path / "missing.csv", {}).ids


def test_a_run_that_has_lost_all_but_its_lines_has_a_report(tmp_path: Path) -> None:
    with ReportFile(tmp_path / REPORT) as file:
        file.add(SlideReport("a", "a", "done", "", 4, 1.0, 40.0, {"m": [0.25, 0.75]}))
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / PAGE).is_file()


def test_what_is_shown_of_each_shipped_competition() -> None:
    kinds = {name: Shown.of(load_competition(name)).kind for name in ("strip_ai", "panda", "ubc_ocean", "camelyon16")}
    assert kinds == {
        "strip_ai": Kind.LAST, "panda": Kind.EXPECTED, "ubc_ocean": Kind.LIKELIEST, "camelyon16": Kind.LAST,
    }  # fmt: skip
    shown = Shown.of(load_competition("panda"))
    assert shown.levels(P).tolist() == pytest.approx([0.13, 0.76, 0.42])
    assert shown.top == 5
    assert np.array_equal(Shown(Kind.LAST, ("a", "b")).levels([[0.3, 0.7]]), [0.7])
