"""Slides whose background is not one colour of glass.

Each slide is drawn, then padded, tinted, shaded or made grey. The right tiles are those of the slide as it was drawn.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.padding import HEIGHT_PX, LUMA, SAVED, WIDTH_PX, Drawn, compared, draw, kept, paddings, saved_slide
from clotkit.config import TilingConfig
from clotkit.slides.pixels import Colour, Pixels
from clotkit.tiling.tilers import Batch, tile_slide

from . import Reported

TILERS = ("patches", "windows")
SIDE_PX = 128
Y, X = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
Change = Callable[[Drawn], np.ndarray]  # -> [h, w, 3], the slide as the user has it


def facts_of(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for piece in tile_slide(path, TilingConfig("patches", 32, 4, 4, 4)):
        if not isinstance(piece, Batch):
            facts |= piece
    return facts


def check(folder: Path, change: Change, wanted: dict[str, Any], seed: int = 4, saved: int | None = None) -> str:
    """Compare a changed slide with the slide as drawn, by each tiler, and its facts with the wanted ones."""
    slide = draw(seed)
    layout = slide.saved if saved is None else SAVED[saved]
    plain = saved_slide(folder / "plain.tif", slide.pixels, layout)
    path = saved_slide(folder / "changed.tif", np.clip(np.rint(change(slide)), 0, 255).astype(np.uint8), layout)
    facts = facts_of(path)
    assert {key: facts[key] for key in wanted} == wanted
    worst = 1.0
    for tiler in TILERS:
        result = compared(kept(path, tiler), kept(plain, tiler), slide.tissue, SIDE_PX)
        assert result["bare"] == 0, (tiler, result)
        assert result["agreeing"] >= 0.9, (tiler, result)
        worst = min(worst, result["agreeing"])
    return f"{worst:.0%} of the tiles agree, none is bare; {facts['padding_share']:.0%} padding"


def padded(number: int) -> Change:
    def change(slide: Drawn) -> np.ndarray:
        _, mask, fill = list(paddings(4))[number]
        return np.where(mask[..., None], np.array(fill), slide.pixels)

    return change


def filled(mask: np.ndarray, *fills: tuple[np.ndarray, Colour]) -> Change:
    def change(slide: Drawn) -> np.ndarray:
        pixels = np.where(mask[..., None], 255, slide.pixels)
        for place, fill in fills:
            pixels = np.where(place[..., None], np.array(fill), pixels)
        return pixels

    return change


def lit(gain: np.ndarray) -> Change:
    """Return the slide under light that differs from place to place, [h, w, 1 or 3]."""
    return lambda slide: slide.pixels * gain


def grey(slide: Drawn) -> np.ndarray:
    return (slide.pixels @ LUMA)[..., None].repeat(3, axis=2)


def one_band(folder: Path) -> str:
    slide = draw(8)
    plain = saved_slide(folder / "plain.tif", slide.pixels, slide.saved)
    band: Pixels = np.rint(slide.pixels @ LUMA).astype(np.uint8)
    path = saved_slide(folder / "band.tif", band, SAVED[0])
    facts = facts_of(path)
    result = compared(kept(path, "patches"), kept(plain, "patches"), slide.tissue, SIDE_PX)
    assert facts["grey"]
    assert result["agreeing"] >= 0.9
    return f"{result['agreeing']:.0%} of the tiles agree"


def inked(slide: Drawn) -> np.ndarray:
    stroke = (np.abs(Y - 0.15 * HEIGHT_PX) < 40) & (X > 0.1 * WIDTH_PX) & (X < 0.9 * WIDTH_PX)
    return np.where(stroke[..., None], np.array((30, 30, 32)), slide.pixels)


RIGHT = "the tiles of the same slide without, judged against the glass"
KINDS = ("a thin black frame", "a thick black frame", "a white frame", "a grey corner", "a blue L", "unscanned gaps")
PARTLY = (X < 0.2 * WIDTH_PX) | (X > 0.9 * WIDTH_PX)
TURNED = np.abs((X - WIDTH_PX / 2) * 0.99 + (Y - HEIGHT_PX / 2) * 0.14) > 0.36 * WIDTH_PX
TWO = np.where((X < 0.58 * WIDTH_PX)[..., None], 1.0, np.array((216, 214, 218)) / (243, 241, 244))
GREEN = np.where((X < 0.58 * WIDTH_PX)[..., None], 1.0, np.array((196, 211, 192)) / (243, 241, 244))
RAMP = (1 - 0.16 * X / WIDTH_PX)[..., None]
VIGNETTE = (1 - 0.33 * ((X / WIDTH_PX - 0.5) ** 2 + (Y / HEIGHT_PX - 0.5) ** 2))[..., None]
FIELDS = (1 - 0.16 * ((X % 256 / 256 - 0.5) ** 2 + (Y % 256 / 256 - 0.5) ** 2))[..., None]
NOTHING = np.zeros(X.shape, bool)

FAST = (
    "padding: a thin black frame, deflate",
    "padding: a white frame, JPEG",
    "glass: two sections, one green",
    "glass: a ramp of light",
    "grey: one band",
    "grey: a pen on a slide in colour",
)
ALL = [
    *(
        Reported(
            f"padding: {name}, {codec}", RIGHT, partial(check, change=padded(i), wanted={}, seed=seed, saved=layout)
        )
        for i, name in enumerate(KINDS)
        for codec, layout, seed in (("deflate", 0, 4), ("JPEG", 1, 5))
    ),
    Reported(
        "padding: two colours", RIGHT, partial(check, change=filled(PARTLY, (Y < 150, (0, 0, 0))), wanted={}, seed=5)
    ),
    Reported("padding: a turned scan on white", RIGHT, partial(check, change=filled(TURNED), wanted={}, seed=5)),
    Reported(
        "padding: a frame of magenta",
        RIGHT,
        partial(check, change=filled(NOTHING, (PARTLY | (Y < 150), (255, 0, 255))), wanted={}),
    ),
    *(
        Reported(
            f"glass: {name}",
            RIGHT,
            partial(check, change=lit(gain), wanted={"background_model": "local", "padding_share": 0.0}, seed=8),
        )
        for name, gain in (
            ("two sections, one greyer", TWO),
            ("two sections, one green", GREEN),
            ("a ramp of light", RAMP),
            ("a vignette", VIGNETTE),
        )
    ),
    Reported("glass: shading of every scanned field", RIGHT, partial(check, change=lit(FIELDS), wanted={}, seed=8)),
    Reported(
        "glass: one colour",
        "no padding, one colour",
        partial(
            check,
            change=lit(np.ones((1, 1, 1))),
            wanted={"background_model": "colour", "padding_share": 0.0, "grey": False},
        ),
    ),
    Reported(
        "grey: three equal channels",
        "the tiles of the slide in colour",
        partial(check, change=grey, wanted={"grey": True}, seed=8),
    ),
    Reported(
        "grey: JPEG",
        "the tiles of the slide in colour",
        partial(check, change=grey, wanted={"grey": True}, seed=4, saved=1),
    ),
    Reported("grey: one band", "the tiles of the slide in colour", one_band),
    Reported(
        "grey: a pen on a slide in colour",
        "the pen is no tissue",
        partial(check, change=inked, wanted={"grey": False}, seed=8),
    ),
]
CASES = [replace(case, slow=case.name not in FAST) for case in ALL]
