"""Test the server of a competition with a gateway: its answers, its deadlines, its members."""

import csv
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import polars as pl
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit import supervise
from clotkit.bundle.build import build_bundle
from clotkit.cli import main
from clotkit.competitions import Competition, load_competition
from clotkit.competitions.schema import AnswerForm, BatchRows, Serving
from clotkit.errors import ConfigError
from clotkit.reasons import Reason
from clotkit.rehearsal.standin.layout import write_package
from clotkit.report.records import read_report
from clotkit.serving import predictor as predictor_module
from clotkit.serving.backend import Backend
from clotkit.serving.batches import BatchScorer, serve
from clotkit.serving.discovery import make_server, run_local_gateway
from clotkit.serving.fallback import write_fallback
from clotkit.serving.frames import Batch, answer_for, read_batch, text_of
from clotkit.serving.locating import locate
from clotkit.serving.predictor import Predictor
from clotkit.serving.requests import read_request
from clotkit.serving.rows import read_row
from clotkit.splits import read_slides
from clotkit.submission.checking import check_submission
from clotkit.supervise import State, Status, read_status

from .conftest import ROOT
from .stuck import stuck_file

LONG_S = 120.0  # more than any batch takes
SHORT_S = 4.0
CLI = "import sys; from clotkit.cli import main; sys.exit(main())"
# Members that answer a batch as the arguments say: `die` ends, `hang` never answers, `done` does at once.
FAKE = """
import json, sys, time
starts, how = sys.argv[1], sys.argv[2:]
with open(starts, "a") as file:
    file.write("x")
how = how[min(len(open(starts).read()), len(how)) - 1]
if how == "unready":
    sys.exit(3)
if how == "loading":
    time.sleep(3600)
if how == "deaf":
    print(json.dumps({"ready": 0.1, "members": ["fake"]}), flush=True)
    time.sleep(3600)
print(json.dumps({"ready": 0.1, "members": ["fake"]}), flush=True)
for line in sys.stdin:
    if how == "die":
        sys.exit(4)
    if how == "hang":
        time.sleep(3600)
    if how == "refuse":
        print(json.dumps({"error": {"code": "bad_request", "message": ""}, "end": True}), flush=True)
        continue
    if how == "nonsense":
        print("[" if line.count("_0") else json.dumps({"line": {"image_id": "x"}, "answers": {}}), flush=True)
        continue
    for slide in json.loads(line)["slides"]:
        line = dict(image_id=slide["image"], patient_id=slide["patient"], state="done", codes=[], reason="",
                    tiles=1, seconds=0.1, peak_mb=1.0, p={"fake": [0.25, 0.75]},
                    facts={"earlier": slide.get("earlier", [])})
        print(json.dumps({"line": line, "answers": {slide["row"]: ["0.250000", "0.750000"]}}), flush=True)
    print(json.dumps({"end": True}), flush=True)
"""


def by(competition: Competition, **serving: Any) -> Competition:
    """Return the competition with these keys of the table serving."""
    return replace(competition, serving=replace(competition.serving, **serving))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a kernel's working folder, which the modules know."""
    working = tmp_path / "working"
    working.mkdir()
    for module in (supervise, predictor_module):
        monkeypatch.setattr(module, "WORKING", working)
    monkeypatch.setattr(predictor_module, "ROOT", tmp_path)
    return working


@contextmanager
def predictor_of(
    command: Sequence[str] | None, competition: Competition, split: Path, folder: Path
) -> Iterator[tuple[Predictor, Backend, Status]]:
    """Make a server whose members are those of a command."""
    status = Status("serve")
    backend = Backend(lambda: None if command is None else list(command), folder)
    predictor = Predictor(competition, backend, split, status, time.monotonic())
    try:
        yield predictor, backend, status
    finally:
        predictor.close()


def members(weights: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", CLI, "serve", "--weights", str(weights), "--jobs", "2", *more]


def fake(starts: Path, *how: str) -> list[str]:
    return [sys.executable, "-c", FAKE, str(starts), *how]


def table_of(split: Path) -> pd.DataFrame:
    return pd.read_csv(split / "test.csv", dtype=str)


def submission_of(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {one: [float(cell) for cell in cells] for one, *cells in rows}


def running_members(backend: Backend) -> list[psutil.Process]:
    """Return the processes of the command line that has the members."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # one that has ended meanwhile
            if "--weights" in one.cmdline():
                found.append(one)
    return found


# --- Frames and rows


@pytest.mark.parametrize("library", [pd, pl])
def test_a_batch_of_a_frame_is_answered_by_a_frame_of_its_library(library: Any, strip_ai: Competition) -> None:
    frame = library.DataFrame({"image_id": ["a_0", None], "x": [1.5, 2.0]})
    batch = read_batch([frame, {"paths": ["/shared/a_0.tif"]}], "image_id")
    assert [text_of(cell) for cell in batch.ids("image_id")] == ["a_0", ""]
    assert batch.paths == ["/shared/a_0.tif"]
    answer = answer_for(batch, ["a", "b"], [["0.1", "0.9"], ["0.5", "0.5"]], strip_ai)
    assert isinstance(answer, library.DataFrame)
    assert list(answer.columns) == list(strip_ai.submission.columns)
    assert answer[strip_ai.submission.columns[0]].to_list() == [0.1, 0.5]


@pytest.mark.parametrize(
    ("values", "ids", "paths"),
    [
        ([pl.Series("id", ["a", "b"])], ["a", "b"], []),
        ([pd.Series(["a", "b"])], ["a", "b"], []),
        (["/shared/x/a.tif"], ["/shared/x/a.tif"], ["/shared/x/a.tif"]),
        (["a", "/shared/x"], ["a"], ["/shared/x"]),
        ([7], ["7"], []),
        ([np.int64(7), True], ["7"], []),
        (["/shared/x/a.tif", pd.DataFrame({"age": [70]})], ["/shared/x/a.tif"], ["/shared/x/a.tif"]),
        ([pd.DataFrame({"age": [70, 71]})], [None, None], []),
        ([pd.DataFrame({"other": [1, 2]}), pl.DataFrame({"image_id": ["a"]})], ["a"], []),
        ([None], [None], []),
        ([], [None], []),
        ([pd.DataFrame({"image_id": []})], [], []),
        ([np.array(["a", "b", "c"])], ["a", "b", "c"], []),
        ([[{"image_id": one, "patient_id": "p", "x": 1} for one in "abc"]], ["a", "b", "c"], []),
        ([{"image_id": "a", "patient_id": "p"}, "/shared/x"], ["a"], ["/shared/x"]),
        ([{"image_id": ["a", "b"], "patient_id": np.array(["p", "q"])}], ["a", "b"], []),
    ],
)
def test_what_a_gateway_sends_is_read(values: list[Any], ids: list[Any], paths: list[str]) -> None:
    batch = read_batch(values, "image_id")
    assert batch.ids("image_id") == ids
    assert list(batch.paths) == paths


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, ""), (float("nan"), ""), (pd.NA, ""), (pd.NaT, ""), (12.0, "12"), (12.5, "12.5"), (True, "True"),
     (np.int64(3), "3"), (" a ", "a")],
)  # fmt: skip
def test_cells_are_read_as_a_table_has_them(cell: Any, text: str) -> None:
    assert text_of(cell) == text


@pytest.mark.parametrize(
    ("form", "ids", "seen"),
    [
        (AnswerForm.VALUES, ["a"], {"CE": [0.1], "LAA": [0.9]}),
        (AnswerForm.ROWS, ["a"], {"patient_id": ["a"], "CE": [0.1], "LAA": [0.9]}),
        (AnswerForm.ROWS, [7.0], {"patient_id": [7], "CE": [0.1], "LAA": [0.9]}),
    ],
)
def test_an_answer_has_the_form_that_the_competition_asks_for(
    form: AnswerForm, ids: list[Any], seen: dict[str, list[Any]], strip_ai: Competition
) -> None:
    answer = answer_for(Batch(()), ids, [["0.1", "0.9"]], by(strip_ai, answer=form))
    assert answer.to_dict("list") == seen


def test_a_bare_value_is_a_number_or_a_label() -> None:
    for name, cell, seen in (("panda", "3", 3), ("ubc_ocean", "CC", "CC"), ("visiomel", "0.25", 0.25)):
        competition = by(load_competition(name), answer=AnswerForm.VALUE)
        assert answer_for(Batch(()), ["a"], [[cell]], competition) == seen


def test_ids_never_have_a_gap(strip_ai: Competition) -> None:
    for ids, seen in (
        ([1, None, 3.0], [1, -1, 3]),
        (["a", None], ["a", ""]),
        ([None, float("nan")], ["", ""]),
        ([True, 1], ["True", "1"]),
        ([1.5, 2.0], ["1.5", "2"]),
        ([math.inf, 2], ["inf", "2"]),
        ([1e300], [str(int(1e300))]),
    ):
        answer = answer_for(Batch(()), ids, [["0.1", "0.9"]] * len(ids), by(strip_ai, answer=AnswerForm.ROWS))
        assert answer["patient_id"].to_list() == seen


def test_a_row_tells_its_slide_and_where_its_file_may_be(strip_ai: Competition) -> None:
    cells = {
        "image_id": "006388_0",
        "patient_id": 6388,
        "center_id": 11,
        "where": "/mnt/006388_0/x.tif",
        "mask": "/mnt/x.png",
    }
    batch = Batch([cells], None, ["/shared/006388_0.tif", "/shared/folder"])
    one = read_row(cells, 1, batch, strip_ai, [Path("/root")])
    assert one is not None
    assert (one.image_id, one.patient_id, one.row_id) == ("006388_0", "006388", "006388")
    assert one.facts["center_id"] == "11"
    places = [one.paths.index(path) for path in ("/shared/006388_0.tif", "/shared/folder/006388_0.tif")]
    assert places == sorted(places)
    assert one.paths[-1] == "/root/test/006388_0.tif"
    assert one.other_paths == ["/mnt/006388_0/x.tif"]


def test_the_column_of_the_path_comes_first(strip_ai: Competition) -> None:
    cells = {"image_id": "006388_0", "patient_id": "006388", "a": "/a/x.tif", "b": "/b/x.tif"}
    one = read_row(cells, 1, Batch([cells]), by(strip_ai, path="b"), [])
    assert one is not None
    assert one.paths[:2] == ["/b/x.tif/006388_0.tif", "/b/x.tif"]
    assert "/a/x.tif" not in one.paths


@pytest.mark.parametrize("cell", [None, "", "nan", "..", "/", "a/..", float("nan")])
def test_a_row_without_a_usable_id_is_refused(cell: Any, strip_ai: Competition) -> None:
    assert read_row({"image_id": cell, "patient_id": None}, 1, Batch(()), strip_ai, []) is None


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder in which a gateway mounts the slides of a batch."""
    monkeypatch.setattr("clotkit.serving.locating.SHARED", tmp_path)
    for name in ("slides/a.tif", "thumbs/a.tif", "masks/a.png", "test/b.tif", "thumbs/b.tif", "one/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"II*\0")
    for name in ("empty/a.tif", "test/d.tif", "test/e.tif"):  # unmounted
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("image", "paths", "others", "expected"),
    [
        ("a", ["empty/a.tif", "slides/a.tif"], ["masks/a.png"], "slides/a.tif"),  # the first with something in it
        ("a", ["none/a.svs"], ["masks/a.png"], "masks/a.png"),
        ("a", ["none/a.svs"], ["masks/a.png", "thumbs/a.tif"], None),
        ("a", ["none/a.tif"], [], None),  # slides/a.tif or thumbs/a.tif
        ("b", ["elsewhere/test/b.tif"], [], "test/b.tif"),  # that ends more like it than thumbs/b.tif
        ("c", ["none/c.tif"], [], "one/c.tif"),
        ("z", ["z/c.tif"], [], "z/c.tif"),  # one/c.tif may be another slide
        ("d", ["test/d.tif", "none/d.tif"], [], "test/d.tif"),  # not there
    ],
)
def test_a_slide_is_a_file_that_no_other_can_be(
    image: str, paths: list[str], others: list[str], expected: str | None, shared: Path
) -> None:
    def below(names: list[str]) -> list[str]:
        return [str(shared / name) for name in names]

    request = {"image": image, "patient": "p", "facts": {}, "paths": below(paths), "other_paths": below(others)}
    located, ambiguous = locate([request], LONG_S, lambda _: None)
    assert [row.path for row in located] == ([] if expected is None else [shared / expected])
    assert len(ambiguous) == (expected is None)


def test_a_mask_in_the_row_is_not_the_slide(shared: Path, strip_ai: Competition) -> None:
    (shared / "test" / "006388_0.tif").write_bytes(b"II*\0")
    (shared / "masks" / "006388_0.tif").write_bytes(b"II*\0")
    cells = {"image_id": "006388_0", "mask_path": str(shared / "masks" / "006388_0.tif")}
    one = read_row(cells, 1, Batch([cells]), strip_ai, [shared])
    assert one is not None
    request = {"image": one.image_id, "patient": "p", "facts": {}}
    located, _ = locate([request | {"paths": one.paths, "other_paths": one.other_paths}], LONG_S, lambda _: None)
    assert [row.path for row in located] == [shared / "test" / "006388_0.tif"]


CELLS = st.one_of(
    st.none(), st.text(max_size=6), st.integers(-5, 10**7), st.floats(), st.booleans(), st.just("../../etc/passwd")
)


@given(st.lists(st.fixed_dictionaries({}, optional={"image_id": CELLS, "patient_id": CELLS, "x": CELLS}), max_size=5))
def test_any_row_is_read_or_refused(rows: list[dict[str, Any]]) -> None:
    for competition in (load_competition("strip_ai"), load_competition("ubc_ocean")):
        for number, cells in enumerate(rows, start=1):
            one = read_row(cells, number, Batch(rows), competition, [Path("/root")])
            if one is not None:
                assert one.row_id
                assert not any(".." in Path(path).parts for path in one.paths if path.startswith("/root"))


# --- The competition's server


def test_the_competitions_server_is_found_and_plays_its_gateway(
    test_split: Path, tmp_path: Path, strip_ai: Competition, fresh_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "test.csv").symlink_to(test_split / "test.csv")
    write_package(tmp_path / "data", "test.csv", strip_ai)
    seen = []

    def predict(frame: pd.DataFrame) -> pd.DataFrame:
        seen.append(len(frame))
        return pd.DataFrame({"CE": [0.5] * len(frame), "LAA": [0.5] * len(frame)})

    server = make_server(tmp_path / "data", strip_ai, predict)
    run_local_gateway(server, tmp_path / "data", strip_ai)
    assert sum(seen) == 4
    assert len(submission_of(tmp_path / "submission.csv")) == table_of(test_split)["patient_id"].nunique()


@pytest.fixture
def fresh_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test imports of kaggle_evaluation."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "kaggle_evaluation"]:
        del sys.modules[name]


@pytest.mark.parametrize("serving", [
    Serving(module="kaggle_evaluation.b_inference_server"), Serving(module="b_inference_server.py", server="Two"),
])  # fmt: skip
def test_the_competition_may_name_its_server(
    serving: Serving, tmp_path: Path, strip_ai: Competition, fresh_modules: None
) -> None:
    competition = replace(strip_ai, serving=serving)
    write_package(tmp_path, "test.csv", by(strip_ai, module="b_inference_server", server="Two"))
    (tmp_path / "kaggle_evaluation" / "a_inference_server.py").write_text("raise SystemExit")
    assert type(make_server(tmp_path, competition, lambda frame: frame)).__name__ == "Two"


@pytest.mark.parametrize("serving", [Serving(), Serving(module="b_inference_server", server="Three")])
def test_a_server_that_is_not_one_is_refused(
    serving: Serving, tmp_path: Path, strip_ai: Competition, fresh_modules: None
) -> None:
    for name in ("a", "b"):
        write_package(tmp_path / name, "test.csv", by(strip_ai, module=f"{name}_inference_server"))
    server = "kaggle_evaluation/b_inference_server.py"
    (tmp_path / "a" / server).write_text((tmp_path / "b" / server).read_text())
    with pytest.raises(ConfigError):
        make_server(tmp_path / "a", replace(strip_ai, serving=serving), lambda frame: frame)


def test_newer_gateways_get_the_folder_of_the_data(strip_ai: Competition, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Newer:
        def run_local_gateway(self, competition_data_folder: Path | None = None) -> None:
            seen.append(competition_data_folder)

    class Older:
        def run_local_gateway(self, data_paths: Sequence[str] | None = None) -> None:
            seen.append(data_paths)

    for server, competition in ((Newer(), strip_ai), (Older(), strip_ai), (Older(), by(strip_ai, data_paths=("a",)))):
        run_local_gateway(server, tmp_path, competition)
    assert seen == [tmp_path, None, (str(tmp_path / "a"),)]


def test_wrong_keys_are_refused(other_toml: Path, tmp_path: Path) -> None:
    for line in ("deadline_s = 0", "startup_s = -1", "first_deadline_s = -1", 'rows = "some"', "surprise = 1"):
        (tmp_path / "wrong.toml").write_text(f"{other_toml.read_text()}\n[serving]\n{line}\n")
        with pytest.raises(ConfigError):
            load_competition(str(tmp_path / "wrong.toml"))


# --- Answers of real members


@pytest.fixture(scope="module")
def in_files(test_split: Path, member: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Score the split with `clotkit run`, and return the run's folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["run", str(test_split), "--weights", str(member), "--out", str(out)]) == 0
    return out


def test_batches_give_what_files_give(
    test_split: Path, member: Path, in_files: Path, folder: Path, strip_ai: Competition
) -> None:
    """Earlier slides of a patient count, a broken slide falls back, rows without an id get the fallback."""
    expected = submission_of(in_files / "submission.csv")
    table = table_of(test_split).sample(frac=1, random_state=3)
    lines = {line.image_id: line for line in read_report(in_files / "report.jsonl")}
    with predictor_of(members(member), by(strip_ai, deadline_s=LONG_S), test_split, folder) as (predictor, _, status):
        answers = {}
        for number in range(len(table)):
            row = table.iloc[[number]]
            library = pl.DataFrame(row.to_dict("list")) if number % 2 else row
            answer = predictor.predict(library)
            answers[row["patient_id"].iloc[0]] = [
                answer[name][0 if number % 2 else answer.index[0]] for name in answer.columns
            ]
        for one, values in expected.items():
            assert answers[one] == pytest.approx(values, abs=1e-6)
        odd = pd.DataFrame({"image_id": [None, "999999_0", table["image_id"].iloc[0], table["image_id"].iloc[0]]})
        answer = predictor.predict(odd)
        fallback = list(strip_ai.classes.fallback)
        assert [answer.iloc[place].to_list() for place in (0, 1)] == [pytest.approx(fallback, abs=1e-6)] * 2
        assert answer.iloc[2].to_list() == answer.iloc[3].to_list() == answers[table["patient_id"].iloc[0]]
        assert len(predictor.predict(table.iloc[:0])) == 0
        image_id, patient_id = table.iloc[0][["image_id", "patient_id"]]
        (folder.parent / image_id).mkdir()
        (folder.parent / image_id / "slide.tif").symlink_to(test_split / "test" / f"{image_id}.tif")
        answer = predictor.predict(str(folder.parent / image_id))  # a folder with the slide
        assert (answer.iloc[0].to_list(), status.slides["done"]) == (answers[patient_id], len(table))
    report = {line.image_id: line for line in read_report(folder / "report.jsonl")}
    for image_id, line in lines.items():
        assert report[image_id].p == {name: pytest.approx(p, abs=1e-6) for name, p in line.p.items()}
    assert report["999999_0"].codes == [Reason.DAMAGED]
    assert report["(batch 5, row 1)"].codes == [Reason.BAD_ROW]
    assert {Reason.BAD_ROW, Reason.DAMAGED} <= set(status.codes)
    written = read_status(folder)
    assert written is not None
    assert (written.state, written.batches) == (State.PARTIAL, {"answered": 7, "late": 0})


def test_a_server_that_starts_again_in_its_folder_goes_on(
    test_split: Path, folder: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    table, command = table_of(test_split), fake(tmp_path / "starts", "done")
    for rows in (table.iloc[:2], table.iloc[2:]):
        with predictor_of(command, by(strip_ai, deadline_s=LONG_S), test_split, folder) as (predictor, _, status):
            predictor.predict(rows)
    assert status.slides == {"done": 4, "partial": 0, "fallback": 0}
    assert len(read_report(folder / "report.jsonl")) == 4


def test_a_server_that_starts_again_knows_the_cells_of_earlier_rows(
    test_split: Path, folder: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    """A blend with columns of the table weighs a patient's earlier slides by them."""
    table, command = table_of(test_split), fake(tmp_path / "starts", "done")
    (patient,) = table["patient_id"][table["image_id"].str.endswith("_1")].unique()[:1]
    rows = table[table["patient_id"] == patient]
    for number in range(2):
        with predictor_of(command, by(strip_ai, deadline_s=LONG_S), test_split, folder) as (predictor, _, _status):
            predictor.predict(rows.iloc[[number]])
    line = next(one for one in read_report(folder / "report.jsonl") if one.image_id == rows["image_id"].iloc[1])
    (earlier,) = line.facts["earlier"]
    assert earlier["image"] == rows["image_id"].iloc[0]
    assert earlier["facts"]["center_id"] == str(rows["center_id"].iloc[0])


def test_the_first_batch_of_a_server_that_goes_on_has_no_longer_deadline(
    test_split: Path, folder: Path, strip_ai: Competition
) -> None:
    class Asked:
        """Members that note how long they have."""

        reason, why_left, left_s = None, Reason.DEADLINE, list[float]()

        def score(self, _slides: Any, until: float) -> Iterator[Any]:
            self.left_s.append(until - time.monotonic())
            return iter(())

        def close(self) -> None:
            pass

    competition, backend = by(strip_ai, deadline_s=10, first_deadline_s=900), Asked()
    for _ in range(2):
        made = Predictor(competition, cast("Backend", backend), test_split, Status("serve"), time.monotonic())
        for number in range(2):
            made.predict(table_of(test_split).iloc[[number]])
        made.close()
    assert [left_s > 10 for left_s in backend.left_s] == [True, False, False, False]


def test_an_answer_by_id_has_a_row_for_each_id(
    test_split: Path, folder: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    competition = by(strip_ai, deadline_s=LONG_S, rows=BatchRows.ID, answer=AnswerForm.ROWS)
    table = table_of(test_split)
    with predictor_of(fake(tmp_path / "starts", "done"), competition, test_split, folder) as (predictor, _, _status):
        answer = predictor.predict(pd.concat([table, table.iloc[:1], pd.DataFrame([dict.fromkeys(table.columns)])]))
        assert answer["patient_id"].to_list() == list(dict.fromkeys(table["patient_id"]))
        assert len(predictor.predict(pd.DataFrame([dict.fromkeys(table.columns)]))) == 1


def test_a_row_without_an_image_keeps_the_row_of_its_id(
    test_split: Path, folder: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    competition = by(strip_ai, deadline_s=LONG_S, rows=BatchRows.ID, answer=AnswerForm.ROWS)
    rows = pd.DataFrame({"patient_id": ["p", "q", "q"], "image_id": [None, None, "q_0"]})
    with predictor_of(fake(tmp_path / "starts", "done"), competition, test_split, folder) as (predictor, _, status):
        answer = predictor.predict(rows)
    assert answer["patient_id"].to_list() == ["p", "q"]
    assert answer["CE"].to_list() == [pytest.approx(strip_ai.classes.fallback[0], abs=1e-6), 0.25]
    assert status.codes == [Reason.BAD_ROW]


class Unprintable:
    """A cell that has no text."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize("form", AnswerForm)
@pytest.mark.parametrize("cell", [True, math.inf, 1.5, Unprintable(), (1, 2), {"a": 1}])
def test_whatever_an_id_is_the_batch_has_its_rows(
    cell: Any, form: AnswerForm, test_split: Path, folder: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    rows = [{"image_id": cell, "patient_id": cell}, {"image_id": "006388_0", "patient_id": "006388"}]
    with predictor_of(
        fake(tmp_path / "starts", "done"), by(strip_ai, deadline_s=LONG_S, answer=form), test_split, folder
    ) as (predictor, _, _status):
        answer = predictor.predict(pd.DataFrame(rows, dtype=object))
    assert len(answer) == 2
    assert answer["CE"].to_list()[1] == 0.25 or isinstance(cell, Unprintable)


@pytest.mark.parametrize(
    "name", ["panda", *(pytest.param(one, marks=pytest.mark.slow) for one in ("ubc_ocean", "visiomel"))]
)
def test_other_forms_of_answers_are_served(
    name: str, make_split: Callable[..., Path], make_member: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    competition = by(load_competition(name), deadline_s=LONG_S)
    split = make_split(tmp_path / "split", competition, slides=2)
    weights = make_member(tmp_path / "weights" / "tiny", competition.classes.names)
    run = ["run", str(split), "--weights", str(weights), "--out", str(tmp_path / "run"), "--competition", name]
    assert main(run) == 0
    expected = pd.read_csv(tmp_path / "run" / competition.files.submission)
    slides = read_slides(split, "test", competition, lambda _: None)
    frame = pd.DataFrame([dict(slide.facts) for slide in slides])
    with predictor_of(members(weights, "--competition", name), competition, split, folder) as (predictor, _, _status):
        answer = predictor.predict(frame)
    assert list(answer.columns) == list(competition.submission.columns)
    ids = expected[competition.submission.id].astype(str).to_list()
    cells = frame[competition.columns.image].to_list()
    order = [cells.index(one) for one in ids]
    for column in competition.submission.columns:
        values = [answer[column].to_list()[place] for place in order]
        wanted = expected[column].to_list()
        assert values == (wanted if competition.submission.form == "label" else pytest.approx(wanted, abs=1e-6))


# --- Deadlines, and members that die


def whole_answer(predictor: Predictor, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the answer of a batch, which must have all its rows.

    Members that hang would keep a server without a deadline forever.
    """
    answer: pd.DataFrame = predictor.predict(rows)
    assert len(answer) == len(rows)
    assert not answer.isna().any().any()
    return answer


@pytest.mark.parametrize(
    ("how", "starts", "codes", "late"),
    [
        (["done"], 1, [], 0),
        (["die", "done"], 2, [], 0),  # the slides are given again
        (["unready", "done"], 2, [], 0),
        (["die", "die", "done"], 3, [Reason.LOST], 1),
        (["refuse"], 1, [Reason.BAD_REQUEST], 1),
        (["hang", "loading"], 2, [Reason.DEADLINE], 1),
        (["loading"], 1, [Reason.NOT_READY], 1),
        (["unready"], 3, [Reason.FAILED], 1),
    ],
)
def test_whatever_members_do_a_batch_is_answered_in_time(
    how: list[str], starts: int, codes: list[Reason], late: int, test_split: Path, folder: Path, tmp_path: Path,
    strip_ai: Competition,
) -> None:  # fmt: skip
    competition = by(strip_ai, deadline_s=SHORT_S)
    with predictor_of(fake(tmp_path / "starts", *how), competition, test_split, folder) as (predictor, backend, status):
        answer = whole_answer(predictor, table_of(test_split))
        assert (status.codes, status.batches["late"], backend.starts) == (codes, late, starts)
    expected = list(strip_ai.classes.fallback) if late else [0.25, 0.75]
    assert answer.iloc[0].to_list() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("how", "scored"), [("deaf", 0), ("done", 1)])
def test_a_request_of_any_length_has_the_batchs_deadline(how: str, scored: int, tmp_path: Path) -> None:
    """A pipe holds 64 KiB: a process that does not read them must not stop the server."""
    one = {"patient": "p", "row": "p", "facts": {"x": "y" * 2000}, "paths": []}
    slides = [one | {"image": f"p_{number}"} for number in range(400)]
    backend = Backend(lambda: fake(tmp_path / "starts", how), tmp_path)
    try:
        assert backend.is_ready(time.monotonic() + LONG_S)
        until = time.monotonic() + (LONG_S if scored else SHORT_S)
        assert len(list(backend.score(slides, until))) == scored * len(slides)
        assert backend.starts == 2 - scored
    finally:
        backend.close()


@pytest.mark.parametrize(("command", "code"), [(None, Reason.NO_MEMBER), (["/nowhere/python"], Reason.NOT_STARTED)])
def test_without_members_every_answer_is_the_fallback_at_once(
    command: list[str] | None, code: Reason, test_split: Path, folder: Path, strip_ai: Competition
) -> None:
    with predictor_of(command, by(strip_ai, deadline_s=3600), test_split, folder) as (predictor, _, status):
        whole_answer(predictor, table_of(test_split))
    assert (predictor.state, status.codes) == (State.FALLBACK, [code])


def test_after_the_runs_deadline_answers_come_at_once(test_split: Path, folder: Path, strip_ai: Competition) -> None:
    competition = replace(strip_ai, limits=replace(strip_ai.limits, deadline_s=0.01))
    competition = by(competition, deadline_s=3600)
    with predictor_of(["sleep", "3600"], competition, test_split, folder) as (predictor, _, status):
        whole_answer(predictor, table_of(test_split))
    assert status.codes == [Reason.DEADLINE]


@pytest.mark.slow_faults
def test_a_slide_whose_disk_does_not_answer_costs_its_own_row(
    test_split: Path, split: Path, member: Path, folder: Path, strip_ai: Competition
) -> None:
    """Its process is given up by the deadline; the other slides and the next batch are scored."""
    table = table_of(split)
    stuck = split / "test" / f"{table['image_id'].iloc[0]}.tif"
    competition = by(strip_ai, deadline_s=12, first_deadline_s=LONG_S)
    with predictor_of(members(member), competition, split, folder) as (predictor, _, status):
        predictor.predict(table.iloc[1:2])
        with stuck_file(stuck):
            whole_answer(predictor, table.iloc[:3])
        assert status.batches["late"] == 0
        whole_answer(predictor, table.iloc[3:])
    lines = {line.image_id: line for line in read_report(folder / "report.jsonl")}
    assert lines[table["image_id"].iloc[0]].state == "fallback"
    assert [lines[one].state for one in table["image_id"].iloc[1:]] == ["done"] * 3


@pytest.mark.slow_faults
def test_members_that_are_stopped_are_killed_and_loaded_again(
    test_split: Path, member: Path, folder: Path, strip_ai: Competition
) -> None:
    table = table_of(test_split)
    with predictor_of(members(member), by(strip_ai, deadline_s=6, first_deadline_s=LONG_S), test_split, folder) as made:
        predictor, backend, status = made
        predictor.predict(table.iloc[:1])
        (process,) = running_members(backend)
        process.send_signal(signal.SIGSTOP)
        whole_answer(predictor, table.iloc[1:])
        assert not process.is_running()
        assert (backend.starts, status.codes) == (2, [Reason.DEADLINE])
        assert backend.is_ready(time.monotonic() + LONG_S)
        whole_answer(predictor, table.iloc[1:])
        assert status.slides["done"] == len(table)


def test_members_that_send_nonsense_cost_no_answer(
    test_split: Path, folder: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    command = fake(tmp_path / "starts", "nonsense", "nonsense", "done")
    table = table_of(test_split)
    with predictor_of(command, by(strip_ai, deadline_s=LONG_S), test_split, folder) as (predictor, backend, status):
        second = table[table["image_id"].str.endswith("_1")]
        whole_answer(predictor, second)  # a message that is none of ours
        assert status.codes == [Reason.FAILED]
        whole_answer(predictor, table)  # a line that is no message: the slides are given again
        assert (backend.starts, status.slides["done"]) == (3, len(table))


# --- The verb, and the fallback of a commit


KEYS = ["left_s", "slides", "image", "patient", "row", "facts", "paths", "other_paths", "earlier", "p"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=9),
    max_leaves=12,
)


@given(JSON)
def test_any_line_is_a_request_or_refused(value: Any) -> None:
    slide = {"image": "a", "patient": "p", "row": "p", "facts": {}, "paths": []}
    for whole in (value, {"left_s": 1, "slides": [value]}, {"left_s": 1, "slides": [slide | {"earlier": value}]}):
        with suppress(ValueError):
            assert float(read_request(json.dumps(whole).encode(), 2)["left_s"]) < math.inf


@pytest.mark.parametrize("p", [[], [0.5], [0.25, 0.5, 0.25], [0.5, None], 0.5])
def test_an_earlier_slide_has_a_number_for_each_class(p: Any) -> None:
    slide = {"image": "a", "patient": "p", "row": "p", "facts": {}, "paths": []}
    earlier = [{"image": "b", "facts": {}, "p": {"m": p}}]
    with pytest.raises(ValueError):  # noqa: PT011 - that alone is promised
        read_request(json.dumps({"left_s": 1, "slides": [slide | {"earlier": earlier}]}).encode(), 2)


def test_a_request_that_cannot_be_answered_does_not_end_the_server(strip_ai: Competition) -> None:
    class Failing:
        competition, members = strip_ai, ()

        def replies(self, request: Any) -> Iterator[Any]:
            yield {"line": request["left_s"]}
            if request["left_s"] == 1:
                raise ZeroDivisionError
            yield {"end": True}

    replies = list[Any]()
    lines = [json.dumps({"left_s": left_s, "slides": []}).encode() for left_s in (1, 2, 0, -3)]
    assert serve(cast("BatchScorer", Failing()), lines, replies.append, 0.1) == (1, 3)
    codes = [one["error"]["code"] for one in replies if "error" in one]
    assert codes == [Reason.FAILED, Reason.BAD_REQUEST, Reason.BAD_REQUEST]
    assert [one["line"] for one in replies if "line" in one] == [1, 2]
    assert sum("end" in one for one in replies) == 4


@pytest.mark.parametrize("line", [b"", b"\n", b"[" * 10**6, b"\xff\n", b"null\n", b'{"left_s": NaN, "slides": []}\n'])
def test_a_line_that_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that alone is promised
        read_request(line, 2)


def test_the_verb_answers_requests_of_its_input(test_split: Path, member: Path) -> None:
    import subprocess

    slide = read_slides(test_split, "test", load_competition("strip_ai"), lambda _: None)[0]
    request = {"left_s": 60, "slides": [
        {"image": slide.image_id, "patient": slide.patient_id, "row": slide.patient_id, "facts": {},
         "paths": ["/nowhere/x.tif", str(slide.path)]}
    ]}  # fmt: skip
    lines = b"not json\n\xff\n" + json.dumps(request).encode() + b"\n{}\n"
    ended = subprocess.run(members(member), input=lines, capture_output=True, check=True, timeout=LONG_S)
    ready, first, second, scored, end, last = map(json.loads, ended.stdout.splitlines())
    assert ready["members"] == ["tiny"]
    assert [one["error"]["code"] for one in (first, second, last)] == [Reason.BAD_REQUEST] * 3
    assert (scored["line"]["state"], list(scored["answers"])) == ("done", [slide.patient_id])
    assert end == {"end": True}


def test_a_run_writes_csv_whatever_the_gateway_writes(
    test_split: Path, member: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    toml = tmp_path / "strip_ai.toml"
    toml.write_text(strip_ai.source.read_text().replace('"submission.csv"', '"submission.parquet"'))
    competition, out = load_competition(str(toml)), tmp_path / "out"
    assert competition.files.submission == "submission.parquet"
    run = ["run", str(test_split), "--weights", str(member), "--out", str(out), "--competition", str(toml)]
    assert main(run) == 0
    assert [path.name for path in out.glob("submission.*")] == ["submission.csv"]
    assert check_submission(out / "submission.csv", competition.sample_path(test_split), competition).valid
    assert build_bundle(ROOT / "kernels" / "serve", str(toml))
    with pytest.raises(ConfigError):  # Kaggle would find no file of that name
        build_bundle(ROOT / "kernels" / "infer", str(toml))


@pytest.mark.parametrize("name", ["submission.csv", "submission.parquet"])
def test_a_commit_whose_gateway_fails_leaves_the_fallback(
    name: str, test_split: Path, tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clotkit.serving.fallback.WORKING", tmp_path)
    competition = replace(strip_ai, files=replace(strip_ai.files, submission=name))
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # polars writes Parquet alone
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "polars", None)
        write_fallback(test_split, competition)
        assert [path.name for path in tmp_path.iterdir()] == [name] * name.endswith("csv")
    write_fallback(test_split, competition)
    path = tmp_path / name
    frame = (
        pd.DataFrame(pl.read_parquet(path).to_dict(as_series=False))
        if name.endswith("parquet")
        else pd.read_csv(path, dtype=str)
    )
    assert list(frame.columns) == list(strip_ai.header)
    assert (
        frame["patient_id"].to_list()
        == pd.read_csv(test_split / "sample_submission.csv", dtype=str)["patient_id"].to_list()
    )
