"""The application in headless Chromium, against a real server on loopback: make test-browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from clotkit.app.samples import samples_for
from clotkit.competitions import Competition
from clotkit.report.records import REPORT, RUN, ReportFile, SlideReport
from clotkit.synthetic.phantom import write_split

from ..conftest import ROOT
from ..test_app import HOSTILE, ROWS, bomb, png, table

pytestmark = pytest.mark.browser
pytest.importorskip("streamlit", reason="streamlit is not installed: make test-browser installs it")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser installs it")

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGES = {"": "Classify", "slides": "Slides", "submission": "Submission", "training": "Training"}
WIDTHS = {"phone": (375, 812), "desk": (1440, 900)}
SHOTS = ROOT / "build" / "screenshots"
WAIT_MS = 60_000  # for an answer; the first one imports TensorFlow, slowly on few cores
READY = '[data-testid="stApp"][data-test-script-state="notRunning"]'


@pytest.fixture(scope="module")
def root(strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a split of three synthetic slides, one of them damaged, and a run over it."""
    folder = tmp_path_factory.mktemp("root")
    split = folder / "split"
    write_split(split, "test", 3, 5, strip_ai, size="3072x4096", log=lambda _: None)
    paths = sorted((split / "test").glob("*.tif"))
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    (folder / "run").mkdir()
    with ReportFile(folder / "run" / REPORT) as file:
        file.add(SlideReport(paths[0].stem, "a", "done", "", 6, 0.4, 41.0))
        file.add(SlideReport(paths[1].stem, "b", "fallback", "its first <b>directory</b> is cut short", 0, 0.1, 30.0))
    (folder / "run" / RUN).write_text(f'{{"arguments": {{"split": "{split}"}}}}')
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server that runs until the last test of this file, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "clotkit.cli", "app", "--port", str(port), "--root", str(root)]
    command += ["--weights", str(ROOT / "weights")]
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {"HOME": str(home)}
    with subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = []
            for line in process.stdout:  # until it listens, or has ended
                printed.append(line)
                if "URL" in line:
                    break
            assert f"http://127.0.0.1:{port}" in printed[-1], printed
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a browser with an empty profile."""
    if CHROMIUM is None:
        pytest.skip("no chromium here; install it (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(profile, executable_path=CHROMIUM, args=ARGUMENTS)
        context.set_default_timeout(WAIT_MS)
        yield context
        context.close()


@pytest.fixture
def page(context: Any) -> Iterator[Any]:
    """Open a page that may request nothing but loopback, and whose scripts may not fail."""
    page, asked, failed = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket_: asked.append(socket_.url))
    page.on("pageerror", lambda error: failed.append(str(error)))

    def dismissed(dialog: Any) -> None:
        failed.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismissed)
    yield page
    page.close()
    outside = [url for url in asked if urlsplit(url).hostname not in {"127.0.0.1", None}]
    assert asked
    assert not outside
    assert not failed


def opened(page: Any, server: str, path: str, width: str = "desk") -> None:
    """Go to a page and wait until it is drawn."""
    page.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    page.goto(f"{server}/{path}")
    page.get_by_role("heading", name=PAGES[path], exact=True).wait_for()
    page.locator(READY).wait_for()


def screenshot(page: Any, name: str) -> None:
    """Save a screenshot, a build artefact."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.locator(READY).wait_for()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    page.screenshot(path=SHOTS / f"{name}.png")


def files_of(uploads: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in uploads.items()]


def upload(page: Any, place: int, name: str, data: bytes) -> None:
    """Upload a file to one of several upload fields and wait until it is listed.

    A page that is drawn again at that instant loses the file, so it is given once more.
    """
    listed = page.get_by_text(name, exact=True).first
    for _ in range(2):
        page.locator('input[type="file"]').nth(place).set_input_files(files_of({name: data}))
        with suppress(api.TimeoutError):
            listed.wait_for(timeout=20_000)
            break
    listed.wait_for()
    page.locator(READY).wait_for()


def choose(page: Any, label: str, option: str) -> None:
    """Choose an option with the keyboard alone."""
    box = page.get_by_label(label, exact=True).first
    box.focus()
    page.keyboard.type(option)
    page.get_by_role("option", name=option, exact=True).wait_for()
    page.keyboard.press("Enter")
    page.locator(READY).wait_for()


def test_pictures_are_answered_and_a_bad_file_gets_its_line(page: Any, server: str, strip_ai: Competition) -> None:
    opened(page, server, "")
    drawn = samples_for("double_contour", "folders", strip_ai)
    uploads = {
        "contour.png": drawn["drawn contour, yes"],
        "archive.png": HOSTILE["archive.png"][0],
        "![x](http://evil.example/x.png)<img src=http://evil.example/y onerror=alert(1)>.png": png(192, 192),
    }
    page.locator('input[type="file"]').set_input_files(files_of(uploads))
    page.get_by_text("2 classified, 1 refused").wait_for()
    page.get_by_text("the file is a zip archive").wait_for()
    api.expect(page.get_by_text("Answer: yes")).to_have_count(1)
    api.expect(page.get_by_text("![x](http://evil.example/x.png)<img", exact=False).last).to_be_visible()
    api.expect(page.get_by_role("progressbar")).to_have_count(4)
    assert page.locator('img[src*="evil"]').count() == 0
    screenshot(page, "classify-uploads")


def test_a_sample_is_answered(page: Any, server: str) -> None:
    opened(page, server, "")
    page.get_by_label("drawn contour, yes").check(force=True)
    page.get_by_text("1 classified, 0 refused").wait_for()
    api.expect(page.get_by_text("Answer: yes")).to_be_visible()
    page.get_by_text("Heat map on the tile").scroll_into_view_if_needed()
    screenshot(page, "classify-sample")
    page.get_by_text("Model card").click()
    api.expect(page.get_by_role("heading", name="Limits")).to_be_visible()


def test_twenty_uploads_at_once_one_a_bomb(page: Any, server: str) -> None:
    opened(page, server, "")
    uploads = {f"{number}.png": png(96 + number, 96) for number in range(19)} | {"bomb.png": bomb(50_000)}
    page.locator('input[type="file"]').set_input_files(files_of(uploads))
    page.get_by_text("19 classified, 1 refused").wait_for()
    page.get_by_text("50,000 x 50,000 px").wait_for()


def test_slides_are_listed_seen_near_and_scored(page: Any, server: str) -> None:
    opened(page, server, "slides")
    page.get_by_text("3 slides, 1 of them partial or fallback").wait_for()
    page.get_by_role("cell", name="its first <b>directory</b> is cut short", exact=True).wait_for()
    page.get_by_text("fallback: 0 tiles, 0.1 s, 30 MB; its first <b>directory</b> is cut short").wait_for()
    choose(page, "Slide", page_option(page, "(done)"))
    page.get_by_text(re.compile(r"1 : \d+, from 0, 0 of")).wait_for()
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    page.get_by_text(re.compile(r"^1 : 1, from")).wait_for()
    page.get_by_role("button", name="Right").press("Enter")
    page.get_by_text(re.compile(r"^1 : 1, from")).wait_for()
    page.locator(READY).wait_for()
    screenshot(page, "slides-view")
    page.get_by_role("tab", name="Score").click()
    page.get_by_role("button", name="Score this slide").click()
    page.get_by_text(re.compile("Answer: (CE|LAA), from")).wait_for()
    page.get_by_text("Probability of LAA for each tile").scroll_into_view_if_needed()
    screenshot(page, "slides-score")
    page.get_by_role("tab", name="Tissue and tiles").click()
    page.get_by_text("Find tissue and tiles").click()
    page.get_by_text(re.compile(r"\d+ tiles in blue")).wait_for()
    page.get_by_text(re.compile(r"\d+ tiles in blue")).scroll_into_view_if_needed()
    screenshot(page, "slides-tissue")


def page_option(page: Any, ending: str) -> str:
    """Return the whole text of the option of the list of slides that ends so."""
    box = page.get_by_label("Slide", exact=True).first
    box.click()
    option = page.get_by_role("option").filter(has_text=ending).first
    text: str = option.inner_text()
    page.keyboard.press("Escape")
    return text


def test_a_submission_is_checked(page: Any, server: str, strip_ai: Competition) -> None:
    opened(page, server, "submission")
    given, bad = table(strip_ai, ROWS), table(strip_ai, ROWS | {"0a1b2c": (float("nan"), 1.0)})
    upload(page, 0, "bad.csv", bad)
    page.get_by_text("bad.csv: 1 problem").wait_for()
    page.get_by_text("row 2: CE is NaN").wait_for()
    opened(page, server, "submission")
    upload(page, 1, "sample.csv", given)
    upload(page, 2, "other.csv", table(strip_ai, ROWS | {"0a1b2c": (0.75, 0.25)}))
    upload(page, 0, "mine.csv", given)
    page.get_by_text("mine.csv: valid, 3 patients").wait_for()
    page.get_by_text("probabilities differ by").wait_for()
    page.get_by_role("columnheader", name="CE, other file").wait_for()
    screenshot(page, "submission")


def test_a_training_is_shown(page: Any, server: str) -> None:
    opened(page, server, "training")
    page.get_by_text("the largest errors").wait_for()
    api.expect(page.get_by_role("cell", name="0.9508")).to_be_visible()
    page.get_by_role("columnheader", name="log loss").wait_for()
    page.get_by_role("heading", name="Curves").scroll_into_view_if_needed()
    screenshot(page, "training")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_readable_and_says_that_it_is_not_for_clinical_use(
    path: str, width: str, page: Any, server: str
) -> None:
    opened(page, server, path, width)
    api.expect(page.get_by_text("Not for clinical use.", exact=True).first).to_be_visible()
    wide = page.evaluate(
        "[document.documentElement, document.querySelector('[data-testid=stMain]')]"
        ".map(one => one.scrollWidth - one.clientWidth)"
    )
    assert max(wide) <= 0, "the page is wider than the window"
    screenshot(page, f"{PAGES[path].lower()}-{width}")


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_is_used_has_a_name_and_is_reached_by_keyboard(path: str, page: Any, server: str) -> None:
    opened(page, server, path)
    main = page.get_by_test_id("stMain")
    used = main.locator("button:visible, input:visible, [role=slider]:visible, [role=combobox]:visible")
    used.first.wait_for()
    page.locator(READY).wait_for()
    wanted = used.all()
    names = [one.evaluate(NAME_OF) for one in wanted]
    assert names
    assert all(names), names
    for number, one in enumerate(wanted):
        one.evaluate("(one, number) => { one.dataset.number = number }", str(number))
    reached = set[str | None]()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.dataset.number"))
    unreached = [one for number, one in enumerate(wanted) if str(number) not in reached]
    assert not [one.evaluate("one => one.outerHTML") for one in unreached if one.get_attribute("tabindex") != "-1"]


NAME_OF = """one => one.getAttribute('aria-label') || one.innerText || one.title
    || [...(one.labels || [])].map(label => label.innerText).join(' ')
    || (one.getAttribute('aria-labelledby') || '').split(' ')
        .map(id => (document.getElementById(id) || {}).innerText || '').join(' ').trim()"""
