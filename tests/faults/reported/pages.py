"""The slide is not the file's first page.

Readers opened page 0 whatever it was: the label, a thumbnail, the smallest level (openslide issue 153, bioformats pull
request 3764).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clotkit.config import TilingConfig
from clotkit.errors import CodecUnsupported
from clotkit.reasons import Reason
from clotkit.tiling.tilers import Batch, tile_slide
from tests import tiff_pages
from tests.page_orders import CHOSEN, HEIGHT, MAIN, SLIDE, UNSUPPORTED, WIDTH, Found
from tests.tiff_pages import Page

from . import Reported

TILING = TilingConfig("patches", tile_px=32, downsample=1, max_tiles=6, batch_tiles=6)
PLAIN: Found = (0, (), ())


def tiles_and_facts(path: Path) -> tuple[np.ndarray, dict[str, object]]:
    """Return a slide's tiles, uint8[n, 32, 32, 3], and the facts of its report line."""
    facts: dict[str, object] = {}
    tiles = list[np.ndarray]()
    for piece in tile_slide(path, TILING):
        if isinstance(piece, Batch):
            tiles.append(piece.tiles)
        else:
            facts |= piece
    return np.concatenate(tiles), facts


def is_chosen(pages: Sequence[Page], found: Found, folder: Path) -> str:
    """Check that a file gives the tiles of the slide alone, and that its facts name the page."""
    page, subifd, notes = found
    tiff_pages.write(folder / "alone.tif", [MAIN])
    tiff_pages.write(folder / "slide.tif", pages)
    tiles, facts = tiles_and_facts(folder / "slide.tif")
    np.testing.assert_array_equal(tiles, tiles_and_facts(folder / "alone.tif")[0])
    assert (facts["width_px"], facts["height_px"]) == (WIDTH, HEIGHT)
    assert facts.get("notes", []) == list(notes)
    assert (facts.get("page", 0), facts.get("subifd", [])) == (page, list(subifd))
    return f"{len(tiles)} tiles of {_where(found)}; notes: {', '.join(notes) or 'none'}"


def _where(found: Found) -> str:
    return ", SubIFD ".join([f"page {found[0]}", *map(str, found[1])])


def is_unsupported(pages: Sequence[Page], folder: Path) -> str:
    """Check that a file is refused with the code of files that are sound but not supported."""
    tiff_pages.write(folder / "slide.tif", pages)
    with pytest.raises(CodecUnsupported) as raised:
        tiles_and_facts(folder / "slide.tif")
    assert raised.value.reason is Reason.UNSUPPORTED
    return f"{Reason.UNSUPPORTED}: {raised.value}"


def of_samples(dtype: str, folder: Path) -> str:
    """Check that samples which no decoder reads are refused as unsupported, not as damage."""
    pixels = SLIDE.astype(dtype)
    sample_format = {"f": 3, "i": 2, "u": 1}[pixels.dtype.kind]
    return is_unsupported([Page(pixels, 64, {339: [sample_format] * 3})], folder)


def _right(found: Found) -> str:
    return f"the tiles of {_where(found)}" + (", and the report says so" if found != PLAIN else "")


def _case(name: str, right: str, check: Callable[[Path], str]) -> Reported:
    return Reported(f"pages: {name}", right, check)


CASES = [
    *(_case(name, _right(found), partial(is_chosen, pages, found)) for name, (pages, found) in CHOSEN.items()),
    *(_case(name, "refused: unsupported", partial(is_unsupported, pages)) for name, (pages, _) in UNSUPPORTED.items()),
    *(
        _case(f"samples of {dtype}", "refused: unsupported", partial(of_samples, dtype))
        for dtype in ("float32", "int16", "uint32")
    ),
]
