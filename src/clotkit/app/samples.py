"""Draw sample pictures of the kind that each member predicts; no pixel is a patient's."""

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.slides.pixels import Pixels

Grey = npt.NDArray[np.float64]
CONTOURS_SEED, SLIDES_SEED = 3, 7
SLIDE_SIZE = "1536x1024"  # width and height of a drawn slide, in pixels: six tiles of the member demo
SUPERSAMPLING = 4  # discs are drawn this many times larger, then averaged


def samples_for(member: str, source: str, competition: Competition) -> dict[str, bytes]:
    """Return the drawn samples of a member, {name: bytes of the file}; empty if it has none.

    `source` is the recipe's data.source: every member of slides has drawn slides.
    """
    if source == "slides":
        return _slides(competition)
    return PICTURES[member]() if member in PICTURES else {}


@cache
def _slides(competition: Competition) -> dict[str, bytes]:
    from clotkit.splits import read_slides
    from clotkit.synthetic.phantom import write_split

    with TemporaryDirectory(prefix="clotkit-app-") as folder:
        write_split(Path(folder), "test", 2, SLIDES_SEED, competition, size=SLIDE_SIZE, log=lambda _: None)
        slides = read_slides(Path(folder), "test", competition, lambda _: None)
        return {f"drawn slide {number}": slide.path.read_bytes() for number, slide in enumerate(slides, 1)}


@cache
def _contours() -> dict[str, bytes]:
    from clotkit.synthetic.contours import CLASSES, PICTURES, write_contours

    with TemporaryDirectory(prefix="clotkit-app-") as folder:
        write_contours(Path(folder), PICTURES[0], CONTOURS_SEED, lambda _: None)
        return {f"drawn contour, {name}": _first(Path(folder) / name) for name in CLASSES}


def _first(folder: Path) -> bytes:
    return min(folder.iterdir()).read_bytes()


@cache
def _cells() -> dict[str, bytes]:
    return {"drawn cell, one nucleus": _png(_cell([(14.0, 14.0, 8.0)])), "drawn cell, three lobes": _png(_cell(LOBES))}


LOBES = [(10, 12, 3.6), (15, 16, 3.6), (19, 11, 3.6)]  # x, y, radius in px of 28


def _cell(nucleus: Sequence[tuple[float, float, float]]) -> Pixels:
    """Draw a stained blood cell at 28 px: pink field, red corner cells, purple nucleus in paler plasma."""
    rng, side = np.random.default_rng(1), 28
    picture = np.full((side, side, 3), (236.0, 218.0, 214.0)) + rng.normal(0, 3, (side, side, 1))
    for left, top in ((1, 2), (27, 25), (26, 3)):
        picture = _over(picture, _disc(side, left, top, 6), (222, 168, 166))
    picture = _over(picture, _disc(side, 14, 14, 11), (206, 190, 214))
    for x, y, radius in nucleus:
        picture = _over(picture, _disc(side, x, y, radius), (112, 62, 148))
    return np.asarray(np.clip(np.rint(picture), 0, 255), np.uint8)


@cache
def _breasts() -> dict[str, bytes]:
    return {"drawn ultrasound, a dark spot": _png(_ultrasound(6.5)), "drawn ultrasound, none": _png(_ultrasound(0))}


def _ultrasound(radius: float) -> Pixels:
    """Draw an ultrasound-like picture at 28 px: layers of grey, speckle, and a dark spot of `radius` px."""
    rng, side = np.random.default_rng(2), 28
    layers = 120 + 40 * np.sin(np.linspace(0, 5, side))[:, None] - np.linspace(0, 30, side)[:, None]
    pixels = (layers * (1 - 0.75 * _disc(side, 14, 15, radius))) * rng.gamma(9, 1 / 9, (side, side))
    return _grey(pixels)


@cache
def _brains() -> dict[str, bytes]:
    return {"drawn head, a bright spot": _png(_head(11)), "drawn head, none": _png(_head(0))}


def _head(radius: float) -> Pixels:
    """Draw an MRI-like picture at 160 px: bright rim, grey folds inside, and a bright spot of `radius` px."""
    rng, side = np.random.default_rng(4), 160
    rows, columns = np.mgrid[:side, :side]
    inside = ((rows - 80) / 70) ** 2 + ((columns - 80) / 56) ** 2
    folds = 95 + 14 * np.sin(columns / 5 + 3 * np.sin(rows / 9)) + rng.normal(0, 4, (side, side))
    pixels = np.where(inside < 0.82, folds, np.where(inside < 0.93, 25.0, np.where(inside < 1, 190.0, 8.0)))
    return _grey(pixels + 110 * _disc(side, 104, 66, radius) * (inside < 0.82))


def _disc(side: int, x: float, y: float, radius: float) -> Grey:
    """Return the share of each pixel that a disc covers, [side, side], 0 to 1."""
    places = (np.arange(side * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5
    within = (places[:, None] - y) ** 2 + (places[None] - x) ** 2 < radius**2
    return np.asarray(within.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING).mean(axis=(1, 3)), np.float64)


def _over(picture: Grey, cover: Grey, colour: tuple[int, int, int]) -> Grey:
    return np.asarray(picture * (1 - cover[..., None]) + cover[..., None] * np.array(colour), np.float64)


def _grey(pixels: Grey) -> Pixels:
    return np.repeat(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES: dict[str, Callable[[], dict[str, bytes]]] = {
    "bloodmnist": _cells,
    "breastmnist": _breasts,
    "brain": _brains,
    "double_contour": _contours,
}
