"""Read files from outside, in child processes.

Each public generator is a `Work` of workers.stream. Its process has a time and a memory limit, and no other code of the
application opens such a file. Pieces with index
TILES are tiles and facts about them; pieces with index SHOWN are a picture to show and facts about it.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clotkit.app.roots import Roots
from clotkit.competitions import Competition
from clotkit.data.images import IMAGE_TILERS, read_image, resized
from clotkit.errors import ClotkitError, SlideUnreadable
from clotkit.slides.pixels import Pixels
from clotkit.slides.reader import open_slide
from clotkit.splits import read_table
from clotkit.submission.answers import answer_cells
from clotkit.submission.checking import check_submission
from clotkit.tiling.overview import read_overview
from clotkit.tiling.preview import draw_preview
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.tissue.rules import sample_background
from clotkit.workers import Task

TILES, SHOWN = 0, 1
LEAST_SIDE_PX = 8  # of an uploaded picture
MOST_PICTURE_PX = 25_000_000  # of an uploaded picture: 75 MB as RGB
SHOWN_PX = 448  # long side of the picture shown beside its answer
VIEW_PX = (768, 512)  # greatest width and height of an overview
SUBMISSION, SAMPLE, OTHER = "submission.csv", "sample.csv", "other.csv"
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8")
ACCEPTED = "PNG, JPEG, TIFF, WebP, BMP and GIF are accepted"
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


def picture(task: Task) -> Pieces:
    """Yield the size and the tiles of a picture, cut with the task's tiling, then a small copy of it."""
    check_signature(task.path)
    check_size(task.path)
    pixels = read_image(task.path)
    yield TILES, {"width_px": pixels.shape[1], "height_px": pixels.shape[0]}
    tiling = task.tilings[0]
    tiles = IMAGE_TILERS[tiling.name](pixels, tiling)
    yield TILES, _batch(tiles)
    yield SHOWN, _batch(_thumbnail(pixels)[None])


def slide(task: Task) -> Pieces:
    """Yield the tiles of a slide, cut as inference cuts them, then its overview."""
    check_signature(task.path)
    for piece in tile_slide(task.path, task.tilings[0]):
        yield TILES, piece
    yield from overview(task)


def overview(task: Task) -> Pieces:
    """Yield the size, downsample and decoder of a slide, then a picture of the whole slide within VIEW_PX."""
    opened = open_slide(task.path)
    background, downsample = sample_background(opened), fitting_downsample(opened.width_px, opened.height_px)
    size = {"width_px": opened.width_px, "height_px": opened.height_px, "downsample": downsample}
    picture = read_overview(opened, downsample, background)  # after it, the facts have what was found on the way
    yield SHOWN, size | {"decoder": opened.decoder, **opened.facts}
    yield SHOWN, _batch(picture[None])


def tissue(task: Task) -> Pieces:
    """Yield the number of tiles of a slide, then its overview with tissue outlined and tiles marked."""
    tiling = task.tilings[0]
    corners = [piece.xy for piece in tile_slide(task.path, tiling) if isinstance(piece, Batch)]
    yield SHOWN, {"tiles": int(sum(map(len, corners)))}
    yield SHOWN, _batch(np.asarray(draw_preview(task.path, tiling, np.concatenate(corners)))[None])


def submission(task: Task, competition: Competition) -> Pieces:
    """Check SUBMISSION in the folder `task.path`, and OTHER if it is there, against SAMPLE.

    Without SAMPLE the file's own ids are taken as the sample's, so that ids are not checked.
    """
    sample = task.path / SAMPLE
    if not sample.is_file():
        _write_sample(sample, task.path / SUBMISSION, competition)
    for name in (SUBMISSION, OTHER):
        if (task.path / name).is_file():
            verdict = check_submission(task.path / name, sample, competition)
            parts = {"problems": verdict.problems, "notes": verdict.notes, "rows": verdict.rows}
            yield TILES, {name: parts | {"labels": verdict.labels}}


def draft(task: Task) -> Pieces:
    """Yield the draft of a competition's TOML from the data folder `task.path`: its text and its lines."""
    from clotkit.drafting.draft import HEADING, draft_competition
    from clotkit.drafting.toml_text import toml_text

    lines = draft_competition(task.path)
    yield TILES, {"text": toml_text(lines, HEADING.format(folder=task.path.name)), "lines": lines}


def fits(task: Task, text: str, roots: Roots) -> Pieces:
    """Yield what of a competition's TOML does not fit itself and the data folder `task.path`."""
    from clotkit.competitions import load_competition
    from clotkit.drafting.check import check_competition

    with TemporaryDirectory(prefix="clotkit-app-") as folder:
        path = Path(folder) / "competition.toml"
        path.write_text(text.replace("\r\n", "\n"), encoding="utf-8")
        try:
            competition = load_competition(str(path))
            checked = check_competition(competition, roots.holding(task.path, competition.tables()))
        except ClotkitError as error:
            raise SlideUnreadable(str(error).replace(f"{folder}/", "")) from error
    yield TILES, {"findings": list(checked.findings), "summary": checked.summary, "fits": checked.fits}


def report(task: Task) -> Pieces:
    """Yield the page of the run in the folder `task.path`, made again from its files."""
    from clotkit.report.page import page_pieces

    yield TILES, {"page": "".join(page_pieces(task.path))}


def compared(task: Task, second: Path) -> Pieces:
    """Yield the difference of the runs in two folders."""
    from clotkit.report.comparing import compare
    from clotkit.report.run import read_run

    yield TILES, {"found": compare(read_run(task.path), read_run(second))}


def check_signature(path: Path) -> None:
    """Raise SlideUnreadable for a file that cannot be read or does not begin like a picture."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SlideUnreadable(f"the file cannot be read: {error.strerror}; check its permissions") from error
    if not head:
        raise SlideUnreadable("the file is empty: 0 bytes")
    if head.startswith(PICTURES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return
    kind = next((name for start, name in OTHERS.items() if head.lstrip().startswith(start)), "of an unknown type")
    raise SlideUnreadable(f"not a picture: the file is {kind}; {ACCEPTED}")


def check_size(path: Path) -> None:
    """Raise SlideUnreadable for a picture whose header gives too large or too small a size."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # in this process the check below replaces Pillow's
    try:
        with Image.open(path) as file:
            width, height = file.size
    except Exception as error:  # Pillow's decoders raise exceptions of any class
        raise SlideUnreadable("damaged picture: its header cannot be read; save it again") from error
    if width * height > MOST_PICTURE_PX:
        raise SlideUnreadable(
            f"{width:,} x {height:,} px; at most {MOST_PICTURE_PX:,} pixels are allowed; make the picture smaller, "
            "or open it as a slide"
        )
    if min(width, height) < LEAST_SIDE_PX:
        raise SlideUnreadable(f"{width} x {height} px; each side needs at least {LEAST_SIDE_PX} px")


def fitting_downsample(width_px: int, height_px: int) -> int:
    """Return the least power of 2 at which the whole slide fits into VIEW_PX."""
    times = max(-(-width_px // VIEW_PX[0]), -(-height_px // VIEW_PX[1]), 1)
    return 1 << (times - 1).bit_length()


def _thumbnail(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    times = max(height, width) / SHOWN_PX
    return pixels if times <= 1 else resized(pixels, max(1, round(height / times)), max(1, round(width / times)))


def _batch(tiles: Pixels) -> Batch:
    return Batch(tiles, np.zeros((len(tiles), 2), np.int32))


def _write_sample(sample: Path, submission: Path, competition: Competition) -> None:
    """Write a sample submission with the ids of a submission. Raises SplitError if it has none."""
    column, fallback = competition.submission.id, answer_cells(competition, None)
    ids = dict.fromkeys(row[column] for row in read_table(submission, (column,)) if row[column])
    with sample.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([competition.header, *([one, *fallback] for one in ids)])
