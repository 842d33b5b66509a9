"""Test report.html against the files of its run: numbers, hostile text, size and cost."""

import base64
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.config import TilingConfig
from clotkit.errors import UsageError
from clotkit.members.loading import load_member
from clotkit.reasons import Reason
from clotkit.report import records
from clotkit.report.drawing import Bar, outline_path, tile_boxes, timeline_plot, unpacked
from clotkit.report.page import CARE, Outcome, write_page
from clotkit.report.records import SlideReport
from clotkit.report.shift import BINS, Histogram, critical_distance, distance, histogram, read_out_of_fold
from clotkit.report.shown import Kind, Shown
from clotkit.report.sidecar import Tiled, Trace, jpeg, sidecar_line, sidecar_places
from clotkit.scoring.pipeline import run
from clotkit.slides.reader import open_slide
from clotkit.submission.checking import check_submission
from clotkit.tiling.overview import read_overview
from clotkit.tiling.thumbnail import Thumbnail
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.workers import Task

from .conftest import RECIPE
from .faults import misbehaving
from .test_errors_page import Page
from .test_kernel import FOREVER_S, kernel_root, start  # noqa: F401 - a fixture
from .test_pipeline import bare_split, report_of, settings_of

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
LIMIT_BYTES = 10_000_000
SLIDES = 280
TILING = TilingConfig("patches", 128, 4, 24, 8)
LAST = Shown(Kind.LAST, ("CE", "LAA"))


def page_of(run_dir: Path) -> tuple[str, Page]:
    text = write_page(run_dir).read_text(encoding="utf-8")
    return text, Page(text)


def sidecar_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "slides.jsonl").read_text().splitlines()]
    return {line["image_id"]: line for line in lines}


@pytest.fixture(scope="module")
def weights(make_member: Callable[..., Path], strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two members with different tilings, one of them with out-of-fold predictions."""
    folder = tmp_path_factory.mktemp("members") / "weights"
    make_member(folder / "a", strip_ai.classes.names, seed=1)
    make_member(folder / "b", strip_ai.classes.names, seed=2, recipe=RECIPE.replace("downsample = 8", "downsample = 4"))
    rows = "".join(f"{i:06x}_0,{i:06x},1,0,0.95,0.05,0\n" for i in range(40))
    (folder / "a" / "oof.csv").write_text(f"image,patient,centre,label,CE,LAA,fold\n{rows}")
    return folder


@pytest.fixture(scope="module")
def whole(test_split: Path, weights: Path, strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the test split; only write_page may write into the folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    run(settings_of(test_split, weights, out), strip_ai, lambda _: None)
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """Copy that folder, for tests that change it."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def test_the_verdict_has_the_runs_own_numbers(whole: Path, test_split: Path, strip_ai: Competition) -> None:
    facts = json.loads((whole / "run.json").read_text())
    text, page = page_of(whole)
    said = dict(zip(page.said("dt"), said_values(text), strict=True))
    assert said["Patients scored"] == f"{facts['patients']['scored']} of {facts['patients']['asked']}" == "2 of 2"
    for state in records.STATES:
        assert said[f"Slides {state}"] == str(facts["slides"][state])
    assert said["Minutes"] == f"{facts['seconds'] / 60:.1f}"
    assert said["Peak memory of a slide"] == f"{max(line['peak_mb'] for line in report_of(whole).values()):.0f} MB"
    verdict = check_submission(whole / "submission.csv", test_split / "sample_submission.csv", strip_ai)
    assert verdict.expected is not None
    assert said["Expected score"] == f"{verdict.expected.calibrated:.4f}"
    assert outcome_of(page) == Outcome.COMPLETE
    assert text.index('id="verdict"') < text.index('id="slides"') < text.index('id="patients"')
    assert text.index('id="shift"') < text.index('id="timeline"') < text.index('id="versions"')


def outcome_of(page: Page) -> str:
    (outcome,) = (attributes["data-verdict"] for _, attributes in page.elements if "data-verdict" in attributes)
    return str(outcome)


def said_values(text: str) -> list[str]:
    return re.findall(r'<dd class="value">([^<]*)</dd>', text)


def test_it_is_sound_accessible_and_stands_alone(whole: Path) -> None:
    text, page = page_of(whole)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert text.count(CARE) == 2
    assert not page.all("link")
    assert len(page.all("script")) == 1
    assert "src" not in page.all("script")[0]
    assert "//" not in text.replace("default-src", "").partition("<style>")[0].replace("<!DOCTYPE html>", "")
    assert "http" not in text.replace("http-equiv", "")
    assert all(head.get("scope") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("img")) == 4
    assert all(picture["alt"] for picture in page.all("img"))
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(link["href"]).removeprefix("#") for link in page.all("a")} <= set(ids)


def test_the_policy_lets_its_own_script_run_alone(whole: Path) -> None:
    import hashlib

    text, _ = page_of(whole)
    script = text[text.index("<script>") + 8 : text.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_tiles_stand_where_they_were_cut_with_what_they_said(
    whole: Path, test_split: Path, weights: Path, strip_ai: Competition
) -> None:
    members = [load_member(weights / name, strip_ai.classes.names) for name in "ab"]
    text, _ = page_of(whole)
    for image_id in report_of(whole):
        wanted = set()
        for member in members:
            tiling = member.recipe.tiling
            pieces = [
                piece
                for piece in tile_slide(test_split / "test" / f"{image_id}.tif", tiling)
                if isinstance(piece, Batch)
            ]
            side = tiling.tile_px * tiling.downsample
            for batch in pieces:
                p = member.predict(batch.tiles)[:, 1]
                wanted |= {
                    (int(x), int(y), side, round(float(one), 2)) for (x, y), one in zip(batch.xy, p, strict=True)
                }
        assert {box[:3] for box in boxes_of(text, image_id)} == {box[:3] for box in wanted}
        for box in boxes_of(text, image_id):
            assert any(box[:3] == other[:3] and abs(box[3] - other[3]) < 0.011 for other in wanted)
        slide = open_slide(test_split / "test" / f"{image_id}.tif")
        view, downsample = (
            sidecar_of(whole)[image_id]["picture"]["size"],
            sidecar_of(whole)[image_id]["picture"]["downsample"],
        )
        assert view == [-(-slide.width_px // downsample), -(-slide.height_px // downsample)]
        assert f'viewBox="0 0 {view[0] * downsample} {view[1] * downsample}"' in row_of(text, image_id)


def row_of(text: str, image_id: str) -> str:
    start = text.index(f'<tr><th scope="row" data-v="{image_id}">')
    return text[start : text.index("</tr>", start)]


def boxes_of(text: str, image_id: str) -> Iterator[tuple[int, int, int, float]]:
    pattern = r'<rect class="p(\d)" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"><title>([\d.]+)</title></rect>'
    for colour, x, y, width, height, p in re.findall(pattern, row_of(text, image_id)):
        assert width == height
        assert abs(float(p) * 10 - int(colour) - 0.5) < 0.61
        yield int(x), int(y), int(width), float(p)


def test_pictures_are_the_slides_and_not_black(whole: Path, test_split: Path) -> None:
    for image_id, line in sidecar_of(whole).items():
        picture = Image.open(io.BytesIO(base64.b64decode(line["picture"]["jpeg"])))
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        true = read_overview(
            open_slide(test_split / "test" / f"{image_id}.tif"), line["picture"]["downsample"], (255, 255, 255)
        )
        assert pixels.shape == true.shape
        assert pixels.mean() > 100
        assert np.abs(pixels - true).mean() < 10
        tissue = unpacked(line["picture"]["tissue"], *line["picture"]["size"])
        assert true[tissue].mean() < true[~tissue].mean()


def test_times_are_of_the_run(whole: Path) -> None:
    seconds = json.loads((whole / "run.json").read_text())["seconds"]
    report_lines = report_of(whole)
    for image_id, line in sidecar_of(whole).items():
        assert 0 < line["from_s"] < line["to_s"] <= seconds + 0.1
        assert line["to_s"] - line["from_s"] == pytest.approx(report_lines[image_id]["seconds"], abs=0.02)
        assert line["model_s"]
        assert all(0 < begin <= end <= seconds + 0.1 for begin, end in line["model_s"])


def test_members_and_their_out_of_fold_predictions(whole: Path) -> None:
    facts = json.loads((whole / "run.json").read_text())
    assert facts["members"]["a"]["out_of_fold"] == {"counts": [0, 40] + [0] * 18, "mean": 0.05}
    assert facts["members"]["b"]["out_of_fold"] is None
    text, page = page_of(whole)
    assert {"a", "b"} <= set(page.said("h3"))
    assert "out of fold: 40 slides, mean 0.050" in text
    for line in report_of(whole).values():
        said = re.findall(r"a ([\d.]+), b ([\d.]+)", row_of(text, line["image_id"]))
        assert [float(p) for p in said[0]] == pytest.approx([line["p"][name][1] for name in "ab"], abs=1e-3)


def test_same_inputs_same_page_but_for_times(
    whole: Path, test_split: Path, weights: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    assert write_page(whole).read_bytes() == write_page(whole).read_bytes()
    run(settings_of(test_split, weights, tmp_path / "out", jobs=1), strip_ai, lambda _: None)
    timed = {"from_s", "to_s", "model_s"}
    one, two = (
        {image_id: {key: value for key, value in line.items() if key not in timed} for image_id, line in lines.items()}
        for lines in (sidecar_of(whole), sidecar_of(tmp_path / "out"))
    )
    assert one == two


def test_what_files_say_is_text_and_never_markup(tmp_path: Path, strip_ai: Competition) -> None:
    line = SlideReport(HOSTILE, HOSTILE, "partial", HOSTILE, 1, 1.0, 2.0, {HOSTILE: [0.4, 0.6]}, {})
    facts = {
        "state": HOSTILE,
        "competition": HOSTILE,
        "clotkit": HOSTILE,
        "packages": {HOSTILE: HOSTILE},
        "arguments": {HOSTILE: HOSTILE},
        "members": {HOSTILE: {"notes": [HOSTILE], "recipe": HOSTILE, "weights_sha256": HOSTILE, "tile_pool": HOSTILE}},
        "left_out": {HOSTILE: HOSTILE},
        "unwritten": HOSTILE,
        "scoring": {"classes": [HOSTILE, HOSTILE], "title": HOSTILE},
    }
    picture = {"size": [2, 2], "downsample": 1, "jpeg": HOSTILE, "tissue": HOSTILE}
    side = {"image_id": HOSTILE, "part": 1, "from_s": 0, "to_s": 1, "model_s": [], "picture": picture, "tiles": []}
    written(tmp_path, [line], facts, [json.dumps(side) + "\n"])
    (tmp_path / "submission.csv").write_text('patient_id,CE,LAA\n"' + HOSTILE.replace('"', '""') + '",0.4,0.6\n')
    text, page = page_of(tmp_path)
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert HOSTILE in page.said("td")
    assert "<script>alert" not in text


def written(run_dir: Path, lines: list[SlideReport], facts: dict[str, Any], side: list[str]) -> None:
    """Write the files of a run, without its submission."""
    with records.ReportFile(run_dir / "report.jsonl", lines):
        pass
    (run_dir / "run.json").write_text(json.dumps(facts))
    (run_dir / "slides.jsonl").write_text("".join(side))


def drawn_run(run_dir: Path, competition: Competition, slides: int, tiles: int) -> None:
    """Write the files of a run of `slides` slides with the largest pictures: noise, with long edges."""
    rng = np.random.default_rng(1)
    run_dir.mkdir()
    lines, side = [], []
    for number in range(slides):
        view = rng.integers(0, 256, (320, 240, 3), dtype=np.uint8)
        tissue = (rng.random((20, 15)) < 0.4).repeat(16, axis=0).repeat(16, axis=1)
        thumbnail = Thumbnail(30_000, 40_000, view, 128, tissue, 0.5)
        tiled = Tiled(TILING, rng.integers(0, 30_000, (tiles, 2), dtype=np.int32), rng.random((tiles, 2)))
        p = {name: [0.4, 0.6] for name in ("first", "second", "third")}
        line = SlideReport(f"{number:06x}_0", f"{number:06x}", "done", "", tiles, 1.0, 50.0, p, {})
        trace = Trace(thumbnail, (tiled,), (float(number), number + 2.0), ((number + 0.5, number + 0.6),))
        side.append(sidecar_line(line, trace, slides, 0.0, 1, LAST))
        lines.append(line)
    scoring = {"classes": ["CE", "LAA"], "weights": [0.5, 0.5], "fallback": [0.5, 0.5], "clip": 1e-15}
    written(run_dir, lines, {"state": "ended", "seconds": 280.0, "scoring": scoring}, side)
    rows = "".join(f"{line.patient_id},0.4,0.6\n" for line in lines)
    (run_dir / "submission.csv").write_text(",".join(competition.header) + "\n" + rows)


@pytest.mark.slow
@pytest.mark.parametrize(("slides", "tiles"), [(SLIDES, 24), (SLIDES, 2000), (900, 24)])
def test_a_full_set_stays_below_10_mb_with_every_picture(
    slides: int, tiles: int, tmp_path: Path, strip_ai: Competition
) -> None:
    drawn_run(tmp_path / "run", strip_ai, slides, tiles)
    path = write_page(tmp_path / "run")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < LIMIT_BYTES
    assert text.count("<img ") == slides
    assert text.count("<tr>") > 2 * slides
    assert ("tiles are drawn" in text) == (tiles * slides > 12_000)


def test_pictures_that_would_be_too_much_are_left_out_and_counted(tmp_path: Path, strip_ai: Competition) -> None:
    drawn_run(tmp_path / "run", strip_ai, 3, 4)
    lines = list(sidecar_of(tmp_path / "run").values())
    lines[1]["picture"]["jpeg"] = base64.b64encode(bytes(9_000_000)).decode()
    (tmp_path / "run" / "slides.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, page = page_of(tmp_path / "run")
    assert len(page.all("img")) == 2
    assert any(said.startswith("1 picture left out") for said in page.said("p"))
    assert len(text) < LIMIT_BYTES


def test_a_picture_is_made_to_fit() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (320, 240, 3), dtype=np.uint8)
    assert len(jpeg(noise, 20_000)) <= 20_000
    assert Image.open(io.BytesIO(jpeg(noise, 2_000))).size != (240, 320)
    assert Image.open(io.BytesIO(jpeg(np.full((320, 240, 3), 240, np.uint8), 20_000))).size == (240, 320)


def test_a_run_that_goes_on_keeps_its_pictures(
    copied: Path, test_split: Path, weights: Path, strip_ai: Competition
) -> None:
    """Resume a run with two slides done, one of them without its picture, and a line cut short."""
    side = (copied / "slides.jsonl").read_text().splitlines(keepends=True)
    lines = (copied / "report.jsonl").read_text().splitlines(keepends=True)
    (copied / "report.jsonl").write_text("".join(lines[:2]))
    (copied / "slides.jsonl").write_text(side[1] + side[2][:900])
    counts = run(settings_of(test_split, weights, copied, resume=True), strip_ai, lambda _: None)
    assert counts == {"done": 4, "partial": 0, "fallback": 0}
    kept = (copied / "slides.jsonl").read_text().splitlines(keepends=True)
    assert kept[0] == side[1]
    assert len(kept) == 3
    _, page = page_of(copied)
    assert len(page.all("img")) == 3
    assert json.loads(lines[0])["image_id"] in page.said("th")
    assert any(said.startswith("1 slide") and "slides.jsonl" in said for said in page.said("p"))
    assert {"Part 1 of 2", "Part 2 of 2"} <= set(page.said("h3"))


def test_another_run_into_the_folder_starts_its_pictures_anew(
    copied: Path, test_split: Path, weights: Path, strip_ai: Competition
) -> None:
    (copied / "slides.jsonl").write_text('{"image_id": "gone_0"}\n')
    run(settings_of(test_split, weights, copied), strip_ai, lambda _: None)
    assert set(sidecar_places(copied / "slides.jsonl")) == set(report_of(copied))


def test_a_run_of_an_older_kit_has_a_page(copied: Path) -> None:
    (copied / "slides.jsonl").unlink()
    (copied / "report.html").unlink()
    facts = json.loads((copied / "run.json").read_text())
    for name in ("scoring", "patients", "peak_mb", "unwritten", "left_out"):
        del facts[name]
    for member in facts["members"].values():
        for name in ("calibration", "tile_pool", "out_of_fold"):
            del member[name]
    (copied / "run.json").write_text(json.dumps(facts))
    assert main(["report", str(copied)]) == 0
    text, page = page_of(copied)
    assert not page.all("img")
    assert "2 of 2" in said_values(text)
    assert "p(LAA)" in page.said("th")
    assert "No times are known." in page.said("p")


def test_notes_about_slides_are_counted(copied: Path) -> None:
    lines = [json.loads(line) for line in (copied / "report.jsonl").read_text().splitlines()]
    for line in lines[1:3]:
        line["facts"]["notes"] = [Reason.OTHER_PAGE]
    (copied / "report.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _ = page_of(copied)
    (note,) = re.findall(f"<li>(2 slides[^<]*{Reason.OTHER_PAGE}[^<]*)</li>", text)
    assert any(line["image_id"] in note for line in lines[1:3])


def test_a_run_without_a_member_is_all_fallback(
    test_split: Path, make_member: Callable[..., Path], tmp_path: Path, strip_ai: Competition
) -> None:
    bad = make_member(tmp_path / "weights" / "bad", strip_ai.classes.names)
    (bad / "model.weights.h5").write_bytes(b"not HDF5")
    counts = run(settings_of(test_split, bad, tmp_path / "out"), strip_ai, lambda _: None)
    assert counts["fallback"] == 4
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert outcome_of(page) == Outcome.ALL_FALLBACK
    assert said_values(text)[:4] == ["0 of 2", "0", "0", "4"]
    assert "No member has scored a slide." in page.said("p")
    assert any(said.startswith("member bad left out: ") for said in page.said("li"))
    assert "4 slides" in page.said("li")
    assert page.said("code") == [Reason.NO_MEMBER]


def test_faults_have_their_rows_and_reasons(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    images = ["good_0", "kill_0", "refuse_0", "latesegv_0"]
    split = bare_split(tmp_path / "split", strip_ai, images)
    run(settings_of(split, member, tmp_path / "out"), strip_ai, lambda _: None, work=misbehaving.work)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("img")  # such work has no pictures
    assert all(f'data-v="{image}"' in text for image in images)
    assert "not an image" in row_of(text, "refuse_0")
    assert "SIGSEGV" in row_of(text, "latesegv_0")
    assert outcome_of(page) == Outcome.SOME_FALLBACK
    assert any("2 of 4" in said for said in page.said("p"))
    assert len(re.findall(r'<rect class="slide ', text)) == 4


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ({"state": "running"}, Outcome.RUNNING),
        ({"state": "ended", "unwritten": "No space left on device"}, Outcome.NOT_LATEST),
        (None, Outcome.NO_SUBMISSION),
    ],
)
def test_a_run_that_did_not_end_well_says_so(facts: dict[str, Any] | None, outcome: Outcome, copied: Path) -> None:
    if facts is None:
        (copied / "submission.csv").write_text("patient_id,CE,LAA\n004269,0.5\n")
    else:
        known = json.loads((copied / "run.json").read_text())
        (copied / "run.json").write_text(json.dumps(known | facts))
    _, page = page_of(copied)
    assert outcome_of(page) == outcome


def test_a_run_of_no_slides_has_a_page(copied: Path) -> None:
    (copied / "report.jsonl").write_text("")
    (copied / "slides.jsonl").unlink()
    _, page = page_of(copied)
    assert "No slide has ended." in page.said("p")


def test_a_submission_that_was_changed_is_noticed(copied: Path) -> None:
    text, _ = page_of(copied)
    assert "changed since the run" not in text
    with (copied / "submission.csv").open("a") as file:
        file.write("ffffff,0.5,0.5\n")
    text, _ = page_of(copied)
    assert "changed since the run" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("thesis.tex", "", "no run here: report.jsonl is missing"),
        ("report.jsonl", "{}\n", "not the report of a run"),
        ("report.jsonl", "half\n", "not the report of a run"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line_and_2(
    name: str, content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UsageError, match="no run here"):
        write_page(tmp_path / "nowhere")


def test_a_damaged_run_json_is_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "run.json").write_text("{")
    assert main(["report", str(copied)]) == 2
    assert "run.json: cannot be read" in capsys.readouterr().err


def hindering(task: Task) -> Iterator[tuple[int, Any]]:
    """Yield an invalid thumbnail, and put a folder at the path of the page."""
    yield from misbehaving.some(task)
    yield 0, Thumbnail(8, 8, np.zeros((2, 2), np.float64), 4, np.zeros((2, 2), bool), 1.0)
    (task.path.parents[2] / "out" / "report.html").mkdir(exist_ok=True)


def test_neither_pictures_nor_the_page_are_worth_a_run(tmp_path: Path, member: Path, strip_ai: Competition) -> None:
    split = bare_split(tmp_path / "split", strip_ai, ["good_0", "good_1"])
    said: list[str] = []
    counts = run(settings_of(split, member, tmp_path / "out"), strip_ai, said.append, work=hindering)
    assert counts == {"done": 2, "partial": 0, "fallback": 0}
    assert len([line for line in said if "slides.jsonl" in line]) == 1
    assert len([line for line in said if "report.html: not made" in line and "\n" not in line]) == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "ended"
    assert (tmp_path / "out" / "report.jsonl").read_text().count("\n") == 2


def test_without_jinja2_a_run_ends_without_a_page(
    test_split: Path,
    member: Path,
    tmp_path: Path,
    strip_ai: Competition,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    said: list[str] = []
    assert run(settings_of(test_split, member, tmp_path / "out"), strip_ai, said.append)["done"] == 4
    assert len([line for line in said if "report.html" in line and "jinja2" in line]) == 1
    assert not (tmp_path / "out" / "report.html").exists()
    assert main(["report", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_deadline_that_has_come_leaves_the_page_for_later(
    test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    said: list[str] = []
    run(settings_of(test_split, member, tmp_path / "out", deadline_s=1e-3), strip_ai, said.append)
    assert len([line for line in said if "report.html: not made" in line]) == 1
    assert not (tmp_path / "out" / "report.html").exists()
    assert main(["report", str(tmp_path / "out")]) == 0


def test_what_a_kill_cut_short_is_tidied(test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition) -> None:
    (tmp_path / ".report.abc.html").write_text("half")
    (tmp_path / "submission.csv").touch()
    run(settings_of(test_split, member, tmp_path), strip_ai, lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*records.FILES, "submission.csv"])


def test_the_kernel_makes_it_of_its_bundle(kernel_root: Path) -> None:  # noqa: F811
    kernel = start(kernel_root)
    said, _ = kernel.communicate(timeout=FOREVER_S)
    assert kernel.returncode == 0, said
    text = (kernel_root / "working" / "report.html").read_text(encoding="utf-8")
    assert len(Page(text).all("img")) == 4
    assert said_values(text)[:4] == ["2 of 2", "4", "0", "0"]


def test_an_outline_is_the_masks_edge() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:5] = True
    pieces = set(re.findall(r"M\d+ \d+[hv]\d+", outline_path(mask, 10, 1000)))
    assert pieces == {"M20 10h30", "M20 30h30", "M20 10v20", "M50 10v20"}
    assert outline_path(np.zeros((4, 5), bool), 10, 1000) == ""
    noise = np.random.default_rng(1).random((200, 200)) < 0.5
    assert 0 < len(outline_path(noise, 10, 3000)) <= 3000


def test_boxes_that_are_too_many_keep_both_ends() -> None:
    tiles = [{"size_px": [4, 4], "xy": [[i, 0] for i in range(100)], "p": [i / 99 for i in range(100)]}]
    boxes, count = tile_boxes(tiles, 10)
    assert (len(boxes), count) == (10, 100)
    assert (boxes[0].p, boxes[-1].p) == (0, 1)
    assert [box.tenth for box in boxes][::9] == [0, 9]


def test_slides_that_lived_at_once_have_lanes_of_their_own() -> None:
    bars = [Bar(0, 10), Bar(1, 2), Bar(3, 4), Bar(3.5, 5)]
    tops = [bar["y"] for bar in timeline_plot(bars, [(0, 1)])["bars"]]
    assert [tops.index(top) for top in tops] == [0, 1, 1, 3]


def test_a_shift_shows_and_chance_does_not() -> None:
    rng = np.random.default_rng(1)
    known, alike, apart = (histogram(rng.beta(a, b, 300).tolist()) for a, b in ((2, 3), (2, 3), (3, 2)))
    assert known is not None
    assert alike is not None
    assert apart is not None
    assert distance(known, alike) < critical_distance(known, alike)
    assert distance(known, apart) > critical_distance(known, apart)
    assert distance(known, known) == 0
    assert Histogram.from_json(known.to_json()) == Histogram(known.counts, round(known.mean, 6))


@pytest.mark.parametrize("raw", [None, {}, {"counts": [1], "mean": 0}, {"counts": [0] * BINS, "mean": 0}, "text"])
def test_a_histogram_that_is_none_is_none(raw: Any) -> None:
    assert Histogram.from_json(raw) is None


@pytest.mark.parametrize(
    "text",
    ["", "CE,LAA\n", "image,CE\na,0.5\n", "CE,LAA\n0.5,half\n", "CE,LAA\n0.5,nan\n", "CE,LAA\n0.5\n"],
)
def test_an_out_of_fold_table_that_says_nothing_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "oof.csv").write_text(text)
    assert read_out_of_fold(tmp_path / "oof.csv", LAST) is None
    assert read_out_of_fold(tmp_path / "missing.csv", LAST) is None


def test_probabilities_at_both_ends_are_counted() -> None:
    found = histogram([0.0, 1.0, 0.049, 0.951])
    assert found is not None
    assert found.counts == (2, *[0] * 18, 2)
