"""A run waits for a slide for ever, forgets what failed, or meets another run.

Reported of FUSE and object-store mounts (go-fuse issue 261, goofys issue 153), of tilers that skip what an earlier run
left (hs2p pull request 170, TIAToolbox issue 893), of two workers on one slide (TRIDENT pull request 213), and of
programs that one bad image ends (microsoft/Biodiversity issue 575).
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

from clotkit.cli import main
from clotkit.competitions import load_competition
from clotkit.reasons import Reason
from clotkit.scoring.pipeline import run
from clotkit.scoring.settings import RunSettings
from tests.stuck import FLUSH, GETATTR, OPEN, READ, ROOT, stuck_file

from . import Reported

MEMBER = ROOT / "weights" / "demo"
DEADLINE_S = 40.0
END_S = 10.0  # of a command around its run: the start of Python, the imports, the exit


@cache
def _made() -> tuple[Path, ExitStack]:
    """Draw a split of four slides, once."""
    from clotkit.synthetic.phantom import write_split

    stack = ExitStack()
    split = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "split"
    write_split(split, "test", 4, 7, load_competition(), size="1024x1536", log=lambda _: None)
    return split, stack


def split_in(folder: Path) -> list[Path]:
    """Copy the split to `folder` / "split", and return its slides."""
    shutil.copytree(_made()[0], folder / "split")
    return sorted((folder / "split" / "test").iterdir())


def scored(folder: Path, out: str = "out", **changed: Any) -> dict[str, dict[str, Any]]:
    """Score the split into a folder, and return its report's lines by slide."""
    settings: dict[str, Any] = {"deadline_s": 120.0, "memory_mb": 4096, "jobs": 2, "weights_dir": MEMBER} | changed
    run(RunSettings(folder / "split", run_dir=folder / out, **settings), load_competition(), lambda _: None)
    return report_of(folder / out)


def report_of(out: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a report by slide; each slide has one."""
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    assert len({line["image_id"] for line in lines}) == len(lines)
    return {line["image_id"]: line for line in lines}


def resumed(folder: Path) -> dict[str, Any]:
    """Return run.json's counts of the slides of the run that was resumed."""
    counts: dict[str, Any] = json.loads((folder / "out" / "run.json").read_text())["resumed"]
    return counts


def clotkit(*words: object) -> tuple[int, str, float]:
    """Run a command whose output goes through a pipe; return its exit code, its stdout and its seconds."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "clotkit.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    return ended.returncode, ended.stdout, time.monotonic() - began


# --- A slide that does not answer -------------------------------------------------------------------------------------


def stuck_in_run(operation: int, folder: Path) -> str:
    """Score a split while one slide does not answer; stdout is a pipe that must end too."""
    stuck = split_in(folder)[1]
    words = ("--weights", MEMBER, "--out", folder / "out", "--deadline", f"{DEADLINE_S:.0f}s", "--jobs", 2)
    with stuck_file(stuck, operation):
        code, _, seconds = clotkit("run", folder / "split", *words)
    lines, facts = report_of(folder / "out"), json.loads((folder / "out" / "run.json").read_text())
    states = {image_id: line["state"] for image_id, line in lines.items() if image_id != stuck.stem}
    assert set(states.values()) == {"done"}
    assert len(states) == 3
    assert code == 3
    assert seconds < DEADLINE_S + END_S
    line = lines[stuck.stem]
    assert Reason.LEFT_BEHIND in line["codes"]
    assert facts["left_behind"] == {stuck.stem: line["facts"]["left_pid"]}
    return f"exit code {code}, 3 slides done; the stuck one {line['state']}: {', '.join(line['codes'])}"


def stuck_in_tile(folder: Path) -> str:
    """Cut a split while one slide does not answer."""
    stuck = split_in(folder)[0]
    with stuck_file(stuck, READ):
        words = ("--recipe", "demo", "--jobs", 2, "--deadline", f"{DEADLINE_S:.0f}s")
        code, _, seconds = clotkit("tile", folder / "split", folder / "out", *words)
    with (folder / "out" / "shards.csv").open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    assert [row["state"] for row in rows.values()].count("done") == 3
    assert code == 3
    assert seconds < DEADLINE_S + END_S
    return f"exit code {code}, 3 shards; the stuck slide failed: {rows[stuck.stem]['code']}"


def stuck_in_predict(folder: Path) -> str:
    """Predict three slides, one of which does not answer."""
    slides = split_in(folder)[:3]
    with stuck_file(slides[1]):
        code, out, _ = clotkit("predict", MEMBER, *slides, "--json")
    found = json.loads(out)
    assert [one["image"] for one in found["predictions"]] == [str(slides[0]), str(slides[2])]
    [failed] = found["failed"]
    assert (code, failed["image"]) == (3, str(slides[1]))
    return f"exit code {code}, 2 predictions; the stuck slide: {failed['code']}"


def no_file(make: Callable[[Path], None], folder: Path) -> str:
    """Score a split with something else than a file in a slide's place."""
    path = split_in(folder)[2]
    path.unlink()
    make(path)
    lines = scored(folder)
    assert [line["state"] for line in lines.values()].count("done") == 3
    assert lines[path.stem]["codes"] == [Reason.DAMAGED]
    return "3 slides done; this one fallback: damaged"


# --- A run that goes on -----------------------------------------------------------------------------------------------


def goes_on(
    before: Callable[[list[Path]], None], between: Callable[[list[Path]], None], again: dict[str, int], folder: Path
) -> str:
    """Change slides before and after a run, resume it, and compare with a run from the beginning."""
    slides = split_in(folder)
    before(slides)
    first = scored(folder)
    between(slides)
    after, whole = scored(folder, resume=True), scored(folder, "whole")
    assert resumed(folder) == {"kept": 4 - sum(again.values()), "failed": 0, "changed": 0, "unchecked": 0} | again
    assert {name: line["p"] for name, line in after.items()} == {name: line["p"] for name, line in whole.items()}
    submissions = {(folder / name / "submission.csv").read_bytes() for name in ("out", "whole")}
    assert len(submissions) == 1
    kept = sum(first[name] == line for name, line in after.items())
    assert kept == 4 - sum(again.values())
    return f"{kept} lines kept, {4 - kept} slides read again; the submission is that of a new run"


def nothing(slides: list[Path]) -> None:
    """Change nothing."""


def with_a_hole(slides: list[Path]) -> None:
    """Write zeros over the second half of a slide."""
    data = slides[0].read_bytes()
    slides[0].write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def missing(slides: list[Path]) -> None:
    """Remove two slides."""
    for slide in slides[:2]:
        slide.unlink()


def put_back(slides: list[Path]) -> None:
    """Put the sound slides into their places, with the time of now."""
    for slide in slides:
        if not slide.exists() or slide.read_bytes() != (_made()[0] / "test" / slide.name).read_bytes():
            slide.write_bytes((_made()[0] / "test" / slide.name).read_bytes())


def longer(slides: list[Path]) -> None:
    """Append a byte to a slide."""
    with slides[3].open("ab") as file:
        file.write(b"\0")


def touched(slides: list[Path]) -> None:
    """Give all slides another time, as a copy of the split has."""
    for slide in slides:
        os.utime(slide, (1_700_000_000, 1_700_000_000))


def replaced(slides: list[Path]) -> None:
    """Put another slide's pixels into a slide's place, padded to its size and with its time."""
    short, long = sorted(slides[:2], key=lambda slide: slide.stat().st_size)
    status = long.stat()
    long.write_bytes(short.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(long, ns=(status.st_atime_ns, status.st_mtime_ns))


def old_line(folder: Path) -> str:
    """Resume a report of a kit that wrote no state of the slides' files."""
    split_in(folder)
    scored(folder)
    report = folder / "out" / "report.jsonl"
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    del lines[0]["facts"]["file"]
    report.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored(folder, resume=True)
    assert resumed(folder) == {"kept": 3, "failed": 0, "changed": 1, "unchecked": 0}
    return "3 lines kept, 1 slide read again"


def fewer_slides(folder: Path) -> str:
    """Take a slide out of the table after a run, and resume it."""
    split_in(folder)
    before, table = scored(folder), folder / "split" / "test.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    after = scored(folder, resume=True)
    assert after == {name: line for name, line in before.items() if name in after}
    assert len(after) == 3
    return "3 lines kept, none for the slide that is no longer listed"


def other_weights(folder: Path) -> str:
    """Change a number of the recipe after a run, in a file of the same length."""
    split_in(folder)
    member = folder / "weights" / "demo"
    shutil.copytree(MEMBER, member)
    scored(folder, weights_dir=member)
    path = member / "recipe.toml"
    text = path.read_text()
    assert "max_tiles = 24" in text
    path.write_text(text.replace("max_tiles = 24", "max_tiles = 12"))
    scored(folder, weights_dir=member, resume=True)
    assert resumed(folder) is None
    return "started from the beginning"


# --- Predictions of single images -------------------------------------------------------------------------------------


def predict_with(bad: Callable[[Path, Path], None], folder: Path) -> str:
    """Predict a bad file between two sound slides, and the sound ones alone."""
    first, other, last = split_in(folder)[:3]
    path = folder / "bad.tif"
    bad(path, other)
    alone, both = (predicted(MEMBER, *paths) for paths in ((first, last), (first, path, last)))
    assert alone[0] == 0
    assert both[1]["predictions"] == alone[1]["predictions"]
    assert (both[0], [one["image"] for one in both[1]["failed"]]) == (3, [str(path)])
    return f"exit code 3, 2 predictions as alone; the bad file: {both[1]['failed'][0]['code']}"


def predict_only_bad(folder: Path) -> str:
    """Predict two files that are no slides."""
    paths = [folder / "a.tif", folder / "b.tif"]
    paths[0].write_text("no slide\n")
    code, found = predicted(MEMBER, *paths)
    assert (code, found["predictions"], len(found["failed"])) == (2, [], 2)
    return "exit code 2, both named with a code"


def predicted(member: Path, *images: Path) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the JSON of clotkit predict."""
    out = StringIO()
    with redirect_stdout(out):
        code = main(["predict", str(member), *map(str, images), "--json"])
    return code, json.loads(out.getvalue())


def cut_short(path: Path, sound: Path) -> None:
    """Write the first half of a sound slide."""
    path.write_bytes(sound.read_bytes()[: sound.stat().st_size // 2])


def text(path: Path, sound: Path) -> None:
    """Write a text."""
    path.write_text("no slide\n")


OPENS = "a fallback (timeout, left_behind), the others done, exit code 3 by the deadline, stdout ends too"
CASES = [
    Reported("a disk does not answer the open of a slide", OPENS, partial(stuck_in_run, OPEN), slow=True),
    Reported("a disk does not answer a read in its middle", OPENS, partial(stuck_in_run, READ), slow=True),
    Reported("a disk does not answer the close of a slide", OPENS, partial(stuck_in_run, FLUSH), slow=True),
    Reported("a disk does not even tell a slide's size", OPENS, partial(stuck_in_run, GETATTR), slow=True),
    Reported("a disk stops answering while tiles are cut", "that slide fails, exit code 3", stuck_in_tile, slow=True),
    Reported("a disk stops answering a prediction", "two answers, exit code 3", stuck_in_predict, slow=True),
    Reported("a slide is a named pipe", "a fallback, the others done", partial(no_file, os.mkfifo)),
    Reported("a slide is a device without end", "a fallback, the others done",
             partial(no_file, lambda path: path.symlink_to("/dev/zero")), slow=True),
    Reported("a damaged slide is repaired, with the same size", "it is read again, the others are kept",
             partial(goes_on, with_a_hole, put_back, {"failed": 1})),
    Reported("two missing slides come", "they are read, the others are kept",
             partial(goes_on, missing, put_back, {"failed": 2}), slow=True),
    Reported("a slide has grown by a byte", "it is read again, the others are kept",
             partial(goes_on, nothing, longer, {"changed": 1})),
    Reported("a slide has other bytes, of the same size and time", "it is read again, the others are kept",
             partial(goes_on, nothing, replaced, {"changed": 1})),
    Reported("the split was copied, with other times", "all lines are kept", partial(goes_on, nothing, touched, {})),
    Reported("a report has a line without the state of its slide", "that slide is read again", old_line, slow=True),
    Reported("a slide was taken out of the table", "the other lines are kept", fewer_slides),
    Reported("a recipe changed in a resumed run", "started from the beginning", other_weights, slow=True),
    Reported("one of three images to predict is cut short", "two answers, one line about it, exit code 3",
             partial(predict_with, cut_short)),
    Reported("one of three images to predict is a text", "two answers, one line about it, exit code 3",
             partial(predict_with, text)),
    Reported("one of three images to predict is missing", "two answers, one line about it, exit code 3",
             partial(predict_with, lambda path, sound: None), slow=True),
    Reported("one of three images to predict is a folder", "two answers, one line about it, exit code 3",
             partial(predict_with, lambda path, sound: path.mkdir()), slow=True),
    Reported("none of the images to predict is one", "each is named, exit code 2", predict_only_bad),
]  # fmt: skip
