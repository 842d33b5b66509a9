"""List TIFFs whose slide is not plainly their first page, and what is right for each."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clotkit.reasons import Reason

from . import tiff_pages
from .tiff_pages import Page, Values, paper, smaller, tissue

SLIDE, WIDTH, HEIGHT = tissue(), tiff_pages.WIDTH, tiff_pages.HEIGHT
Tags = dict[int, Values]
MAIN = Page(SLIDE, 64)
REDUCED: Tags = {254: 1}
LABEL = Page(paper(100, 180))
OTHER, SEVERAL, UNREAD = Reason.OTHER_PAGE, Reason.SEVERAL_PAGES, Reason.PAGES_UNREAD
BLANK = np.zeros((HEIGHT, WIDTH), np.uint8)
FORMS = [("<", False), (">", False), ("<", True), (">", True)]  # byte order, BigTIFF
Found = tuple[int, tuple[int, ...], tuple[Reason, ...]]


def levels(*steps: int, tags: Tags | None = None) -> list[Page]:
    """Return pages with every step-th pixel of the slide; `tags` are those of all but the first page."""
    return [Page(smaller(SLIDE, step), 64, dict(tags or {}) if number else {}) for number, step in enumerate(steps)]


def described(pixels: np.ndarray, text: str, tile: int = 64, **tags: int) -> Page:
    """Return a page with a description; `kind` is its NewSubfileType."""
    kind = {254: tags["kind"]} if tags else {}
    return Page(pixels, tile, {270: text, **kind})


def aperio(line: str) -> str:
    """Return a description as Aperio writes it."""
    return f"Aperio Image Library v11.2.1\r\n{line}"


def nested(depth: int, **how: bool) -> list[Page]:
    """Return a thumbnail whose SubIFD, after `depth - 1` others below each other, is the slide."""
    page = MAIN
    for step in (4, 8)[-depth:]:
        page = Page(smaller(SLIDE, step), 64, dict(REDUCED), subifds=[page], **how)
    return [page]


# name: (pages, number of the slide's page, its SubIFDs, notes)
CHOSEN: dict[str, tuple[Sequence[Page], Found]] = {
    "one page": ([MAIN], (0, (), ())),
    "the slide first": (levels(1, 2, 4, tags=REDUCED), (0, (), ())),
    "levels without flags": (levels(1, 2, 4), (0, (), ())),
    "a label first": ([LABEL, MAIN], (1, (), (OTHER,))),
    "a label with the slide's shape first": ([Page(paper(160, 120)), MAIN], (1, (), (OTHER,))),
    "a tiled thumbnail of a slide in strips": ([Page(smaller(SLIDE, 4), 64), Page(SLIDE)], (1, (), (OTHER,))),
    "the smallest level first": (levels(8, 4, 2, 1), (3, (), (OTHER,))),
    "the smallest level first, all others marked": (levels(8, 2, 1, tags=REDUCED), (2, (), (OTHER, SEVERAL))),
    "a label, then a slide marked as reduced": (
        [LABEL, *(replace(page, tags=REDUCED) for page in levels(1, 2))],
        (1, (), (OTHER, SEVERAL)),
    ),
    "old subfile types": ([Page(smaller(SLIDE, 2), 64, {255: 2}), Page(SLIDE, 64, {255: 1})], (1, (), (OTHER,))),
    "a slide in a SubIFD": (nested(1), (0, (0,), (OTHER,))),
    "a slide in a SubIFD of a SubIFD": (nested(2), (0, (0, 0), (OTHER,))),
    "a slide in the second SubIFD": (
        [Page(smaller(SLIDE, 8), tags=REDUCED, subifds=[*levels(4), MAIN])],
        (0, (1,), (OTHER,)),
    ),
    "a slide in a chain of SubIFDs": (
        [Page(smaller(SLIDE, 8), tags=REDUCED, subifds=[*levels(4), MAIN], chained=True)],
        (0, (1,), (OTHER,)),
    ),
    "a slide in a SubIFD of the second page": (
        [LABEL, Page(smaller(SLIDE, 8), tags=REDUCED, subifds=[MAIN])],
        (1, (0,), (OTHER,)),
    ),
    "levels in SubIFDs": ([Page(SLIDE, 64, subifds=levels(2, 4))], (0, (), ())),
    "a mask of the slide's size": ([Page(BLANK, 64, {254: 4}), MAIN], (1, (), (OTHER,))),
    "a mask by its colours": ([Page(BLANK, 64, {262: 4}), MAIN], (1, (), (OTHER,))),
    "a larger page in black and white": (
        [Page(np.pad(BLANK, 50)[:, :48], 0, {258: 1, 256: 384}), MAIN],
        (1, (), (OTHER, SEVERAL)),
    ),
    "metadata first": (
        [Page(BLANK[:1], 0, {256: None, 257: None, 273: None, 270: "by hand"}), MAIN],
        (1, (), (OTHER,)),
    ),
    "a larger grey page": ([Page(np.pad(BLANK, 50), 64), MAIN], (1, (), (OTHER, SEVERAL))),
    "a larger photograph in one strip": ([Page(paper(500, 300)), MAIN], (1, (), (OTHER, SEVERAL))),
    "a larger photograph, marked": ([Page(paper(500, 300), 64, REDUCED), MAIN], (1, (), (OTHER,))),
    "Aperio": (
        [
            described(SLIDE, aperio("320x240 (64x64) JPEG/RGB Q=30|AppMag = 20")),
            described(SLIDE, aperio("320x240 -> 320x240 - |"), 0),
            described(smaller(SLIDE, 2), aperio("320x240 (64x64) -> 160x120 JPEG/RGB Q=30")),
            described(paper(400, 400), aperio("label 400x400"), 0, kind=1),
            described(paper(900, 300), aperio("macro 900x300"), 0, kind=9),
        ],
        (0, (), ()),
    ),
    "Aperio, in another order and without flags": (
        [
            described(paper(400, 400), aperio("label 400x400")),
            described(paper(900, 300), aperio("macro 900x300")),
            described(SLIDE, aperio("320x240 (64x64) JPEG/RGB Q=30|AppMag = 20")),
        ],
        (2, (), (OTHER,)),
    ),
    "Ventana": (
        [
            described(paper(400, 400), "Label_Image"),
            described(paper(500, 500), "Probability_Image"),
            described(SLIDE, "level=0 mag=40 quant=90"),
            described(smaller(SLIDE, 2), "level=1 mag=20 quant=90"),
        ],
        (2, (), (OTHER,)),
    ),
    "Philips": (
        [MAIN, described(paper(500, 500), "Macro -offset=(0,0)"), described(LABEL.pixels, "Label")],
        (0, (), ()),
    ),
    "Hamamatsu": (
        [
            Page(paper(900, 300), 0, {65421: -1.0}),
            Page(SLIDE, 64, {65421: 40.0}),
            Page(paper(900, 300), 64, {65421: -2.0}),
        ],
        (1, (), (OTHER,)),
    ),
    "a page by its name": ([Page(paper(500, 400), 64, {285: "Macro"}), MAIN], (1, (), (OTHER,))),
    "two scans of one size": ([MAIN, Page(tissue(seed=3), 64)], (0, (), (SEVERAL,))),
    "two sections": ([Page(tissue(300, 200), 64), MAIN], (1, (), (OTHER, SEVERAL))),
    "focal planes in colour": ([MAIN, Page(tissue(seed=3), 64), Page(tissue(seed=4), 64)], (0, (), (SEVERAL,))),
    "a chain that loops": ([LABEL, replace(MAIN, next_at=8)], (1, (), (OTHER, UNREAD))),
    "a next page beyond the file": ([replace(MAIN, next_at=10**8)], (0, (), (UNREAD,))),
    "a SubIFD beyond the file": ([replace(MAIN, tags={330: 10**8})], (0, (), (UNREAD,))),
    "a later page of nine widths": ([MAIN, Page(smaller(SLIDE, 2), 64, {256: [10**5] * 9})], (0, (), (UNREAD,))),
    "a later page of 10 Tpx": ([MAIN, Page(smaller(SLIDE, 2), 64, {256: 10**7, 257: 10**6})], (0, (), (UNREAD,))),
    "a later page without pixels": ([MAIN, Page(smaller(SLIDE, 2), 64, {256: 0})], (0, (), (UNREAD,))),
    "many thumbnails": ([LABEL, *[Page(paper(16, 9))] * 300, MAIN], (301, (), (OTHER,))),
}


def channels(count: int, dtype: str = "u1") -> list[Page]:
    """Return the first bands of the slide, each as a page."""
    return [Page(np.ascontiguousarray(SLIDE[..., band]).astype(dtype), 64) for band in range(count)]


def ome(size_c: int, size_z: int = 1, files: Sequence[str] = ()) -> str:
    """Return a description as OME-TIFF has it; each of `files` has a plane."""
    planes = "".join(f'<TiffData><UUID FileName="{name}">urn:uuid:1</UUID></TiffData>' for name in files)
    size = f'SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC="{size_c}" SizeZ="{size_z}" SizeT="1"'
    return f'<?xml version="1.0"?><OME><Image ID="Image:0"><Pixels ID="Pixels:0" {size}>{planes}</Pixels></Image></OME>'


GREY = channels(1)[0].pixels
# name: (pages, words of the message)
UNSUPPORTED: dict[str, tuple[Sequence[Page], str]] = {
    "red, green and blue in pages of their own": (channels(3), "3 images of 320 x 240 px"),
    "two channels of 16 bits": (channels(2, "u2"), "2 images"),
    "a label, then channels": ([LABEL, *channels(3)], "3 images"),
    "channels with levels": (
        [*channels(3), *(Page(smaller(page.pixels, 2), 64, REDUCED) for page in channels(3))],
        "3 images",
    ),
    "channels in SubIFDs": ([replace(channels(3)[0], subifds=channels(3)[1:])], "3 images"),
    "OME channels": ([described(GREY, ome(3)), *channels(2)], "3 images"),
    "OME focal planes, one of them here": ([described(GREY, ome(1, 5))], "5 images"),
    "an ImageJ stack with one directory": ([described(GREY, "ImageJ=1.53\nimages=7\nslices=7\n", 0)], "7 images"),
    "a tifffile stack with one directory": (
        [described(GREY, f'{{"shape": [4, {HEIGHT}, {WIDTH}], "truncated": true}}', 0)],
        "4 images",
    ),
    "OME of two files": ([described(SLIDE, ome(3, files=("a.ome.tif", "b.ome.tif")))], "2 or more files"),
    "a label alone": ([described(LABEL.pixels, "Label_Image")], "only its label"),
    "a label and a macro photograph": (
        [described(LABEL.pixels, "label", 0), described(SLIDE, "macro")],
        "only its label",
    ),
}
