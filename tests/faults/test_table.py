"""Make every fault of cases.py happen; check the bad slide's outcome, and that nothing else changed."""

import ast
import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from clotkit.bundle.build import build_bundle
from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.errors import ClotkitError
from clotkit.rehearsal import environment
from clotkit.scoring.pipeline import run as run_pipeline
from clotkit.scoring.settings import RunSettings
from clotkit.submission.checking import check_submission

from ..conftest import ROOT
from .cases import CASES, MEMORY_MB, SLIDE_S, STRANGER, Case, Stage, work

DEADLINE_S = 300  # of the runs that have time
WATCH_S = 0.005
GONE_S = 10  # until a killed process is gone
# status.json is the kernel's; the others are a run's
LEFT_BEHIND = {"submission.csv", "report.jsonl", "run.json", "slides.jsonl", "report.html", "status.json"}
TOLERANCE = 1e-6
KERNEL = ROOT / "kernels" / "infer"
READERS = ("pyvips", "pyvips_binary", "imagecodecs", "simplejpeg")
DOCUMENT = ROOT / "docs" / "explanation" / "faults.md"
WORST = ("fallback", "partial", "done")
SETTINGS_LINE = "SETTINGS: dict[str, Any] = {"


@dataclass
class Ran:
    """The results of a run."""

    stage: Stage
    code: int  # exit code
    said: list[str]  # lines that it printed
    seconds: float
    deadline_s: float
    out: Path
    checks: int  # times that the submission changed and was checked
    wrong: list[str]  # problems of the submission at any of these times
    left: list[str] = field(default_factory=list)  # processes that outlived the run
    report: dict[str, dict[str, Any]] = field(default_factory=dict)  # by image id: its line

    def __post_init__(self) -> None:
        path = self.out / "report.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        self.report = {line["image_id"]: line for line in map(json.loads, lines)}

    @property
    def rows(self) -> dict[str, list[float]]:
        """The submission."""
        with (self.out / "submission.csv").open(newline="") as file:
            return {row[0]: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}


class Watch(threading.Thread):
    """Checks a submission whenever it changes; once it exists it must never disappear."""

    def __init__(self, path: Path, stage: Stage) -> None:
        super().__init__(daemon=True)
        self.path, self.stage = path, stage
        self.wrong: list[str] = []
        self.seen: list[tuple[int, int, int]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(WATCH_S):
            self.look()

    def look(self) -> None:
        try:
            status = self.path.stat()
            now = (status.st_ino, status.st_mtime_ns, status.st_size)
            if not self.seen or now != self.seen[-1]:
                self.seen.append(now)
                self.wrong += map(str, check_submission(self.path, self.stage.sample, self.stage.competition).problems)
        except (OSError, ClotkitError) as error:
            self.wrong += [str(error)] if self.seen else []

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()
        self.look()


# --- Ways to start a run ----------------------------------------------------------------------------------------------

Start = Callable[[Stage], Ran]


def words_of(stage: Stage, out: Path, deadline: str) -> list[str]:
    """Return the command line of a run."""
    return ["run", str(stage.split), "--weights", str(stage.weights), "--out", str(out), "--jobs", "2",
            "--deadline", deadline]  # fmt: skip


def in_process(deadline_s: float = DEADLINE_S) -> Start:
    """Return a start of `clotkit run` in this process."""

    def start(stage: Stage) -> Ran:
        out, said, started = stage.folder / "out", io.StringIO(), time.monotonic()
        with Watch(out / "submission.csv", stage) as watch, redirected(said):
            code = main(words_of(stage, out, f"{deadline_s}s"))
        seconds = time.monotonic() - started
        return Ran(stage, code, said.getvalue().splitlines(), seconds, deadline_s, out, len(watch.seen), watch.wrong)

    return start


@contextlib.contextmanager
def redirected(said: io.StringIO) -> Iterator[None]:
    """Collect in `said` the text that is printed."""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield


def with_work(deadline_s: float = DEADLINE_S, slide_s: float = SLIDE_S, stall_s: float = DEADLINE_S) -> Start:
    """Return a start of the pipeline with processes that misbehave, under short limits."""

    def start(stage: Stage) -> Ran:
        limits = dataclasses.replace(stage.competition.limits, slide_s=slide_s)
        competition = dataclasses.replace(stage.competition, limits=limits)
        out, said, started = stage.folder / "out", list[str](), time.monotonic()
        settings = RunSettings(stage.split, stage.weights, out, deadline_s, MEMORY_MB, 2, stall_s=stall_s)
        with Watch(out / "submission.csv", stage) as watch:
            counts = run_pipeline(settings, competition, said.append, work=work)
        seconds = time.monotonic() - started
        code = 3 if sum(counts.values()) > counts["done"] else 0
        return Ran(stage, code, said, seconds, deadline_s, out, len(watch.seen), watch.wrong)

    return start


def as_process(wrap: Callable[[Stage, Path], list[str]], out: str = "out", kept: str = "") -> Start:
    """Return a start of `clotkit run` as a process inside the command of `wrap`.

    `kept` is the folder with its files afterwards, if it is not `out`.
    """

    def start(stage: Stage) -> Ran:
        folder = stage.folder / out
        command = [*wrap(stage, folder), sys.executable, "-m", "clotkit.cli", *words_of(stage, folder, "300s")]
        return follow(stage, command, folder, stage.folder / kept if kept else folder, seen_from_inside=bool(kept))

    return start


def follow(
    stage: Stage,
    command: Sequence[str],
    out: Path,
    kept: Path | None = None,
    seen_from_inside: bool = False,
    variables: dict[str, str] | None = None,
    heard: Callable[[str, int], None] = lambda line, pid: None,
) -> Ran:
    """Start a process, watch its submission, and hand each line to `heard`, with the process's id."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=stage.folder,
        env=variables or {**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    # A file system that only the process can see is reached through its root.
    seen = Path(f"/proc/{process.pid}/root{out}") if seen_from_inside else out
    said, family = [], set[psutil.Process]()
    with process, Watch(seen / "submission.csv", stage) as watch:
        for line in process.stdout or ():
            said.append(line.rstrip("\n"))
            family |= descendants(process.pid)
            heard(line, process.pid)
    seconds = time.monotonic() - started
    # The root of an ended process is gone, which does not mean that the file is lost.
    wrong = [text for text in watch.wrong if not (seen_from_inside and "No such file" in text)]
    _, alive = psutil.wait_procs(family, timeout=GONE_S)
    left = [str(each) for each in alive]
    return Ran(stage, process.returncode, said, seconds, DEADLINE_S, kept or out, len(watch.seen), wrong, left)


def descendants(pid: int) -> set[psutil.Process]:
    """Return all processes below a process, none if it has ended."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def unprivileged(stage: Stage, out: Path) -> list[str]:
    """Return a command that makes permissions apply: root's are lost in a user namespace that maps nobody."""
    if os.geteuid() != 0:
        return []
    need_namespace("--user")
    return ["unshare", "--user", "--"]


FULL = """
mkdir -p "$1" "$2"; mount -t tmpfs -o size="$3" tmpfs "$1" || exit 99
out=$1; kept=$2; shift 3; "$@"; code=$?; cp "$out"/* "$kept"; exit $code
"""


def full_disk(stage: Stage, out: Path) -> list[str]:
    """Return a command with a disk of three pages as output folder.

    The submission and run.json take two, and the report takes the one that a new submission would need.
    """
    need_namespace("--user", "--map-root-user", "--mount")
    return ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", FULL, "sh", str(out),
            str(stage.folder / "kept"), "12k"]  # fmt: skip


def need_namespace(*options: str) -> None:
    """Skip the test if the system has no such namespaces."""
    try:
        ended = subprocess.run(["unshare", *options, "--", "true"], capture_output=True, check=False)
    except OSError:
        pytest.skip("no unshare here")
    if ended.returncode:
        pytest.skip(f"no namespaces here: unshare {' '.join(options)}")


JUMPS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) { static long n; return (n++ % 2 ? 1 : -1) * 86400L * (n % 400); }
int clock_gettime(clockid_t clock, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, t);
    if (clock == CLOCK_REALTIME) t->tv_sec += jump();
    return code;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""


def jumping_clock(stage: Stage, out: Path) -> list[str]:
    """Return a command in which the wall clock is up to 400 days off, in both directions in turn."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here for a clock that jumps")
    source, library = stage.folder / "jumps.c", stage.folder / "jumps.so"
    source.write_text(JUMPS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return ["env", f"LD_PRELOAD={library}"]


def kernel(
    heard: Callable[[str, int], None] = lambda line, pid: None, settings: str = "", pyvips: bool = True
) -> Start:
    """Return a start of the kernel's bundle in an imitation of Kaggle without the wheels dataset.

    `pyvips`: the image has the packages that the wheels would bring.
    """

    def start(stage: Stage) -> Ran:
        root = stage.folder / "kaggle"
        for name in ("input/data", "working", "src"):
            (root / name).mkdir(parents=True)
        (root / "input" / stage.competition.slug).symlink_to(stage.split)
        shutil.copytree(stage.weights, root / "input" / "weights")
        script = root / "src" / "script.py"
        script.write_text(build_bundle(KERNEL, "strip_ai").replace(SETTINGS_LINE, SETTINGS_LINE + settings))
        python = Path(sys.executable) if pyvips else without_readers(stage.folder)
        variables = {"PATH": os.environ["PATH"], "CLOTKIT_KAGGLE_ROOT": str(root)}
        command = [str(python), "-I", str(script)]
        return follow(stage, command, root / "working", variables=variables, heard=heard)

    return start


def without_readers(folder: Path) -> Path:
    """Return the python of an environment in which only OpenSlide can read slides."""
    (folder / "wheels").mkdir()
    for name in READERS:
        (folder / "wheels" / f"{name}-0-py3-none-any.whl").touch()  # only the names count here
    return environment.make(folder / "env", folder / "wheels", guard=False)


def terminate(line: str, pid: int) -> None:
    """Send SIGTERM to the kernel once a slide is done."""
    if line.startswith("[1/"):
        psutil.Process(pid).terminate()


def terminate_early(line: str, pid: int) -> None:
    """Send SIGTERM to the kernel at its first line."""
    if line.startswith("clotkit kernel"):
        psutil.Process(pid).terminate()


class KillOnce:
    """Kills the kernel's pipeline once a slide is done, the first time."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, line: str, pid: int) -> None:
        if line.startswith("[1/") and not self.done:
            self.done = True
            psutil.Process(pid).children()[0].kill()


# --- The runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The way to start a run, and its expected results."""

    start: Start
    code: int  # exit code
    healthy: str = "done"  # state of the healthy slides
    slow: bool = False
    kernel: bool = False  # the run is a kernel's


PLANS = {
    "files": Plan(in_process(), 3),
    "tables": Plan(in_process(), 3),
    "ids": Plan(in_process(), 0),
    "header": Plan(in_process(), 2, "refused"),
    "empty": Plan(in_process(), 2, "refused"),
    "no sample": Plan(in_process(), 2, "refused"),
    "weights": Plan(in_process(), 3),
    "nan alone": Plan(in_process(), 3, "fallback"),
    "no member": Plan(in_process(), 3, "fallback"),
    "past": Plan(in_process(0.001), 3, "fallback"),
    "half": Plan(in_process(), 3),
    "size": Plan(in_process(), 3),
    "crashes": Plan(with_work(slide_s=60), 3),
    "stalls": Plan(with_work(stall_s=5, slide_s=60), 3, slow=True),
    "hangs": Plan(with_work(), 3, slow=True),
    "deadline": Plan(with_work(12, 300), 3, slow=True),
    "locked": Plan(as_process(unprivileged), 3, slow=True),
    "closed": Plan(as_process(unprivileged, "closed/out"), 2, "refused"),
    "full": Plan(as_process(full_disk, kept="kept"), 3),
    "clock": Plan(as_process(jumping_clock), 0, slow=True),
    "kernel": Plan(kernel(), 0, kernel=True),
    "kernel empty": Plan(kernel(), 0, "fallback", slow=True, kernel=True),
    "kernel past": Plan(kernel(settings="'deadline_s': 1, "), 0, "fallback", slow=True, kernel=True),
    "no wheels": Plan(kernel(pyvips=False), 0, slow=True, kernel=True),
    "no weights": Plan(kernel(), 0, "fallback", slow=True, kernel=True),
    "terminated": Plan(kernel(heard=terminate), 0, "any", kernel=True),
    "terminated early": Plan(kernel(heard=terminate_early), 0, "any", kernel=True),
    "restarted": Plan(kernel(heard=KillOnce()), 0, slow=True, kernel=True),
}


@dataclass
class Lab:
    """Makes each run once; `reference` is the report of a run without a fault."""

    base: Path
    healthy: Path
    member: Path
    competition: Competition
    made: dict[str, Ran] = field(default_factory=dict)
    reference: dict[str, dict[str, Any]] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """Make the folders of a run, all healthy."""
        folder = self.base / name.replace(" ", "_")
        (folder / "split" / "test").mkdir(parents=True)
        shutil.copytree(self.member, folder / "weights" / "tiny")
        with (self.healthy / "test.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        patients = list(dict.fromkeys(row["patient_id"] for row in rows))
        images = [row["image_id"] for row in rows]
        for image_id in images:
            (folder / "split" / "test" / f"{image_id}.tif").symlink_to(self.healthy / "test" / f"{image_id}.tif")
        return Stage(folder, self.competition, list(rows[0]), rows, patients, images)

    def ran(self, name: str) -> Ran:
        """Return the run of that name, with the faults of all its cases."""
        if name not in self.made:
            stage = self.stage(name)
            for number, case in enumerate(CASES):
                if name in case.runs:
                    case.apply(stage, number)
            stage.lay()
            self.made[name] = PLANS[name].start(stage)
        return self.made[name]

    def refer(self) -> None:
        """Make the run without a fault."""
        stage = self.stage("healthy")
        stage.lay()
        self.reference = in_process()(stage).report


@pytest.fixture(scope="module")
def lab(test_split: Path, keras_member: Path, strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Make the lab for the runs of this module."""
    made = Lab(tmp_path_factory.mktemp("faults"), test_split, keras_member, strip_ai)
    made.refer()
    return made


# --- What must hold ---------------------------------------------------------------------------------------------------


def of_cases() -> list[Any]:
    """Return every case in every run that it is part of; the slow half is marked."""
    return [
        pytest.param(case, name, id=f"{name}: {case.name}", marks=[pytest.mark.slow_faults] * PLANS[name].slow)
        for case in CASES
        for name in case.runs
    ]


def of_runs() -> list[Any]:
    """Return every run."""
    return [pytest.param(name, id=name, marks=[pytest.mark.slow_faults] * plan.slow) for name, plan in PLANS.items()]


@pytest.mark.parametrize(("case", "name"), of_cases())
def test_a_fault_comes_to_what_the_table_says(
    case: Case, name: str, lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    ran = lab.ran(name)
    state, reason = outcome(case, ran)
    record_property("case", case.name)
    record_property("run", name)
    record_property("state", state)
    record_property("reason", reason)
    assert state == case.state, reason
    if case.slide is None:
        return
    line = ran.report[ran.stage.bad[case.name]]
    assert line["codes"] == list(case.codes), line["reason"]
    assert (line["state"] == "done") == (not line["codes"]) == (not line["reason"])
    assert_for_a_person(line["reason"], ran.stage)
    if case.twin:
        assert_same(line["p"], lab.reference[ran.stage.healthy[0]]["p"])
    patient = line["patient_id"]
    if patient != STRANGER:
        assert (ran.rows[patient] == list(lab.competition.classes.fallback)) == (state == "fallback")


def outcome(case: Case, ran: Ran) -> tuple[str, str]:
    """Return the state of a case's slide, or of the run, and the sentence about it."""
    said = spoken(case, ran)
    if case.slide is not None:
        line = ran.report[ran.stage.bad[case.name]]
        return line["state"], line["reason"] or said
    if ran.code == 2:
        return "refused", said
    if case.state == "valid":
        return "valid", said
    lines = [ran.report[image] for image in ran.stage.healthy if image in ran.report]
    unread: dict[str, Any] = {"state": "fallback", "reason": "", "codes": []}
    worst = min(lines, key=lambda line: WORST.index(line["state"]), default=unread)
    if case.codes:
        assert worst["codes"] == list(case.codes), worst["reason"]
    return worst["state"], worst["reason"] or said


def spoken(case: Case, ran: Ran) -> str:
    """Return the run's line about a fault, without this machine's folders; empty if the case names none."""
    if not case.said:
        return ""
    found = next((line for line in ran.said if re.search(case.said, line)), None)
    assert found is not None, "\n".join([case.said, "is not in", *ran.said])
    return re.sub(rf"{re.escape(str(ran.stage.folder))}/", "", found)


def assert_for_a_person(reason: str, stage: Stage) -> None:
    """Check that a reason is one line without a path or a traceback."""
    assert "\n" not in reason
    assert str(stage.folder) not in reason
    assert "Traceback" not in reason
    assert len(reason) < 300


def assert_same(p: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    """Check that the sound member's probabilities are the same."""
    assert p["tiny"] == pytest.approx(wanted["tiny"], abs=TOLERANCE)


@pytest.mark.parametrize("name", of_runs())
def test_nothing_else_is_touched(name: str, lab: Lab) -> None:
    ran, plan = lab.ran(name), PLANS[name]
    assert ran.code == plan.code, "\n".join(ran.said)
    assert ran.seconds <= ran.deadline_s or ran.deadline_s < 1  # less is no time to say so
    assert not [line for line in ran.said if "Traceback" in line]
    if plan.code == 2:
        assert len(ran.said) == 1
        assert not ran.out.exists()
        return
    assert ran.left == []
    assert {path.name for path in ran.out.iterdir()} <= LEFT_BEHIND
    assert ran.wrong == []
    assert ran.checks > 0
    assert check_submission(ran.out / "submission.csv", ran.stage.sample, ran.stage.competition).valid
    if plan.healthy in ("done", "partial"):
        assert_healthy(ran, plan.healthy, lab)


def assert_healthy(ran: Ran, state: str, lab: Lab) -> None:
    """Check the healthy slides' states, and their probabilities against a run without a fault."""
    ended = {match[1]: match[2] for line in ran.said if (match := re.match(r"\[\d+/\d+\] (\S+) (\w+),", line))}
    ended |= {image: line["state"] for image, line in ran.report.items()}  # logged too, unless a kill came between
    for image in ran.stage.healthy:
        assert ended[image] == state, "\n".join(ran.said)
        if image in ran.report:  # a line may not have found room on a full disk
            assert_same(ran.report[image]["p"], lab.reference[image]["p"])


@pytest.mark.slow_faults
def test_without_wheels_openslide_reads(lab: Lab) -> None:
    assert {line["facts"]["decoder"] for line in lab.ran("no wheels").report.values()} == {"openslide"}


def test_each_run_has_a_case_and_each_case_a_run() -> None:
    assert {name for case in CASES for name in case.runs} == set(PLANS)
    assert len({case.name for case in CASES}) == len(CASES)


def test_no_wall_clock_decides_anything() -> None:
    """Limits must hold while the clock is set, so the wall-clock functions of `time` are not called."""
    kit = ROOT / "src" / "clotkit"
    paths = [*(kit / "scoring").glob("*.py"), kit / "workers.py", kit / "engines.py", kit / "supervise.py"]
    for path in [*paths, KERNEL / "main.py"]:
        used = set(clock_functions(ast.parse(path.read_text(encoding="utf-8"))))
        assert used <= {"monotonic", "perf_counter", "sleep"}, f"{path.name}: {used}"


def clock_functions(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module uses of `time`, and datetime by its own name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name == "datetime")


def test_the_document_has_these_cases() -> None:
    """`python -m tests.faults > docs/explanation/faults.md` writes the rows again."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:] == [case.name for case in CASES]
