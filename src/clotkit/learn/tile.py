"""`clotkit tile`: a shard a slide, each cut in the slide's own process, and shards.csv, which lists them.

What is up to date is left alone, a slide that fails costs itself alone, and a run that is killed leaves nothing that
passes for whole. No TensorFlow here.
"""

import csv
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.config import TilingConfig, load_recipe
from clotkit.errors import SplitError, UsageError
from clotkit.files import publish_text
from clotkit.infer.report import progress
from clotkit.infer.workers import Ended, Limits, Task, Work, check_limits, stream
from clotkit.learn.shards import frame_of, shard_key, shard_key_of, write_shard
from clotkit.slides.tiling import Batch, check_tiler, tile_slide
from clotkit.splits import SYNTHETIC, SlideRow, kind_of, read_slides, read_table, split_of

TABLE, PREVIEWS = "shards.csv", "preview"
TILING = "tiling"  # among a shard's facts: what it was cut with
MB = 2**20
DONE, FAILED = "done", "failed"
FULL = "the shards take up all the room they may; no slide was begun any more"

Log = Callable[[str], None]


@dataclass(frozen=True)
class ShardRow:
    """A row of shards.csv: `file` is None and `tiles` 0 where the slide gave no shard, and `reason` says why."""

    image_id: str
    patient_id: str
    label: int | None  # a class index; None in a test split
    file: Path | None
    tiles: int
    key: str
    reason: str
    centre: str = ""


@dataclass(frozen=True)
class TileSettings:
    """What `clotkit tile` is asked for; `split` None takes train where there is one, else test.

    Without `dated` a slide's time of change does not matter. After `deadline_s` seconds, or once the folder holds
    `most_mb` of shards, no slide is begun any more; None: never.
    """

    split_dir: Path
    out: Path
    recipe: str
    split: str | None
    jobs: int
    memory_mb: int  # address space of a slide's process
    preview: bool
    dated: bool = True
    deadline_s: float | None = None
    most_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class ShardTask(Task):
    """A slide whose tiles go to the file `shard` under `key`, and its picture to `preview` where one is wanted."""

    shard: Path
    key: str
    preview: Path | None


def tile_split(
    settings: TileSettings, competition: Competition, log: Log = print, work: Work | None = None
) -> dict[str, int]:
    """Write a shard a slide into the folder `out`, and shards.csv; return how many are new, up to date, and failed.

    What training needs to know is in shards.csv (labels, patients, centres), and in each shard (its tiling).

    Shards that are whole and have the key that they must have are left alone; without other work no process is started.
    A slide that fails costs itself alone and is named to `log`. `work` is what a slide's process does (shard_task).
    Raises UsageError, ConfigError or SplitError, before a shard is touched, for wrong input.
    """
    deadline = float("inf") if settings.deadline_s is None else time.monotonic() + settings.deadline_s
    tiling = load_recipe(settings.recipe).tiling
    check_tiler(tiling, settings.recipe)
    check_limits(settings.jobs, settings.memory_mb)
    split = settings.split or split_of(settings.split_dir, competition, ("train", "test"))
    slides = read_slides(settings.split_dir, split, competition)
    with _alone(settings.out, slides) as out:
        tasks = [_task(slide, tiling, out, settings) for slide in slides]
        fresh = [task for task in tasks if not _is_up_to_date(task)]
        kept = len(tasks) - len(fresh)
        if kept:
            log(f"{kept} {'shard is' if kept == 1 else 'shards are'} up to date")
        reasons: dict[str, str] = {}
        if fresh:
            log(f"{len(fresh)} of {len(slides)} {kind_of(settings.split_dir)}slides to tile, recipe {settings.recipe}")
            (out / TABLE).unlink(missing_ok=True)  # it would speak of shards that this run replaces
            limits = Limits(competition.limits.slide_s, settings.memory_mb, deadline)
            size_of = {slide.image_id: slide.size_bytes for slide in slides}
            fresh.sort(key=lambda task: -size_of[task.image_id])  # so that no core waits for the longest at the end
            reasons = _run(fresh, limits, settings.jobs, work or shard_task, partial(_full, out, settings.most_mb), log)
        rows = [_row(slide, task, reasons) for slide, task in zip(slides, tasks, strict=True)]
        _discard_others(tasks, out)
        _copy_marker(settings.split_dir, out)
        _publish_table(out / TABLE, rows, competition)
    if any(row.reason == FULL for row in rows):
        log(f"{out}: {_taken_mb(out):,.0f} MB of shards, --most is {settings.most_mb or 0:,.0f} MB; allow more")
    failed = sum(bool(row.reason) for row in rows)
    tiles = sum(row.tiles for row in rows)
    log(f"{out}: {sum(row.file is not None for row in rows)} of {len(rows)} slides, {tiles} tiles, {failed} failed")
    return {"new": len(fresh) - failed, "up_to_date": kept, "failed": failed}


def shard_task(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """The work of a slide's process: cut, write and publish its shard and its preview; only facts go to the parent.

    Raises SlideError when the slide gives no tiles.
    """
    assert isinstance(task, ShardTask)
    if shard_key_of(task.shard) != task.key:
        pieces = chain([{TILING: asdict(task.tilings[0])}], tile_slide(task.path, task.tilings[0]))
        yield 0, {"tiles": write_shard(task.shard, pieces, task.key)}
    if task.preview is not None:
        from clotkit.slides.preview import preview_key, preview_key_of, write_preview

        frame = frame_of(task.shard)
        if frame is not None and preview_key_of(task.preview) != preview_key(task.key):
            write_preview(task.preview, task.path, task.tilings[0], frame.xy, task.key)


def read_shard_rows(out: Path, competition: Competition) -> list[ShardRow]:
    """The rows of the shards.csv in a folder that `clotkit tile` has filled, failed slides too.

    Raises SplitError when it is missing or malformed: the folder's last run did not come to its end.
    """
    columns, names = competition.columns, competition.classes.names
    path = out / TABLE
    rows = read_table(path, [columns.image, columns.patient, "file", "tiles", "key", "reason"])
    found = []
    for row in rows:
        label = row.get(columns.label)
        if not row["tiles"].isdecimal() or (label is not None and label not in names):
            raise SplitError(f"{path}: {row[columns.image]} has {row['tiles']!r} tiles and label {label!r}")
        found.append(
            ShardRow(
                row[columns.image],
                row[columns.patient],
                None if label is None else names.index(label),
                out / row["file"] if row["file"] else None,
                int(row["tiles"]),
                row["key"],
                row["reason"],
                row.get(columns.center, ""),
            )
        )
    return found


@contextmanager
def _alone(out: Path, slides: Sequence[SlideRow]) -> Iterator[Path]:
    """Make the folder and hold it for this run: two at a time would sweep away each other's temporary files.

    What killed processes left half-written is swept before and after. Raises UsageError for a folder that is not to be
    had, or not to be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{out}: cannot be used as a folder of shards: {error.strerror}; name another") from error
    try:
        with suppress(OSError):  # a file system without locks; BlockingIOError, which says held, is raised below
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{out}: another clotkit tile is at work there; wait for it, or name another"
                ) from None
        _sweep(out, slides)
        yield out
        _sweep(out, slides)
    except BrokenPipeError:
        raise  # of the log: whoever read it is gone
    except OSError as error:
        raise UsageError(
            f"{error.filename or out}: cannot be written: {error.strerror}; free it, or name another"
        ) from error
    finally:
        os.close(handle)  # and with it the lock


def _sweep(out: Path, slides: Sequence[SlideRow]) -> None:
    """Remove the temporary files (see files.publishing) of processes that were killed."""
    wanted = {slide.image_id for slide in slides}  # one of them may begin with a dot
    kinds = [out.glob(f".*.{kind}") for kind in ("npy", "csv", "json")]
    for path in chain(*kinds, (out / PREVIEWS).glob(".*.jpg")):
        if path.stem not in wanted:
            path.unlink(missing_ok=True)


def _task(slide: SlideRow, tiling: TilingConfig, out: Path, settings: TileSettings) -> ShardTask:
    try:
        key = shard_key(slide.path, tiling, settings.dated)
    except OSError:
        key = ""  # no shard has it: the slide's process will say what is wrong
    picture = out / PREVIEWS / f"{slide.image_id}.jpg" if settings.preview else None
    shard = out / f"{slide.image_id}.npy"
    return ShardTask(slide.image_id, slide.path, (tiling,), shard=shard, key=key, preview=picture)


def _is_up_to_date(task: ShardTask) -> bool:
    if shard_key_of(task.shard) != task.key:
        return False
    if task.preview is None:
        return True
    from clotkit.slides.preview import preview_key, preview_key_of

    return preview_key_of(task.preview) == preview_key(task.key)


def _full(out: Path, most_mb: float | None) -> bool:
    """Whether the folder's shards, half-written ones too, take up all that they may."""
    return most_mb is not None and _taken_mb(out) >= most_mb


def _taken_mb(out: Path) -> float:
    taken = 0
    for path in out.glob("*.npy"):
        with suppress(FileNotFoundError):  # it was renamed meanwhile
            taken += path.stat().st_size
    return taken / MB


def _run(
    tasks: Sequence[ShardTask], limits: Limits, jobs: int, work: Work, full: Callable[[], bool], log: Log
) -> dict[str, str]:
    """Run the tasks until there is no room; return the reasons of those that failed or had no turn, by image id."""
    for task in tasks:
        if task.preview is not None:
            task.preview.parent.mkdir(exist_ok=True)
    reasons = dict.fromkeys((task.image_id for task in tasks), FULL)
    running = stream(tasks, limits, jobs, work, stopped=full)
    with progress(len(tasks), log) as advance, closing(running) as events:  # closed, it kills what still runs
        for event in events:
            if isinstance(event, Ended):
                tiles = f"{event.facts.get('tiles', 'no new')} tiles, {event.seconds:.1f} s"
                said = f"failed: {event.reason}" if event.reason else tiles
                advance(f"{event.image_id} {said}", bool(event.reason))
                reasons[event.image_id] = event.reason
    return reasons


def _row(slide: SlideRow, task: ShardTask, reasons: dict[str, str]) -> ShardRow:
    """What became of a slide, read off the disk: no message of a process makes a shard that is not there."""
    reason = reasons.get(slide.image_id, "")
    frame = frame_of(task.shard)
    if frame is None or frame.key != task.key:
        reason = reason or "its process ended without a shard"
        return ShardRow(slide.image_id, slide.patient_id, slide.label, None, 0, "", reason, slide.centre)
    known = slide.image_id, slide.patient_id, slide.label
    return ShardRow(*known, task.shard, frame.count, frame.key, reason, slide.centre)


def _discard_others(tasks: Sequence[ShardTask], out: Path) -> None:
    """Remove shards and previews of these slides that have another key: the old ones of slides that failed now.

    Those of a slide that is not there stay: its disk may only be away, and shards.csv does not name them.
    """
    from clotkit.slides.preview import preview_key, preview_key_of

    for task in (task for task in tasks if task.key):
        if shard_key_of(task.shard) != task.key:
            task.shard.unlink(missing_ok=True)
        picture = out / PREVIEWS / f"{task.image_id}.jpg"
        if picture.exists() and preview_key_of(picture) != preview_key(task.key):
            picture.unlink()


def _copy_marker(split_dir: Path, out: Path) -> None:
    """Let the folder say that its tiles are of drawn slides, as the split does; what is trained on it says so too."""
    marker, copy = split_dir / SYNTHETIC, out / SYNTHETIC
    if not marker.is_file():
        copy.unlink(missing_ok=True)
    elif not copy.is_file() or copy.read_bytes() != marker.read_bytes():
        publish_text(copy, marker.read_text(encoding="utf-8"))


def _publish_table(path: Path, rows: Sequence[ShardRow], competition: Competition) -> None:
    """Publish shards.csv, unless it stands there as it must be."""
    columns, names = competition.columns, competition.classes.names
    labelled = any(row.label is not None for row in rows)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    label = [columns.label] if labelled else []
    centred = [columns.center] if any(row.centre for row in rows) else []
    table.writerow([columns.image, columns.patient, *label, *centred, "file", "tiles", "key", "state", "reason"])
    for row in rows:
        named = [names[row.label]] if row.label is not None else []
        file, state = (row.file.name, DONE) if row.file else ("", FAILED)
        centre = [row.centre] if centred else []
        table.writerow([row.image_id, row.patient_id, *named, *centre, file, row.tiles, row.key, state, row.reason])
    if not path.exists() or path.read_bytes() != text.getvalue().encode():
        publish_text(path, text.getvalue())
