"""Test a run from end to end: its files at every instant, each slide's line, each patient's row."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.errors import ConfigError, SplitError, UsageError
from clotkit.members.loading import load_member
from clotkit.reasons import Reason, TableRepair
from clotkit.report.records import ReportFile, SlideReport
from clotkit.scoring.inputs import Inputs
from clotkit.scoring.pipeline import run
from clotkit.scoring.run_folder import read_earlier
from clotkit.scoring.settings import RunSettings
from clotkit.splits import Sample, SlideRow, read_slides
from clotkit.stores import Entry, RemoteFolder, StoredFile
from clotkit.submission.checking import check_submission

from .faults import misbehaving
from .stuck import GETATTR, OPEN, stuck_file


def settings_of(split: Path, weights: Path, out: Path, **changed: Any) -> RunSettings:
    return replace(RunSettings(split, weights, out, deadline_s=300.0, memory_mb=4096, jobs=2), **changed)


def report_of(out: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    return {line["image_id"]: line for line in lines}


def submission_of(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        return {row[0]: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}


def bare_split(out: Path, competition: Competition, images: list[str], extra_patients: tuple[str, ...] = ()) -> Path:
    """Make a split without slide files: the work decides by their names."""
    out.mkdir()
    patients = list(dict.fromkeys([image.rpartition("_")[0] for image in images]))
    rows = [f"{image},1,{image.rpartition('_')[0]},0" for image in images]
    (out / "test.csv").write_text("image_id,center_id,patient_id,image_num\n" + "\n".join(rows) + "\n")
    sample = [f"{patient},0.5,0.5" for patient in [*patients, *extra_patients]]
    (out / "sample_submission.csv").write_text(",".join(competition.header) + "\n" + "\n".join(sample) + "\n")
    return out


def test_sound_slides_are_done_and_two_runs_agree(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    lines: list[str] = []
    for name in ("one", "two"):
        counts = run(settings_of(test_split, member, tmp_path / name), strip_ai, lines.append)
        assert counts == {"done": 4, "partial": 0, "fallback": 0}
    one, two = (tmp_path / name / "submission.csv" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert check_submission(one, test_split / "sample_submission.csv", strip_ai).valid
    left = ["report.html", "report.jsonl", "run.json", "slides.jsonl", "submission.csv"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == left
    assert "4 slides: 4 done, 0 partial, 0 fallback" in lines[-1]
    for line in report_of(tmp_path / "one").values():
        assert line["state"] == "done"
        assert 0 < line["peak_mb"] < 300
        assert sum(line["p"]["tiny"]) == pytest.approx(1, abs=1e-5)
    facts = json.loads((tmp_path / "one" / "run.json").read_text())
    assert facts["slides"] == counts
    assert facts["packages"]["keras"].startswith("3.")


def test_probabilities_are_the_members_own(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    """Compare the report with a plain computation: read the tiles, predict, average, calibrate."""
    from clotkit.tiling.tilers import Batch, tile_slide

    run(settings_of(test_split, member, tmp_path), strip_ai, lambda _: None)
    loaded = load_member(member, strip_ai.classes.names)
    means: dict[str, list[np.ndarray]] = {}
    for image_id, line in report_of(tmp_path).items():
        pieces = tile_slide(test_split / "test" / f"{image_id}.tif", loaded.recipe.tiling)
        tiles = np.concatenate([piece.tiles for piece in pieces if isinstance(piece, Batch)])
        mean = loaded.predict(tiles).mean(axis=0, dtype=np.float64)
        assert line["p"]["tiny"] == pytest.approx(mean, abs=1e-5)
        means.setdefault(line["patient_id"], []).append(mean)
    for patient, row in submission_of(tmp_path / "submission.csv").items():
        assert row == pytest.approx(loaded.calibration.apply(np.mean(means[patient], axis=0)), abs=2e-6)


def test_a_column_of_the_table_chooses_the_downsample_of_a_member(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    weights, column = Path(shutil.copytree(member, tmp_path / "tiny")), strip_ai.columns.number
    recipe = (weights / "recipe.toml").read_text()
    rules = f'downsample_if = ["{column} = 0: 4", "is_tma = true: 2"]'
    (weights / "recipe.toml").write_text(recipe.replace("[tiling]", f"[tiling]\n{rules}"))
    run(settings_of(test_split, weights, tmp_path / "out"), strip_ai, lambda _: None)
    rows = {slide.image_id: slide for slide in read_slides(test_split, "test", strip_ai)}
    lines = [json.loads(line) for line in (tmp_path / "out" / "slides.jsonl").read_text().splitlines()]
    sizes = {line["image_id"]: tiles["size_px"] for line in lines for tiles in line["tiles"]}
    assert sizes == {name: [128, 128] if row.facts[column] == "0" else [256, 256] for name, row in rows.items()}
    for line in report_of(tmp_path / "out").values():
        assert (line["state"], line["facts"]["repairs"]) == ("done", [TableRepair.NO_FACT])  # no is_tma there
    assert json.loads((tmp_path / "out" / "run.json").read_text())["repairs"] == {TableRepair.NO_FACT: len(rows)}


def test_each_fault_costs_its_slide_and_is_named(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    images = ["good_0", "kill_0", "latesegv_0", "refuse_0", "mixed_0", "raise_0"]
    split = bare_split(tmp_path / "split", strip_ai, images, extra_patients=("ffffff",))
    counts = run(settings_of(split, member, tmp_path / "out"), strip_ai, lambda _: None, work=misbehaving.work)
    assert counts == {"done": 2, "partial": 1, "fallback": 3, "unscored": 4}
    report = report_of(tmp_path / "out")
    codes = {image_id: line["codes"] for image_id, line in report.items()}
    assert codes["kill_0"] == codes["latesegv_0"] == [Reason.CRASHED]
    assert "SIGKILL" in report["kill_0"]["reason"]
    assert codes["raise_0"] == [Reason.FAILED]
    assert codes["good_0"] == codes["mixed_0"] == []
    assert report["latesegv_0"]["state"] == "partial"
    assert report["latesegv_0"]["tiles"] == 8
    assert codes["refuse_0"] == [Reason.DAMAGED]
    rows = submission_of(tmp_path / "out" / "submission.csv")
    assert rows["kill"] == rows["refuse"] == rows["raise"] == rows["ffffff"] == [0.5, 0.5]
    assert rows["good"] == rows["mixed"] == rows["latesegv"] != [0.5, 0.5]


def test_a_lost_slide_takes_its_patients_other_slides(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    split = bare_split(tmp_path / "split", strip_ai, ["good_0", "kill_0"])
    table = (split / "test.csv").read_text().replace("kill_0,1,kill", "kill_0,1,good")
    (split / "test.csv").write_text(table)
    run(settings_of(split, member, tmp_path / "both"), strip_ai, lambda _: None, work=misbehaving.work)
    rows = submission_of(tmp_path / "both" / "submission.csv")
    assert rows["good"] != [0.5, 0.5]
    assert rows["kill"] == [0.5, 0.5]  # of the sample, without a slide of its own now


def test_several_members_are_calibrated_then_averaged(
    test_split: Path, make_member: Callable[..., Path], tmp_path: Path, strip_ai: Competition
) -> None:
    from .conftest import RECIPE

    names = strip_ai.classes.names
    make_member(tmp_path / "weights" / "a", names, seed=1)
    make_member(tmp_path / "weights" / "b", names, seed=2, recipe=RECIPE.replace("downsample = 8", "downsample = 4"))
    rows = {}
    for name in ("a", "b", ""):
        run(settings_of(test_split, tmp_path / "weights" / name, tmp_path / f"out{name}"), strip_ai, lambda _: None)
        rows[name] = submission_of(tmp_path / f"out{name}" / "submission.csv")
    for patient, row in rows[""].items():
        assert row == pytest.approx(np.mean([rows["a"][patient], rows["b"][patient]], axis=0), abs=2e-6)


def test_another_competition_runs_without_a_change(
    make_split: Callable[..., Path], make_member: Callable[..., Path], tmp_path: Path, other_toml: Path,
    other: Competition, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    split = make_split(tmp_path / "split", other, slides=3)
    weights = make_member(tmp_path / "weights" / "tiny", other.classes.names)
    out = tmp_path / "out"
    code = main(["run", str(split), "--weights", str(weights), "--out", str(out), "--competition", str(other_toml)])
    assert code == 0, capsys.readouterr()
    assert (out / "answer.csv").read_text().startswith("person,blue,green,white\n")
    assert check_submission(out / "answer.csv", split / "blank.csv", other).valid


def test_a_deadline_that_has_passed_leaves_the_fallback(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    counts = run(settings_of(test_split, member, tmp_path, deadline_s=1e-3), strip_ai, lambda _: None)
    assert counts["fallback"] == 4
    assert {tuple(line["codes"]) for line in report_of(tmp_path).values()} == {(Reason.DEADLINE,)}
    assert set(map(tuple, submission_of(tmp_path / "submission.csv").values())) == {(0.5, 0.5)}


@pytest.mark.slow
def test_a_hard_kill_leaves_a_valid_submission(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    """Kill the run before the first slide is scored, and after it; no file is half-written either time."""
    images = ["good_0", "good_1", "hang_0", "hang_1"]
    split = bare_split(tmp_path / "split", strip_ai, images)
    for count, wanted in (("0", b"4 slides"), ("1", b"good_1 done")):
        out = tmp_path / count
        parent = subprocess.Popen(
            [sys.executable, "-u", "-c", KILLED, str(split), str(member), str(out)], stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert parent.stdout is not None
        with parent.stdout:
            assert any(wanted in line for line in parent.stdout)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        assert check_submission(out / "submission.csv", split / "sample_submission.csv", strip_ai).valid
        good = submission_of(out / "submission.csv")["good"]
        assert count == "0" or good != [0.5, 0.5]
        report = (out / "report.jsonl").read_text() if (out / "report.jsonl").exists() else ""
        assert [json.loads(line)["state"] for line in report.splitlines()] == ["done"] * report.count("\n")


KILLED = """
import sys
from pathlib import Path
from clotkit.competitions import load_competition
from clotkit.report.records import ReportFile, SlideReport
from clotkit.scoring.inputs import Inputs
from clotkit.scoring.pipeline import run
from clotkit.scoring.run_folder import read_earlier
from clotkit.scoring.settings import RunSettings
from tests.faults.misbehaving import work
split, weights, out = map(Path, sys.argv[1:])
run(RunSettings(split, weights, out, 600.0, 4096, 2), load_competition(), work=work)
"""


def test_wrong_input_is_one_line_before_anything_is_written(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cases = [
        (settings_of(tmp_path / "none", member, out), SplitError, r"none/test\.csv"),
        (settings_of(test_split, member, out, jobs=0), UsageError, "--jobs is 0"),
        (settings_of(test_split, member, out, memory_mb=10), UsageError, "--memory is 10 MB"),
        (settings_of(test_split, member, out, deadline_s=-1.0), UsageError, "--deadline"),
        (settings_of(test_split, tmp_path / "nothing", out), ConfigError, "nothing"),
    ]
    for settings, error, name in cases:
        with pytest.raises(error, match=name):
            run(settings, strip_ai, lambda _: None)
        assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        run(settings_of(test_split, member, tmp_path / "mine"), strip_ai, lambda _: None)
    assert main(["run", str(tmp_path / "none"), "--weights", str(member), "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("picture,patient_id\n", "no column image_id"),
        ("image_id,patient_id\n", "0 rows"),
        ("image_id,patient_id\n../a,a\n", "../a"),
        ("image_id\nsomething\n", "something"),
    ],
)
def test_a_wrong_table_is_named(
    table: str, words: str, test_split: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    shutil.copyfile(test_split / "sample_submission.csv", tmp_path / "sample_submission.csv")
    (tmp_path / "test.csv").write_text(table)
    with pytest.raises(SplitError, match=words):
        read_slides(tmp_path, "test", strip_ai)


def test_a_table_is_read_as_far_as_it_goes(test_split: Path, tmp_path: Path, strip_ai: Competition) -> None:
    """Read a table in which an id repeats and the column of patients is missing."""
    lines: list[str] = []
    (tmp_path / "test.csv").write_text("image_id,center_id\nabcdef_1,3\n001122_0,4\nabcdef_1,5\n")
    slides = read_slides(tmp_path, "test", strip_ai, lines.append)
    assert [(slide.image_id, slide.patient_id) for slide in slides] == [("abcdef_1", "abcdef"), ("001122_0", "001122")]
    assert ["patient_id" in lines[0], "abcdef_1" in lines[1]] == [True] * len(lines)


def test_a_damaged_member_is_one_line(
    test_split: Path, make_member: Callable[..., Path], tmp_path: Path, strip_ai: Competition, other: Competition
) -> None:
    weights = make_member(tmp_path / "weights" / "tiny", strip_ai.classes.names)
    with pytest.raises(ConfigError, match="blue, green, white"):
        load_member(weights, other.classes.names)
    (weights / "model.weights.h5").write_bytes(b"not HDF5")
    with pytest.raises(ConfigError, match=r"tiny/model\.weights\.h5"):
        load_member(weights, strip_ai.classes.names)
    (weights.parent / "MANIFEST.json").write_text(json.dumps({"tiny/model.weights.h5": {"sha256": "0" * 64}}))
    with pytest.raises(ConfigError, match="sha256"):
        load_member(weights, strip_ai.classes.names)
    (weights / "calibration.json").unlink()
    with pytest.raises(ConfigError, match=r"calibration\.json"):
        load_member(weights, strip_ai.classes.names)


def test_a_member_that_cannot_be_loaded_is_left_out_by_name(
    test_split: Path, make_member: Callable[..., Path], tmp_path: Path, strip_ai: Competition
) -> None:
    """The other members score without it; with none left every patient gets the fallback."""
    weights = tmp_path / "weights"
    good, bad = (make_member(weights / name, strip_ai.classes.names, seed=seed) for seed, name in enumerate("ab"))
    run(settings_of(test_split, good, tmp_path / "good"), strip_ai, lambda _: None)
    (bad / "model.weights.h5").write_bytes(b"not HDF5")
    lines: list[str] = []
    assert run(settings_of(test_split, weights, tmp_path / "out"), strip_ai, lines.append)["done"] == 4
    assert any(line.startswith("member b left out: ") for line in lines)
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["left_out_codes"] == {"b": Reason.BAD_WEIGHTS}
    assert list(facts["left_out"]) == ["b"]
    assert submission_of(tmp_path / "out" / "submission.csv") == submission_of(tmp_path / "good" / "submission.csv")
    shutil.rmtree(good)
    counts = run(settings_of(test_split, weights, tmp_path / "none"), strip_ai, lambda _: None)
    assert counts == {"done": 0, "partial": 0, "fallback": 4, "unscored": 2, "left_out": 1}
    assert check_submission(tmp_path / "none" / "submission.csv", test_split / "sample_submission.csv", strip_ai).valid


def test_a_member_that_overflows_is_left_out_by_name(
    test_split: Path, make_member: Callable[..., Path], tmp_path: Path, strip_ai: Competition
) -> None:
    from clotkit.config import load_recipe
    from clotkit.members.folder import WEIGHTS
    from clotkit.members.loading import build_member

    weights = tmp_path / "weights"
    good, bad = (make_member(weights / name, strip_ai.classes.names, seed=seed) for seed, name in enumerate("ab"))
    recipe = load_recipe(bad / "recipe.toml")
    _, model = build_member(recipe, 2)
    rng = np.random.default_rng(1)  # finite kernels so large that their products are not
    model.set_weights(
        [rng.uniform(0.5, 1, value.shape) * (9e11 if value.ndim > 1 else 1) for value in model.get_weights()]
    )
    model.save_weights(bad / WEIGHTS)
    assert run(settings_of(test_split, weights, tmp_path / "out"), strip_ai, lambda _: None)["partial"] == 4
    for line in report_of(tmp_path / "out").values():
        assert line["codes"] == [Reason.MEMBER_FAILED]
        assert "member b left out" in line["reason"]
    run(settings_of(test_split, good, tmp_path / "good"), strip_ai, lambda _: None)
    assert submission_of(tmp_path / "out" / "submission.csv") == submission_of(tmp_path / "good" / "submission.csv")


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    """Slides that are done are not read again, and the submission equals that of an uninterrupted run."""
    images = [f"good_{number}" for number in range(6)]
    split = bare_split(tmp_path / "split", strip_ai, images)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(settings_of(split, member, whole), strip_ai, lambda _: None, work=misbehaving.work)
    shutil.copytree(whole, out)
    lines = (whole / "report.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    assert first.pop("codes") == []
    lines[0] = json.dumps(first) + "\n"  # as an older kit wrote it, without codes
    (out / "report.jsonl").write_text("".join(lines[:3]) + lines[3][:40])  # the fourth line was cut by the kill
    facts = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({"state": "running", "key": facts["key"]}))
    said: list[str] = []
    counts = run(settings_of(split, member, out, resume=True), strip_ai, said.append, work=misbehaving.work)
    assert counts == {"done": 6, "partial": 0, "fallback": 0}
    assert (out / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
    assert sorted(report_of(out)) == images
    assert (out / "report.jsonl").read_text().split("\n")[1:3] == "".join(lines[1:3]).split("\n")[:2]
    assert any(line.startswith("resuming") and "3 slides" in line for line in said)
    assert len([line for line in said if line.startswith("[")]) == 3


def test_another_runs_report_is_not_gone_on_with(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    for name, images in (("one", ["good_0"]), ("two", ["good_0", "good_1"])):
        split = bare_split(tmp_path / name, strip_ai, images)
        settings = settings_of(split, member, tmp_path / "out", resume=True)
        counts = run(settings, strip_ai, lambda _: None, work=misbehaving.work)
        assert counts["done"] == len(images)


def test_a_lost_slide_is_read_again_coarser(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    """A slide killed once is partial, with both codes; one killed twice keeps the tiles that had come."""
    images = ["once_0", "latekill_0", "kill_0", "good_0"]
    split = bare_split(tmp_path / "split", strip_ai, images)
    run(settings_of(split, member, tmp_path / "out"), strip_ai, lambda _: None, work=misbehaving.work)
    report = report_of(tmp_path / "out")
    assert (report["once_0"]["state"], report["once_0"]["tiles"]) == ("partial", 8)
    assert report["once_0"]["codes"] == [Reason.CRASHED, Reason.COARSER]
    assert report["once_0"]["reason"].count("; ") == 1
    assert "SIGKILL" in report["once_0"]["reason"]
    assert (report["latekill_0"]["state"], report["latekill_0"]["tiles"]) == ("partial", 8)
    assert (report["kill_0"]["state"], report["kill_0"]["tiles"]) == ("fallback", 0)
    assert report["good_0"]["state"] == "done"


def test_a_resumed_run_reads_again_what_failed_or_changed(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    """One is repaired with the same size, one changes; a touched one and one that is gone stay."""
    split, out = tmp_path / "split", tmp_path / "out"
    shutil.copytree(test_split, split)
    repaired, changed, touched, gone = sorted((split / "test").iterdir())
    sound = repaired.read_bytes()
    repaired.write_bytes(sound[:2000] + bytes(len(sound) - 2000))
    assert run(settings_of(split, member, out), strip_ai, lambda _: None)["fallback"] == 1
    before = report_of(out)

    repaired.write_bytes(sound)
    status, data = changed.stat(), changed.read_bytes()
    changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(touched, (1, 1))
    gone.unlink()
    run(settings_of(split, member, out, resume=True), strip_ai, lambda _: None)
    after, facts = report_of(out), json.loads((out / "run.json").read_text())
    assert facts["resumed"] == {"kept": 2, "failed": 1, "changed": 1, "unchecked": 1}
    assert {path.stem for path in (touched, gone) if before[path.stem] == after[path.stem]} == {touched.stem, gone.stem}
    assert after[repaired.stem]["state"] == "done"
    assert after[changed.stem]["facts"]["file"] != before[changed.stem]["facts"]["file"]
    assert len((out / "report.jsonl").read_text().splitlines()) == 4


def test_a_resumed_run_trusts_no_line_without_the_state_of_its_file(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    run(settings_of(test_split, member, tmp_path), strip_ai, lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    states: list[Any] = [None, {}, "damaged"]
    for line, state in zip(lines, states, strict=False):
        line["facts"]["file"] = state
    (tmp_path / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(settings_of(test_split, member, tmp_path, resume=True), strip_ai, lambda _: None)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["resumed"] == {"kept": 1, "failed": 0, "changed": 3, "unchecked": 0}


def test_weights_that_changed_start_a_resumed_run_from_the_beginning(
    test_split: Path, make_member: Callable[..., Path], tmp_path: Path, strip_ai: Competition
) -> None:
    """Weights of the same size and a recipe of the same length are other weights."""
    weights = make_member(tmp_path / "weights" / "tiny", strip_ai.classes.names, seed=1)
    run(settings_of(test_split, weights, tmp_path / "out"), strip_ai, lambda _: None)
    shutil.rmtree(weights)
    make_member(weights, strip_ai.classes.names, seed=2)
    run(settings_of(test_split, weights, tmp_path / "out", resume=True), strip_ai, lambda _: None)
    run(settings_of(test_split, weights, tmp_path / "new"), strip_ai, lambda _: None)
    resumed, new = ((tmp_path / name / "submission.csv").read_bytes() for name in ("out", "new"))
    assert resumed == new
    assert json.loads((tmp_path / "out" / "run.json").read_text())["resumed"] is None


@pytest.mark.slow
def test_a_second_run_in_a_run_folder_is_refused(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    """It changes nothing; once the first one is killed, the folder is free."""
    split, out = bare_split(tmp_path / "split", strip_ai, ["good_0", "hang_0"]), tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-u", "-c", KILLED, str(split), str(member), str(out)], stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert first.stdout is not None
    with first.stdout:
        assert any(b"good_0 done" in line for line in first.stdout)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        for resume in (False, True):
            with pytest.raises(UsageError):
                run(settings_of(split, member, out, resume=resume), strip_ai, lambda _: None, work=misbehaving.work)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert main(["report", str(out)]) == 0  # a look at a run that goes on is allowed
        first.send_signal(signal.SIGKILL)
        first.wait()
    settings = settings_of(split, member, out, resume=True, deadline_s=5.0)
    assert run(settings, strip_ai, lambda _: None, work=misbehaving.work)["done"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("operation", [OPEN, pytest.param(GETATTR, marks=pytest.mark.slow_faults)])
def test_a_slide_that_does_not_answer_costs_itself(
    operation: int, test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    """The run ends, names the process that it leaves behind, and scores the other slides as ever."""
    split, out = tmp_path / "split", tmp_path / "out"
    shutil.copytree(test_split, split)
    run(settings_of(split, member, tmp_path / "sound"), strip_ai, lambda _: None)
    stuck = min((split / "test").iterdir())
    with stuck_file(stuck, operation):
        counts = run(settings_of(split, member, out, deadline_s=12.0), strip_ai, lambda _: None)
    line, facts = report_of(out)[stuck.stem], json.loads((out / "run.json").read_text())
    assert (counts["done"], counts["fallback"]) == (3, 1)
    assert line["codes"] == [Reason.TIMEOUT, Reason.LEFT_BEHIND]
    assert facts["left_behind"] == {stuck.stem: line["facts"]["left_pid"]}
    before, after = report_of(tmp_path / "sound"), report_of(out)
    assert {name: one["p"] for name, one in after.items() if one["p"]} == {
        name: one["p"] for name, one in before.items() if name != stuck.stem
    }
    run(settings_of(split, member, out, resume=True), strip_ai, lambda _: None)
    assert submission_of(out / "submission.csv") == submission_of(tmp_path / "sound" / "submission.csv")


def test_slides_of_an_object_store_are_compared_by_size_and_version(tmp_path: Path) -> None:
    """Nothing is downloaded: what an object's listing says is what counts."""
    entries = {"kept": Entry(5, "etag"), "larger": Entry(5, "etag"), "other": Entry(5, "etag"), "old": Entry(5, "etag")}
    now = entries | {"larger": Entry(6, "etag"), "other": Entry(5, "new etag")}
    lines = [
        SlideReport(name, "p", "done", reason="", tiles=1, seconds=1, peak_mb=1, facts={"file": asdict(entry)})
        for name, entry in entries.items()
    ]
    lines[-1].facts.clear()
    with ReportFile(tmp_path / "report.jsonl", lines):
        pass
    (tmp_path / "run.json").write_text(json.dumps({"key": "k"}))
    slides = [
        SlideRow(name, "p", Path(name), None, stored=StoredFile(RemoteFolder("s3://bucket"), name, entry))
        for name, entry in now.items()
    ]
    inputs = Inputs(slides, Sample([], [], ["p"], ["p"]), {}, None, [], None, "k")
    earlier = read_earlier(settings_of(tmp_path, tmp_path, tmp_path, resume=True), inputs, lambda _: None)
    assert [line.image_id for line in earlier.lines] == ["kept"]
    assert earlier.counts == {"kept": 1, "failed": 0, "changed": 3, "unchecked": 0}


def test_weights_of_another_competition_are_refused(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    """One member of another competition is left out by name; if all are, nothing is written."""
    foreign, weights = tmp_path / "foreign", tmp_path / "both"
    shutil.copytree(member, foreign)
    metrics = json.loads((foreign / "metrics.json").read_text())
    (foreign / "metrics.json").write_text(json.dumps(metrics | {"competition": "another"}))
    with pytest.raises(ConfigError, match="another"):
        run(settings_of(test_split, foreign, tmp_path / "out"), strip_ai)
    assert not (tmp_path / "out").exists()
    shutil.copytree(foreign, weights / "foreign")
    shutil.copytree(member, weights / "own")
    assert run(settings_of(test_split, weights, tmp_path / "out"), strip_ai)["left_out"] == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["left_out_codes"].keys() == {"foreign"}
