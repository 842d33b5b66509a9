"""List splits and runs in the allowed folders, find tissue and tiles, and score a slide live."""

import json
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.app import untrusted
from clotkit.app.prediction import decide, predict_tiles
from clotkit.app.processes import Result, events, run_one, slide_limits, without_path
from clotkit.app.roots import Roots
from clotkit.competitions import FOLDER, Competition, load_competition
from clotkit.config import TilingConfig
from clotkit.errors import ClotkitError, SplitError, UsageError
from clotkit.evaluation.loaded_member import LoadedMember
from clotkit.members.heat import RAMP, RAMP_AT
from clotkit.reasons import Cause
from clotkit.report.records import REPORT, RUN, SlideReport, read_report
from clotkit.report.shown import Kind, Shown
from clotkit.slides.pixels import Pixels
from clotkit.splits import SlideRow, read_slides, split_of
from clotkit.tiling.preview import kept_size_px
from clotkit.units import MB
from clotkit.workers import Ended, Task

OPACITY = 0.55  # of a tile's colour over the slide
SPLITS = ("test", "train")
MOST_REPORT_MB = 64  # of a report.jsonl, which the server reads itself
MOST_FACTS_MB = 4  # of a file with one JSON object, such as run.json


@dataclass(frozen=True)
class SlideFolder:
    """The slides of a split, or of a run with its report."""

    folder: Path
    competition: Competition  # of the run, or of the application
    rows: dict[str, SlideRow] = field(default_factory=dict)  # by image id; empty where the files may not be read
    lines: dict[str, SlideReport] = field(default_factory=dict)  # the run's report by image id; empty for a split
    unreadable: ClotkitError | None = None  # why the files of a run's slides cannot be read

    def ids(self) -> list[str]:
        """Return the ids of all slides: partial and fallback ones first, then in the order of the table."""
        known = list(dict.fromkeys([*self.lines, *self.rows]))
        return sorted(known, key=lambda one: self.state(one) in {"done", "not run"})

    def state(self, image_id: str) -> str:
        """Return a slide's state in the run: done, partial, fallback, or "not run" if the report lacks it."""
        return self.lines[image_id].state if image_id in self.lines else "not run"

    def reason(self, image_id: str) -> str:
        """Return the sentence why a slide is not done; empty if it is."""
        return self.lines[image_id].reason if image_id in self.lines else ""


@dataclass(frozen=True)
class LiveScore:
    """A slide that is being scored; the last one of a slide has its answer."""

    tiles: int  # so far
    most: int  # most tiles that the recipe takes
    label: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)  # calibrated, by class
    picture: Pixels | None = None  # the overview with each tile coloured by its probability
    cut_short: Cause | None = None  # why reading the slide ended before all tiles came


def list_folders(roots: Roots, competition: Competition) -> list[Path]:
    """Return the folders of splits and runs below the roots."""
    tables = [competition.table_path(Path(), split).name for split in SPLITS]
    sample = [competition.sample_path(Path()).name] if competition.by_image else []  # it may list the slides
    return roots.below([REPORT, *tables, *sample])


def open_folder(path: str | Path, roots: Roots, competition: Competition) -> SlideFolder:
    """Open the folder of a split, or of a run of any competition that ships with the kit.

    Raises UsageError if it is outside the roots or a file, SplitError if it is neither a split nor a run.
    """
    folder = roots.inside(path)
    if not folder.is_dir():
        raise UsageError("that is a file; give the folder of a split or of a run")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError("the folder may not be read; check its permissions")
    if not (folder / REPORT).is_file():
        return SlideFolder(folder, competition, _slides(folder, competition, roots))
    roots.closed(folder)
    lines = {line.image_id: line for line in report_lines(folder / REPORT)}
    try:
        facts = _facts_of_run(folder, roots)
        competition = competition_of_run(facts, competition)
        split = roots.inside(Path(facts["arguments"]["split"]).absolute())
        return SlideFolder(folder, competition, _slides(split, competition, roots), lines)
    except ClotkitError as error:
        return SlideFolder(folder, competition, {}, lines, error)


def slide_path(opened: SlideFolder, image_id: str, roots: Roots) -> Path:
    """Return the file of a slide. Raises UsageError if it is missing or leads out of the roots."""
    if image_id not in opened.rows:
        raise UsageError(f"the slide's file cannot be read: {opened.unreadable or 'its split has no such slide'}")
    return roots.inside(opened.rows[image_id].path)


def read_tissue(path: Path, tiling: TilingConfig, competition: Competition) -> Result:
    """Return an overview with tissue and tiles marked, and the number of tiles. Raises SlideUnreadable."""
    return run_one(Task(path.name, path, (tiling,)), untrusted.tissue, slide_limits(competition))


def score_live(member: LoadedMember, path: Path, competition: Competition) -> Generator[LiveScore, None, None]:
    """Score a slide: yield a LiveScore for every batch of tiles, and a last one with the answer.

    If reading the slide ends early, the answer comes from the tiles so far. Raises SplitError if there is no tile.
    """
    result, rows, most = Result(), list[npt.NDArray[np.float64]](), member.recipe.tiling.max_tiles
    task, cut_short = Task(path.name, path, (member.recipe.tiling,)), None
    with closing(events([task], untrusted.slide, slide_limits(competition))) as running:
        for event in running:
            if isinstance(event, Ended):
                result.facts, cut_short = dict(event.facts), _cause_of(event)
                continue
            result.add(event)
            if event.tiling == untrusted.TILES:
                rows.append(predict_tiles(member, event.batch.tiles))
                yield LiveScore(sum(map(len, rows)), most)
    if not rows:
        raise SplitError(f"the slide gives no tile: {cut_short.sentence if cut_short else 'it has none'}")
    yield _last(member, result, np.concatenate(rows), cut_short, competition)


def paint_tiles(
    overview: Pixels,
    downsample: int,
    xy: npt.NDArray[np.int32],
    size_px: tuple[int, int],
    p: npt.NDArray[np.float64],
    attention: npt.NDArray[np.float64] | None = None,
) -> Pixels:
    """Draw tiles over an overview, coloured by probability: violet at 0, green at 0.5, yellow at 1.

    Args:
        overview: the slide, uint8[h, w, 3].
        downsample: full-resolution pixels per pixel of the overview.
        xy: corners of the tiles, int32[n, 2], in full-resolution pixels.
        size_px: width and height of a tile, in full-resolution pixels.
        p: probabilities, or other shares of a largest value [n].
        attention: weights of the tiles [n]: the less a tile weighs, the more transparent is its colour.
    """
    painted = overview.astype(np.float32)
    colours = np.stack([np.interp(p, RAMP_AT, channel) for channel in np.array(RAMP).T], axis=-1)  # [n, 3]
    opacities = np.full(len(p), OPACITY) if attention is None else OPACITY * attention / attention.max()
    for (x, y), colour, opacity in zip((xy // downsample).tolist(), colours, opacities.tolist(), strict=True):
        part = painted[y : y + max(1, size_px[1] // downsample), x : x + max(1, size_px[0] // downsample)]
        part[:] = part * (1 - opacity) + colour * opacity
    return np.asarray(np.rint(painted), np.uint8)


def _cause_of(ended: Ended) -> Cause | None:
    return None if ended.code is None else Cause(ended.code, without_path(ended.reason, ended.task.path))


def shown_by(member: LoadedMember, competition: Competition) -> Shown:
    """Return the number that is drawn of each tile.

    Of two classes it is the probability of the member's positive one.
    """
    classes, positive = member.target.classes, member.target.positive
    if len(classes) > 2:
        return Shown.by_rule(classes, competition.submission.rule if classes == competition.classes.names else "")
    return Shown(Kind.LAST, (*(name for name in classes if name != positive), positive))


def _last(
    member: LoadedMember,
    result: Result,
    rows: npt.NDArray[np.float64],
    cut_short: Cause | None,
    competition: Competition,
) -> LiveScore:
    label, probabilities = decide(member, rows, competition)
    picture = None
    if untrusted.SHOWN in result.batches:
        facts: dict[str, Any] = dict(result.facts)
        xy = np.concatenate([batch.xy for batch in result.batches[untrusted.TILES]])
        size = kept_size_px(member.recipe.tiling, facts["width_px"], facts["height_px"], facts)
        shown = shown_by(member, competition)
        p = member.pooling.tile_probabilities(rows)  # [n, C]
        order = [member.target.classes.index(name) for name in shown.classes]
        levels, attention = shown.levels(p[:, order]), member.pooling.attention(rows)
        picture = paint_tiles(result.picture(), facts["downsample"], xy, size, levels, attention)
    return LiveScore(len(rows), member.recipe.tiling.max_tiles, label, probabilities, picture, cut_short)


def _slides(folder: Path, competition: Competition, roots: Roots) -> dict[str, SlideRow]:
    roots.holding(folder, competition.tables())
    split = split_of(folder, competition, SPLITS)
    return {row.image_id: row for row in read_slides(folder, split, competition, log=lambda _: None)}


def report_lines(path: Path) -> list[SlideReport]:
    """Return the lines of a run's report.

    Raises SplitError if it is too large, cannot be read or is no report.
    """
    try:
        if path.stat().st_size > MOST_REPORT_MB * MB:
            raise SplitError(f"{path.name}: above {MOST_REPORT_MB} MB; clotkit report reads larger ones")
        return read_report(path)
    except OSError as error:
        raise SplitError(f"{path.name}: cannot be read: {error.strerror}; check its permissions") from error
    except (TypeError, ValueError) as error:
        raise SplitError(f"{path.name}: not the report of a run; clotkit run writes one") from error


def read_facts(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises OSError if the file cannot be read, ValueError if it holds no JSON object, is too large or is no file.
    """
    if not path.is_file():
        path.stat()  # raises for one that is missing
        raise ValueError(f"{path.name}: not a file")  # a pipe would be waited for
    if path.stat().st_size > MOST_FACTS_MB * MB:
        raise ValueError(f"{path.name}: above {MOST_FACTS_MB} MB")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name}: nested too deeply") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path.name}: not an object")
    return facts


def _facts_of_run(folder: Path, roots: Roots) -> dict[str, Any]:
    """Return the contents of run.json. Raises SplitError if it does not name the run's split."""
    try:
        facts = read_facts(roots.inside(folder / RUN))
        Path(facts["arguments"]["split"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SplitError(f"{RUN} does not name the run's split; the run has not ended") from error
    return facts


def competition_of_run(facts: dict[str, Any], competition: Competition) -> Competition:
    """Return the competition of a run: that of the application, or one that ships with the kit.

    Raises SplitError for another one.
    """
    slug = facts.get("competition", competition.slug)
    if slug == competition.slug:
        return competition
    shipped = (load_competition(path.stem) for path in sorted(FOLDER.glob("*.toml")))
    found = next((one for one in shipped if one.slug == slug), None)
    if found is None:
        raise SplitError(f"the run is of {slug}, the application of {competition.slug}; give clotkit app --competition")
    return found
