"""The log, the environment and the calling program are not the work.

A full disk under the log, a closed pipe or a setting in somebody's home folder ended whole runs elsewhere, or left
every slide at the fallback (Shippable support 3681, deepslide 59, joblib 168 and 882, cpython 93253).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import pytest

from clotkit.competitions import load_competition
from clotkit.synthetic.phantom import write_split

from ...conftest import ROOT
from . import Reported

CLOTKIT = f"'{sys.executable}' -m clotkit.cli"
WEIGHTS = ROOT / "weights" / "demo"
RUN = f"{CLOTKIT} run split --weights '{WEIGHTS}' --out out"
CALL = "import sys; from clotkit.cli import main; sys.exit(main(sys.argv[1:]))"
ODD_KERAS = {"KERAS_BACKEND": "torch", "KERAS_HOME": "/proc/none", "KERAS_MAX_STEPS_PER_EPOCH": "1x"}
BROKEN_SETTINGS = '{"floatx": "float16", "image_data_format": "channels_first", "backend": "torch", "epsilon": 0.1}'


@cache
def split() -> tuple[Path, bytes]:
    """Return a split of two slides, and its submission when nothing is in the way."""
    folder = Path(tempfile.mkdtemp(prefix="clotkit-output-"))
    write_split(folder / "split", "test", 2, 3, load_competition(), size="1024x1280", log=lambda _: None)
    assert shell(RUN, folder).returncode == 0
    return folder / "split", (folder / "out" / "submission.csv").read_bytes()


def shell(command: str, folder: Path, variables: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command line in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **(variables or {})}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=300, check=False, errors="replace")  # fmt: skip


def scored(command: str, folder: Path, variables: dict[str, str] | None = None, lost: bool = False) -> str:
    """Check that a run's submission, exit code and report are those of a run without the fault."""
    slides, wanted = split()
    (folder / "split").symlink_to(slides)
    ended = shell(command, folder, variables)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert (folder / "out" / "submission.csv").read_bytes() == wanted
    states = [json.loads(line)["state"] for line in (folder / "out" / "report.jsonl").read_text().splitlines()]
    assert states == ["done", "done"]
    assert json.loads((folder / "out" / "run.json").read_text())["log_lost"] is lost
    return f"2 of 2 slides done, the same submission, exit code 0{'; one line about the log' if lost else ''}"


def tiled(wrap: str, folder: Path) -> str:
    """Check that both slides are tiled inside a command that changes the system."""
    need_mount(wrap)
    (folder / "split").symlink_to(split()[0])
    ended = shell(wrap.replace("{}", f"{CLOTKIT} tile split tiles --recipe demo", 1), folder)
    assert ended.returncode == 0, ended.stderr
    rows = (folder / "tiles" / "shards.csv").read_text().splitlines()
    assert sum(",done," in row for row in rows) == 2, rows
    return "2 of 2 slides tiled, exit code 0"


def with_shm(options: str, fill: str, verb: Callable[[str, Path], str], folder: Path) -> str:
    """Check a verb where /dev/shm is another one."""
    wrap = f"unshare --map-root-user --user --mount sh -c 'mount -t tmpfs -o {options} tmpfs /dev/shm; {fill}; {{}}'"
    return verb(wrap, folder)


def need_mount(wrap: str) -> None:
    """Skip where the system lets nobody mount another /dev/shm."""
    tried = subprocess.run(["bash", "-c", wrap.replace("{}", "true", 1)], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("no other /dev/shm can be mounted here")


def scored_within(wrap: str, folder: Path) -> str:
    """Check a run inside a command that changes the system."""
    need_mount(wrap)
    return scored(wrap.replace("{}", RUN.replace("'", '"'), 1), folder)


def called(start: str, folder: Path) -> str:
    """Check a run that a program without a main guard starts; `start` has a place for the verb's words."""
    (folder / "call.py").write_text(CALL)
    return scored(f"'{sys.executable}' " + start.format(f"run split --weights '{WEIGHTS}' --out out"), folder)


def refused(command: str, code: int, folder: Path) -> str:
    """Check that a command whose output is the work says in one line that it could not be written."""
    (folder / "split").symlink_to(split()[0])
    ended = shell(command, folder)
    assert ended.returncode == code, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    return f"one line, exit code {code}"


def with_settings(settings: str, variables: dict[str, str], folder: Path) -> str:
    """Check a run of a user whose keras.json or environment asks for something else."""
    (folder / ".keras").mkdir()
    (folder / ".keras" / "keras.json").write_text(settings)
    return scored(RUN, folder, {"HOME": str(folder), **variables})


def unforeseen(in_folder: bool, folder: Path) -> str:
    """Check that an error which nobody foresaw ends in one line, with its traceback in a file."""
    out = folder / "out"
    out.mkdir()
    code = (
        "import sys, clotkit.report.page as page\n"
        "from clotkit.cli import main\n"
        "def broken(*_): raise ZeroDivisionError('by the test')\n"
        "page.write_page = broken\n"
        f"sys.exit(main(['report', '{out}']))\n"
        if not in_folder
        else "import sys, clotkit.competitions as competitions\n"
        "from clotkit.cli import main\n"
        "def broken(*_): raise ZeroDivisionError('by the test')\n"
        "competitions.load_competition = broken\n"
        f"sys.exit(main(['run', '{folder}', '--weights', '{WEIGHTS}', '--out', '{out}']))\n"
    )
    (folder / "call.py").write_text(code)
    ended = shell(f"'{sys.executable}' call.py", folder, {"TMPDIR": str(folder)})
    assert ended.returncode == 1, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "ZeroDivisionError" in ended.stderr
    kept = next(iter((out if in_folder else folder).glob("*traceback.txt")))
    assert "by the test" in kept.read_text()
    return "one line with the kind, exit code 1; the traceback is in a file"


def disk_of_the_log(folder: Path) -> str:
    """Check a run whose log lies on a disk that fills up."""
    log = "mount -t tmpfs -o size=4k tmpfs log; head -c 3900 /dev/zero > log/run.log"
    need_mount("unshare --map-root-user --user --mount sh -c 'mount -t tmpfs -o size=4k tmpfs /mnt; {}'")
    (folder / "log").mkdir()
    run = RUN.replace("'", '"')
    return scored(f"unshare --map-root-user --user --mount sh -c '{log}; {run} >> log/run.log'", folder, lost=True)


def case(name: str, right: str, check: Callable[[Path], str], slow: bool = True) -> Reported:
    """Return a case; most of them run the whole pipeline, which takes seconds."""
    return Reported(name, right, check, slow)


LIKE_A_COMMAND = "scored as from the command line"
SAME = "scored as without it, exit code 0, one line at the end"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TINY = ("size=64k", "head -c 65536 /dev/zero > /dev/shm/full 2> /dev/null")
READ_ONLY = ("size=64k,ro", "true")
LOGS: Sequence[tuple[str, str, bool]] = (
    ("standard output is a full device", f"{RUN} > /dev/full", True),
    ("standard output and error are full devices", f"{RUN} > /dev/full 2> /dev/full", True),
    ("the reader of standard output closes it", f"set -o pipefail; {RUN} | head -1", True),
    ("standard output is closed", f"{RUN} >&-", True),
    ("standard error is closed", f"{RUN} 2>&-", True),
    ("all three standard files are closed", f"{RUN} <&- >&- 2>&-", True),
)
CASES = [
    *(case(name, SAME, partial(scored, command, lost=lost)) for name, command, lost in LOGS),
    case("the disk of the log fills up", SAME, disk_of_the_log),
    case("a locale that is ASCII only", "scored as without it", partial(scored, RUN, variables=ASCII)),
    case("plan prints to a full device", "one line, exit code 2",
         partial(refused, f"{CLOTKIT} plan split > /dev/full", 2)),
    case("keras.json asks for channels first, float16 and another backend", "scored as without it",
         partial(with_settings, BROKEN_SETTINGS, {})),
    case("keras.json is not JSON, and KERAS_BACKEND names one that is not installed", "scored as without it",
         partial(with_settings, "{", ODD_KERAS)),
    case("a script without a main guard", LIKE_A_COMMAND, partial(called, "call.py {}")),
    case("a program from standard input", LIKE_A_COMMAND, partial(called, "- {} < call.py")),
    case("a program from the command line", LIKE_A_COMMAND, partial(called, f"-c '{CALL}' {{}}")),
    case("/dev/shm is full: run", "scored as elsewhere", partial(with_shm, *TINY, scored_within)),
    case("/dev/shm is read-only: run", "scored as elsewhere", partial(with_shm, *READ_ONLY, scored_within)),
    case("/dev/shm is full: tile", "tiled as elsewhere", partial(with_shm, *TINY, tiled)),
    case("/dev/shm is read-only: tile", "tiled as elsewhere", partial(with_shm, *READ_ONLY, tiled)),
    case("an error that nobody foresaw, before a run folder is used", "one line, a traceback beside the run",
         partial(unforeseen, True), slow=False),
    case("an error that nobody foresaw, without an output folder", "one line, a traceback in the temporary folder",
         partial(unforeseen, False), slow=False),
]  # fmt: skip
