"""Train and evaluate the picture recipes with five seeds, as one table: `python -m bench.board DATA`.

DATA is a folder with brain_mri, breastmnist and bloodmnist. Each training is a process of its own (bench.board_one).
Its row goes into bench/board.json, and is kept until its recipe or its data change. Run the same command again after a
kill. The exit code is 1 if a training failed, or if evaluating its weights gives other figures.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from bench.board_one import FIGURES
from bench.board_table import (
    BOARD,
    ENTRIES,
    MARKS,
    PAGE,
    ROOT,
    SEEDS,
    Entry,
    Row,
    add_row,
    board_table,
    read_rows,
    recipe_key,
    recipe_text,
)
from bench.markdown import with_table
from clotkit.errors import ClotkitError, UsageError
from clotkit.files import atomic_write_text, sha256
from clotkit.locks import exclusive_folder
from clotkit.synthetic.contours import MARKER, write_contours

DRAWN, DRAWN_SEED = 1200, 0  # pictures of double_contour, as `make weights-contours` draws them


@dataclass(frozen=True)
class Task:
    """One training of the board."""

    entry: Entry
    seed: int
    data: Path
    data_key: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.entry.name}-{self.entry.protocol}-{self.seed}"

    @property
    def key(self) -> Row:
        """The start of its row, which is kept as long as this stays the same."""
        return {
            "recipe": self.entry.name,
            "protocol": self.entry.protocol,
            "seed": self.seed,
            "recipe_key": recipe_key(self.entry, self.seed),
            "data_key": self.data_key,
        }


def main(arguments: Sequence[str] | None = None, entries: Sequence[Entry] = ENTRIES) -> int:
    """Train what is missing, write the table, and return the exit code."""
    options = _options(arguments)
    try:
        page = options.page.read_text(encoding="utf-8")
        with_table(page, "", MARKS)  # a page without a place for the table is refused before the first training
        failed = 0 if options.table else _train_missing(options, _chosen(options, entries))
        page = options.page.read_text(encoding="utf-8")
        atomic_write_text(options.page, with_table(page, board_table(read_rows(options.board), entries), MARKS))
    except (ClotkitError, OSError) as error:
        print(f"board: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.board", description=__doc__)
    line.add_argument("data", type=Path, nargs="?", metavar="DATA")
    line.add_argument("--recipes", nargs="+", metavar="NAME", help="only these recipes")
    line.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="N", help="seeds (default: all five)")
    line.add_argument("--table", action="store_true", help="train nothing, write the table of the rows that are there")
    line.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="trainings at a time (default: 1)")
    line.add_argument("--backbones", type=Path, default=ROOT / "build" / "backbones", metavar="DIR")
    line.add_argument(
        "--work", type=Path, default=ROOT / "build" / "board", metavar="DIR", help="folder of the members"
    )
    line.add_argument("--board", type=Path, default=BOARD, metavar="FILE", help="the rows")
    line.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the page with the table")
    return line.parse_args(arguments)


def _chosen(options: argparse.Namespace, entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries to train. Raises UsageError for a recipe that none has."""
    names = dict.fromkeys(entry.name for entry in entries)
    if unknown := set(options.recipes or ()) - set(names):
        raise UsageError(f"--recipes has {', '.join(sorted(unknown))}; allowed: {', '.join(names)}")
    return [entry for entry in entries if entry.name in (options.recipes or names)]


def _train_missing(options: argparse.Namespace, entries: Sequence[Entry]) -> int:
    """Train every task without a row, and return how many failed or do not agree."""
    failed = 0
    with exclusive_folder(options.work, "board"):
        tasks = list(_tasks(options, entries))
        # A row that does not agree is evaluated again, and makes the command fail again.
        rows = [row for row in read_rows(options.board) if row.get("agree")]
        known = [{key: row.get(key) for key in tasks[0].key} for row in rows] if tasks else []
        missing = [task for task in tasks if task.key not in known]
        print(f"board: {len(tasks)} trainings, {len(missing)} of them to do", flush=True)
        for row in _trained_rows(missing, options):
            failed += row is None or not row["agree"]
            if row is not None:
                add_row(options.board, row)
    return failed


def _tasks(options: argparse.Namespace, entries: Sequence[Entry]) -> Iterator[Task]:
    """Yield the tasks, seed by seed. Raises UsageError for missing data."""
    data = {entry.folder: _data(entry, options) for entry in entries}
    keys = {folder: _data_key(path) for folder, path in data.items()}
    for seed in dict.fromkeys(options.seeds):
        for entry in entries:
            yield Task(entry, seed, data[entry.folder], keys[entry.folder])


def _data(entry: Entry, options: argparse.Namespace) -> Path:
    """Return the data of an entry, drawn if need be."""
    if not entry.folder:
        drawn: Path = options.work / "contours"
        if not (drawn / MARKER).is_file():
            write_contours(drawn, DRAWN, DRAWN_SEED, print)
        return drawn
    if options.data is None or not (options.data / entry.folder).is_dir():
        where = options.data / entry.folder if options.data else "DATA"
        raise UsageError(f"recipe {entry.name} needs the folder {where}, which is not there; give DATA, or --recipes")
    return Path(options.data / entry.folder)


def _data_key(folder: Path) -> str:
    """Return a hash of the names and the bytes of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n{sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def _trained_rows(tasks: Sequence[Task], options: argparse.Namespace) -> Iterator[Row | None]:
    """Yield the row of each task as it ends, `--jobs` at a time."""
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for future in as_completed([pool.submit(_trained, task, options) for task in tasks]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: no other training starts
            raise


def _trained(task: Task, options: argparse.Namespace) -> Row | None:
    """Train and evaluate in a process of its own, and return the row; None if it failed."""
    recipe, member, result, log = (options.work / f"{task.name}{end}" for end in (".toml", "", ".json", ".log"))
    text = recipe_text(task.entry, task.seed)
    if not recipe.is_file() or recipe.read_text(encoding="utf-8") != text:
        atomic_write_text(recipe, text)
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.board_one", recipe, task.data, task.data_key, member, result]
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(
            [*map(str, command), "--backbones", str(options.backbones)],
            cwd=ROOT, env=_environment(options.jobs), stdout=file, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if ended.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        print(f"{task.name}: failed with {ended.returncode}: {''.join(last)}; {log}", file=sys.stderr, flush=True)
        return None
    row = task.key | json.loads(result.read_text(encoding="utf-8"))
    print(_said(task, row), flush=True)
    return row


def _environment(jobs: int) -> dict[str, str]:
    """Return the environment of a training: of two at a time each has one thread."""
    return {**({"TF_NUM_INTRAOP_THREADS": "1"} if jobs > 1 else {}), **os.environ}


def _said(task: Task, row: Row) -> str:
    figures = ", ".join(f"{name.replace('_', ' ')} {row['trained'][name]}" for name in FIGURES)
    verdict = "the same by clotkit evaluate" if row["agree"] else f"but clotkit evaluate has {row['evaluated']}"
    return f"{task.name}: {figures}, {verdict}; {row['wall_s'] / 60:.1f} minutes, {row['peak_mb']:,} MB"


if __name__ == "__main__":
    sys.exit(main())
