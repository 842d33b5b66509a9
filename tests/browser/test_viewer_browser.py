"""The viewer page in headless Chromium: move, zoom, overlays, two slides, errors."""

import base64
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.pyramids import save_pyramid
from clotkit.app.deepzoom.ids import id_of
from clotkit.app.security import TOKEN
from clotkit.competitions import Competition
from clotkit.synthetic.phantom import write_split

from ..app_server import AppServer, app_server
from ..conftest import ROOT
from ..test_deepzoom import write_run
from .axe import AXE, SERIOUS

pytestmark = pytest.mark.browser
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser installs it")

WIDTHS = {"phone": (375, 812), "desk": (1440, 900)}
SHOTS = ROOT / "build" / "screenshots"
NAMES = ("large.tif", "pyramid.svs", "broken.tif", "a <b> &amp; name.tif")


@pytest.fixture(scope="module")
def server(strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """Serve a slide without levels, the same one with levels and a scale, a damaged one, and a run."""
    root, drawn = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("drawn")
    write_split(drawn, "test", 1, 5, strip_ai, size="6144x5120", log=lambda _: None)
    (source,) = (drawn / "test").glob("*.tif")
    slides = root / "split" / "slides"
    slides.mkdir(parents=True)
    for name in ("large.tif", "a <b> &amp; name.tif"):
        (slides / name).write_bytes(source.read_bytes())
    save_pyramid(source, slides / "pyramid.svs", "svs", False)
    (slides / "broken.tif").write_bytes(source.read_bytes()[:3000])
    write_largest(slides / "largest.tif")
    write_run(root / "run", slides / "large.tif", strip_ai)
    with app_server([root], strip_ai) as server:
        yield server


def write_largest(path: Path) -> None:
    """Write a slide as large as the largest of STRIP AI; tiles off its middle are absent."""
    width, height, side = 48_284, 101_408, 512
    columns, rows = -(-width // side), -(-height // side)
    bits, near, places = 8, 12, {}  # 8: of the samples' sizes, with the tiles of each row behind them
    data = struct.pack("<3H", 8, 8, 8)
    for number in range(2 * near):
        tile = zlib.compress(np.full((side, side, 3), (90 + 6 * number, 80, 230 - 6 * number), np.uint8).tobytes())
        places[rows // 2 - near + number] = bits + len(data), len(tile)
        data += tile + b"\0" * (len(tile) % 2)
    placed = np.zeros((2, rows, columns), "<u4")
    for row, place in places.items():
        placed[:, row, columns // 2 - near : columns // 2 + near] = np.array(place)[:, None]
    arrays, size = bits + len(data), rows * columns
    directory = arrays + 8 * size
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3),
        (322, 4, 1, side), (323, 4, 1, side), (324, 4, size, arrays),
        (325, 4, size, arrays + 4 * size),
    ]  # fmt: skip
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, directory) + data + placed.tobytes())
        file.write(struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4)
        file.truncate(8 * 2**20)  # a file that would expand more than 2,000-fold is refused


def identity(server: AppServer, name: str) -> str:
    root = server.deepzoom.roots.folders[0]
    return id_of(root / name, server.deepzoom.roots)


def opened(page: Any, server: AppServer, name: str, query: str = "", width: str = "desk") -> None:
    """Go to the page of a slide as the printed address does, and wait until the whole slide is sharp."""
    page.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    page.goto(f"{server.url}/view/{identity(server, f'split/slides/{name}')}?{TOKEN}={server.door.token}{query}")
    page.locator(".pane").first.wait_for()  # the printed address shows another page first
    for pane in page.locator(".pane").all():
        pane.locator(".length").wait_for()
        api.expect(pane).to_have_attribute("data-sharp", "1", timeout=120_000)


def shown(page: Any, number: int = 0) -> Any:
    """Return the pixels of a pane's picture, uint8[h, w, 3]."""
    data = page.locator(".picture").nth(number).screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def wait_for_picture(page: Any, number: int = 0) -> None:
    """Wait until a slide is drawn: there is more than one colour in the middle."""
    page.wait_for_function(
        """number => {
            const canvas = document.querySelectorAll('.picture')[number].querySelector('canvas:not(.overlay)');
            const {width, height} = canvas;
            const data = canvas.getContext('2d').getImageData(width / 4, height / 4, width / 2, height / 2).data;
            return new Set(data).size > 20;
        }""",
        arg=number,
    )


def length(page: Any, number: int = 0) -> str:
    """Return the length of the scale bar."""
    text: str = page.locator(".length").nth(number).inner_text()
    return text


def turn_wheel(page: Any) -> None:
    """Zoom the first slide in with the mouse wheel, step by step."""
    page.locator(".picture").first.hover()
    for _ in range(6):
        before = page.locator(".bar").first.evaluate("one => one.style.width")
        page.mouse.wheel(0, -100)
        page.wait_for_function("before => document.querySelector('.bar').style.width !== before", arg=before)


def screenshot(page: Any, name: str) -> None:
    """Save a screenshot, a build artefact."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def test_a_slide_is_drawn_moved_and_zoomed_with_the_keyboard_alone(page: Any, server: AppServer) -> None:
    opened(page, server, "pyramid.svs")
    wait_for_picture(page)
    assert server.door.token not in page.url
    assert length(page).endswith("mm") or length(page).endswith("µm")
    picture = page.get_by_role("application")
    for _ in range(40):
        page.keyboard.press("Tab")
        if picture.evaluate("one => one === document.activeElement"):
            break
    api.expect(picture).to_be_focused()
    before = length(page)
    page.keyboard.down("Equal")  # the key of +, held
    api.expect(page.locator(".length")).not_to_have_text(before)
    page.keyboard.up("Equal")
    wait_for_picture(page)
    near = shown(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('.pane').dataset.still === '1'")
    assert not np.array_equal(near, shown(page))
    page.keyboard.press("0")
    api.expect(page.locator(".length")).to_have_text(before)


def test_wheel_and_buttons_zoom(page: Any, server: AppServer) -> None:
    opened(page, server, "large.tif")
    wait_for_picture(page)
    whole = length(page)
    assert whole.endswith("px"), "the file does not say how large a pixel is"
    turn_wheel(page)
    api.expect(page.locator(".length")).not_to_have_text(whole)
    page.get_by_role("button", name="Whole slide").press("Enter")
    api.expect(page.locator(".length")).to_have_text(whole)
    page.get_by_role("button", name="Zoom in").press("Enter")
    api.expect(page.locator(".length")).not_to_have_text(whole)
    page.get_by_role("button", name="Zoom out").press("Enter")
    api.expect(page.locator(".length")).to_have_text(whole)


def test_the_largest_slide_is_seen_and_zoomed(page: Any, server: AppServer) -> None:
    opened(page, server, "largest.tif")
    wait_for_picture(page)
    before = length(page)
    turn_wheel(page)
    assert length(page) != before
    wait_for_picture(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Any, server: AppServer, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    beside = f"&beside={identity(server, 'split/slides/pyramid.svs')}"
    opened(page, server, "large.tif", f"&run={identity(server, 'run')}&image=large{beside}")
    wait_for_picture(page)
    page.evaluate(AXE)
    assert page.evaluate(SERIOUS) == []


def test_two_fingers_zoom(page: Any, server: AppServer) -> None:
    opened(page, server, "large.tif", width="phone")
    wait_for_picture(page)
    whole, box = length(page), page.locator(".picture").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind: str, apart: float | None) -> None:
        points = [] if apart is None else [{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    for apart in (30, 45, 60, 80, 100):
        touch("touchMove", apart)
    touch("touchEnd", None)
    api.expect(page.locator(".length")).not_to_have_text(whole)


def test_a_slide_whose_process_has_ended_is_fetched_again(page: Any, server: AppServer) -> None:
    opened(page, server, "large.tif")
    wait_for_picture(page)
    pane, asked = page.locator(".pane"), list[str]()
    before = int(pane.get_attribute("data-generation") or 0)
    page.evaluate("() => { const now = Date.now; Date.now = () => now() + 60_000 }")
    page.on("request", lambda request: asked.append(request.url))
    server.deepzoom.readers.close()
    turn_wheel(page)
    page.wait_for_function(
        """before => {
            const { sharp, generation } = document.querySelector('.pane').dataset;
            return sharp === '1' && Number(generation) > before;
        }""",
        arg=before,
        timeout=120_000,
    )
    last = f".{pane.get_attribute('data-generation')}"  # the addresses of the last fetch, when all was sharp
    assert any(url.endswith(last) for url in asked)


def test_a_lost_answer_does_not_end_the_sharpening(page: Any, server: AppServer) -> None:
    asked = list[str]()

    def lose(route: Any) -> None:
        asked.append(route.request.url)
        route.abort() if len(asked) in (2, 3) else route.continue_()

    server.deepzoom.readers.close()
    page.route("**/info.json", lose)
    opened(page, server, "large.tif")
    page.unroute("**/info.json")
    assert len(asked) > 3


def test_the_tiles_of_a_run_are_coloured_explained_and_read_out(page: Any, server: AppServer) -> None:
    query = f"&run={identity(server, 'run')}&image=large"
    opened(page, server, "large.tif", query)
    wait_for_picture(page)
    page.get_by_text(re.compile("probability of")).wait_for()
    plain = shown(page)
    page.get_by_label("Opacity").fill("1")
    full = shown(page)
    assert not np.array_equal(plain, full)
    page.get_by_label("Tiles", exact=True).uncheck()
    page.get_by_label("Tissue").uncheck()
    assert not np.array_equal(full, shown(page))
    page.get_by_label("Tiles", exact=True).check()
    box = page.locator(".picture canvas").first.bounding_box()
    for x in range(0, int(box["width"]), 4):  # over the first tile, whose corner is that of the slide
        page.mouse.move(box["x"] + x, box["y"] + 8)
        if page.locator(".value").inner_text():
            break
    api.expect(page.locator(".value")).to_have_text(re.compile(r"0\.100, attention 0\.2500"))
    page.get_by_label("Colour", exact=True).select_option("attention")
    page.get_by_text("attention, as a share").wait_for()
    screenshot(page, "viewer-run")


def test_a_run_without_tiles_of_the_slide_says_so(page: Any, server: AppServer) -> None:
    opened(page, server, "pyramid.svs", f"&run={identity(server, 'run')}&image=another")
    wait_for_picture(page)
    line = page.locator(".error")
    line.wait_for()
    assert line.get_attribute("data-code") == "missing"


def test_two_slides_side_by_side_move_together(page: Any, server: AppServer) -> None:
    opened(page, server, "pyramid.svs")
    page.get_by_label("Beside").select_option(label="pyramid.svs")
    page.get_by_role("button", name="Show").press("Enter")
    page.locator(".pane").nth(1).wait_for()
    for number in (0, 1):
        api.expect(page.locator(".pane").nth(number)).to_have_attribute("data-sharp", "1")
        wait_for_picture(page, number)
    before = length(page, 1)
    assert length(page, 0) == before
    turn_wheel(page)
    api.expect(page.locator(".length").nth(1)).not_to_have_text(before)
    page.wait_for_function(
        "() => { const [a, b] = document.querySelectorAll('.length'); return a.textContent === b.textContent }"
    )
    screenshot(page, "viewer-two")
    page.get_by_label("Move both").uncheck()
    alone = length(page, 1)
    page.get_by_role("button", name="Whole slide").first.press("Enter")
    api.expect(page.locator(".length").first).to_have_text(before)
    assert length(page, 1) == alone


def apart(first: Any, second: Any) -> float:
    """Return the mean difference of two drawn slides, in levels."""
    return float(np.abs(first.astype(int) - second).mean())


URL = "number => document.querySelectorAll('.picture')[number].querySelector('canvas:not(.overlay)').toDataURL()"


def drawn(page: Any, number: int) -> Any:
    """Return what a pane has drawn of its slide once both stand still, without overlays: uint8[h, w, 3]."""
    page.wait_for_function("() => [...document.querySelectorAll('.pane')].every(one => one.dataset.still === '1')")
    data = base64.b64decode(page.evaluate(URL, number).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def press(page: Any, key: str, number: int) -> None:
    """Press a key, and wait until a pane moves."""
    before = page.evaluate(URL, number)
    page.keyboard.press(key)
    page.wait_for_function(f"([number, before]) => ({URL})(number) !== before", arg=[number, before])


def test_two_slides_stay_together_whichever_of_them_the_pointer_is_over(page: Any, server: AppServer) -> None:
    opened(page, server, "pyramid.svs", f"&beside={identity(server, 'split/slides/pyramid.svs')}")
    first, second = page.locator(".picture").nth(0), page.locator(".picture").nth(1)
    for number in (0, 1):
        wait_for_picture(page, number)
    turn_wheel(page)
    first.click()
    second.hover()
    before = drawn(page, 1)
    press(page, "ArrowRight", 0)  # of the first, which has the focus
    moved = apart(before, drawn(page, 1))
    assert moved > 4 * apart(drawn(page, 0), drawn(page, 1))
    page.mouse.wheel(0, 100)
    page.mouse.wheel(0, -100)
    assert moved > 4 * apart(drawn(page, 0), drawn(page, 1))
    first.click()
    first.hover()
    press(page, "ArrowLeft", 0)
    second.hover()  # while the first glides
    assert moved > 4 * apart(drawn(page, 0), drawn(page, 1))
    press(page, "ArrowDown", 0)
    second.click()  # while the first glides
    press(page, "ArrowDown", 1)
    assert moved > 4 * apart(drawn(page, 0), drawn(page, 1))


def test_a_slide_that_cannot_be_read_is_one_line(page: Any, server: AppServer) -> None:
    address = f"{server.url}/view/{identity(server, 'split/slides/broken.tif')}"
    page.goto(f"{address}?{TOKEN}={server.door.token}")
    line = page.get_by_role("alert")
    line.wait_for()
    api.expect(line).to_have_attribute("data-code", "damaged")
    assert "\n" not in line.inner_text()
    page.goto(f"{server.url}/view/none")
    page.get_by_role("alert").wait_for()


def test_without_the_token_there_is_no_page(context: Any, server: AppServer) -> None:
    context.clear_cookies()
    page = context.new_page()
    answer = page.goto(f"{server.url}/view/{identity(server, 'split/slides/large.tif')}")
    assert answer.status == 403
    assert json.loads(answer.body())["code"] == "token"
    page.close()


def test_a_name_is_text_and_never_markup(page: Any, server: AppServer) -> None:
    opened(page, server, NAMES[3])
    api.expect(page.get_by_role("heading", name="a <b> &amp; name.tif")).to_be_visible()
    assert page.locator("b").count() == 0


def test_the_switch_of_the_theme_is_followed(page: Any, server: AppServer) -> None:
    page.emulate_media(color_scheme="light")
    opened(page, server, "large.tif")
    colours = set[str]()
    for _ in range(3):  # as the system, dark, light
        colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.get_by_role("button", name="Theme").press("Enter")
    assert len(colours) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_everything_has_a_name(page: Any, server: AppServer, width: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    opened(page, server, "large.tif", f"&run={identity(server, 'run')}&image=large", width)
    wait_for_picture(page)
    page.get_by_text(re.compile("probability of")).wait_for()
    api.expect(page.get_by_role("navigation").get_by_role("link", name="Slides")).to_have_attribute(
        "aria-current", "page"
    )
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    api.expect(page.get_by_text("Not for clinical use.")).to_be_visible()
    for role in ("button", "checkbox", "combobox", "slider", "application"):
        for one in page.get_by_role(role).all():
            assert one.evaluate(NAME_OF), one.evaluate("one => one.outerHTML")
    screenshot(page, f"viewer-{width}-{scheme}")


NAME_OF = """one => one.getAttribute('aria-label') || one.innerText
    || [...(one.labels || [])].map(label => label.innerText).join(' ').trim()"""
