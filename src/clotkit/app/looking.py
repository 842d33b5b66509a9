"""Slides to look at: folders of them under the roots, windows on them, and one of them scored while one watches."""

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.app import decode
from clotkit.app.decode import VIEW_PX, Window
from clotkit.app.roots import Roots
from clotkit.app.work import Read, events, read_one, rows_of, said_of, slide_limits
from clotkit.competitions import Competition
from clotkit.config import TilingConfig
from clotkit.errors import ClotkitError, SplitError, UsageError
from clotkit.evaluation.evaluate import Asked
from clotkit.members.heat import RAMP, RAMP_AT
from clotkit.members.pooling import tile_probabilities
from clotkit.report.records import REPORT, RUN, SlideReport, read_report
from clotkit.slides.pixels import Pixels
from clotkit.splits import SlideRow, read_slides, split_of
from clotkit.tiling.preview import kept_size_px
from clotkit.workers import Task, Tiles

COVER = 0.55  # of a tile's colour over the slide
SPLITS = ("test", "train")


@dataclass(frozen=True)
class Opened:
    """A split or a run: its slides by id, where their files may be read; what the run said of each; what is missing."""

    folder: Path
    rows: dict[str, SlideRow] = field(default_factory=dict)
    lines: dict[str, SlideReport] = field(default_factory=dict)
    note: str = ""

    def ids(self) -> list[str]:
        """All slides: those that fell back first, then in the order of the table."""
        known = list(dict.fromkeys([*self.lines, *self.rows]))
        return sorted(known, key=lambda one: self.state(one) in {"done", "not run"})

    def state(self, image_id: str) -> str:
        """done, partial or fallback, as the run had it; not run where there is no line."""
        return self.lines[image_id].state if image_id in self.lines else "not run"

    def reason(self, image_id: str) -> str:
        """Why a slide is not done; empty where it is."""
        return self.lines[image_id].reason if image_id in self.lines else ""


@dataclass(frozen=True)
class Live:
    """A slide on its way: tiles so far, of at most `most`; once it has ended its label, probabilities and picture."""

    tiles: int
    most: int
    label: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)
    picture: Pixels | None = None
    note: str = ""


def folders(roots: Roots, competition: Competition) -> list[Path]:
    """The splits and runs under the roots."""
    return roots.below([REPORT, *(competition.table_path(Path(), split).name for split in SPLITS)])


def open_folder(path: str | Path, roots: Roots, competition: Competition) -> Opened:
    """A split or a run folder. Raises UsageError where it is not in the roots, SplitError where it is neither."""
    folder = roots.inside(path)
    if not folder.is_dir():
        raise UsageError("that is a file; give the folder of a split or of a run")
    if not (folder / REPORT).is_file():
        return Opened(folder, _slides(folder, competition))
    roots.inside(folder / REPORT)
    lines = {line.image_id: line for line in _lines(folder / REPORT)}
    try:
        split = roots.inside(_split_of_run(folder, roots))
        return Opened(folder, _slides(split, competition), lines)
    except ClotkitError as error:
        return Opened(folder, {}, lines, f"its slides cannot be shown: {error}")


def slide_path(opened: Opened, image_id: str, roots: Roots) -> Path:
    """The file of a slide, in the roots. Raises UsageError where it is missing or leads out of them."""
    if image_id not in opened.rows:
        raise UsageError("the slide's file is not at hand: " + (opened.note or "its split has no such slide"))
    return roots.inside(opened.rows[image_id].path)


def overview_of(path: Path, competition: Competition) -> Read:
    """A slide from afar: its picture, and the facts width_px, height_px and downsample. Raises SlideUnreadable."""
    return read_one(Task(path.name, path, ()), decode.whole, slide_limits(competition))


def window_of(path: Path, at: Window, competition: Competition) -> Pixels:
    """A part of a slide, uint8[512, 768, 3]. Raises SlideUnreadable."""
    return read_one(Task(path.name, path, ()), partial(decode.window, at=at), slide_limits(competition)).picture()


def tissue_of(path: Path, tiling: TilingConfig, competition: Competition) -> Read:
    """The slide with its tissue and the tiles that a recipe chooses; the fact tiles. Raises SlideUnreadable."""
    return read_one(Task(path.name, path, (tiling,)), decode.tissue, slide_limits(competition))


def zooms(width_px: int, height_px: int) -> list[int]:
    """The downsamples that a slide can be looked at with, the whole of it first: powers of 2 down to 1."""
    most = decode.fitting_shrink(width_px, height_px)
    return [1 << step for step in range(most.bit_length() - 1, -1, -1)]


def moved(at: Window, right: float, down: float, width_px: int, height_px: int) -> Window:
    """The window, moved by so many of its own sides, and kept on the slide; corners are multiples of the downsample."""
    return Window(
        _kept(at.x_px + right * VIEW_PX[0] * at.downsample, VIEW_PX[0], at.downsample, width_px),
        _kept(at.y_px + down * VIEW_PX[1] * at.downsample, VIEW_PX[1], at.downsample, height_px),
        at.downsample,
    )


def zoomed(at: Window, downsample: int, width_px: int, height_px: int) -> Window:
    """The window at another downsample, its middle where it was."""
    middle = [
        corner + side * at.downsample / 2 for corner, side in zip((at.x_px, at.y_px), VIEW_PX, strict=True)
    ]  # full-resolution px
    x, y = (int(place - side * downsample / 2) for place, side in zip(middle, VIEW_PX, strict=True))
    return moved(Window(x, y, downsample), 0, 0, width_px, height_px)


def score_live(asked: Asked, path: Path, competition: Competition) -> Generator[Live, None, None]:
    """Score a slide with a member: a Live for every batch, and one at the end with what the member says.

    A slide that ends early is judged by what came of it, with a note. Raises SlideUnreadable where that is nothing.
    """
    read, rows, most = Read(), list[npt.NDArray[np.float64]](), asked.recipe.tiling.max_tiles
    task, reason = Task(path.name, path, (asked.recipe.tiling,)), ""
    with closing(events([task], decode.slide, slide_limits(competition))) as running:
        for event in running:
            if not isinstance(event, Tiles):
                read.facts, reason = dict(event.facts), event.reason
                continue
            read.add(event)
            if event.tiling == decode.TILES:
                rows.append(rows_of(asked, event.batch.tiles))
                yield Live(sum(map(len, rows)), most)
    if not rows:
        raise SplitError(f"the slide gives no tile: {reason.replace(str(path), 'the file') or 'nothing came'}")
    yield _ended(asked, read, np.concatenate(rows), reason.replace(str(path), "the file"))


def painted(view: Pixels, downsample: int, xy: npt.NDArray[np.int32], size_px: tuple[int, int], p: Any) -> Pixels:
    """Draw tiles over an overview, coloured by their probability p [n]: violet at 0, green at 0.5, yellow at 1.

    `xy` int32[n, 2] are their corners and `size_px` their width and height, in full-resolution pixels.
    """
    seen = view.astype(np.float32)
    colours = np.stack([np.interp(p, RAMP_AT, channel) for channel in np.array(RAMP).T], axis=-1)  # [n, 3]
    for (x, y), colour in zip((xy // downsample).tolist(), colours, strict=True):
        part = seen[y : y + max(1, size_px[1] // downsample), x : x + max(1, size_px[0] // downsample)]
        part[:] = part * (1 - COVER) + colour * COVER
    return np.asarray(np.rint(seen), np.uint8)


def _ended(asked: Asked, read: Read, rows: npt.NDArray[np.float64], reason: str) -> Live:
    label, probabilities = said_of(asked, rows)
    picture = None
    if decode.SHOWN in read.batches:
        facts: dict[str, Any] = dict(read.facts)
        xy = np.concatenate([batch.xy for batch in read.batches[decode.TILES]])
        size = kept_size_px(asked.recipe.tiling, facts["width_px"], facts["height_px"])
        target = asked.aim.classes.index(asked.aim.positive)
        picture = painted(
            read.picture(),
            facts["downsample"],
            xy,
            size,
            tile_probabilities(rows, asked.recipe.inference.pooling)[:, target],
        )
    note = f"it ended early: {reason}" if reason else ""
    return Live(len(rows), asked.recipe.tiling.max_tiles, label, probabilities, picture, note)


def _slides(folder: Path, competition: Competition) -> dict[str, SlideRow]:
    split = split_of(folder, competition, SPLITS)
    return {row.image_id: row for row in read_slides(folder, split, competition, log=lambda _: None)}


def _lines(path: Path) -> list[SlideReport]:
    try:
        return read_report(path)
    except (TypeError, ValueError) as error:
        raise SplitError(f"{path.name}: is no report of a run; clotkit run writes it") from error


def _split_of_run(folder: Path, roots: Roots) -> Path:
    try:
        said = json.loads(roots.inside(folder / RUN).read_text(encoding="utf-8"))["arguments"]["split"]
        return Path(said).absolute()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SplitError(f"{RUN} does not say which split it was; the run has not ended") from error


def _kept(corner_px: float, side: int, downsample: int, length_px: int) -> int:
    """A corner, brought back onto the slide, down to a multiple of the downsample."""
    last = max(0, length_px - side * downsample)
    return int(min(max(corner_px, 0), last)) // downsample * downsample
