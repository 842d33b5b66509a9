"""The pages of the application in headless Chromium, against a server on loopback: make test-browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clotkit.app.deepzoom.ids import id_of
from clotkit.app.samples import samples_for
from clotkit.app.web.jobs import AT_ONCE, Job, Kind
from clotkit.app.web.server import BODIES
from clotkit.competitions import Competition
from clotkit.reasons import Reason, Refusal
from clotkit.report.records import REPORT, RUN, ReportFile, SlideReport
from clotkit.units import MB

from ..app_pages import Client, make_root, serving
from ..conftest import ROOT
from ..test_app import HOSTILE, ROWS, bomb, png, table
from ..test_app_pages import PAGES, make_runs
from .axe import AXE, SERIOUS

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser installs it")

WIDTHS = {"phone": (375, 812), "desk": (1440, 900)}
WAIT_MS = 120_000  # for work on a busy machine
SHOTS = ROOT / "build" / "screenshots"
NUMBERED = """all => all.filter(one => one.checkVisibility())
    .map((one, at) => { one.dataset.at = at }).length"""
FOCUSED = "one => one === document.activeElement"
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def root(strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a split, a run over it, and two runs to compare."""
    folder = make_root(tmp_path_factory.mktemp("root"), strip_ai)
    make_runs(folder)
    return folder


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[Client]:
    """Serve the kit's members and that folder."""
    with serving(ROOT / "weights", (root,)) as visitor:
        yield visitor


def opened(page: Any, client: Client, path: str, width: str = "desk") -> None:
    """Go to a page as the printed address does, and wait until nothing on it goes on."""
    begun(page, client, path, width)
    settled(page)


def begun(page: Any, client: Client, path: str, width: str = "desk") -> None:
    """Go to a page as the printed address does; what goes on there may go on."""
    page.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    page.goto(f"{client.base}{path}{'&' if '?' in path else '?'}token={client.door.token}")
    page.locator("main h1").wait_for()  # the printed address shows another page first


def settled(page: Any) -> None:
    """Wait until nothing on a page goes on, and its pictures are there."""
    api.expect(page.locator('[data-live="running"]')).to_have_count(0, timeout=WAIT_MS)
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")


def checked(page: Any, name: str) -> None:
    """Check that a page is as wide as the window and that axe finds nothing serious; keep a screenshot."""
    assert page.evaluate(WIDER) <= 0
    page.evaluate(AXE)
    assert page.evaluate(SERIOUS) == []
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def chosen(page: Any, label: str, ending: str) -> None:
    """Choose the option whose text ends so."""
    box = page.get_by_label(label, exact=True)
    names = [text.strip() for text in box.locator("option").all_inner_texts()]
    box.select_option(label=next(name for name in names if name.endswith(ending)))


def files_of(uploads: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in uploads.items()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
def test_every_page_fits_and_has_no_serious_fault(
    path: str, width: str, scheme: str, page: Any, client: Client
) -> None:
    page.emulate_media(color_scheme=scheme)
    opened(page, client, path, width)
    checked(page, f"{path.strip('/') or 'home'}-{width}-{scheme}")


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_is_used_is_reached_by_keyboard(path: str, page: Any, client: Client) -> None:
    opened(page, client, path)
    used = "a[href], button, input:not([type=hidden]), select, summary, textarea"
    count = page.locator(used).evaluate_all(NUMBERED)
    reached = set[str | None]()
    for _ in range(2 * count + 10):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.dataset.at"))
    assert {str(at) for at in range(count)} <= reached


def test_the_next_things_of_home_are_one_key_away(page: Any, client: Client) -> None:
    opened(page, client, "/")
    assert page.locator(".next a").count() == 3
    page.locator(".next a").first.focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Classify", exact=True).wait_for()


def test_the_theme_is_chosen_and_kept(page: Any, client: Client) -> None:
    page.emulate_media(color_scheme="light")
    opened(page, client, "/")
    colour = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name="Theme").press("Enter")
    dark = page.evaluate(colour)
    assert dark != light
    opened(page, client, "/training")
    assert page.evaluate(colour) == dark
    page.evaluate("() => localStorage.clear()")


def answered(page: Any, text: str) -> None:
    """Wait until a batch has an outcome; a failure prints the one that is there."""
    api.expect(page.locator("#answers").get_by_role("status")).to_have_text(text, timeout=WAIT_MS)


def test_three_files_are_answered_and_the_bad_one_gets_its_line(
    page: Any, client: Client, strip_ai: Competition, tmp_path: Path
) -> None:
    opened(page, client, "/classify?member=double_contour")
    drawn = samples_for("double_contour", "folders", strip_ai)
    name = "![x](http://evil.example/x.png)<img src=http://evil.example/y onerror=alert(1)>.png"
    uploads = {"contour.png": drawn["drawn contour, yes"], "archive.png": HOSTILE["archive.png"][0], name: png(192, 99)}
    page.locator('input[type="file"]').set_input_files(files_of(uploads))
    page.get_by_role("button", name="Classify").press("Enter")
    answered(page, "2 classified, 1 refused")
    settled(page)
    assert page.locator("[data-code=damaged]").count() == 1
    assert page.locator('img[src*="evil"]').count() == 0
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    download.value.save_as(tmp_path / "answers.csv")
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 4
    checked(page, "classify-uploads")


def test_a_sample_is_answered_at_first_sight(page: Any, client: Client) -> None:
    opened(page, client, "/classify")
    api.expect(page.locator("#worked article")).to_be_visible()
    checked(page, "classify-sample")
    page.get_by_text("Model card").click()
    api.expect(page.get_by_role("heading", name="Limits")).to_be_visible()


def test_twenty_uploads_at_once_one_a_bomb(page: Any, client: Client) -> None:
    opened(page, client, "/classify?member=double_contour")
    uploads = {f"{number}.png": png(96 + number, 96) for number in range(19)} | {"bomb.png": bomb(50_000)}
    page.locator('input[type="file"]').set_input_files(files_of(uploads))
    page.get_by_role("button", name="Classify").click()
    answered(page, "19 classified, 1 refused")


def test_slides_are_listed_seen_and_scored(page: Any, client: Client) -> None:
    opened(page, client, "/slides")
    chosen(page, "Split or run", "/run")
    page.get_by_role("button", name="Open").press("Enter")
    page.get_by_text("3 slides, 1 of them partial or fallback").wait_for()
    row = page.get_by_role("row").filter(has_text="done")
    row.get_by_role("link").last.click()
    page.locator(".pane").first.wait_for()
    page.go_back()
    row.get_by_role("link").first.click()
    page.get_by_role("button", name="Score this slide").press("Enter")
    page.get_by_text("Answer:").wait_for()
    settled(page)
    checked(page, "slides-score")
    page.go_back()
    page.get_by_role("button", name="Find tissue and tiles").click()
    page.locator('img[src^="/slide/tissue"]').wait_for()
    settled(page)
    checked(page, "slides-tissue")


def test_a_run_is_planned_started_followed_and_compared(page: Any, client: Client) -> None:
    opened(page, client, "/runs")
    chosen(page, "Split", "/split")
    page.get_by_label("Name of the new folder").fill("from-the-page")
    page.get_by_role("button", name="Plan it").press("Enter")
    page.get_by_role("button", name="Start this run").wait_for()
    checked(page, "runs-plan")
    page.get_by_role("button", name="Start this run").press("Enter")
    page.frame_locator("iframe.report").get_by_role("heading", name="Verdict").wait_for()
    checked(page, "runs-report")
    opened(page, client, "/runs")
    chosen(page, "Before", "/before")
    chosen(page, "After", "/after")
    page.get_by_role("button", name="Compare").press("Enter")
    page.locator("[data-code=state]").wait_for()  # of one patient alone
    checked(page, "runs-compared")


def test_a_submission_is_checked(page: Any, client: Client, strip_ai: Competition) -> None:
    opened(page, client, "/submission")
    given, other = table(strip_ai, ROWS), table(strip_ai, ROWS | {"0a1b2c": (0.75, 0.25)})
    for field, data in (("submission", given), ("sample", given), ("other", other)):
        page.locator(f"#{field}").set_input_files(files_of({f"{field}.csv": data}))
    page.get_by_role("button", name="Check", exact=True).press("Enter")
    page.get_by_text("submission.csv: valid, 3 patients").wait_for()
    page.get_by_role("columnheader", name="CE, other file").wait_for()
    checked(page, "submission")


def test_a_competition_is_drafted(page: Any, client: Client) -> None:
    opened(page, client, "/competition")
    chosen(page, "Data folder", "/split")
    page.get_by_role("button", name="Draft it").press("Enter")
    page.get_by_label("TOML").wait_for()
    page.get_by_role("button", name="Check against the data").press("Enter")
    page.get_by_role("status").first.wait_for()
    checked(page, "competition-drafted")


@pytest.fixture
def held(client: Client) -> Iterator[list[Job]]:
    """Start as many short jobs as may run at once; they wait until the end of the test."""
    jobs = client.app.state.shared.jobs
    held = [jobs.start(Kind.PLAN, "work", wait, {}) for _ in range(AT_ONCE)]
    yield held
    for job in held:
        job.stop.set()
        assert job.over.wait(60)


def refused(page: Any, code: str) -> Any:
    """Press Classify, check that the form says why it is refused and keeps the focus, and return the line."""
    button = page.get_by_role("button", name="Classify")
    button.press("Enter")
    line = page.locator("form [role=status] [data-code]")
    api.expect(line).to_have_attribute("data-code", code)
    assert line.inner_text().strip()
    assert button.evaluate(FOCUSED)
    return line


def test_a_form_with_nothing_chosen_says_so_and_then_takes_a_file(page: Any, client: Client) -> None:
    opened(page, client, "/classify?member=double_contour")
    for width in WIDTHS.values():
        page.set_viewport_size(dict(zip(("width", "height"), width, strict=True)))
        refused(page, Reason.FAILED)
        checked(page, f"classify-refused-{width[0]}")
    page.locator('input[type="file"]').set_input_files(files_of({"a.png": png(96, 96)}))
    page.get_by_role("button", name="Classify").press("Enter")
    page.get_by_text("1 classified, 0 refused").wait_for()


def test_a_form_says_that_too_much_work_goes_on(page: Any, client: Client, held: list[Job]) -> None:
    opened(page, client, "/classify?member=double_contour")
    page.locator('input[type="file"]').set_input_files(files_of({"a.png": png(96, 96)}))
    assert str(len(held)) in refused(page, Reason.FAILED).inner_text()


def test_a_form_says_why_the_door_refuses_it(page: Any, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(page, client, "/classify?member=double_contour")
    page.locator('input[type="file"]').set_input_files(files_of({"a.png": bytes(MB // 2)}))
    with monkeypatch.context() as changed:
        changed.setitem(BODIES, "/classify", MB // 8)
        refused(page, Refusal.TOO_LARGE)
    page.context.clear_cookies()
    refused(page, Refusal.TOKEN)
    page.route("**/classify", lambda route: route.fulfill(status=502, body="<p>Bad gateway</p>"))
    assert "502" in refused(page, Refusal.FAILED).inner_text()
    page.route("**/classify", lambda route: route.abort())
    refused(page, "no_answer")


def wait(job: Job) -> None:
    """Work until the job is stopped, without a result."""
    job.stop.wait()


class Going:
    """A run that goes on, started here; its slides are reported one by one."""

    def __init__(self, root: Path, client: Client, name: str) -> None:
        """Begin the run."""
        self.folder, self.root = root / name, root
        self.folder.mkdir()
        self.file = ReportFile(self.folder / REPORT)
        self.done = 0
        self.state("running")
        about = {"out": str(self.folder), "plan": ""}
        self.job = client.app.state.shared.jobs.start(Kind.RUN, name, wait, about)
        self.path = f"/runs/one?run={id_of(self.folder, client.app.state.shared.roots)}"

    def state(self, state: str) -> None:
        """Write the state of the run."""
        facts = {"state": state, "arguments": {"split": str(self.root / "split")}}
        (self.folder / RUN).write_text(json.dumps(facts))

    def add(self) -> str:
        """Report a slide, and return what the page says then."""
        self.done += 1
        self.file.add(SlideReport(f"slide-{self.done}-{'long' * 40}", "a", "done", "", 4, 1.0, 40.0))
        return f"{self.done} of 3 slides"

    def end(self) -> None:
        """End the run."""
        self.state("ended")
        self.file.close()
        self.job.stop.set()
        assert self.job.over.wait(60)


@pytest.fixture
def going(request: pytest.FixtureRequest, root: Path, client: Client) -> Iterator[Going]:
    """Start a run that goes on until the end of the test."""
    run = Going(root, client, f"going-{request.node.name[-20:].strip('[]')}")
    yield run
    run.end()


def test_a_page_that_follows_a_run_keeps_focus_scroll_and_status(page: Any, client: Client, going: Going) -> None:
    begun(page, client, going.path, "phone")
    status, button = page.get_by_role("status"), page.get_by_role("button", name="End the run")
    first, pressed = status.element_handle(), button.element_handle()
    button.focus()
    api.expect(status).to_have_text(going.add())
    region = page.get_by_role("region", name="Newest slides")
    region.evaluate("one => { one.scrollLeft = 60 }")
    checked(page, "run-followed")
    api.expect(status).to_have_text(going.add())
    api.expect(region.get_by_role("row")).to_have_count(3)
    assert page.get_by_role("progressbar").get_attribute("value") == "2"
    assert region.evaluate("one => one.scrollLeft") == 60
    assert pressed.evaluate(FOCUSED)
    region.focus()
    api.expect(status).to_have_text(going.add())
    assert region.evaluate(FOCUSED)
    button.focus()
    going.end()
    page.locator("iframe.report").wait_for()
    assert first.evaluate(FOCUSED)
    assert first.evaluate("one => one === document.querySelector('[role=status]')")
    checked(page, "run-followed-to-its-end")


def test_a_page_whose_server_does_not_answer_says_so_and_goes_on_when_it_does(
    page: Any, client: Client, going: Going
) -> None:
    begun(page, client, going.path)
    line = page.get_by_role("alert")
    api.expect(line).to_have_count(0)
    page.route("**/runs/one**", lambda route: route.abort())
    api.expect(line).to_have_attribute("data-code", "no_answer")
    checked(page, "run-unanswered")
    page.unroute("**/runs/one**")
    page.context.clear_cookies()
    api.expect(line).to_have_attribute("data-code", Refusal.TOKEN)
    entered = page.context.new_page()
    begun(entered, client, "/runs")
    entered.close()
    api.expect(page.get_by_role("status")).to_have_text(going.add())
    api.expect(line).to_have_count(0)


def test_a_page_that_watches_a_folder_keeps_the_focus(page: Any, client: Client, root: Path) -> None:
    (root / "incoming").mkdir()
    opened(page, client, "/classify?member=double_contour")
    page.get_by_text("Watch a folder").click()
    page.get_by_label("Folder below --root").fill("incoming")
    page.get_by_role("button", name="Watch").press("Enter")
    status, button = page.get_by_role("status"), page.get_by_role("button", name="Stop watching")
    button.focus()
    api.expect(status).to_contain_text("0 pictures", timeout=WAIT_MS)
    for number in (1, 2):
        (root / "incoming" / f"{number}.png").write_bytes(png(96 + number, 96))
        api.expect(page.get_by_role("region", name="Answers").get_by_role("row")).to_have_count(1 + number)
        assert button.evaluate(FOCUSED)
    page.set_viewport_size(dict(zip(("width", "height"), WIDTHS["phone"], strict=True)))
    checked(page, "watch")
    button.press("Enter")
    settled(page)
    api.expect(button).to_have_count(0)


@pytest.mark.parametrize(
    ("path", "label", "button"),
    [("/classify", "Classifier", "Choose"), ("/slides", "Split or run", "Open"), ("/training", "Member", "Choose")],
)
def test_a_list_is_gone_through_by_its_keys_and_the_button_opens(
    path: str, label: str, button: str, page: Any, client: Client
) -> None:
    opened(page, client, path)
    box, address = page.get_by_label(label, exact=True), page.url
    values = box.locator("option").evaluate_all("all => all.map(one => one.value)")
    box.focus()
    for value in values[1:4]:
        page.keyboard.press("ArrowDown")
        api.expect(box).to_have_value(value)
        assert page.url == address
        assert box.evaluate(FOCUSED)
    page.keyboard.press("Tab")
    assert page.get_by_role("button", name=button).evaluate(FOCUSED)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    api.expect(page.get_by_label(label, exact=True)).to_have_value(values[3])


def test_files_go_to_the_classifier_that_is_shown(page: Any, client: Client) -> None:
    opened(page, client, "/classify?member=double_contour")
    page.get_by_label("Classifier", exact=True).select_option("breastmnist")
    assert all(one.is_disabled() for one in page.get_by_role("checkbox").all())
    page.locator('input[type="file"]').set_input_files(files_of({"a.png": png(96, 96)}))
    page.get_by_role("button", name="Classify").press("Enter")
    page.get_by_text("1 classified, 0 refused").wait_for()
    job = client.app.state.shared.jobs.find(page.url.rpartition("/")[2])
    assert job.about["member"] == "breastmnist"
