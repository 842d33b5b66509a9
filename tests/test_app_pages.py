"""The pages of the application, asked for over HTTP from a server in this process."""

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from clotkit.app.deepzoom.ids import id_of
from clotkit.app.model_card import card
from clotkit.app.samples import samples_for
from clotkit.app.standing import QUIET_S, RunState, standing_run
from clotkit.app.uploads import Doubt
from clotkit.app.viewer import MOST_FACTS_MB
from clotkit.app.web.classify import RETRY_S
from clotkit.app.web.jobs import AT_ONCE, KEPT_BYTES, Job, Jobs, Kind, State
from clotkit.app.web.rendering import page as drawn_page
from clotkit.app.web.server import AppSettings, build_app, serve
from clotkit.competitions import Competition, load_competition
from clotkit.errors import ConfigError, UsageError
from clotkit.locks import exclusive_folder
from clotkit.reasons import Cause, Reason
from clotkit.report.comparing import Change
from clotkit.report.records import REPORT, RUN, ReportFile, SlideReport
from clotkit.synthetic.phantom import write_split
from clotkit.units import MB

from .app_pages import Client, Elements, make_root, serving
from .conftest import ROOT
from .test_app import HOSTILE, ROWS, png, table, zipped

WEIGHTS = ROOT / "weights"
PAGES = ("/", "/classify", "/slides", "/runs", "/submission", "/training", "/competition")


@pytest.fixture(scope="module")
def root(strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a split and a run over it."""
    return make_root(tmp_path_factory.mktemp("root"), strip_ai)


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[Client]:
    """Serve the kit's members and that folder."""
    with serving(WEIGHTS, (root,)) as visitor:
        yield visitor


def elements(client: Client, path: str) -> Elements:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return Elements(response.text)


@pytest.mark.parametrize("path", PAGES)
def test_each_page_has_a_title_names_for_its_fields_and_fetches_nothing_elsewhere(path: str, client: Client) -> None:
    page = elements(client, path)
    assert len(page.all("h1")) == 1
    assert "Not for clinical use." in page.text
    assert [one["href"] for one in page.all("a", **{"aria-current": "page"})] == [path]
    named = {str(one["for"]) for one in page.all("label") if "for" in one}
    fields = [one for tag in ("select", "input", "textarea") for one in page.all(tag)]
    assert all(one.get("id") in named for one in fields if one.get("type") not in {"hidden", "checkbox", "radio"})
    ids = [found["id"] for _, found in page.found if "id" in found]
    assert len(ids) == len(set(ids))
    assert all(one.get("alt") for one in page.all("img"))
    addresses = [str(found.get("src") or found.get("href") or "/") for _, found in page.found]
    assert all(one.startswith(("/", "#", "data:,")) or one == "" for one in addresses)


def test_members_are_listed_by_title_the_first_two_first(client: Client) -> None:
    page = elements(client, "/classify")
    names = [one["value"] for one in page.all("option")]
    assert names[:2] == ["bloodmnist", "breastmnist"]
    assert "Blood cells, 8 types" in page.text


def test_a_first_sample_is_worked_and_each_member_answers_once(client: Client) -> None:
    def worked() -> list[Job]:
        client.get("/classify?member=double_contour")
        return [job for job in client.app.state.shared.jobs.all() if job.only == "sample of double_contour"]

    (job,) = worked()
    assert job.over.wait(120)
    page = elements(client, "/classify?member=double_contour")
    assert page.all("div", id="worked")[0]["data-live"] == "ended"
    assert len(page.all("rect")) == 2
    assert worked() == [job]
    job.state, job.cause = State.FAILED, Cause(Reason.DAMAGED, "its weights are damaged")
    assert elements(client, "/classify?member=double_contour").codes() == [Reason.DAMAGED]
    assert worked() == [job]
    job.over_s -= 2 * RETRY_S
    assert worked()[0] is not job


def test_files_and_samples_are_answered_and_a_bad_file_costs_itself(client: Client, strip_ai: Competition) -> None:
    name = '"><img src=x onerror=alert(1)>.png'
    sample = samples_for("double_contour", "folders", strip_ai)["drawn contour, yes"]
    files = [("files", ("contour.png", sample)), ("files", ("archive.png", zipped())), ("files", (name, png(400, 100)))]
    form = {"member": "double_contour", "samples": "drawn contour, no"}
    page = Elements(client.after(client.post("/classify", data=form, files=files)).text)
    assert "3 classified, 1 refused" in page.text
    assert Reason.DAMAGED in page.codes()
    assert not [one for one in page.all("img") if "onerror" in one]
    pictures = [str(one["src"]) for one in page.all("img")]
    assert len(pictures) == 6
    for one in pictures:
        assert Image.open(io.BytesIO(client.get(one).content)).format == "PNG"
    download = next(str(one["href"]) for one in page.all("a") if "download" in one)
    rows = list(csv.DictReader(io.StringIO(client.get(download).text)))
    assert [row["file"] for row in rows] == [
        "contour.png",
        "archive.png",
        name.replace('"', "%22"),
        "drawn contour, no",
    ]
    assert [row["answer"] for row in rows][::3] == ["yes", "no"]
    assert [row["refused"] for row in rows] == ["", Reason.DAMAGED, "", ""]
    assert float(rows[0]["p(yes)"]) > 0.5
    doubts = [code for row in rows for code in row["doubts"].split()]
    assert sorted([*doubts, Reason.DAMAGED]) == sorted(page.codes())
    assert set(doubts) <= set(Doubt)


def test_each_new_picture_of_a_watched_folder_is_answered_once(client: Client, root: Path) -> None:
    folder = root / "incoming"
    folder.mkdir()
    (folder / "old.png").write_bytes(png(96, 96))
    begun = client.post("/watch", data={"member": "double_contour", "folder": "incoming"})
    path = begun.url.removeprefix(client.base)
    job = client.app.state.shared.jobs.find(path.rpartition("/")[2])
    until(lambda: job.result is not None)
    (folder / "part.tmp").write_bytes(png(96, 96))
    (folder / "part.tmp").rename(folder / "new.png")
    until(lambda: job.result.count == 1)
    (folder / "new.png").rename(folder / "renamed.png")
    (folder / "other.png").write_bytes(png(97, 96))
    until(lambda: job.result.count == 2)
    page = Elements(client.post(path).text)
    assert page.all("div", id="watch")[0]["data-live"] == "ended"
    assert [answer.name for _, answer in job.result.answers] == ["other.png", "new.png"]
    assert client.post("/watch", data={"member": "double_contour", "folder": "../.."}).status_code == 400


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, for a minute at most."""
    pause, end = threading.Event(), time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        pause.wait(0.02)


def test_names_that_a_spreadsheet_would_calculate_are_text_in_the_table(client: Client) -> None:
    files = [("files", ("=1+1.png", b""))]
    job = client.job(client.post("/classify", data={"member": "double_contour"}, files=files))
    (row,) = csv.DictReader(io.StringIO(client.get(f"/classify/{job.key}/answers.csv").text))
    assert row["file"] == "'=1+1.png"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/none", 404), ("/classify/none", 400), ("/classify?member=none", 400), ("/training?member=../..", 400),
     ("/training/demo/99.png", 404), ("/slides?folder=none", 400), ("/slides?folder=../../etc", 400),
     ("/slide?folder=x&slide=y", 400), ("/slide/score/none", 400),
     ("/slide", 400), ("/slide?folder=x", 400), ("/slide/tissue.png", 400), ("/runs/one", 400), ("/runs/report", 400),
     ("/runs/compare?first=x", 400), ("/training/bloodmnist/" + "9" * 5000 + ".png", 404)],
)  # fmt: skip
def test_a_wrong_address_gets_one_line(path: str, status: int, client: Client) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert len(Elements(response.text).codes()) == 1
    assert "Traceback" not in response.text


@pytest.mark.parametrize("kind", Kind)
def test_a_job_of_another_kind_gets_one_line(kind: Kind, client: Client) -> None:
    pages = {Kind.CLASSIFY: "/classify/", Kind.WATCH: "/watch/", Kind.SCORE: "/slide/score/"}
    pages |= {Kind.PLAN: "/runs/plan/", Kind.RUN: "/runs/started/"}
    job = client.app.state.shared.jobs.start(kind, "work", lambda _: 1, {})
    assert job.over.wait(60)
    for path in (page for one, page in pages.items() if one is not kind):
        assert client.get(f"{path}{job.key}").status_code == 400


@pytest.mark.parametrize(
    ("drawing", "kind", "path"),
    [
        ("clotkit.app.web.classify.page", Kind.CLASSIFY, "/classify/"),
        ("clotkit.app.web.slides.page", Kind.SCORE, "/slide/score/"),
        ("clotkit.app.web.runs.page", Kind.PLAN, "/runs/plan/"),
    ],
)
def test_work_that_ends_while_its_page_is_drawn_still_goes_on_there(
    drawing: str, kind: Kind, path: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = threading.Event()
    about = dict.fromkeys(("folder", "slide", "title", "words"), "")
    job = client.app.state.shared.jobs.start(kind, "work", lambda _: [] if ending.wait(60) else None, about)

    def late(*arguments: Any, **values: Any) -> Any:
        ending.set()
        assert job.over.wait(60)
        return drawn_page(*arguments, **values)

    monkeypatch.setattr(drawing, late)
    shown = elements(client, f"{path}{job.key}")
    assert [one["data-live"] for _, one in shown.found if "data-live" in one] == [State.RUNNING]


def test_a_run_that_ends_while_its_page_is_drawn_still_goes_on_there(
    client: Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = threading.Event()

    def work(_: Job) -> None:
        ending.wait(60)

    job = client.app.state.shared.jobs.start(Kind.RUN, "run", work, {"out": str((root / "run").resolve())})

    def read(*arguments: Any) -> Any:
        found = standing_run(*arguments)
        ending.set()
        assert job.over.wait(60)
        return replace(found, state=RunState.RUNNING)

    monkeypatch.setattr("clotkit.app.web.runs.standing_run", read)
    shown = elements(client, f"/runs/one?run={run_id(client, 'run')}")
    assert [one["data-live"] for _, one in shown.found if "data-live" in one] == [State.RUNNING]


def test_a_run_that_another_program_continues_is_followed(tmp_path: Path, strip_ai: Competition) -> None:
    folder = make_root(tmp_path, strip_ai) / "run"
    (folder / RUN).write_text(json.dumps({"state": "running"}))

    def fail(_: Job) -> None:
        raise UsageError("the run ended with exit code 1")

    with serving(WEIGHTS, (tmp_path,)) as client:
        job = client.app.state.shared.jobs.start(Kind.RUN, "run", fail, {"out": str(folder.resolve())})
        assert job.over.wait(60)
        page = f"/runs/one?run={run_id(client, 'run')}"
        shown = elements(client, page)
        assert (shown.all("div", id="run")[0]["data-live"], shown.codes()) == ("ended", [UsageError.reason, "stopped"])
        with exclusive_folder(folder, "clotkit run"):
            shown = elements(client, page)
            assert (shown.all("div", id="run")[0]["data-live"], shown.all("form")) == ("running", [])
        later = job.over_s + 10
        os.utime(folder / REPORT, (later, later))
        (folder / RUN).write_text(json.dumps({"state": "ended"}))
        assert elements(client, page).codes() == []


def test_watched_folders_leave_room_for_the_pages(client: Client) -> None:
    jobs = client.app.state.shared.jobs
    held = [jobs.start(Kind.WATCH, "work", lambda job: job.stop.wait(), {}) for _ in range(AT_ONCE)]
    with pytest.raises(UsageError):
        jobs.start(Kind.RUN, "work", lambda _: 1, {})
    assert client.job(client.post("/classify", data={"member": "demo"}, files=[("files", ("a.png", b""))]))
    held += [jobs.start(Kind.PLAN, "work", lambda job: job.stop.wait(), {}) for _ in range(AT_ONCE)]
    page = elements(client, "/classify?member=breastmnist")
    assert page.all("form")
    assert not page.all("div", id="worked")
    for job in held:
        job.stop.set()
        assert job.over.wait(60)


def test_kept_results_are_bounded_in_bytes() -> None:
    def work(job: Job) -> None:
        job.result_bytes = KEPT_BYTES // 2 + 1

    jobs, started = Jobs(), list[Job]()
    for _ in range(3):
        started.append(jobs.start(Kind.CLASSIFY, "work", work, {}))
        assert started[-1].over.wait(60)
    assert jobs.all() == started[2:]


def test_what_ended_last_is_kept_longest() -> None:
    jobs, ending = Jobs(), threading.Event()

    def work(job: Job) -> None:
        ending.wait(60)
        job.result_bytes = KEPT_BYTES + 1

    slow = jobs.start(Kind.CLASSIFY, "work", work, {})
    assert jobs.start(Kind.CLASSIFY, "work", lambda _: 1, {}).over.wait(60)
    ending.set()
    assert slow.over.wait(60)
    assert jobs.all() == [slow]


def outside(tmp_path: Path, name: str) -> Path:
    """Write a file that no page may show."""
    (tmp_path / name).write_text("secret\n")
    return tmp_path / name


@pytest.mark.parametrize("name", [REPORT, RUN, "slides.jsonl", "submission.csv"])
def test_a_link_in_a_run_that_leads_out_of_the_roots_is_refused(
    name: str, client: Client, root: Path, tmp_path: Path
) -> None:
    folder = root / f"linked-{name}"
    shutil.copytree(root / "run", folder)
    key = id_of(folder, client.app.state.shared.roots)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside(tmp_path, name))
    other = id_of(root / "run", client.app.state.shared.roots)
    for path in ("/runs/report?run=", f"/runs/compare?first={other}&second=", "/slide?slide=a&folder="):
        response = client.get(f"{path}{key}")
        assert response.status_code == 400
        assert "secret" not in response.text
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["test.csv", "sample_submission.csv"])
def test_a_link_in_a_split_that_leads_out_of_the_roots_is_refused(
    name: str, client: Client, root: Path, tmp_path: Path
) -> None:
    folder = root / f"linked-{name}"
    shutil.copytree(root / "split", folder)
    shutil.copy(folder / name, tmp_path / name)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / name)
    page = elements(client, f"/slides?folder={id_of(folder, client.app.state.shared.roots)}")
    assert page.all("p", **{"class": "note bad"})
    assert page.all("select", id="folder")
    shutil.rmtree(folder)


def test_a_toml_reads_no_file_outside_its_folder(client: Client, root: Path, tmp_path: Path) -> None:
    shared = client.app.state.shared
    folder, source = root / "data", shared.competition.source.read_text()
    shutil.copytree(root / "split", folder)
    secret = outside(tmp_path, "secret.csv")
    (folder / "linked.csv").symlink_to(secret)
    for name in (str(secret), f"../../{secret.name}", "linked.csv"):
        for key, old in (("sample", "sample_submission.csv"), ("table", "{split}.csv")):
            text = source.replace(f'{key} = "{old}"', f'{key} = "{name}"')
            assert text != source
            form = {"folder": id_of(folder, shared.roots), "text": text, "action": "check"}
            response = client.post("/competition", data=form)
            assert (len(Elements(response.text).codes()), "secret\n" in response.text) == (1, False)
            assert response.status_code in {400, 422}
    shutil.rmtree(folder)


def test_a_hostile_report_costs_only_its_run(client: Client, root: Path) -> None:
    folder = root / "deep"
    folder.mkdir()
    (folder / REPORT).write_text("[" * 100_000 + "\n")
    key = id_of(folder, client.app.state.shared.roots)
    for path in ("/", "/runs", f"/slides?folder={key}", f"/runs/one?run={key}"):
        assert client.get(path).status_code == 200
    (folder / REPORT).write_text("")
    with (folder / "slides.jsonl").open("wb") as file:
        file.truncate(3 * 2**30)
    report = client.get(f"/runs/report?run={key}")
    assert report.status_code == 422
    assert Elements(report.text).codes() == [Reason.OUT_OF_MEMORY]
    shutil.rmtree(folder)


def test_a_form_without_a_file_gets_one_line(client: Client) -> None:
    for path in ("/classify", "/submission"):
        response = client.post(path, data={"member": "demo"})
        assert response.status_code == 400
        assert len(Elements(response.text).codes()) == 1


def test_slides_are_listed_incomplete_ones_first_and_lead_to_the_viewer(client: Client) -> None:
    page = elements(client, "/slides")
    assert [one["value"] for one in page.all("option")]
    assert "3 slides, 1 of them partial or fallback" in page.text
    assert "its first <b>directory</b> is cut short" in page.text
    assert not page.all("b")
    views = [str(one["href"]) for one in page.all("a") if str(one["href"]).startswith("/view/")]
    assert len(views) == 3


def slide_links(client: Client, folder: str) -> list[str]:
    page = elements(client, "/slides")
    value = next(v for v in (str(one["value"]) for one in page.all("option")) if folder in short(client, v))
    listed = elements(client, f"/slides?folder={value}")
    return [str(one["href"]) for one in listed.all("a") if str(one["href"]).startswith("/slide?")]


def short(client: Client, value: str) -> str:
    from clotkit.app.deepzoom.ids import path_of

    return path_of(value, client.app.state.shared.roots).name


def test_a_slide_is_scored_and_its_tiles_are_drawn(client: Client) -> None:
    address = slide_links(client, "split")[0]
    page = elements(client, address)
    form = {str(one["name"]): str(one["value"]) for one in page.all("input", type="hidden")} | {"member": "demo"}
    scored = Elements(client.after(client.post("/slide/score", data=form)).text)
    assert not scored.codes()
    assert len(scored.all("rect")) == 2
    picture = client.get(str(scored.all("img")[0]["src"]))
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"
    tissue = elements(client, f"{address}&tissue=1&member=demo").all("img")[0]
    drawn = client.get(str(tissue["src"]))
    assert int(drawn.headers["X-Tiles"]) > 0


def test_a_damaged_slide_is_refused_in_one_line(client: Client, root: Path) -> None:
    address = slide_links(client, "run")[0]
    page = elements(client, address)
    assert "fallback: 0 tiles, 0.1 s, 30 MB; its first <b>directory</b> is cut short" in page.text
    form = {str(one["name"]): str(one["value"]) for one in page.all("input", type="hidden")} | {"member": "demo"}
    scored = Elements(client.after(client.post("/slide/score", data=form)).text)
    assert len(scored.codes()) == 1
    assert str(root) not in scored.text


def run_id(client: Client, name: str) -> str:
    found = [str(one["href"]) for one in elements(client, "/runs").all("a")]
    keys = [one.partition("=")[2] for one in found if one.startswith("/runs/one?")]
    return next(key for key in keys if short(client, key) == name)


def test_a_run_is_planned_started_followed_and_reported(client: Client) -> None:
    page = elements(client, "/runs")
    options = [str(one["value"]) for one in page.all("option")]
    split = next(one for one in options if one != "demo" and short(client, one) == "split")
    form = {"split": split, "member": "demo", "name": "second"}
    planned = client.post("/runs/plan", data=form)
    plan = Elements(client.after(planned).text)
    assert plan.codes() == [Reason.DAMAGED]
    hidden = {str(one["name"]): str(one["value"]) for one in plan.all("input", type="hidden")}
    assert hidden == {"plan": client.job(planned).key}
    again = client.after(client.post("/runs/plan", data=form))  # before the run begins, it can be planned twice
    first, second = (client.post("/runs/start", data=hidden) for _ in range(2))
    assert first.url == second.url
    other = {"plan": again.url.rpartition("/")[2]}
    assert client.post("/runs/start", data=other).status_code == 400
    job = client.job(first)
    assert job.cause is None
    key = run_id(client, "second")
    shown = elements(client, f"/runs/one?run={key}")
    assert shown.all("div", id="run")[0]["data-live"] == "ended"
    report = client.get(str(shown.all("iframe")[0]["src"]))
    assert "sandbox allow-scripts;" in report.headers["content-security-policy"]
    assert Elements(report.text).all("section")
    assert client.post("/runs/plan", data=form).status_code == 400


def test_two_runs_are_compared_and_each_move_has_its_reason(client: Client, root: Path) -> None:
    make_runs(root)
    first, second = run_id(client, "before"), run_id(client, "after")
    page = elements(client, f"/runs/compare?first={first}&second={second}")
    assert page.codes() == [Change.STATE, Change.TILES, Change.MEMBERS, Change.PROBABILITIES]
    assert client.get(f"/runs/compare?first={first}&second={first}").status_code == 400


def make_runs(root: Path) -> None:
    """Write two runs: a patient loses its slide, another gets other numbers, the third one stays."""
    scoring = {"classes": ["CE", "LAA"], "submission": "submission.csv", "id": "patient_id", "columns": ["CE", "LAA"]}
    for name, values in {"before": (0.25, 0.5), "after": (0.5, 0.75)}.items():
        (root / name).mkdir()
        with ReportFile(root / name / REPORT) as file:
            lost = name == "after"
            done = {} if lost else {"m": [0.75, 0.25]}
            codes = [Reason.DAMAGED] if lost else []
            state: Any = "fallback" if lost else "done"
            file.add(SlideReport("a_0", "a", state, "", 0 if lost else 4, 1, 1, done, codes=list(map(str, codes))))
            file.add(SlideReport("b_0", "b", "done", "", 4, 1, 1, {"m": [1 - values[1], values[1]]}))
            file.add(SlideReport("c_0", "c", "done", "", 4, 1, 1, {"m": [0.5, 0.5]}))
        rows = {"a": values[0], "b": values[1], "c": 0.5}
        text = "patient_id,CE,LAA\n" + "".join(f"{one},{1 - p},{p}\n" for one, p in rows.items())
        (root / name / "submission.csv").write_text(text)
        (root / name / RUN).write_text(json.dumps({"scoring": scoring, "arguments": {"split": str(root / "split")}}))


def test_a_run_that_goes_on_is_followed(client: Client, root: Path) -> None:
    (root / "live").mkdir()
    with ReportFile(root / "live" / REPORT) as file:
        file.add(SlideReport("a", "a", "done", "", 4, 1.0, 40.0))
    facts = {"state": "running", "arguments": {"split": str(root / "split")}}
    (root / "live" / RUN).write_text(json.dumps(facts))
    key = run_id(client, "live")
    page = elements(client, f"/runs/one?run={key}")
    assert page.all("div", id="run")[0]["data-live"] == "running"
    assert (page.all("progress")[0]["value"], page.all("progress")[0]["max"]) == ("1", "3")
    (root / "live" / RUN).write_text(json.dumps(facts | {"state": "ended"}))
    assert elements(client, f"/runs/one?run={key}").all("div", id="run")[0]["data-live"] == "ended"


def test_a_run_that_was_killed_has_stopped_unless_a_process_holds_it(client: Client, root: Path) -> None:
    """The run's lock counts where this machine has one; elsewhere, that nothing was written for long."""
    folder = root / "killed"
    folder.mkdir()
    with ReportFile(folder / REPORT) as file:
        file.add(SlideReport("a", "a", "done", "", 4, 1.0, 40.0))
    (folder / RUN).write_text(json.dumps({"state": "running", "arguments": {"split": str(root / "split")}}))
    key, long_ago = run_id(client, "killed"), time.time() - 2 * QUIET_S
    os.utime(folder / REPORT, (long_ago, long_ago))
    page = elements(client, f"/runs/one?run={key}")
    assert (page.all("div", id="run")[0]["data-live"], page.codes()) == ("ended", ["stopped"])
    with exclusive_folder(folder, "clotkit run"):
        assert elements(client, f"/runs/one?run={key}").all("div", id="run")[0]["data-live"] == "running"
    shutil.rmtree(folder)


def test_a_run_json_above_its_limit_is_not_read(client: Client, root: Path) -> None:
    folder = root / "large"
    folder.mkdir()
    with ReportFile(folder / REPORT) as file:
        file.add(SlideReport("a", "a", "done", "", 4, 1.0, 40.0))
    (folder / RUN).write_text('{"state": "running"}' + " " * MOST_FACTS_MB * MB)
    page = elements(client, f"/runs/one?run={run_id(client, 'large')}")
    assert (page.all("div", id="run")[0]["data-live"], page.codes()) == ("ended", ["unknown"])
    shutil.rmtree(folder)


@pytest.mark.parametrize("content", ['{"state": "ended", "arg', "", "[" * 100_000, None])
def test_a_run_without_sound_facts_keeps_its_page_and_its_frame(
    content: str | None, client: Client, root: Path
) -> None:
    """The frame of the run's page shows the report, or why there is none."""
    folder = root / "unsound"
    folder.mkdir()
    with ReportFile(folder / REPORT) as file:
        file.add(SlideReport("a", "a", "done", "", 4, 1.0, 40.0))
    (folder / "submission.csv").write_text("patient_id,CE,LAA\na,0.5,0.5\n")
    if content is not None:
        (folder / RUN).write_text(content)
    key = run_id(client, "unsound")
    page = elements(client, f"/runs/one?run={key}")
    assert page.all("div", id="run")[0]["data-live"] == "ended"
    assert "done 1" in page.text
    report = client.get(str(page.all("iframe")[0]["src"]))
    assert report.status_code == (200 if content is None else 422)
    assert len(Elements(report.text).codes()) == (0 if content is None else 1)
    assert_framed(report)
    line = client.get(f"/runs/report?run={key}", headers={"Accept": "application/json"})
    assert line.headers["x-frame-options"] == ("SAMEORIGIN" if content is None else "DENY")
    shutil.rmtree(folder)


def assert_framed(report: requests.Response) -> None:
    """Check that pages of the application may show an answer in a frame, where it may do nothing."""
    assert report.headers["x-frame-options"] == "SAMEORIGIN"
    assert report.headers["cross-origin-opener-policy"] == "unsafe-none"
    policy = report.headers["content-security-policy"].split("; ")
    assert {"frame-ancestors 'self'", "sandbox allow-scripts", "default-src 'none'"} <= set(policy)


def test_a_run_of_another_competition_or_with_a_damaged_split_is_followed(client: Client, root: Path) -> None:
    other, folder = load_competition("ubc_ocean"), root / "live-other"
    split = root / "other"
    write_split(split, "test", 2, 3, other, size="640x640", log=lambda _: None)
    folder.mkdir()
    with ReportFile(folder / REPORT) as file:
        file.add(SlideReport("a", "a", "done", "", 4, 1.0, 40.0))
    facts = {"state": "running", "competition": other.slug, "arguments": {"split": str(split)}}
    (folder / RUN).write_text(json.dumps(facts))
    key = id_of(folder, client.app.state.shared.roots)
    bar = elements(client, f"/runs/one?run={key}").all("progress")[0]
    assert (bar["value"], bar["max"]) == ("1", "2")
    other.table_path(split, "test").write_text("damaged\n")
    bar = elements(client, f"/runs/one?run={key}").all("progress")[0]
    assert (bar["value"], bar["max"]) == ("1", "1")
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "split", "x" * 65, "a\nb"])
def test_a_run_is_not_started_where_something_is_or_outside(name: str, client: Client) -> None:
    options = [str(one["value"]) for one in elements(client, "/runs").all("option")]
    split = next(one for one in options if one != "demo" and short(client, one) == "split")
    for path in ("/runs/plan", "/runs/start"):
        assert client.post(path, data={"split": split, "member": "demo", "name": name}).status_code == 400


def test_a_competition_is_drafted_checked_and_downloaded(client: Client) -> None:
    options = [str(one["value"]) for one in elements(client, "/competition").all("option")]
    folder = next(one for one in options if short(client, one) == "split")
    drafted = Elements(client.post("/competition", data={"folder": folder, "action": "draft"}).text)
    assert drafted.all("textarea")
    text = 'slug = "none"\n'
    wrong = client.post("/competition", data={"folder": folder, "text": text, "action": "check"})
    assert len(Elements(wrong.text).codes()) == 1
    source = client.app.state.shared.competition.source.read_text()
    checked = Elements(client.post("/competition", data={"folder": folder, "text": source, "action": "check"}).text)
    assert checked.all("p", role="status")
    file = client.post("/competition", data={"folder": folder, "text": text, "action": "download"})
    assert file.text == text


def test_a_submission_is_checked_and_compared(client: Client, strip_ai: Competition) -> None:
    given, bad = table(strip_ai, ROWS), table(strip_ai, ROWS | {"0a1b2c": (float("nan"), 1.0)})
    wrong = Elements(client.post("/submission", files={"submission": ("bad.csv", bad)}).text)
    assert "bad.csv: 1 problem" in wrong.text
    assert len(wrong.codes()) == 1
    other = table(strip_ai, ROWS | {"0a1b2c": (0.75, 0.25)})
    files = {"submission": ("mine.csv", given), "sample": ("sample.csv", given), "other": ("other.csv", other)}
    page = Elements(client.post("/submission", files=files).text)
    assert "mine.csv: valid, 3 patients" in page.text
    assert "CE, other file" in page.text
    assert not page.codes()


def test_a_training_is_shown_with_its_plots(client: Client) -> None:
    page = elements(client, "/training?member=double_contour")
    accuracy = json.loads((ROOT / "weights" / "double_contour" / "metrics.json").read_text())["accuracy"]
    assert f"{accuracy:.4f}" in page.text
    assert len(page.all("img")) == 4
    for one in page.all("img"):
        assert client.get(str(one["src"])).content.startswith(b"\x89PNG")


def test_the_worst_errors_of_slides_open_in_the_viewer(
    client: Client, root: Path, slides: list[Path], strip_ai: Competition
) -> None:
    worst = [row["image"] for row in client.app.state.shared.training("demo").worst]
    (root / "worst" / "train").mkdir(parents=True)
    for image in worst:
        shutil.copyfile(slides[0], root / "worst" / "train" / f"{image}.tif")
    rows = [
        "image_id,center_id,patient_id,image_num,label",
        *(f"{image},1,{image[:6]},{image[7:]},CE" for image in worst),
    ]
    strip_ai.table_path(root / "worst", "train").write_text("\n".join(rows) + "\n")
    views = [str(one["href"]) for one in elements(client, "/training?member=demo").all("a")]
    views = [one for one in views if one.startswith("/view/")]
    assert len(views) == len(worst) > 0
    assert client.get(views[0]).status_code == 200


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_name_or_file_is_text_on_its_page(name: str, client: Client) -> None:
    files: list[Any] = [("files", (name, HOSTILE[name][0]))]
    page = Elements(client.after(client.post("/classify", data={"member": "double_contour"}, files=files)).text)
    assert page.codes() == [Reason.DAMAGED]


def test_a_card_is_text_with_few_marks_and_fetches_nothing() -> None:
    page = Elements(
        str(card("# A <b>\n\n![x](http://evil.example/x.png) **bold** `<i>`\n\n| a | b |\n|---|---|\n| 1 | <u> |"))
    )
    assert [tag for tag, _ in page.found] == [
        "h3",
        "p",
        "strong",
        "code",
        "div",
        "table",
        "thead",
        "tr",
        "th",
        "th",
        "tbody",
        "tr",
        "td",
        "td",
    ]


@pytest.mark.parametrize("text", ["|---|", "|", "", "# ", "**"])
def test_a_card_that_is_hardly_one_is_drawn(text: str) -> None:
    assert "<script" not in card(text)


def test_the_verb_prints_an_address_that_opens_the_application_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["app", "--port", str(port), "--root", str(tmp_path), "--weights", str(WEIGHTS)]
    with subprocess.Popen(
        [sys.executable, "-m", "clotkit.cli", *words], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        url = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        with requests.Session() as visitor:
            assert visitor.get(f"http://127.0.0.1:{port}/").status_code == 403
            assert visitor.get(url).status_code == 200
            assert "Not for clinical use" in visitor.get(f"http://127.0.0.1:{port}/").text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in {0, 130}


@pytest.mark.parametrize("port", [0, 80, 70_000, -1])
def test_a_port_out_of_bounds_is_an_error(port: int) -> None:
    with pytest.raises(UsageError, match=str(port)):
        serve(AppSettings(WEIGHTS, (), "strip_ai", port))


def test_a_port_in_use_is_an_error(client: Client) -> None:
    port = int(client.base.rpartition(":")[2])
    with pytest.raises(UsageError, match=str(port)):
        serve(AppSettings(WEIGHTS, (), "strip_ai", port))


def test_wrong_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        build_app(AppSettings(tmp_path, (), "strip_ai"))
    with pytest.raises(UsageError, match="--root"):
        build_app(AppSettings(WEIGHTS, (tmp_path / "none",), "strip_ai"))
