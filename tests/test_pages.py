"""Test the choice of the page among labels, masks, levels and SubIFDs, and in broken chains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clotkit.errors import CodecUnsupported, SlideError, SlideUnreadable
from clotkit.planning.forecast import forecast
from clotkit.reasons import Reason
from clotkit.slides.header.tiff import read_layout
from clotkit.slides.reader import open_slide

from . import tiff_pages
from .page_orders import (
    CHOSEN,
    FORMS,
    HEIGHT,
    LABEL,
    MAIN,
    SEVERAL,
    SLIDE,
    UNREAD,
    UNSUPPORTED,
    WIDTH,
    Tags,
    described,
    ome,
)
from .tiff_pages import Page, paper, smaller

WHITE = (255, 255, 255)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_slide_is_read_wherever_it_is(name: str, tmp_path: Path) -> None:
    pages, (page, subifd, notes) = CHOSEN[name]
    for order, big in FORMS:
        path = tmp_path / f"{order == '<'} {big}.tif"
        tiff_pages.write(path, pages, order, big)
        layout = read_layout(path)
        assert layout is not None
        assert (layout.page, layout.subifd, layout.notes) == (page, subifd, notes)
        slide = open_slide(path)
        assert (slide.width_px, slide.height_px) == (WIDTH, HEIGHT)
        (tile,) = slide.tiles([(64, 64)], 128, 1, WHITE)
        np.testing.assert_array_equal(tile, SLIDE[64:192, 64:192])
        assert slide.facts.get("page", 0) == page
        assert slide.facts.get("notes", []) == list(notes)


@pytest.mark.parametrize(
    "name", ["a label first", "the smallest level first", "a slide in the second SubIFD", "two sections"]
)
def test_every_decoder_reads_the_chosen_page(name: str, tmp_path: Path) -> None:
    """Read 16-bit samples, which the direct reader leaves to the others."""
    pages, (page, _, _) = CHOSEN[name]
    tiff_pages.write(tmp_path / "a.tif", [deep(one) for one in pages])
    slide = open_slide(tmp_path / "a.tif")
    assert slide.decoder != "direct"
    assert (slide.width_px, slide.height_px, slide.facts.get("page", 0)) == (WIDTH, HEIGHT, page)
    (tile,) = slide.tiles([(64, 64)], 128, 1, WHITE)
    np.testing.assert_array_equal(tile, SLIDE[64:192, 64:192])


def deep(page: Page) -> Page:
    """Return a page with 16-bit samples."""
    below = [deep(one) for one in page.subifds]
    return replace(page, pixels=page.pixels.astype(np.uint16) * 257, subifds=below)


def test_a_grey_slide_after_a_label_in_colour_is_read(tmp_path: Path) -> None:
    tiff_pages.write(tmp_path / "a.tif", [LABEL, Page(np.ascontiguousarray(SLIDE[..., 1]), 64)])
    slide = open_slide(tmp_path / "a.tif")
    assert (slide.width_px, slide.height_px, slide.facts["page"]) == (WIDTH, HEIGHT, 1)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_no_single_slide_is_refused_by_name(name: str, tmp_path: Path) -> None:
    pages, words = UNSUPPORTED[name]
    for order, big in FORMS:
        tiff_pages.write(tmp_path / "a.tif", pages, order, big)
        with pytest.raises(CodecUnsupported, match=words) as raised:
            open_slide(tmp_path / "a.tif")
        assert raised.value.reason is Reason.UNSUPPORTED
        assert "\n" not in str(raised.value)


def test_colour_in_ome_is_one_slide(tmp_path: Path) -> None:
    tiff_pages.write(tmp_path / "a.tif", [described(SLIDE, ome(3, files=("other name.ome.tif",)))])
    assert open_slide(tmp_path / "a.tif").facts == {}
    tiff_pages.write(tmp_path / "a.tif", [described(SLIDE, ome(3, 2)), MAIN])
    assert open_slide(tmp_path / "a.tif").facts == {"notes": [SEVERAL]}


def refused(path: Path) -> Reason:
    with pytest.raises(SlideError) as raised:
        open_slide(path)
    assert "\n" not in str(raised.value)
    return raised.value.reason


def test_a_label_is_not_scored_for_a_slide_whose_directory_is_lost(tmp_path: Path) -> None:
    """The file is cut before its last directory, as writers that put it behind the pixels leave it."""
    file = tiff_pages.Writer()
    file.chain([replace(LABEL, next_at=10**7)], file.first)
    (tmp_path / "a.tif").write_bytes(file.data + np.random.default_rng(1).bytes(60_000))
    assert refused(tmp_path / "a.tif") is Reason.DAMAGED
    tiff_pages.write(tmp_path / "b.tif", [Page(smaller(SLIDE, 8), 64, {254: 1, 330: 10**7})])
    assert refused(tmp_path / "b.tif") is Reason.DAMAGED


@pytest.mark.parametrize("tags", [{324: [10**8] * 20}, {325: [10**8] * 20}])
def test_a_broken_table_of_the_slide_is_damage_not_a_reason_for_the_label(tags: Tags, tmp_path: Path) -> None:
    tiff_pages.write(tmp_path / "a.tif", [LABEL, Page(SLIDE, 64, dict(tags))])
    with pytest.raises(SlideUnreadable):
        list(open_slide(tmp_path / "a.tif").tiles([(64, 64)], 128, 1, WHITE))


def test_thousands_of_pages_are_bounded(tmp_path: Path) -> None:
    pages = [Page(paper(16 + number % 40, 9)) for number in range(4150)]
    tiff_pages.write(tmp_path / "a.tif", [MAIN, *pages])
    assert open_slide(tmp_path / "a.tif").facts["notes"] == [UNREAD]
    tiff_pages.write(tmp_path / "b.tif", [*pages, MAIN])
    assert refused(tmp_path / "b.tif") is Reason.UNSUPPORTED


def test_the_plan_tells_the_same_page(tmp_path: Path) -> None:
    tiff_pages.write(tmp_path / "a.tif", [LABEL, MAIN])
    header = next(forecast(tmp_path / "a.tif", ()))
    assert (header["page"], header["width_px"], header["height_px"]) == (1, WIDTH, HEIGHT)
