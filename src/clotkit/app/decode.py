"""What the application's child processes do: the only place where bytes from outside are looked into.

Each function is a `Work` of workers.stream: it runs in a process of its own, with a time and a memory limit.
Tiles have the index TILES, a picture to look at has the index SHOWN.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition
from clotkit.data.images import IMAGE_TILERS, read_image, resized
from clotkit.errors import SlideUnreadable
from clotkit.scoring.submission import check_submission
from clotkit.slides.pixels import Colour, Pixels, blank
from clotkit.slides.reader import Slide, open_slide
from clotkit.splits import read_table
from clotkit.tiling.overview import read_overview
from clotkit.tiling.preview import draw_preview
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.tiling.tissue import sample_background
from clotkit.workers import Task

TILES, SHOWN = 0, 1
LEAST_SIDE_PX = 8  # of a picture: below it there is nothing to see
MOST_PICTURE_PX = 25_000_000  # of an uploaded picture: 75 MB as RGB
SHOWN_PX = 448  # of the long side of a picture that is shown with its answer
VIEW_PX = (768, 512)  # width and height of the window on a slide
BLOCK_PX = 1024  # of the slide's pixels, along a side, that a window is read by at a time
SUBMISSION, SAMPLE, OTHER = "submission.csv", "sample.csv", "other.csv"
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8")
KNOWN = "PNG, JPEG, TIFF, WebP, BMP and GIF pictures are read"
OTHERS = {
    b"PK": "a zip archive",
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"#!": "a script",
    b"MZ": "a program",
    b"\x7fELF": "a program",
    b"\x1f\x8b": "a gzip archive",
    b"<": "HTML, SVG or XML",
}
Pieces = Iterator[tuple[int, dict[str, Any] | Batch]]


@dataclass(frozen=True)
class Window:
    """What of a slide is looked at: its top left corner in full-resolution pixels, and pixels per pixel shown."""

    x_px: int
    y_px: int
    downsample: int


def picture(task: Task) -> Pieces:
    """Read a picture and cut it as the task's tiling says: facts of its size, its tiles, itself made small."""
    check_kind(task.path)
    check_size(task.path)
    pixels = read_image(task.path)
    yield TILES, {"width_px": pixels.shape[1], "height_px": pixels.shape[0]}
    tiling = task.tilings[0]
    tiles = IMAGE_TILERS[tiling.name](pixels, tiling)
    yield TILES, _batch(tiles)
    yield SHOWN, _batch(_small(pixels)[None])


def slide(task: Task) -> Pieces:
    """Tile a slide as inference does, then give an overview of it, with its downsample among the facts."""
    check_kind(task.path)
    for piece in tile_slide(task.path, task.tilings[0]):
        yield TILES, piece
    yield from whole(task)


def whole(task: Task) -> Pieces:
    """A slide from afar, with its size and what it is shrunk by."""
    opened = open_slide(task.path)
    background, downsample = sample_background(opened), fitting_shrink(opened.width_px, opened.height_px)
    yield (
        SHOWN,
        {
            "width_px": opened.width_px,
            "height_px": opened.height_px,
            "downsample": downsample,
            "decoder": opened.decoder,
        },
    )
    yield SHOWN, _batch(read_overview(opened, downsample, background)[None])


def window(task: Task, at: Window) -> Pieces:
    """A part of a slide, always VIEW_PX large: what lies beyond the slide is its background."""
    opened = open_slide(task.path)
    yield SHOWN, _batch(_read(opened, at, sample_background(opened))[None])


def tissue(task: Task) -> Pieces:
    """The slide from afar with its tissue outlined, the tiles that are chosen in blue, squares that are not in red."""
    tiling = task.tilings[0]
    corners = [piece.xy for piece in tile_slide(task.path, tiling) if isinstance(piece, Batch)]
    yield SHOWN, {"tiles": int(sum(map(len, corners)))}
    yield SHOWN, _batch(np.asarray(draw_preview(task.path, tiling, np.concatenate(corners)))[None])


def submission(task: Task, competition: Competition) -> Pieces:
    """Check SUBMISSION in the folder `task.path` against SAMPLE there, and OTHER where there is one.

    Without a sample the file's own ids stand in for one: then nothing is said of its ids.
    """
    sample = task.path / SAMPLE
    if not sample.is_file():
        _write_sample(sample, task.path / SUBMISSION, competition)
    for name in (SUBMISSION, OTHER):
        if (task.path / name).is_file():
            verdict = check_submission(task.path / name, sample, competition)
            yield TILES, {name: {"problems": verdict.problems, "notes": verdict.notes, "rows": verdict.rows}}


def check_kind(path: Path) -> None:
    """Raise SlideUnreadable for what is no picture by its first bytes, whatever its name says."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise SlideUnreadable("the file is empty: 0 bytes")
    if head.startswith(PICTURES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return
    what = next((f"is {what}" for start, what in OTHERS.items() if head.lstrip().startswith(start)), "begins like none")
    raise SlideUnreadable(f"no picture: it {what}; {KNOWN}")


def check_size(path: Path) -> None:
    """Raise SlideUnreadable for a picture whose header says that it is too large or too small, before it is decoded."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # of this process: the size is checked here, with a line of our own
    try:
        with Image.open(path) as file:
            width, height = file.size
    except Exception as error:  # Pillow's decoders raise what they like
        raise SlideUnreadable("no sound picture: its header cannot be read; save it again") from error
    if width * height > MOST_PICTURE_PX:
        raise SlideUnreadable(
            f"{width:,} x {height:,} px; allowed are {MOST_PICTURE_PX:,} px in all; make it smaller, "
            "or open it as a slide"
        )
    if min(width, height) < LEAST_SIDE_PX:
        raise SlideUnreadable(f"{width} x {height} px; at least {LEAST_SIDE_PX} px a side are needed")


def fitting_shrink(width_px: int, height_px: int) -> int:
    """The least power of 2 at which the whole of a slide fits into VIEW_PX."""
    times = max(-(-width_px // VIEW_PX[0]), -(-height_px // VIEW_PX[1]), 1)
    return 1 << (times - 1).bit_length()


def _read(opened: Slide, at: Window, background: Colour) -> Pixels:
    """The window, block by block: at most a block of the slide is held at full resolution."""
    cells = max(1, BLOCK_PX // at.downsample)
    view = blank(VIEW_PX[0], VIEW_PX[1], background)
    places = [(x, y) for y in range(0, VIEW_PX[1], cells) for x in range(0, VIEW_PX[0], cells)]
    inside = [(x, y) for x, y in places if _on(opened, at, x, y)]
    corners = [(at.x_px + x * at.downsample, at.y_px + y * at.downsample) for x, y in inside]
    tiles = opened.tiles(corners, cells, at.downsample, background) if corners else iter(())
    for (x, y), tile in zip(inside, tiles, strict=True):
        part = view[y : y + cells, x : x + cells]
        part[:] = tile[: part.shape[0], : part.shape[1]]
    return view


def _on(opened: Slide, at: Window, x: int, y: int) -> bool:
    return at.x_px + x * at.downsample < opened.width_px and at.y_px + y * at.downsample < opened.height_px


def _small(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    times = max(height, width) / SHOWN_PX
    return pixels if times <= 1 else resized(pixels, max(1, round(height / times)), max(1, round(width / times)))


def _batch(tiles: Pixels) -> Batch:
    return Batch(tiles, np.zeros((len(tiles), 2), np.int32))


def _write_sample(sample: Path, given: Path, competition: Competition) -> None:
    """A sample submission with the ids of the file itself. Raises SplitError where it has none."""
    rows = read_table(given, (competition.columns.patient,))
    ids = dict.fromkeys(row[competition.columns.patient] for row in rows if row[competition.columns.patient])
    with sample.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([competition.header, *([one, *competition.classes.fallback] for one in ids)])
