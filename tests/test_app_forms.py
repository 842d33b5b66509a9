"""Test the application on competitions of other forms: labels, one probability, rows that are slides."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clotkit.app import submissions
from clotkit.app.prediction import load
from clotkit.app.roots import Roots
from clotkit.app.samples import samples_for
from clotkit.app.uploads import Upload, classify
from clotkit.app.viewer import list_folders, open_folder, score_live, shown_by, slide_path
from clotkit.competitions import Competition, Rule, load_competition
from clotkit.evaluation.loaded_member import LoadedMember
from clotkit.members.decision import Decision
from clotkit.report.records import REPORT, RUN, ReportFile, SlideReport
from clotkit.report.shown import Kind
from clotkit.synthetic.phantom import write_split

UBC, CAMELYON = load_competition("ubc_ocean"), load_competition("camelyon16")


@pytest.fixture(scope="module")
def member(make_member: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> LoadedMember:
    """Make an untrained member of five classes that calls every slide an outlier."""
    folder, names = tmp_path_factory.mktemp("weights") / "five", UBC.classes.names
    make_member(folder, names)
    more = {"class_weights": [0.2] * 5, "positive": names[-1], "clip": 1e-15, "unit": "image", "networks_of_folds": 1}
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | more))
    return replace(load(folder), decision=Decision(Rule.OUTLIER, 5, (1.0,)))


def small_split(out: Path, competition: Competition) -> Path:
    write_split(out, "test", 2, 3, competition, size="640x640", log=lambda _: None)
    return out


def test_labels_are_checked_counted_and_compared() -> None:
    first, second = b"image_id,label\n4,CC\n17,Other\n9,CC\n", b"image_id,label\n4,CC\n17,EC\n9,CC\n"
    checked, other = submissions.check(first, None, second, UBC)
    assert checked.valid
    assert submissions.label_counts(checked, UBC) == {"CC": 2, "EC": 0, "HGSC": 0, "LGSC": 0, "MC": 0, "Other": 1}
    assert other is not None
    found = submissions.difference(checked, other, UBC)
    assert (found.patients, found.only_one) == (3, 0)
    assert found.mean == pytest.approx(1 / 3)
    assert found.worst == [{"image": "17", "label": "Other", "label, other file": "EC"}]


def test_one_probability_a_slide_is_checked_and_numbers_that_only_rank_are_counted() -> None:
    data = b"image,p\na.tif,0.25\nb.tif,-3\nc.tif,7.5\n"
    checked, _ = submissions.check(data, data, None, CAMELYON)
    assert checked.valid
    bins = submissions.histogram(checked, 1)
    assert sum(count for _, count in bins) == 3
    assert float(bins[0][0]) == -3


def test_a_drawn_slide_is_called_an_outlier(member: LoadedMember) -> None:
    samples = samples_for("five", "slides", UBC)
    assert len(samples) == 2
    (name, data), *_ = samples.items()
    assert data.startswith(b"\x89PNG")
    (answer,) = classify(member, [Upload(name, data)], UBC)
    assert answer.refused is None
    assert (answer.label, len(answer.probabilities)) == ("Other", 5)
    assert answer.heat is not None


def test_a_run_of_a_shipped_competition_opens(member: LoadedMember, tmp_path: Path, strip_ai: Competition) -> None:
    split, run_dir = small_split(tmp_path / "split", UBC), tmp_path / "run"
    run_dir.mkdir()
    roots = Roots.of([tmp_path])
    image_id = open_folder("split", roots, UBC).ids()[0]
    with ReportFile(run_dir / REPORT) as file:
        file.add(SlideReport(image_id, image_id, "done", "", 4, 1.0, 40.0))
    (run_dir / RUN).write_text(json.dumps({"competition": UBC.slug, "arguments": {"split": str(split)}}))
    opened = open_folder("run", roots, strip_ai)
    assert opened.competition == UBC
    path = slide_path(opened, image_id, roots)
    *_, last = score_live(member, path, opened.competition)
    assert last.label == "Other"
    assert last.picture is not None
    assert shown_by(member, UBC).kind is Kind.LIKELIEST
    assert shown_by(member, strip_ai).kind is Kind.LIKELIEST
    (run_dir / RUN).write_text(json.dumps({"competition": "none", "arguments": {"split": str(split)}}))
    opened = open_folder("run", roots, strip_ai)
    assert not opened.rows
    assert opened.unreadable is not None
    assert "--competition" in str(opened.unreadable)


def test_a_split_without_a_table_is_listed(tmp_path: Path) -> None:
    split = small_split(tmp_path / "split", CAMELYON)
    roots = Roots.of([tmp_path])
    assert list_folders(roots, CAMELYON) == [split]
    assert len(open_folder("split", roots, CAMELYON).rows) == 2
