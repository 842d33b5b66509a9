"""The application without its server: uploads of every kind, roots, slides, submissions, trainings."""

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clotkit.app import submissions
from clotkit.app.escaping import LONGEST_NAME, printable
from clotkit.app.prediction import load
from clotkit.app.roots import Roots
from clotkit.app.samples import samples_for
from clotkit.app.training import card_of, training_of
from clotkit.app.untrusted import VIEW_PX
from clotkit.app.uploads import MOST_UPLOAD_MB, MOST_UPLOADS, NEAR, PICTURE_LIMITS, Answer, Doubt, Upload, classify
from clotkit.app.viewer import (
    list_folders,
    open_folder,
    paint_tiles,
    read_tissue,
    score_live,
    slide_path,
)
from clotkit.competitions import Competition
from clotkit.errors import ConfigError, SlideUnreadable, SplitError, SubmissionError, UsageError
from clotkit.evaluation.loaded_member import LoadedMember
from clotkit.evaluation.predict import predict
from clotkit.reasons import Reason
from clotkit.report.records import REPORT, RUN, ReportFile, SlideReport
from clotkit.submission.answers import Fault
from clotkit.units import MB

from .conftest import ROOT

WEIGHTS = ROOT / "weights"
MEMBERS = ("bloodmnist", "brain", "breastmnist", "demo", "double_contour")
PACKAGE = ROOT / "src" / "clotkit" / "app"


@pytest.fixture(scope="module")
def contour() -> LoadedMember:
    """Load the member of drawn pictures."""
    return load(WEIGHTS / "double_contour")


@pytest.fixture(scope="module")
def demo() -> LoadedMember:
    """Load the member of synthetic slides."""
    return load(WEIGHTS / "demo")


def png(width: int, height: int, kind: str = "PNG") -> bytes:
    """Return a sound picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """Return a PNG of at most a few hundred kB whose header says side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(side * 3 + 1) * 200)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", bytes(2**24))
    return file.getvalue()


HOSTILE = {  # name: (bytes, what the reason names)
    "empty.png": (b"", "0 bytes"),
    "archive.png": (zipped(), "zip archive"),
    "script.svg": (b"<svg onload=alert(1)></svg>", "HTML, SVG or XML"),
    "page.html.png": (b"  <script>alert(1)</script>", "HTML, SVG or XML"),
    "shell.sh": (b"#!/bin/sh\nrm -rf /\n", "a script"),
    "print.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    "words.png": (b"these are words", ""),
    "cut.png": (png(200, 200)[:5000], ""),
    "header.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "header"),
    "broken.jpg": (b"\xff\xd8\xff\xe0" + bytes(500), "header"),
    "broken.tif": (b"II*\0\x08\0\0\0\xff\xff" + bytes(64), ""),
    "bomb.png": (bomb(50_000), "25,000,000"),
    "dot.png": (png(3, 3), "at least 8"),
    "../../../etc/passwd": (b"root:x:0:0", ""),
}


def test_hostile_uploads_get_a_reason_each_and_the_others_their_answers(
    contour: LoadedMember, strip_ai: Competition
) -> None:
    sound = [Upload("one.png", png(192, 192)), Upload("two.jpg", png(300, 200, "JPEG"))]
    bad = [Upload(name, data) for name, (data, _) in HOSTILE.items()]
    steps: list[tuple[int, int]] = []
    uploads = [sound[0], *bad, sound[1]]
    answers = classify(contour, uploads, strip_ai, lambda done, total: steps.append((done, total)))
    assert [one.name for one in answers] == ["one.png", *HOSTILE, "two.jpg"]
    assert answers[0].refused is answers[-1].refused is None
    for one in answers[1:-1]:
        assert one.refused is not None, one.name
        assert one.refused.code == Reason.DAMAGED, one.name
        assert HOSTILE[one.name][1] in one.refused.sentence
        assert "\n" not in one.refused.sentence
        assert "clotkit-app" not in one.refused.sentence, "the temporary folder is not shown"
        assert one.picture is None
    assert steps[-1] == (len(answers), len(answers))


def test_files_that_do_not_start_in_time_are_refused(
    contour: LoadedMember, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clotkit.app.uploads.BATCH_S", 0.0)
    (answer,) = classify(contour, [Upload("one.png", png(192, 192))], strip_ai)
    assert answer.refused is not None
    assert answer.refused.code == Reason.DEADLINE


def test_twenty_uploads_one_of_them_a_bomb(contour: LoadedMember, strip_ai: Competition) -> None:
    uploads = [Upload(f"{number}.png", png(96 + number, 96)) for number in range(19)]
    uploads.insert(7, Upload("bomb.png", bomb(60_000)))
    answers = classify(contour, uploads, strip_ai)
    assert [one.name for one in answers if one.refused is not None] == ["bomb.png"]
    assert sum(bool(one.label) for one in answers) == 19
    assert max(one.peak_mb for one in answers) < 300 < PICTURE_LIMITS.memory_mb


def test_the_answer_is_that_of_clotkit_predict(contour: LoadedMember, strip_ai: Competition, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(samples_for("double_contour", "folders", strip_ai)["drawn contour, yes"])
    (wanted,) = predict(WEIGHTS / "double_contour", [path], strip_ai)
    (answer,) = classify(contour, [Upload("x", path.read_bytes())], strip_ai)
    assert answer.label == wanted.label == "yes"
    assert answer.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
    assert answer.heat is not None
    assert answer.heat.shape == (96, 96, 3)


def test_two_visitors_at_once_get_what_one_gets(contour: LoadedMember, strip_ai: Competition) -> None:
    uploads = [Upload("one.png", png(192, 192)), Upload("two.png", png(150, 192))]
    alone = classify(contour, uploads, strip_ai)
    both: list[list[Answer]] = []
    threads = [threading.Thread(target=lambda: both.append(classify(contour, uploads, strip_ai))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(both) == 3
    for found in both:
        for one, wanted in zip(found, alone, strict=True):
            assert one.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_too_many_and_too_large_uploads_are_refused_unread(contour: LoadedMember, strip_ai: Competition) -> None:
    large = memoryview(bytes((MOST_UPLOAD_MB + 1) * MB))
    uploads = [Upload("large.tif", large), *[Upload("x", b"")] * (MOST_UPLOADS - 1), Upload("last.png", png(20, 20))]
    (one,) = classify(contour, uploads[:1], strip_ai)
    last = classify(contour, [Upload("x", large)] * MOST_UPLOADS + uploads[-1:], strip_ai)[-1]
    for answer, numbers in ((one, (MOST_UPLOAD_MB + 1, MOST_UPLOAD_MB)), (last, (MOST_UPLOADS + 1, MOST_UPLOADS))):
        assert answer.refused is not None
        assert answer.refused.code == Reason.ABOVE_LIMIT
        assert [int(number) for number in re.findall(r"\d+", answer.refused.sentence)] == [*numbers]
        assert answer.seconds == 0


def test_a_picture_of_another_size_is_answered_with_a_note(strip_ai: Competition) -> None:
    brain = load(WEIGHTS / "brain")
    square, long, small = classify(
        brain, [Upload("a", png(160, 160)), Upload("b", png(400, 100)), Upload("c", png(20, 20))], strip_ai
    )
    sizes = {Doubt.SMALL, Doubt.SQUEEZED}
    assert not sizes & square.doubts.keys()
    assert sizes & long.doubts.keys() == {Doubt.SQUEEZED}
    assert sizes & small.doubts.keys() == {Doubt.SMALL}


def test_an_answer_is_unsure_where_another_class_is_nearly_as_likely(strip_ai: Competition) -> None:
    member = load(WEIGHTS / "breastmnist")
    for one in classify(member, [Upload(str(n), png(28, 28 + n)) for n in range(6)], strip_ai):
        first, second = sorted(one.probabilities.values(), reverse=True)[:2]
        assert (Doubt.NEAR_THRESHOLD in one.doubts) == (first - second < NEAR)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_each_member_answers_its_drawn_samples(name: str, strip_ai: Competition) -> None:
    asked = load(WEIGHTS / name)
    samples = samples_for(name, asked.recipe.data.source, strip_ai)
    assert len(samples) == 2
    assert all(len(data) < 2**20 for data in samples.values())
    for one in classify(asked, [Upload(*item) for item in samples.items()], strip_ai):
        assert one.refused is None
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert one.label in asked.target.classes
        assert one.picture is not None
        assert one.heat is not None


def test_a_member_for_slides_refuses_other_files(demo: LoadedMember, strip_ai: Competition, test_split: Path) -> None:
    path = min((test_split / "test").glob("*.tif"))
    uploads = [
        Upload("slide.tif", path.read_bytes()),
        Upload("cut.tif", path.read_bytes()[:3000]),
        Upload("archive.tif", zipped()),
    ]
    slide, cut, archive = classify(demo, uploads, strip_ai)
    assert slide.label in demo.target.classes
    for one in (cut, archive):
        assert one.refused is not None
        assert one.refused.code == Reason.DAMAGED


@pytest.mark.parametrize("name", ["a\nb\u202egnp.exe", "\x1b[31m", "a\tb"])
def test_names_are_one_line_without_control_characters(name: str) -> None:
    assert printable(name).isprintable()
    assert len(printable(name * 1000)) == LONGEST_NAME


@pytest.fixture
def rooted(split: Path, tmp_path: Path) -> Roots:
    """Make a root with a split of four slides, and a secret folder outside it."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.move(split, root / "split")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "test.csv").write_text("x\n1\n")
    return Roots.of([root])


@pytest.mark.parametrize(
    "path", ["../secret", "/etc", "/etc/passwd", "split/../../secret", "none", "a\0b", "link", "loop"]
)
def test_nothing_outside_the_roots_is_opened(path: str, rooted: Roots, strip_ai: Competition) -> None:
    root = rooted.folders[0]
    (root / "link").symlink_to(root.parent / "secret")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(UsageError):
        open_folder(path, rooted, strip_ai)


def test_a_sibling_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    for name in ("data", "data-secret"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError):
        Roots.of([tmp_path / "data"]).inside(tmp_path / "data-secret")


def test_a_root_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none"):
        Roots.of([tmp_path / "none"])


def test_a_slide_that_is_a_link_out_of_the_roots_is_not_read(rooted: Roots, strip_ai: Competition) -> None:
    opened = open_folder("split", rooted, strip_ai)
    image_id = opened.ids()[0]
    path = opened.rows[image_id].path
    assert slide_path(opened, image_id, rooted) == path.resolve()
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(UsageError):
        slide_path(opened, image_id, rooted)
    with pytest.raises(UsageError):
        slide_path(opened, "../../etc/passwd", rooted)


def test_splits_and_runs_are_listed_and_incomplete_slides_come_first(rooted: Roots, strip_ai: Competition) -> None:
    root = rooted.folders[0]
    ids = open_folder("split", rooted, strip_ai).ids()
    (root / "run").mkdir()
    with ReportFile(root / "run" / REPORT) as file:
        file.add(SlideReport(ids[0], "p", "done", "", 4, 1.0, 40.0))
        file.add(SlideReport(ids[1], "p", "fallback", "the file is empty: 0 bytes", 0, 0.1, 30.0))
    (root / "run" / RUN).write_text(json.dumps({"arguments": {"split": str(root / "split")}}))
    assert list_folders(rooted, strip_ai) == [root / "run", root / "split"]
    opened = open_folder("run", rooted, strip_ai)
    assert opened.ids()[0] == ids[1]
    assert (opened.state(ids[1]), opened.reason(ids[1])) == ("fallback", "the file is empty: 0 bytes")
    assert opened.state(ids[2]) == "not run"
    assert slide_path(opened, ids[0], rooted).is_file()


def test_a_run_over_a_split_outside_the_roots_shows_its_report_only(rooted: Roots, strip_ai: Competition) -> None:
    root = rooted.folders[0]
    with ReportFile(root / REPORT) as file:
        file.add(SlideReport("a", "p", "done", "", 4, 1.0, 40.0))
    (root / RUN).write_text(json.dumps({"arguments": {"split": str(root.parent / "secret")}}))
    opened = open_folder(".", rooted, strip_ai)
    assert opened.ids() == ["a"]
    assert isinstance(opened.unreadable, UsageError)
    with pytest.raises(UsageError):
        slide_path(opened, "a", rooted)


def test_a_damaged_report_is_an_error(rooted: Roots, strip_ai: Competition) -> None:
    (rooted.folders[0] / REPORT).write_text('{"x": 1}\n')
    with pytest.raises(SplitError, match=REPORT):
        open_folder(".", rooted, strip_ai)


def test_tissue_of_a_file_that_is_no_slide_is_an_error(
    tmp_path: Path, demo: LoadedMember, strip_ai: Competition
) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0 and nothing more")
    with pytest.raises(SlideUnreadable) as caught:
        read_tissue(path, demo.recipe.tiling, strip_ai)
    assert str(tmp_path) not in str(caught.value)


def test_tissue_and_tiles_are_drawn(slides: list[Path], demo: LoadedMember, strip_ai: Competition) -> None:
    result = read_tissue(slides[0], demo.recipe.tiling, strip_ai)
    assert int(str(result.facts["tiles"])) > 0
    assert result.picture().ndim == 3


def test_a_slide_is_scored_live(slides: list[Path], demo: LoadedMember, strip_ai: Competition) -> None:
    steps = list(score_live(demo, slides[0], strip_ai))
    counts = [step.tiles for step in steps]
    assert counts == sorted(counts)
    last = steps[-1]
    (wanted,) = predict(WEIGHTS / "demo", slides[:1], strip_ai)
    assert last.label == wanted.label
    assert last.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
    assert last.picture is not None
    assert max(last.picture.shape[1] / VIEW_PX[0], last.picture.shape[0] / VIEW_PX[1]) <= 1
    assert last.cut_short is None


def test_scoring_a_file_that_is_no_slide_is_an_error(tmp_path: Path, demo: LoadedMember, strip_ai: Competition) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(zipped())
    with pytest.raises(SplitError, match="zip archive"):
        list(score_live(demo, path, strip_ai))


def test_tiles_are_painted_by_their_probability() -> None:
    view = np.full((10, 10, 3), 255, np.uint8)
    seen = paint_tiles(view, 2, np.array([[0, 0], [10, 10]], np.int32), (4, 4), np.array([0.0, 1.0]))
    assert tuple(seen[9, 0]) == (255, 255, 255)
    assert seen[0, 0, 0] < seen[5, 5, 0], "violet is darker than yellow"
    assert tuple(seen[7, 7]) == (255, 255, 255)


def table(competition: Competition, rows: dict[str, tuple[float, float]]) -> bytes:
    lines = [",".join(competition.header), *(f"{patient},{a},{b}" for patient, (a, b) in rows.items())]
    return "\n".join(lines).encode()


ROWS = {"0a1b2c": (0.25, 0.75), "3d4e5f": (0.5, 0.5), "6a7b8c": (0.9, 0.1)}


def test_a_submission_is_checked_counted_and_compared(strip_ai: Competition) -> None:
    given, other = table(strip_ai, ROWS), table(strip_ai, ROWS | {"0a1b2c": (0.75, 0.25)})
    checked, second = submissions.check(given, given, other, strip_ai)
    assert checked.valid
    assert second is not None
    assert second.valid
    assert sum(count for _, count in submissions.histogram(checked, 1)) == 3
    found = submissions.difference(checked, second, strip_ai)
    assert (found.patients, found.only_one) == (3, 0)
    assert found.largest == pytest.approx(0.5)
    assert found.worst[0]["patient"] == "0a1b2c"


@pytest.mark.parametrize("data", [b"", b"\0" * 100, zipped(), b"a,b\n1,2\n"])
def test_a_file_that_is_no_submission_is_an_error(data: bytes, strip_ai: Competition) -> None:
    with pytest.raises(SubmissionError) as caught:
        submissions.check(data, None, None, strip_ai)
    assert "clotkit-app" not in str(caught.value)
    checked, _ = submissions.check(data, table(strip_ai, ROWS), None, strip_ai)
    assert not checked.valid


def test_problems_are_listed_and_without_a_sample_ids_are_taken_as_they_are(strip_ai: Competition) -> None:
    fewer = dict(list(ROWS.items())[:2])
    assert submissions.check(table(strip_ai, fewer), None, None, strip_ai)[0].valid
    checked, _ = submissions.check(table(strip_ai, fewer), table(strip_ai, ROWS), None, strip_ai)
    assert any(p.code is Fault.MISSING_PATIENT and "6a7b8c" in p.text for p in checked.problems)
    assert not checked.rows


def test_a_large_file_is_no_submission(strip_ai: Competition) -> None:
    with pytest.raises(SubmissionError, match=r"9 MB.*8 MB"):
        submissions.check(bytes(9 * MB), None, None, strip_ai)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_errors_of_a_training_are_those_of_its_figures(name: str) -> None:
    found = training_of(WEIGHTS / name, load(WEIGHTS / name))
    accuracy = json.loads((WEIGHTS / name / "metrics.json").read_text())["accuracy"]
    assert 1 - found.wrong / found.units == pytest.approx(accuracy, abs=1e-5)
    assert {row["figure"] for row in found.figures} >= {"accuracy", "auc", "weighted log loss"}
    assert all(data.startswith(b"\x89PNG") for data in found.plots.values())
    assert len(found.worst) == min(found.wrong, 30)
    assert "Not for clinical use" in card_of(WEIGHTS / name)


def test_a_member_without_its_table_is_an_error(tmp_path: Path, contour: LoadedMember) -> None:
    folder = Path(shutil.copytree(WEIGHTS / "double_contour", tmp_path / "double_contour"))
    (folder / "oof.csv").unlink()
    with pytest.raises(ConfigError, match=r"double_contour/oof\.csv"):
        training_of(folder, contour)


@pytest.mark.parametrize("module", sorted({path.stem for path in PACKAGE.glob("*.py")} - {"security"}))
def test_the_logic_needs_no_server(module: str) -> None:
    code = f"import sys; import clotkit.app.{module}; print('starlette' in sys.modules, 'tensorflow' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


def test_child_processes_import_nothing_heavy() -> None:
    heavy = ("keras", "pandas", "scipy", "starlette")
    code = f"import sys, clotkit.app.untrusted; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
