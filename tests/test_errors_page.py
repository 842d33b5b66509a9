"""The error analysis page: valid HTML, order, tables, and escaped input."""

import base64
import io
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clotkit.errors import SplitError
from clotkit.evaluation.errors_page import ErrorRow, loss_of, worst_first, write_errors
from clotkit.evaluation.figures import ScoredUnits, figures
from clotkit.evaluation.scores import EvaluationTarget

CLASSES, CLIP = ("blue", "green", "white"), 1e-15
FIGURES = {"n": 5.0, "patients": 4.0, "accuracy": 0.4, "accuracy_low": 0.25, "accuracy_high": 0.625,
           "auc": None, "auc_low": None, "auc_high": None}  # fmt: skip
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page in order, with attributes and text; fails if tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def target(*classes: str, positive: str | None = None, clip: float = CLIP) -> EvaluationTarget:
    weights = (1 / len(classes),) * len(classes)
    return EvaluationTarget(classes, weights, positive or classes[-1], clip, floor=0.0, by_patient=False)


def row(image: str, label: int, true: float, centre: str = "", patient: str = "p", picture: bool = True) -> ErrorRow:
    """Return an image whose true class has the probability `true`, and the next class the rest."""
    probabilities = np.zeros(3)
    probabilities[label], probabilities[(label + 1) % 3] = true, 1 - true
    tile, heat = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), np.float32)
    shown: dict[str, Any] = {"tile": tile, "heat": heat} if picture else {}
    return ErrorRow(image, patient, centre, label, probabilities, **shown)


ROWS = [
    row("mild", 0, 0.6, "7"),
    row("worst", 1, 0.01, "7", "q"),
    row("bad", 0, 0.1, "", "q"),
    row("middling", 1, 0.3, "11", "r"),
    row("bare", 2, 0.2, "11", "s", picture=False),
]


def written(tmp_path: Path, rows: list[ErrorRow], **settings: int) -> tuple[str, Page]:
    write_errors(tmp_path / "errors.html", "A title", FIGURES, target(*CLASSES), rows, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["errors.html"]
    text = (tmp_path / "errors.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_worst_is_first_in_its_class_and_its_class_first(tmp_path: Path) -> None:
    assert [ROWS[index].image for index in worst_first(ROWS, CLIP)] == ["worst", "bad", "bare", "middling", "mild"]
    _, page = written(tmp_path, ROWS)
    headings = page.said("h3")
    assert headings[:3] == ["True class green, 2 images", "True class blue, 2 images", "True class white, 1 image"]
    assert page.said("h4") == ["worst", "middling", "bad", "mild", "bare"]
    assert headings[3:] == ["Centre 11, 2 images", "Centre 7, 2 images", "not known, 1 image"]


def test_only_the_most_are_shown_and_the_tables_count_all(tmp_path: Path) -> None:
    _, page = written(tmp_path, ROWS, most=2)
    assert page.said("h4") == ["worst", "bad"]
    assert "Error analysis of 5 images of 4 patients; the 2 with the highest log loss are shown." in page.said("p")
    cells = page.said("td")
    losses = [np.mean([loss_of(ROWS[index], CLIP) for index in some]) for some in ((0, 2), (1, 3), (4,))]
    assert cells[:4] == ["2", "2", "50.0%", f"{losses[0]:.3f}"]  # blue: mild is right, bad is not
    assert cells[4:8] == ["2", "2", "0.0%", f"{losses[1]:.3f}"]
    assert cells[8:12] == ["1", "1", "0.0%", f"{losses[2]:.3f}"]
    heads = page.said("th")
    assert heads[5:] == ["blue", "green", "white", "Centre", *heads[1:5], "11", "7", "not known"]


def test_a_class_without_images_is_in_the_table(tmp_path: Path) -> None:
    _, page = written(tmp_path, ROWS[:1])
    assert page.said("td")[4:8] == ["0", "0", "\u2013", "\u2013"]


def test_figures_have_their_intervals(tmp_path: Path) -> None:
    _, page = written(tmp_path, ROWS)
    assert page.said("dt")[:2] == ["Accuracy", "AUC"]
    assert page.said("dd")[:3] == ["0.400", "0.250 to 0.625", "not defined"]


def test_it_is_sound_accessible_and_stands_alone(tmp_path: Path) -> None:
    text, page = written(tmp_path, ROWS)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert page.said("caption") == ["By true class", "By centre"]
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert not page.all("script")
    assert not page.all("link")
    assert "http" not in text.replace("http-equiv", "")
    pictures = page.all("img")
    assert len(pictures) == 8
    assert "No picture." in page.said("p")
    for picture in pictures:
        assert picture["alt"]
        kind, _, code = str(picture["src"]).partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(code))).size == (64, 64)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(link["href"]).removeprefix("#") for link in page.all("a")} <= set(ids)
    named = {str(attributes["aria-labelledby"]) for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert named <= set(ids)


def test_what_it_is_given_is_text_and_never_markup(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    rows = [ErrorRow(hostile, hostile, hostile, 0, np.array([0.1, 0.9]), np.zeros((8, 8, 3), np.uint8))]
    write_errors(tmp_path / "errors.html", hostile, FIGURES, target(hostile, "{{ 7 * 7 }}"), rows)
    text = (tmp_path / "errors.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert "{{ 7 * 7 }}" in text
    assert page.said("h4") == [hostile]


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    big = ErrorRow("big", "p", "", 0, np.array([0.2, 0.8, 0.0]), np.zeros((900, 600, 3), np.uint8))
    _, page = written(tmp_path, [big])
    code = str(page.all("img")[0]["src"]).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(code))).size == (213, 320)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, ROWS)[0] == written(tmp_path, ROWS)[0]


@pytest.mark.parametrize("clip", [1e-15, 1e-3])
def test_a_probability_of_0_is_a_finite_loss_by_the_clip(clip: float, tmp_path: Path) -> None:
    sure = row("sure", 0, 0.0)
    assert loss_of(sure, clip) == pytest.approx(-math.log(clip))
    write_errors(tmp_path / "errors.html", "A title", FIGURES, target(*CLASSES, clip=clip), [sure])
    page = Page((tmp_path / "errors.html").read_text(encoding="utf-8"))
    assert f"log loss {-math.log(clip):.2f}" in page.said("span")


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("tie", [0.5, 2.0])
def test_a_tie_is_the_positive_class_in_figures_tables_and_cards(positive: int, tie: float, tmp_path: Path) -> None:
    names, p = CLASSES[:2], np.array([[tie, tie], [tie, tie], [0.9, 0.1]])
    scored_by, labels = target(*names, positive=names[positive]), np.array([0, 1, 0])
    rows = [ErrorRow(f"i{number}", f"p{number}", "7", label, p[number]) for number, label in enumerate(labels.tolist())]
    scored = ScoredUnits(labels, p, np.array([row.patient for row in rows]))
    found = figures(scored, names, names[positive], scored_by.weights, CLIP, resamples=5)
    write_errors(tmp_path / "errors.html", "A title", found, scored_by, rows)
    page = Page((tmp_path / "errors.html").read_text(encoding="utf-8"))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert page.said("dd")[0] == "0.667"
    assert page.said("td")[10] == "66.7%"  # of the only centre
    wrong = f"i{1 - positive}"
    verdicts = dict(
        zip(page.said("h4"), [text for text in page.said("span") if text in {"right", "wrong"}], strict=True)
    )
    assert verdicts == {one.image: "wrong" if one.image == wrong else "right" for one in rows}
    assert [scored_by.predicted_class(one.probabilities) for one in rows] == [*[names[positive]] * 2, "blue"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no scored image"),
        ([ErrorRow("i", "p", "", 3, np.ones(3))], "image 'i' has class 3"),
        ([ErrorRow("i", "p", "", 0, np.ones(2))], "allowed: a class from 0 to 2"),
        ([ErrorRow("i", "p", "", 0, np.array([np.nan, 1, 1]))], "nan"),
        ([ErrorRow("i", "p", "", 0, np.zeros(3))], "predict again"),
    ],
)
def test_refuses_rows_that_do_not_fit(rows: list[ErrorRow], words: str, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=words) as caught:
        write_errors(tmp_path / "errors.html", "A title", FIGURES, target(*CLASSES), rows)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
