"""Test that each fault of a submission is named with its row, and that written files are valid."""

import codecs
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clotkit.cli import main
from clotkit.competitions import Competition, load_competition
from clotkit.errors import ClotkitError, ConfigError, SplitError, SubmissionError
from clotkit.splits import read_sample
from clotkit.submission.answers import Fault
from clotkit.submission.checking import check_submission
from clotkit.submission.writing import write_probabilities, write_submission

SAMPLE = "patient_id,CE,LAA\n006388,0.5,0.5\n008e5c,0.5,0.5\n1e0003,0.5,0.5\n"
GOOD = "patient_id,CE,LAA\n006388,0.7,0.3\n008e5c,0.4,0.6\n1e0003,0.5,0.5\n"

# name, the file, and the code, row (None: the whole file) and words of its problem
CASES = [
    ("bom", codecs.BOM_UTF8 + GOOD.encode(), Fault.BYTE_ORDER_MARK, 1, ["UTF-8"]),
    ("utf-16", GOOD.encode("utf-16"), Fault.BYTE_ORDER_MARK, 1, ["UTF-16"]),
    ("encoding", GOOD.replace("008e5c", "008é5c").encode("latin-1"), Fault.ENCODING, 3, ["0xe9", "UTF-8"]),
    ("semicolons", GOOD.replace(",", ";").encode(), Fault.DELIMITER, 1, ["semicolons", "commas"]),
    ("tabs", GOOD.replace(",", "\t").encode(), Fault.DELIMITER, 1, ["tabs", "commas"]),
    ("column order", b"patient_id,LAA,CE\n006388,0.3,0.7\n008e5c,0.6,0.4\n1e0003,0.5,0.5\n", Fault.COLUMN_ORDER, 1, []),
    ("missing column", b"patient_id,CE\n006388,0.7\n008e5c,0.4\n1e0003,0.5\n", Fault.MISSING_COLUMN, 1, ["LAA"]),
    ("extra column", GOOD.replace("LAA\n", "LAA,\n").encode(), Fault.EXTRA_COLUMN, 1, ["(empty)"]),
    ("repeated column", GOOD.replace("LAA\n", "LAA,LAA\n").encode(), Fault.REPEATED_COLUMN, 1, ["LAA", "2"]),
    (
        "missing patient",
        b"patient_id,CE,LAA\n006388,0.7,0.3\n1e0003,0.5,0.5\n",
        Fault.MISSING_PATIENT,
        None,
        ["008e5c"],
    ),
    ("row count", b"patient_id,CE,LAA\n006388,0.7,0.3\n1e0003,0.5,0.5\n", Fault.ROW_COUNT, None, ["2 rows", "3"]),
    ("extra patient", (GOOD + "ffffff,0.5,0.5\n").encode(), Fault.UNKNOWN_PATIENT, 5, ["ffffff"]),
    ("repeated patient", (GOOD + "006388,0.5,0.5\n").encode(), Fault.REPEATED_PATIENT, 5, ["006388", "row 2"]),
    ("lost zeros", GOOD.replace("006388", "6388").encode(), Fault.ID_AS_NUMBER, 2, ["6388", "006388", "strings"]),
    ("float id", GOOD.replace("006388", "6388.0").encode(), Fault.ID_AS_NUMBER, 2, ["6388.0", "006388"]),
    ("exponent id", GOOD.replace("1e0003", "1000.0").encode(), Fault.ID_AS_NUMBER, 4, ["1e0003"]),
    ("spaces", GOOD.replace("006388", " 006388").encode(), Fault.ID_WITH_SPACES, 2, ["006388"]),
    ("empty cell", GOOD.replace("0.4,", ",").encode(), Fault.EMPTY_CELL, 3, ["CE"]),
    ("not a number", GOOD.replace("0.4,", "high,").encode(), Fault.NOT_A_NUMBER, 3, ["CE", "'high'"]),
    ("nan", GOOD.replace("0.4,", "nan,").encode(), Fault.NAN, 3, ["CE"]),
    ("infinite", GOOD.replace("0.4,", "inf,").encode(), Fault.INFINITE, 3, ["CE"]),
    ("negative", GOOD.replace("0.4,", "-0.4,").encode(), Fault.NEGATIVE, 3, ["CE", "-0.4"]),
    ("both zero", GOOD.replace("0.4,0.6", "0,0").encode(), Fault.ALL_ZERO, 3, ["CE", "LAA"]),
    ("cells", GOOD.replace("0.4,0.6", "0.4").encode(), Fault.CELL_COUNT, 3, ["2 cells", "3"]),
    ("blank line", GOOD.replace("008e5c", "\n008e5c").encode(), Fault.BLANK_LINE, 3, ["1"]),
    ("empty file", b"", Fault.EMPTY_FILE, None, []),
    ("nul", GOOD.encode() + b"\0", Fault.NUL_BYTE, 5, []),
    ("header only", b"patient_id,CE,LAA\n", Fault.ROW_COUNT, None, ["0 rows", "3"]),
]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample_submission.csv"
    path.write_text(SAMPLE)
    return path


@pytest.mark.parametrize(
    ("data", "code", "row", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_fault_is_named(
    data: bytes, code: Fault, row: int | None, words: list[str], sample: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(data)
    verdict = check_submission(path, sample, strip_ai)
    assert not verdict.valid
    found = [problem for problem in verdict.problems if (problem.code, problem.row) == (code, row)]
    assert any(all(word in problem.text for word in words) for problem in found), verdict.problems


def test_every_kind_of_fault_has_a_case() -> None:
    assert set(Fault) - {Fault.NOT_CSV} == {case[2] for case in [*CASES, *ANSWERS]} - {None}


@pytest.mark.parametrize("data", [GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("0.7,0.3", "7,3"), GOOD.rstrip("\n")])
def test_what_kaggle_takes_is_valid(data: str, sample: Path, tmp_path: Path, strip_ai: Competition) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(data.encode())
    assert check_submission(path, sample, strip_ai).problems == []


def test_the_order_of_rows_is_free(sample: Path, tmp_path: Path, strip_ai: Competition) -> None:
    header, *rows = GOOD.splitlines(keepends=True)
    path = tmp_path / "submission.csv"
    path.write_text(header + "".join(reversed(rows)))
    assert check_submission(path, sample, strip_ai).valid


def test_notes_tell_a_degenerate_file(sample: Path, tmp_path: Path, strip_ai: Competition) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(SAMPLE)
    verdict = check_submission(path, sample, strip_ai)
    assert verdict.expected is not None
    assert verdict.expected.constant == pytest.approx(0.6931, abs=5e-5)
    assert (verdict.fallback_rows, verdict.distinct_rows) == (3, 1)
    path.write_text(SAMPLE.replace("0.5,0.5", "0.6,0.4"))
    verdict = check_submission(path, sample, strip_ai)
    assert (verdict.fallback_rows, verdict.distinct_rows) == (0, 1)
    path.write_text(GOOD)
    verdict = check_submission(path, sample, strip_ai)
    assert (verdict.fallback_rows, verdict.distinct_rows) == (1, 3)
    notes = "\n".join(verdict.notes)
    assert "CE: 0.4000 to 0.7000, 3 " in notes


GRADES = """
slug = "grades"
title = "Grades"

[files]
sample = "blank.csv"
submission = "answer.csv"
table = "{split}.csv"
slide = "{image_id}.tiff"

[columns]
image = "slide"
label = "grade"

[classes]
names = [0, 1, 2, 3]
priors = [0.4, 0.3, 0.2, 0.1]

[submission]
form = "label"
rule = "cut_points"

[metric]
name = "quadratic_weighted_kappa"
"""
SUBTYPES = (
    GRADES.replace("[0, 1, 2, 3]", '["A", "B", "C", "D"]')
    .replace('"cut_points"', '"outlier"\noutlier = "Other"')
    .replace('"quadratic_weighted_kappa"', '"balanced_accuracy"')
)
RISK = (
    GRADES.replace("[0, 1, 2, 3]", '["no", "yes"]')
    .replace("priors = [0.4, 0.3, 0.2, 0.1]", "priors = [0.8, 0.2]")
    .replace('form = "label"\nrule = "cut_points"', 'form = "probability"\ncolumns = ["risk"]')
    .replace('"quadratic_weighted_kappa"', '"log_loss"')
    .replace('label = "grade"', 'label = "grade"\n\n[ids]\nhas_extension = true')
)
RANKS = RISK.replace('"log_loss"', '"auc"')

# the competition, the sample, an answer's cell in row 3, and the code of its problem (None: it is valid)
ANSWERS = [
    (GRADES, "slide,grade\na,0\nb,0\n", Fault.NOT_A_LABEL, "4"),
    (GRADES, "slide,grade\na,0\nb,0\n", Fault.NOT_A_LABEL, "2.0"),
    (GRADES, "slide,grade\na,0\nb,0\n", Fault.EMPTY_CELL, " "),
    (GRADES, "slide,grade\na,0\nb,0\n", None, "3"),
    (SUBTYPES, "slide,grade\na,A\nb,A\n", Fault.NOT_A_LABEL, "other"),
    (SUBTYPES, "slide,grade\na,A\nb,A\n", None, "Other"),
    (SUBTYPES, "grade,slide\nA,a\nA,b\n", None, "Other"),
    (RISK, "slide,risk\na.tif,0.5\nb.tif,0.5\n", Fault.ABOVE_ONE, "1.5"),
    (RISK, "slide,risk\na.tif,0.5\nb.tif,0.5\n", Fault.NAN, "nan"),
    (RISK, "slide,risk\na.tif,0.5\nb.tif,0.5\n", None, "0.25"),
    (RANKS, "slide,risk\na.tif,0.5\nb.tif,0.5\n", None, "-17.5"),
]


def competition_of(text: str, folder: Path) -> Competition:
    path = folder / "form.toml"
    path.write_text(text)
    return load_competition(str(path))


@pytest.mark.parametrize(("toml", "text", "code", "cell"), ANSWERS)
def test_an_answer_of_another_form_is_checked(
    toml: str, text: str, code: Fault | None, cell: str, tmp_path: Path
) -> None:
    competition = competition_of(toml, tmp_path)
    sample, path = tmp_path / "blank.csv", tmp_path / "answer.csv"
    sample.write_text(text)
    header, first, second = text.splitlines()
    cells = dict(zip(header.split(","), second.split(","), strict=True)) | {competition.submission.columns[0]: cell}
    path.write_text("\n".join([header, first, ",".join(cells.values())]) + "\n")
    verdict = check_submission(path, sample, competition)
    assert [(problem.code, problem.row) for problem in verdict.problems] == ([] if code is None else [(code, 3)])


@pytest.mark.parametrize(
    ("toml", "text", "written"),
    [
        (GRADES, "grade,slide\n0,a\n0,b\n", "grade,slide\n1,a\n3,b\n"),
        (SUBTYPES, "slide,grade\na,C\nb,C\n", "slide,grade\na,A\nb,D\n"),
        (RISK, "slide,risk\na.tif,0.5\nb.tif,0.5\n", "slide,risk\na.tif,0.200000\nb.tif,0.900000\n"),
    ],
)
def test_the_sample_is_the_mould(toml: str, text: str, written: str, tmp_path: Path) -> None:
    """Write the header, its order and the ids of the sample; an id without an answer gets the fallback."""
    competition = competition_of(toml, tmp_path)
    sample, path = tmp_path / "blank.csv", tmp_path / "answer.csv"
    sample.write_text(text)
    mould = read_sample(sample, competition)
    write_submission(path, competition, mould, {"b": [0.1, 0.9]}, {"b": 3})
    assert path.read_text() == written
    assert check_submission(path, sample, competition).valid


@pytest.mark.parametrize("cells", [("0.5e20", "7.5e20"), ("-4.5", "3.5")])
def test_numbers_that_only_rank_have_no_score_if_calibrated(cells: tuple[str, str], tmp_path: Path) -> None:
    competition = competition_of(RANKS, tmp_path)
    sample, path = tmp_path / "blank.csv", tmp_path / "answer.csv"
    sample.write_text("slide,risk\na.tif,0.5\nb.tif,0.5\n")
    path.write_text(f"slide,risk\na.tif,{cells[0]}\nb.tif,{cells[1]}\n")
    expected = check_submission(path, sample, competition).expected
    assert expected is not None
    assert (math.isnan(expected.calibrated), expected.uninformative, expected.constant) == (True, 0.5, 0.5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"quadratic_weighted_kappa"', '"auc"'),
        ('"quadratic_weighted_kappa"', '"log_loss"'),
        ('form = "label"\nrule = "cut_points"', 'form = "probabilities"'),
        ('form = "label"', 'form = "label"\nid = "slide"\nunit = "patient"'),
        ('slide = "{image_id}.tiff"', 'slide = "../{image_id}.tiff"'),
    ],
)
def test_what_cannot_be_is_refused_when_the_file_is_read(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        competition_of(GRADES.replace(old, new), tmp_path)


def test_labels_are_expected_to_score_by_the_probabilities_beside_them(tmp_path: Path) -> None:
    competition = competition_of(GRADES, tmp_path)
    sample, path = tmp_path / "blank.csv", tmp_path / "answer.csv"
    sample.write_text("slide,grade\na,0\nb,0\n")
    mould = read_sample(sample, competition)
    rows = {"a": [0.9, 0.1, 0.0, 0.0], "b": [0.0, 0.0, 0.2, 0.8]}
    write_submission(path, competition, mould, rows, {"a": 0, "b": 3})
    verdict = check_submission(path, sample, competition)
    assert verdict.expected is not None
    assert math.isnan(verdict.expected.calibrated)
    write_probabilities(path.with_name("probabilities.csv"), competition, mould, rows)
    verdict = check_submission(path, sample, competition)
    assert verdict.expected is not None
    assert verdict.expected.calibrated > 0.9
    assert verdict.expected.constant == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_no_bytes_break_the_check(data: bytes, sample: Path, tmp_path: Path, strip_ai: Competition) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(data)
    verdict = check_submission(path, sample, strip_ai)
    assert not verdict.valid
    assert all("\n" not in str(problem) for problem in verdict.problems)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=st.dictionaries(st.sampled_from(["006388", "008e5c", "1e0003"]), st.floats(0, 1)))
def test_what_is_written_is_valid(
    values: dict[str, float], sample: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    path = tmp_path / "submission.csv"
    rows = {patient: (value, 1 - value) for patient, value in values.items()}
    write_submission(path, strip_ai, read_sample(sample, strip_ai), rows)
    assert check_submission(path, sample, strip_ai).valid
    assert path.read_text().splitlines()[1].startswith("006388,")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sample_submission.csv", "submission.csv"]


CELLS = st.one_of(
    st.text("0123456789.eE+-", max_size=8),
    st.text("0123456789.,_xXaApPiInNfFyY \t\v\f\xa0\u0661\uff11%d", max_size=6),
    st.floats().map(repr),
    st.sampled_from(
        ["inf", "Infinity", "+INF", "nan", "NaN", "NULL", "None", "True", "1_0", "1e400", "0x1p-1", "<NA>"]
    ),
)
UNREADABLE = {Fault.NOT_A_NUMBER, Fault.EMPTY_CELL}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(cell=CELLS)
def test_a_number_is_what_pandas_reads_as_one(cell: str, sample: Path, tmp_path: Path, strip_ai: Competition) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(GOOD.replace("0.4,", f'"{cell}",'), newline="")
    verdict = check_submission(path, sample, strip_ai)
    column = pd.read_csv(path, dtype={"patient_id": str})["CE"]
    found = {problem.code for problem in verdict.problems}
    if not pd.api.types.is_float_dtype(column):
        assert found & UNREADABLE, column[1]
    elif pd.isna(column[1]):
        assert found <= {Fault.NAN, Fault.EMPTY_CELL}
        assert found
    else:
        assert not found & UNREADABLE
        assert (Fault.INFINITE in found) == (not math.isfinite(column[1]))
        assert (Fault.NEGATIVE in found) == (-math.inf < column[1] < 0)
        assert found or verdict.rows["008e5c"][0] == pytest.approx(column[1], rel=1e-12)


def test_a_row_whose_sum_is_infinite_is_named(sample: Path, tmp_path: Path, strip_ai: Competition) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(GOOD.replace("0.4,0.6", "1e308,1e308"))
    verdict = check_submission(path, sample, strip_ai)
    assert [(problem.code, problem.row) for problem in verdict.problems] == [(Fault.INFINITE, 3)]


def test_another_competition_has_its_own_columns(tmp_path: Path, other: Competition) -> None:
    sample = tmp_path / "blank.csv"
    sample.write_text("person,blue,green,white\n00012,0,0,0\n99999,0,0,0\n")
    path = tmp_path / "submission.csv"
    write_submission(path, other, read_sample(sample, other), {"99999": (0.1, 0.2, 0.7)})
    assert path.read_text() == (
        "person,blue,green,white\n00012,0.200000,0.300000,0.500000\n99999,0.100000,0.200000,0.700000\n"
    )
    assert check_submission(path, sample, other).valid


def test_a_file_that_is_not_there_is_one_line(sample: Path, tmp_path: Path, strip_ai: Competition) -> None:
    with pytest.raises(SubmissionError, match="cannot be read"):
        check_submission(tmp_path / "none.csv", sample, strip_ai)
    with pytest.raises(SplitError, match="cannot be read"):
        check_submission(sample, tmp_path / "none.csv", strip_ai)


def test_the_verb_ends_with_2_and_a_line_a_problem(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(GOOD.replace("006388", "6388"))
    assert main(["check", str(path), "--sample", str(sample)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2  # the id, and the patient that is missing for it
    path.write_text(GOOD)
    assert main(["check", str(path), "--sample", str(sample)]) == 0
    assert "valid" in capsys.readouterr().out
    assert issubclass(SubmissionError, ClotkitError)
