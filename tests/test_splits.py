"""Test that a table's form does not change its rows, and which patient a row is joined to."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clotkit.competitions import Competition, Fact, load_competition
from clotkit.errors import SplitError
from clotkit.reasons import TableRepair
from clotkit.splits import in_store, read_sample_ids, read_slides, read_table
from clotkit.splits.identity import joined, same_number
from clotkit.splits.tables import Row

HEADER = ["image_id", "center_id", "patient_id"]
ROWS = [["00ab12_0", "Z\u00fcrich", "00ab12"], ["1e0003_1", "7", "1e0003"], ["ffffff_0", "", "ffffff"]]
FORMS = st.fixed_dictionaries(
    {
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]),
        "delimiter": st.sampled_from([",", ";", "\t", "|"]),
        "end": st.sampled_from(["\n", "\r\n", "\r", "\r\r\n"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        "before": st.sampled_from(["", "\n\n", "# a comment\n", "Slides\n\n"]),
        "space": st.sampled_from(["", " ", "\xa0"]),
        "header": st.sampled_from([str, str.upper, str.title, lambda name: name.replace("_", " ")]),
        "blank": st.booleans(),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=FORMS)
def test_the_form_of_a_table_does_not_change_its_rows(form: dict[str, object], tmp_path: Path) -> None:
    text = io.StringIO()
    table = csv.writer(text, delimiter=str(form["delimiter"]), quoting=form["quoting"], lineterminator="\n")  # type: ignore[arg-type]
    table.writerow([form["header"](name) for name in HEADER])  # type: ignore[operator]
    for row in ROWS:
        table.writerow([f"{cell}{form['space']}" for cell in row])
        text.write("\n" if form["blank"] else "")
    path = tmp_path / "test.csv"
    whole = f"{form['before']}{text.getvalue()}".replace("\n", str(form["end"]))
    path.write_bytes(whole.encode(str(form["encoding"])))
    rows = read_table(path, HEADER[:1], HEADER[1:])
    assert [[row[name] for name in HEADER] for row in rows] == ROWS


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: f"image_id,x\n{text}".encode()))
def test_any_bytes_give_rows_or_one_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_bytes(data)
    said, rows = "", list[Row]()
    try:
        rows = read_table(path, ["image_id"])
    except SplitError as error:
        said = str(error)
    assert rows or said.startswith(str(path))
    assert "\n" not in said
    assert all(row["image_id"].isprintable() or not row["image_id"].isascii() for row in rows)


@pytest.mark.parametrize(
    ("known", "other", "same"),
    [
        ("006388", "6388", True),
        ("006388", "6388.0", True),
        ("1e0003", "1.00E+03", True),
        ("1e0003", "1000", True),
        ("9007199254740993", "9007199254740992", False),
        ("123456", "1.23E+05", False),
        ("00ab", "ab", True),
        ("000000", "", False),
        ("1e9999", "2e9999", False),
        ("abc", "abd", False),
    ],
)
def test_a_number_is_the_same_id_only_exactly(known: str, other: str, same: bool) -> None:
    assert same_number(known, other) is same


def rows_of(*pairs: tuple[str, str]) -> list[Row]:
    """Return rows of image ids and patients."""
    return [
        Row([("image_id", image), ("patient_id", patient)], number) for number, (image, patient) in enumerate(pairs, 2)
    ]


def test_a_contradiction_is_joined_only_if_most_rows_agree(strip_ai: Competition) -> None:
    known = ["aaaaaa", "bbbbbb", "cccccc"]
    sound = [("aaaaaa_0", "aaaaaa"), ("bbbbbb_0", "bbbbbb"), ("cccccc_0", "bbbbbb")]
    found = joined(rows_of(*sound), "test.csv", strip_ai, known)
    assert [(one.patient_id, one.repairs) for one in found[1:]] == [
        ("bbbbbb", ()),
        ("cccccc", (TableRepair.CONTRADICTION,)),
    ]
    with pytest.raises(SplitError, match="row 3"):
        joined(rows_of(sound[0], ("bbbbbb_0", "aaaaaa"), sound[2]), "test.csv", strip_ai, known)


def test_ids_of_another_scheme_are_left_alone(strip_ai: Competition) -> None:
    found = joined(rows_of(("1_0", "1"), ("2_0", "2"), ("slide", "6388")), "test.csv", strip_ai, ["1", "2", "6388"])
    assert [(one.patient_id, one.repairs) for one in found] == [("1", ()), ("2", ()), ("6388", ())]
    without = joined(rows_of(("aaaaaa_0", "P1"), ("bbbbbb_0", "P2")), "train.csv", strip_ai, None)
    assert [(one.patient_id, one.repairs) for one in without] == [
        ("P1", (TableRepair.CONTRADICTION,)),
        ("P2", (TableRepair.CONTRADICTION,)),
    ]


def test_two_possible_patients_are_not_joined(strip_ai: Competition) -> None:
    found = joined(rows_of(("slide", "6388")), "test.csv", strip_ai, ["06388", "006388"])
    assert [(one.patient_id, one.repairs) for one in found] == [("6388", (TableRepair.NOT_IN_SAMPLE,))]


@pytest.mark.parametrize("name", ["Test.csv", "test.csv.gz", "test.xlsx"])
def test_a_missing_table_is_one_line_with_what_is_there(name: str, tmp_path: Path, strip_ai: Competition) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SplitError, match=name):
        read_slides(tmp_path, "test", strip_ai)


@pytest.mark.parametrize("cell", ["", "nan", "NULL"])
def test_a_blank_patient_of_the_sample_is_refused_by_row(cell: str, tmp_path: Path, strip_ai: Competition) -> None:
    path = tmp_path / "sample_submission.csv"
    path.write_text(f"patient_id,CE,LAA\naaaaaa,0.5,0.5\n{cell},0.5,0.5\n")
    with pytest.raises(SplitError, match="row 3"):
        read_sample_ids(path, strip_ai)


def test_a_table_that_is_a_link_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("image_id\na\n")
    (tmp_path / "test.csv").symlink_to("real.csv")
    assert read_table(tmp_path / "test.csv", ["image_id"]) == [{"image_id": "a"}]
    (tmp_path / "train.csv").mkdir()
    with pytest.raises(SplitError, match=r"train\.csv"):
        read_table(tmp_path / "train.csv", ["image_id"])


def test_a_stored_slide_is_found_by_its_name(tmp_path: Path, strip_ai: Competition) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for name in ("006388_0.SVS", "1e0003_1.tif"):
        files.pipe(f"/bucket-of-tables/test/{name}", b"a slide")
    (tmp_path / "test.csv").write_text("image_id,patient_id\n6388_0,006388\n1e0003_1,1e0003\nffffff_0,ffffff\n")
    slides = in_store(read_slides(tmp_path, "test", strip_ai), tmp_path, "memory://bucket-of-tables", strip_ai)
    assert [slide.stored.name if slide.stored else None for slide in slides] == [
        "test/006388_0.SVS",
        "test/1e0003_1.tif",
        None,
    ]
    assert [TableRepair.OTHER_FILE in slide.repairs for slide in slides] == [True, False, False]


@pytest.mark.parametrize(
    ("known", "other", "same"),
    [("006388", "6388", True), ("006388", "6388.0", True), ("001000", "1.00E+03", True), ("100e03", "0001e5", False)],
)
def test_a_number_that_a_table_program_made_of_an_id(known: str, other: str, same: bool) -> None:
    assert same_number(known, other) is same


FORM = """
slug = "forms"
title = "Forms"

[files]
sample = "blank.csv"
submission = "answer.csv"
table = "{split}.csv"
slide = ["{split}_a/{image_id}.tif", "{split}_b/{image_id}.svs"]

[columns]
image = "slide"
label = "grade"

[classes]
names = [-1, 0, 2]

[submission]
form = "label"

[metric]
name = "accuracy"
"""


@pytest.fixture
def forms(tmp_path: Path) -> Competition:
    """A competition whose rows are slides, in two folders, with labels that are numbers."""
    path = tmp_path / "forms.toml"
    path.write_text(FORM)
    return load_competition(str(path))


def test_another_extension_is_found_in_every_folder(tmp_path: Path, forms: Competition) -> None:
    for name in ("test_a/one.tif", "test_a/two.TIFF", "test_b/three.SVS", "test_b/four.ndpi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "test.csv").write_text("slide\none\ntwo\nthree\nfour\nfive\n")
    slides = read_slides(tmp_path, "test", forms)
    found = [slide.path.relative_to(tmp_path).as_posix() for slide in slides]
    assert found == ["test_a/one.tif", "test_a/two.TIFF", "test_b/three.SVS", "test_b/four.ndpi", "test_a/five.tif"]
    assert [TableRepair.OTHER_FILE in slide.repairs for slide in slides] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("table", "sample"), [("1\n2\n", "001\n002\n"), ("AB\nC\n", "ab\nC\n"), ("1.0\n2\n", "1\n2\n")]
)
def test_the_sample_says_how_an_image_id_is_spelled(
    table: str, sample: str, tmp_path: Path, forms: Competition
) -> None:
    (tmp_path / "test.csv").write_text(f"slide\n{table}")
    (tmp_path / "blank.csv").write_text("slide,grade\n" + sample.replace("\n", ",0\n"))
    slides = read_slides(tmp_path, "test", forms)
    assert [slide.image_id for slide in slides] == sample.split()
    assert [slide.patient_id for slide in slides] == sample.split()
    assert slides[0].repairs in {(TableRepair.ID_AS_NUMBER,), (TableRepair.SPELLING,)}


def test_labels_that_are_negative_numbers(tmp_path: Path, forms: Competition) -> None:
    (tmp_path / "train.csv").write_text("slide,grade\na,-1.0\nb,0.0\nc,2\n")
    assert [slide.label for slide in read_slides(tmp_path, "train", forms)] == [0, 1, 2]


@pytest.mark.parametrize("rows", ["a,0\na,2\n", "a.tif,0\na.svs,0\n"])
def test_two_classes_or_two_files_of_one_slide_are_refused(rows: str, tmp_path: Path, forms: Competition) -> None:
    (tmp_path / "train.csv").write_text(f"slide,grade\n{rows}b,-1\n")
    with pytest.raises(SplitError, match="row"):
        read_slides(tmp_path, "train", forms)


def test_one_class_in_two_spellings_is_one(tmp_path: Path, forms: Competition) -> None:
    forms = replace(forms, files=replace(forms.files, labels="labels.csv"))
    (tmp_path / "train.csv").write_text("slide\na\nb\n")
    (tmp_path / "labels.csv").write_text("slide,grade\na.tif,2\na,2.0\nb,0\n")
    assert [slide.label for slide in read_slides(tmp_path, "train", forms)] == [2, 1]


def test_a_fact_that_needs_an_unknown_column_is_one_line(tmp_path: Path, forms: Competition) -> None:
    forms = replace(forms, facts=(Fact("core", "{centre}/{image_id}.png"),))
    (tmp_path / "test.csv").write_text("slide\na\n")
    with pytest.raises(SplitError, match="centre"):
        read_slides(tmp_path, "test", forms)
