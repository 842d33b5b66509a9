"""Test the TOML of competitions: faults that the reader refuses, drafts, and checks of a folder."""

import json
import re
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clotkit.cli import main
from clotkit.competitions import FOLDER, load_competition
from clotkit.drafting.check import check_competition
from clotkit.drafting.draft import draft_competition, write_draft
from clotkit.drafting.finding import NOTES
from clotkit.errors import ConfigError, UsageError
from clotkit.reasons import Misfit
from clotkit.splits import read_slides

from .competition_forms import FORMS, FormOfData, slide, table

FILL_IN = {"slug", "title", "limits.deadline_s", "limits.kernel_wall_s", "limits.hidden_slides"}


def flat(path: Path) -> dict[str, Any]:
    """Return the values of a TOML by table and key; of several tables of a name the first."""
    found: dict[str, Any] = {}
    for name, value in tomllib.loads(path.read_text(encoding="utf-8")).items():
        tables = value if isinstance(value, list) else [value]
        if isinstance(tables[0], dict):
            found |= {f"{name}.{key}": one for key, one in tables[0].items()}
        else:
            found[name] = value
    return found


def new(folder: Path, out: Path) -> Path:
    """Draft a TOML of a folder."""
    assert main(["competition", "new", str(folder), "--out", str(out)]) == 0
    return out


def filled(path: Path) -> Path:
    """Accept every value of a draft."""
    path.write_text(path.read_text(encoding="utf-8").replace("FILL IN", "looked up"), encoding="utf-8")
    return path


def checked(path: Path, data: Path | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Return the exit code of a check and what it prints as JSON."""
    capsys.readouterr()
    code = main(["competition", "check", str(path), "--json", *([] if data is None else ["--data", str(data)])])
    return code, json.loads(capsys.readouterr().out)


def codes(result: dict[str, Any]) -> list[str]:
    """Return the codes of a check that need a correction."""
    return [one["code"] for one in result["findings"] if not one["note"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes a form once; tests must not write there."""

    def write(name: str) -> Path:
        out = base / name
        if not out.exists():
            out.mkdir()
            FORMS[name].write(out)
        return out

    base = tmp_path_factory.mktemp("forms")
    return write


@pytest.fixture
def draft(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return a function that writes a form and its filled-in TOML, for tests that change them."""

    def make(name: str) -> tuple[Path, Path]:
        data = tmp_path / name
        data.mkdir()
        FORMS[name].write(data)
        return data, filled(new(data, tmp_path / f"{name}.toml"))

    return make


@pytest.mark.parametrize(("name", "form"), FORMS.items(), ids=FORMS)
def test_a_draft_fits_its_folder(
    name: str, form: FormOfData, folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder(name)
    path = new(data, tmp_path / "my.toml")
    values = flat(path)
    assert {key: values.get(key) for key in form.keys} == form.keys
    assert not values.keys() & set(form.absent)
    code, result = checked(path, data, capsys)
    assert (code, codes(result)) == (0, [])
    to_fill = {one["key"] for one in result["findings"] if one["code"] == Misfit.FILL_IN}
    assert to_fill - {"metric.name"} == FILL_IN
    code, result = checked(filled(path), data, capsys)
    assert (code, codes(result)) == (0, [])
    assert (result["facts"]["train"]["slides"], result["facts"]["test"]["slides"]) == form.counts
    assert sum(result["facts"]["classes"].values()) == form.counts[0]


@pytest.mark.parametrize("name", FORMS)
def test_every_slide_of_a_draft_has_its_file(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    competition = load_competition(str(new(folder(name), tmp_path / "my.toml")))
    for split in ("train", "test"):
        slides = read_slides(folder(name), split, competition, log=lambda _: None)
        assert all(one.path.is_file() for one in slides)


def test_every_line_of_a_draft_has_a_comment(folder: Callable[[str], Path], tmp_path: Path) -> None:
    text = new(folder("outliers"), tmp_path / "my.toml").read_text(encoding="utf-8")
    entries = [line for line in text.splitlines() if re.match(r"[a-z_]+ = ", line)]
    assert len(entries) > 20
    assert all(re.search(r" # (guessed|measured|default|FILL IN): .+", line) for line in entries)


def test_sizes_are_those_of_the_headers(folder: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("grades", "outliers"):
        sizes = load_competition(str(new(folder(name), tmp_path / f"{name}.toml"))).sizes
        assert (sizes.slides, sizes.largest_px, sizes.portrait_share) == (12, (48, 64), 1.0)


def test_a_draft_of_a_phantom_has_its_patients(
    other_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clotkit.synthetic.phantom import write_split

    other = load_competition(str(other_toml))
    for split, count in (("train", 9), ("test", 2)):
        write_split(tmp_path / "data", split, count, 5, other, size="300x400", log=lambda _: None)
    path = filled(new(tmp_path / "data", tmp_path / "my.toml"))
    drafted = load_competition(str(path))
    assert (drafted.files.table, drafted.files.slide) == (other.files.table, other.files.slide)
    assert (drafted.columns, drafted.ids) == (other.columns, other.ids)
    assert drafted.classes.names == other.classes.names
    assert checked(path, tmp_path / "data", capsys)[0] == 0


def test_a_file_is_overwritten_only_by_force(folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "my.toml"
    out.write_text("mine", encoding="utf-8")
    words = ["competition", "new", str(folder("nodes")), "--out", str(out)]
    assert main(words) == 2
    assert out.read_text(encoding="utf-8") == "mine"
    assert main([*words, "--force"]) == 0
    assert load_competition(str(out)).submission.columns == ("p",)


def _empty(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing", encoding="utf-8")


def _slides_alone(folder: Path) -> None:
    slide(folder / "train" / "a.tif")


def _workbook(folder: Path) -> None:
    (folder / "train.csv").write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize("write", [_empty, _slides_alone, _workbook, Path.rmdir])
def test_a_folder_with_nothing_usable_is_one_line(
    write: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    assert main(["competition", "new", str(data), "--out", str(tmp_path / "my.toml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "my.toml").exists()


@pytest.mark.parametrize("out", ["my.txt", "none/my.toml"])
def test_a_bad_name_of_the_draft_is_refused(out: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    assert main(["competition", "new", str(folder("nodes")), "--out", str(tmp_path / out)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_no_file_has_is_to_fill_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A draft loads although neither slides, nor a sample, nor classes are known."""
    data = tmp_path / "data"
    data.mkdir()
    table(data / "train.csv", ["who", "value"], [[f"a{k}", k / 7] for k in range(60)])
    path = new(data, tmp_path / "my.toml")
    result = checked(path, None, capsys)[1]
    open_keys = {one["key"] for one in result["findings"]}
    assert open_keys >= {"files.sample", "files.slide", "columns.label", "classes.names"}


CELLS = st.sampled_from(
    ["", "0", "1", "2.0", "a", "A", "b", "x1", "x2", "0.5", "nan", 'q"', "{", "\\", "é", "x1.tif", "a b"]
)
COLUMNS = st.sampled_from(["id", "Id", "label", "patient", "x.y", "a", "0", "", "{z}", "split"])
HEADERS = st.lists(COLUMNS, min_size=1, max_size=4, unique=True)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=6)
NAMES_OF_TABLES = st.sampled_from(
    ["train.csv", "test.csv", "sample.csv", "train_labels.csv", "sub/train.csv", "Train.tsv"]
)
TABLES = st.dictionaries(NAMES_OF_TABLES, st.tuples(HEADERS, ROWS))
FILES = st.lists(st.sampled_from(["x1.tif", "train/x2.png", "a{b}/x1.svs", "x1/a.tif"]), unique=True)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(tables={"train.csv": (["id", "patient"], [["0"], ["b", "{"]])}, files=["a{b}/x1.svs"])  # a patient is a brace
@given(
    tables=TABLES, files=st.lists(st.sampled_from(["x1.tif", "train/x2.png", "a{b}/x1.svs", "x1/a.tif"]), unique=True)
)
def test_any_folder_gives_a_draft_or_is_refused(
    tables: dict[str, tuple[list[str], list[list[str]]]], files: list[str], tmp_path: Path
) -> None:
    data = Path(tempfile.mkdtemp(dir=tmp_path))
    (data / "sub").mkdir()
    for name, (header, rows) in tables.items():
        table(data / name, header, [row[: len(header)] for row in rows])
    for name in files:
        slide(data / name)
    out = data / "my.toml"
    with suppress(UsageError):
        write_draft(draft_competition(data), data, out)
        check_competition(load_competition(str(out)), data)


@pytest.mark.parametrize(("metric", "is_refused"), [("accuracy", False), ("balanced_accuracy", True)])
def test_a_weight_of_0_is_refused_where_the_metric_balances_by_weights(
    metric: str, is_refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(MINIMAL.replace('"accuracy"', f'"{metric}"').replace(NAMES, f"{NAMES}, weights = [0, 1]"))
    with pytest.raises(ConfigError, match="weights") if is_refused else nullcontext():
        load_competition(str(path))


@pytest.mark.parametrize(
    ("images", "patients", "form"),
    [
        (["11", "12", "21"], ["p1", "p1", "p2"], ""),
        (["1", "2", "3"], ["", "", ""], ""),
        (["p1-1", "p1-2", "p2-1"], ["p1", "p1", "p2"], "{patient}-{number}"),
        (["p.1_1", "p.1_2", "p.2_1"], ["p.1", "p.1", "p.2"], "{patient}_{number}"),
        (["pa1_1", "pa1_2"], ["p.1", "p.1"], ""),
    ],
)
def test_a_form_of_image_ids_has_the_patient(images: list[str], patients: list[str], form: str, tmp_path: Path) -> None:
    rows = [[image, patient, str(at % 2)] for at, (image, patient) in enumerate(zip(images, patients, strict=True))]
    table(tmp_path / "train.csv", ["image_id", "patient_id", "label"], rows)
    write_draft(draft_competition(tmp_path), tmp_path, tmp_path / "my.toml")
    assert load_competition(str(tmp_path / "my.toml")).ids.image == form


def test_labels_named_as_a_column_of_predictions_are_to_fill_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table(data / "train.csv", ["image_id", "kind"], [[f"a{at}", ("control", "patient")[at % 2]] for at in range(12)])
    table(data / "sample_submission.csv", ["image_id", "kind"], [["b0", "control"]])
    path = new(data, tmp_path / "my.toml")
    assert "classes.names" in {one["key"] for one in checked(path, None, capsys)[1]["findings"]}


def test_a_column_a_class_in_train_is_no_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    FORMS["columns"].write(data)
    header = (data / "sample_submission.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    table(data / "train.csv", header, [[f"case_{k:04d}", *(int(k % 3 == at) for at in range(3))] for k in range(12)])
    path = new(data, tmp_path / "my.toml")
    to_fill = {one["key"] for one in checked(path, None, capsys)[1]["findings"]}
    assert to_fill >= {"columns.label", "classes.names"}


def test_a_train_table_of_another_name_is_to_rename(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    FORMS["nodes"].write(data)
    (data / "train.csv").rename(data / "labels.csv")
    result = checked(new(data, tmp_path / "my.toml"), data, capsys)[1]
    assert "files.table" in {one["key"] for one in result["findings"] if one["code"] == Misfit.FILL_IN}
    assert Misfit.NO_TABLE in codes(result)


# What check finds. Each change makes one fault; the codes, rows and counts are those of the fault alone.


def edit(path: Path, old: str, text: str, count: int = -1) -> None:
    """Replace a text in a file that has it."""
    before = path.read_text(encoding="utf-8")
    assert old in before
    path.write_text(before.replace(old, text, count), encoding="utf-8")


Change = Callable[[Path, Path], object]  # of the data folder and the TOML


def gone(name: str) -> Change:
    """Return the change that removes a file of the folder."""
    return lambda data, _: (data / name).unlink()


def cell(name: str, old: str, text: str, count: int = -1) -> Change:
    """Return the change of a text in a table."""
    return lambda data, _: edit(data / name, old, text, count)


def key(old: str, text: str) -> Change:
    """Return the change of a text in the TOML."""
    return lambda _, toml: edit(toml, old, text)


def class_more(_: Path, toml: Path) -> None:
    """Add a class without slides."""
    edit(toml, '"MC"]', '"MC", "X"]')
    edit(toml, "priors = [", "priors = [0, ")


SAMPLE = "sample_submission.csv"
TWO_LABELS = f"relapse\r\n{'0' * 8}.tif,0\r\n{'0' * 8}.tif,1\r\n"
CHANGES: list[tuple[str, Change, Misfit, dict[str, Any]]] = [
    ("grades", gone("train.csv"), Misfit.NO_TABLE, {"where": "train.csv"}),
    ("grades", gone(SAMPLE), Misfit.NO_TABLE, {"key": "files.sample"}),
    ("clinical", gone("train_labels.csv"), Misfit.NO_TABLE, {"where": "train_labels.csv"}),
    ("grades", cell("train.csv", "isup_grade", "isup"), Misfit.NO_COLUMN, {"key": "columns.label"}),
    ("grades", cell("test.csv", "image_id", "file"), Misfit.NO_COLUMN, {"key": "columns.image", "where": "test.csv"}),
    ("grades", key('"data_provider"', '"site"'), Misfit.NO_COLUMN, {"key": "columns.center"}),
    ("apart", key("{hospital}", "{clinic}"), Misfit.UNKNOWN_PLACEHOLDER, {"key": "files.slide"}),
    ("grades", key("}.tiff", "}_x.tiff"), Misfit.NO_SLIDE, {"count": 12, "of": 12, "row": 2}),
    ("scanners", gone("aperio/3.svs"), Misfit.NO_SLIDE, {"count": 1, "of": 12, "row": 4}),
    ("nodes", cell("train.csv", "tumor", "micro", 2), Misfit.UNKNOWN_LABEL, {"count": 2, "of": 12, "row": 2}),
    ("nodes", cell("train.csv", ",tumor", ",", 1), Misfit.UNKNOWN_LABEL, {"count": 1, "of": 12, "row": 2}),
    ("outliers", class_more, Misfit.EMPTY_CLASS, {"key": "classes.names"}),
    ("nodes", key("priors = [0.5, 0.5]", "priors = [0.98, 0.02]"), Misfit.PRIOR_FAR, {"of": 12}),
    ("columns", cell(SAMPLE, "prob_atypical", "p2"), Misfit.SAMPLE_HEADER, {"where": SAMPLE}),
    ("nodes", cell(SAMPLE, "p\n", "p,usage\n"), Misfit.SAMPLE_HEADER, {"where": SAMPLE}),
    ("columns", cell("test.csv", "case_0091\n", ""), Misfit.SAMPLE_WITHOUT_SLIDE, {"count": 1, "of": 6, "row": 3}),
    ("columns", cell(SAMPLE, "case_0092,0.3,0.3,0.4\n", ""), Misfit.SLIDE_WITHOUT_SAMPLE, {"count": 1, "row": 4}),
    ("scanners", cell("train.csv", "2,2", "2.0,2"), Misfit.ID_AS_NUMBER, {"count": 1, "row": 3}),
    (
        "scanners", lambda data, _: (data / "aperio" / "3.svs").rename(data / "aperio" / "003.svs"),
        Misfit.ID_AS_NUMBER, {"count": 1, "row": 4},
    ),
    ("outliers", key("_thumbnail.png", "_thumb.png"), Misfit.NO_FACT, {"count": 6, "of": 6}),
    ("outliers", cell(SAMPLE, ",MC", ",Mucinous", 1), Misfit.UNKNOWN_LABEL, {"where": SAMPLE, "count": 1}),
    ("clinical", cell("train_labels.csv", "relapse\n", TWO_LABELS), Misfit.REFUSED, {"where": "train_metadata.csv"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "code", "fields"), CHANGES)
def test_what_does_not_fit_has_its_code(
    name: str, change: Change, code: Misfit, fields: dict[str, Any],
    draft: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, path = draft(name)
    change(data, path)
    exit_code, result = checked(path, data, capsys)
    ends_with = 0 if code in NOTES else 2
    assert exit_code == ends_with
    of_code = [one for one in result["findings"] if one["code"] == code]
    assert any(fields.items() <= one.items() for one in of_code), result["findings"]
    assert main(["competition", "check", str(path), "--data", str(data)]) == ends_with
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[: len(result["findings"])]] == [
        "note " * one["note"] + one["code"] for one in result["findings"]
    ]


def test_notes_need_no_correction(
    draft: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    data, path = draft("grades")
    for file in (data / "test_images").iterdir():
        file.unlink()
    edit(path, '"{split}_images/{image_id}.tiff"', '["{split}_images/{image_id}.tiff", "{image_id}.tif"]')
    code, result = checked(path, data, capsys)
    assert (code, {one["code"] for one in result["findings"]}) == (0, {Misfit.HIDDEN_TEST, Misfit.UNUSED_PATTERN})


def test_a_check_of_the_file_alone(
    folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = new(folder("nodes"), tmp_path / "my.toml")
    code, result = checked(path, None, capsys)
    assert (code, {one["code"] for one in result["findings"]}) == (0, {Misfit.FILL_IN})
    code, result = checked(filled(path), None, capsys)
    assert (code, result["findings"], result["facts"]["best_constant"]) == (0, [], 0.5)
    assert main(["competition", "check", str(path), "--data", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_competitions_that_ship_are_complete(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = checked(path, None, capsys)
    assert (code, result["findings"]) == (0, [])


def test_list_names_those_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["competition", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted(path.stem for path in FOLDER.glob("*.toml"))


# The reader. Each fault ends in one line that names the file and the key.


MINIMAL = """
slug = "s"
title = "t"
files = {sample = "s.csv", submission = "o.csv", table = "{split}.csv", slide = "{split}/{image_id}.tif"}
columns = {image = "i", label = "l"}
classes = {names = ["a", "b"]}
submission = {form = "label"}
metric = {name = "accuracy"}
"""


SLIDE, NAMES, FORM, SLUG = '"{split}/{image_id}.tif"', '["a", "b"]', 'form = "label"', 'slug = "s"'
# {what the message must name: {old text: the texts to put in its place}}
FAULTS: dict[str, dict[str, list[str]]] = {
    "slide": {SLIDE: ["3", "[]", '[["a"]]', '["{image_id}.tif", 3]']},
    "files.slide": {
        SLIDE: [
            '""', '"}{"', '"{split}/{image_id"', '"{split}/{}.tif"', '"{split}/{0}.tif"', '"{image_id:>8}.tif"',
            '"{image_id!r}.tif"', '"{image_id.stem}.tif"', '"{image_id[0]}.tif"', '"all.tif"', '"{split}.tif"',
        ],
    },
    "files.table": {
        '"{split}.csv"': ['"{image_id}.csv"', '"{split}/{x}.csv"', '""', '"/{split}.csv"', '"../{split}.csv"'],
    },
    "table": {'"{split}.csv"': ["3", '["{split}.csv"]']},
    "sample": {'"s.csv"': ["3", '""', '"/s.csv"', '"a/../../s.csv"']},
    "files.labels": {'"s.csv"': ['"s.csv", labels = "../s.csv"']},
    "names": {
        NAMES: [
            "3", "[]", '"ab"', '["a"]', '["a", "a"]', '["a", 3.5]', "[true, false]", "[1, 1]", '["1", 1]', '["", "a"]',
            '["a", "A"]', '["1", "1.0"]', "[1.0, 2.0]", '["a", ["b"]]', '["a", "patient"]', '["fold", "b"]',
        ],
    },
    "priors": {NAMES: [f"{NAMES}, priors = {bad}" for bad in ("[0.5]", '[0.5, "x"]', "[-1, 2]", "[nan, 1]", "0.5")]},
    "weights": {NAMES: [f"{NAMES}, weights = {bad}" for bad in ("[0, 0]", "[inf, 1]", "[1, 1, 1]")]},
    "fallback": {NAMES: [f"{NAMES}, fallback = [1]"], FORM: [f'{FORM}, fallback = "c"']},
    "form": {FORM: ['form = "labels"', "form = 3"]},
    "rule": {FORM: ['form = "probability", rule = "cut_points"', f'{FORM}, rule = "median"']},
    "columns": {
        FORM: [
            'form = "probabilities", columns = ["p"]', f'{FORM}, columns = ["p", "q"]', f'{FORM}, columns = "p"',
            f'{FORM}, id = "l"', f'{FORM}, columns = [""]',
        ],
        'label = "l"': ['label = "i"'],
    },
    "outlier": {FORM: [f'{FORM}, {bad}' for bad in (
        'rule = "outlier"', 'rule = "outlier", outlier = "a"', 'outlier = "c"', 'rule = "argmax", outlier = "c"')]},
    "unit": {FORM: [f'{FORM}, unit = "patient"', f'{FORM}, unit = "case"', f"{FORM}, unit = 3"]},
    "sort": {FORM: [f"{FORM}, sort = 3"]},
    "metric.name": {'"accuracy"': ['"accuracies"', '""']},
    "clip": {'"accuracy"': [f'"accuracy", clip = {bad}' for bad in ('"x"', "-1", "0.5", "nan")]},
    "columns.image": {'image = "i"': ['image = ""']},
    "columns.label": {'label = "l"': ['label = ""']},
    "image": {'image = "i"': ["image = 3"]},
    "number": {'label = "l"': ['label = "l", number = true']},
    "limits": {SLUG: [f"{SLUG}\nlimits = {{{bad}}}" for bad in (
        "deadline_s = 0", "deadline_s = nan", "slide_s = -1", "min_tiles = 1.5", "hidden_slides = -1", 'slide_s = "9"',
    )]},
    "ids": {SLUG: [f"{SLUG}\nids = {{{bad}}}" for bad in (
        'patient = "["', 'image = "{slide}"', 'image = "x"', 'twins = ["a b"]', 'twins = "a = b"', "has_extension = 1",
    )]},
    "facts": {SLUG: [f"{SLUG}\nfacts = {bad}" for bad in (
        '[{name = "x", missing_file = "{0}"}]', '[{name = "x"}]', "3", '[{name = "", missing_file = "{image_id}.png"}]',
    )]},
    "slug": {SLUG: ["", "slug = 3", 'slug = ""', 'slug = "a b"', 'slug = "a/b"']},
    "title": {'title = "t"': ["", "title = []"]},
    "file": {SLUG: [f"{SLUG}\nfile = {{}}"]},
    "metric": {'metric = {name = "accuracy"}': ["", "metric = 3", "metric = {}"]},
    "not a TOML file": {'metric = {name = "accuracy"}': ["metric = "], SLUG: [f"{SLUG}\n{SLUG}"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("named", "old", "text"),
    [(named, old, text) for named, olds in FAULTS.items() for old, texts in olds.items() for text in texts],
)
def test_a_fault_of_the_toml_is_one_line(
    named: str, old: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.toml"
    assert MINIMAL.count(old) == 1
    path.write_text(MINIMAL.replace(old, text), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_competition(str(path))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(path))
    assert named in line
    assert main(["competition", "check", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_names_may_be_integers(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(MINIMAL.replace('["a", "b"]', "[0, 1, 2]"), encoding="utf-8")
    assert load_competition(str(path)).classes.names == ("0", "1", "2")
