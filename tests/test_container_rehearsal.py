"""Test rehearsals of containers: each limit of the platform holds, and whole jobs in a row."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.containers.build import Image, write_container
from clotkit.containers.config import Api, ContainerConfig
from clotkit.containers.jobs import Job, write_input
from clotkit.containers.sockets import find_images
from clotkit.errors import RehearsalError, SplitError, UsageError
from clotkit.progress import Log
from clotkit.reasons import Enforcement, JobLimit, NotRehearsed, RehearsalKind
from clotkit.rehearsal import environment, grand_challenge
from clotkit.rehearsal.confined.cgroups import Groups, make_groups
from clotkit.rehearsal.confined.container import (
    ENGINES,
    JAIL,
    JOIN,
    NAMESPACES,
    Container,
    Peaks,
    Watch,
    engine_here,
    jails_work,
    run_job,
    spec_of,
)
from clotkit.rehearsal.grand_challenge import check_suffixes, read_output, rehearse_container
from clotkit.splits import SlideRow

from .conftest import ROOT
from .onnx_members import write_onnx_member

CONFIG = ContainerConfig("strip_ai")
PROBE = """
import json, os, socket, sys
def fails(work):
    try:
        work()
    except OSError:
        return True
    return False
def fill():
    with open("/dev/shm/x", "wb") as file:
        for _ in range(129):
            file.write(bytes(2**20))
def write(path):
    return lambda: open(path, "w").close()
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
facts = {
    "network": fails(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=5)),
    "shared_memory": fails(fill),
    "read_only_root": all(fails(write(f"/{one}/x")) for one in ("", "etc", "usr", "input", "opt/app")),
    "writable": not any(fails(write(f"/{one}/x")) for one in ("tmp", "output", "dev/shm")),
    "privileges": status["CapEff"].strip("0\\n\\t ") == "" and status["NoNewPrivs"].strip() == "1",
    "processes": sorted(int(one) for one in os.listdir("/proc") if one.isdigit()),
    "home": os.path.exists(HERE),
}
json.dump(facts, open("/output/facts.json", "w"))
"""
FORKS = """
import os, sys
count = 0
try:
    while count < 400:
        if not os.fork():
            os.read(0, 1)
            os._exit(0)
        count += 1
except OSError:
    pass
print(count, flush=True)
os.killpg(0, 9)
"""


@contextmanager
def rehearsal_error(kind: RehearsalKind) -> Iterator[None]:
    with pytest.raises(RehearsalError) as caught:
        yield
    assert caught.value.kind is kind, caught.value


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment.make_of(tmp_path_factory.mktemp("python") / "env", ROOT / "requirements" / "container.txt")


def test_the_python_of_an_image_has_its_packages_alone(python: Path) -> None:
    code = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    command = [str(python), "-I", "-c", code, "keras", "pyvips", "dask", "pytest", "clotkit"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "['keras', 'pyvips']"


def test_the_limits_hold_in_namespaces(python: Path, tmp_path: Path) -> None:
    if not jails_work(tmp_path, python):
        pytest.skip("no user, mount and process namespaces here")
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = PROBE.replace("PORT", str(server.getsockname()[1])).replace("HERE", repr(str(ROOT / "tests")))
        place = tmp_path / "job"
        for name in ("input", "output", "tmp", "app"):
            (place / name).mkdir(parents=True)
        spec = spec_of(place, python, [(place / "app", "/opt/app")], ["-c", code], {})
        subprocess.run([*NAMESPACES, sys.executable, "-I", str(JAIL), str(spec)], check=True)
    facts = json.loads((place / "output" / "facts.json").read_text())
    assert facts.pop("processes") == [1]
    assert not facts.pop("home")
    assert all(facts.values()), facts


@contextmanager
def groups_here() -> Iterator[Groups]:
    groups = make_groups(f"clotkit-test-{os.getpid()}", 300, 64)
    try:
        yield groups
    finally:
        groups.remove()
    assert not [folder for folder in groups.folders if folder.exists()]


def test_a_control_group_limits_processes() -> None:
    with groups_here() as groups:
        if groups.processes is None:
            pytest.skip("no control group can limit processes here")
        command = ["setsid", "--wait", "sh", "-c", JOIN, "sh", *groups.joins, "--", sys.executable, "-c", FORKS]
        ended = subprocess.run(command, capture_output=True, stdin=subprocess.PIPE, text=True, check=False)
        assert 0 < int(ended.stdout) < 64


def test_a_control_group_limits_memory() -> None:
    with groups_here() as groups:
        if groups.memory is None:
            pytest.skip("no control group can limit memory here")
        command = ["sh", "-c", JOIN, "sh", *groups.joins, "--", sys.executable, "-c", "x = b'1' * 2**29"]
        assert subprocess.run(command, capture_output=True, check=False).returncode
        assert groups.out_of_memory()
        assert 0 < (groups.peak_mb() or 0) <= 301


@pytest.mark.parametrize(
    ("config", "code", "kind"),
    [
        (ContainerConfig("strip_ai", memory_mb=200), "x = b'1' * 2**29", RehearsalKind.MEMORY),
        (ContainerConfig("strip_ai", time_limit_s=1), "", RehearsalKind.WALL),
        (CONFIG, "import threading\nfor _ in range(300): threading.Thread(target=wait.wait).start()",
         RehearsalKind.PROCESSES),
    ],
)  # fmt: skip
def test_what_the_system_does_not_limit_is_watched(config: ContainerConfig, code: str, kind: RehearsalKind) -> None:
    container = Container(Path(), config, Path(), jailed=False)
    command = [sys.executable, "-c", f"import threading\nwait = threading.Event()\n{code}\nwait.wait()"]
    with subprocess.Popen(command, text=True) as process:
        watch = Watch(process, container, Groups())
        watch.start()
        process.wait()
    watch.join()
    assert watch.broken is kind
    limits = container.limits(Groups())
    assert limits[JobLimit.MEMORY] is limits[JobLimit.PROCESSES] is Enforcement.WATCHED
    assert limits[JobLimit.NETWORK] is Enforcement.ABSENT


@pytest.mark.parametrize(
    ("probability", "label"),
    [
        ({"CE": 0.5}, "CE"),
        ({"CE": 0.5, "LAA": 0.6}, "CE"),
        ({"CE": 1.5, "LAA": -0.5}, "CE"),
        ({"CE": "0.5", "LAA": "0.5"}, "CE"),
        (0.5, "CE"),
        (None, "CE"),
        ({"CE": 0.5, "LAA": 0.5}, "no class"),
        ({"CE": 0.5, "LAA": 0.5}, None),
    ],
)
def test_an_answer_that_is_none_fails(probability: Any, label: Any, strip_ai: Competition, tmp_path: Path) -> None:
    (tmp_path / "clotkit.json").write_text('{"state": "done", "codes": [], "slides": []}')
    with rehearsal_error(RehearsalKind.OUTPUT):
        read_output(tmp_path, CONFIG, strip_ai, "a")
    (tmp_path / "probability.json").write_text(json.dumps(probability))
    (tmp_path / "label.json").write_text(json.dumps(label))
    with rehearsal_error(RehearsalKind.OUTPUT):
        read_output(tmp_path, CONFIG, strip_ai, "a")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("--api invoke", "--api"),
        ("--per-job 2", "--per-job"),
        ("--image-socket wsi", "--image-socket"),
        ("--label-socket x", "--label-socket"),
        ("--arena grand-challenge --kernel kernels/serve", "--kernel"),
        ("--arena grand-challenge --layout old", "--layout"),
        ("--arena grand-challenge --weights-as model", "--weights-as"),
        ("--arena grand-challenge --per-job -1", "--per-job"),
    ],
)
def test_an_option_of_the_other_arena_is_refused(
    words: str, option: str, test_split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", "--split", str(test_split), "--out", str(tmp_path / "out"), *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line.split()
    assert not (tmp_path / "out").exists()


def test_an_empty_split_has_no_job(member: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("image_id,center_id,patient_id,image_num\n")
    with pytest.raises(SplitError):
        rehearse(tmp_path, member, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["a.png", "b.PNG"], True),
        (["a.tif", "b.svs"], True),
        (["a.MHA", "b.ndpi", "c.jp2"], True),
        (["a.tif", "b.TIFF", "c.mha", "missing.png"], False),
    ],
)
def test_slides_that_no_socket_carries_are_refused(names: list[str], refused: bool, tmp_path: Path) -> None:
    slides = [SlideRow(name, name, tmp_path / name, None) for name in names]
    for slide in slides:
        if slide.image_id != "missing.png":
            slide.path.touch()
    jobs = [Job(slide.patient_id, [slide]) for slide in slides]
    with pytest.raises(UsageError) if refused else nullcontext():
        check_suffixes(tmp_path, jobs)


def test_a_missing_slide_is_an_empty_image_that_a_socket_carries(tmp_path: Path) -> None:
    write_input(tmp_path, Job("a", [SlideRow("a", "a", tmp_path / "missing.png", None)]), "wsi")
    (image,) = find_images(tmp_path, ("wsi",))
    assert image.is_carried
    assert image.path.stat().st_size == 0


def test_a_split_that_no_socket_carries_is_one_line_before_the_first_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split, out = tmp_path / "split", tmp_path / "out"
    (split / "test_images").mkdir(parents=True)
    (split / "test.csv").write_text("image_id,image_width,image_height\n41,9,9\n5,9,9\n")
    for name in ("41.png", "5.png"):
        (split / "test_images" / name).touch()
    words = f"--arena grand-challenge --competition ubc_ocean --split {split} --weights {tmp_path} --out {out}"
    assert main(["rehearse", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {"2", ".png;"} <= set(line.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("codes", "listed", "by_slide"),
    [(["no_socket"], 0, ["no_socket"]), (["no_member"], 0, ["no_member"]), ([], 0, ["lost"]), ([], 1, ["lost"])],
)
def test_a_slide_without_an_answer_is_a_fallback(
    codes: list[str], listed: int, by_slide: list[str],
    test_split: Path, member: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def run(container: Container, name: str, place: Path, log: Log) -> tuple[Peaks, dict[JobLimit, Enforcement]]:
        images = [image.name for image in find_images(place / "input", ())]
        slides = [{"image": one, "socket": "a", "state": "done", "codes": [], "p": {}} for one in images[:listed]]
        facts = {"state": "fallback", "codes": codes, "slides": slides}
        answers = {"probability": {"CE": 0.5, "LAA": 0.5}, "label": "CE", "clotkit": facts}
        (place / "output").mkdir()
        for socket_name, value in answers.items():
            (place / "output" / f"{socket_name}.json").write_text(json.dumps(value))
        return Peaks(), dict.fromkeys(JobLimit, Enforcement.ABSENT)

    monkeypatch.setattr(grand_challenge, "run_job", run)
    monkeypatch.setattr(grand_challenge, "engine_here", str)
    monkeypatch.setattr(environment, "make_of", lambda *_: Path(sys.executable))
    out = tmp_path / "out"
    assert not rehearse_container(test_split, member, CONFIG, out, lambda _: None, per_job=2)
    facts = json.loads((out / "rehearsal.json").read_text())
    assert facts["slides"] == ({"done": 2, "fallback": 2} if listed else {"fallback": 4})
    slides = [slide for job in facts["jobs"] for slide in job["slides"]]
    assert len({slide["image_id"] for slide in slides}) == 4
    assert all(slide["codes"] == by_slide for slide in slides if slide["state"] == "fallback")


# Whole rehearsals


def rehearse(split: Path, member: Path, out: Path, config: ContainerConfig = CONFIG) -> tuple[bool, dict[str, Any]]:
    clean = rehearse_container(split, member, config, out, print)
    return clean, json.loads((out / "rehearsal.json").read_text())


def answers_of(run_dir: Path) -> dict[str, list[float]]:
    rows = [line.split(",") for line in (run_dir / "submission.csv").read_text().splitlines()[1:]]
    return {row[0]: [float(one) for one in row[1:]] for row in rows}


@pytest.mark.slow
def test_jobs_have_the_answers_of_a_run(test_split: Path, member: Path, strip_ai: Competition, tmp_path: Path) -> None:
    weights = tmp_path / "weights"  # a member of each kind
    shutil.copytree(member, weights / "tiny")
    write_onnx_member(weights / "onnx", strip_ai.classes.names)
    assert main(["run", str(test_split), "--weights", str(weights), "--out", str(tmp_path / "run")]) == 0
    for api in Api:
        clean, facts = rehearse(test_split, weights, tmp_path / api, ContainerConfig("strip_ai", api=api))
        assert (clean, facts["slides"], facts["codes"], facts["api"]) == (True, {"done": 4}, [], api)
        wanted = answers_of(tmp_path / "run")
        assert {job["job"] for job in facts["jobs"]} == set(wanted)
        for job in facts["jobs"]:
            assert list(job["probability"].values()) == pytest.approx(wanted[job["job"]], abs=1e-6)
        if facts["engine"] not in ENGINES:
            assert 0 < facts["peaks"]["memory_mb"] < CONFIG.memory_mb
            assert 0 < facts["peaks"]["processes"] <= 256
        assert facts["not_rehearsed"] == [NotRehearsed.IMAGE] * (facts["engine"] not in ENGINES)
        assert {name for slide in facts["jobs"][0]["slides"] for name in slide["p"]} == {"tiny", "onnx"}
        if facts["engine"] == "namespaces":
            assert facts["limits"][JobLimit.NETWORK] == facts["limits"][JobLimit.READ_ONLY_ROOT] == "enforced"
            assert facts["peaks"]["shared_mb"] <= 128


@pytest.mark.slow
def test_where_there_are_no_namespaces_limits_are_watched(
    test_split: Path, member: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    monkeypatch.setenv("PATH", str(programs))  # no unshare there, and no engine
    clean, facts = rehearse(test_split, member, tmp_path / "out")
    assert (clean, facts["engine"]) == (True, "none")
    assert facts["limits"][JobLimit.NETWORK] == facts["limits"][JobLimit.SHARED_MEMORY] == "absent"
    with rehearsal_error(RehearsalKind.WALL):
        rehearse(test_split, member, tmp_path / "out", ContainerConfig("strip_ai", time_limit_s=0.05))


@pytest.mark.slow
def test_a_job_beyond_its_memory_has_the_fallback(
    test_split: Path, keras_member: Path, python: Path, tmp_path: Path
) -> None:
    groups = make_groups(f"clotkit-test-{os.getpid()}", 300, 64)
    groups.remove()
    if groups.memory is None:
        pytest.skip("no control group can be made here")
    clean, facts = rehearse(test_split, keras_member, tmp_path / "out", ContainerConfig("strip_ai", memory_mb=150))
    assert (clean, facts["slides"], facts["codes"]) == (False, {"fallback": 4}, ["crashed"])


ENGINE = """#!/bin/sh
echo "$*" >> "$0.log"
exec @PYTHON@ - "$@" <<'END'
import os, pathlib, subprocess, sys, tempfile
words = sys.argv[1:]
if words[0] == "run":
    volumes = [words[n + 1].split(":") for n, word in enumerate(words) if word == "--volume"]
    root = pathlib.Path(tempfile.mkdtemp())
    for source, target, *_ in volumes:
        if target != "/tmp":
            (root / target.lstrip("/")).symlink_to(source)
    (root / "opt" / "ml").mkdir(parents=True)
    (root / "opt" / "ml" / "model").symlink_to("@FOLDER@/model")
    own = {"CLOTKIT_CONTAINER_ROOT": str(root), "PYTHONPATH": "@FOLDER@/app"}
    sys.exit(subprocess.run(["@PYTHON@", "-m", "clotkit.containers.entry"], env={**os.environ, **own}).returncode)
END
"""


def is_gone(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        process.wait(20)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True


INVOKED = """#!/bin/bash
echo "$*" >> "$0.log"
case "$*" in
*/health*) echo 200 ;;
*/invoke*) cat "$0.status" ;;
esac
"""


@pytest.mark.parametrize(("status", "code"), [("201", 0), ("500", 1), ("", 1)])
def test_the_script_of_a_server_asks_for_one_job(status: str, code: int, member: Path, tmp_path: Path) -> None:
    config = ContainerConfig("strip_ai", api=Api.INVOKE)
    write_container(member, config, Image("tag"), tmp_path / "container", lambda _: None)
    engine = tmp_path / "engine"
    engine.write_text(INVOKED)
    engine.chmod(0o755)
    (tmp_path / "engine.status").write_text(status)
    script, environment = tmp_path / "container" / "do_test_run.sh", {"ENGINE": str(engine), "BUILT": "1"}
    command = [str(script), str(tmp_path), str(tmp_path / "output")]
    assert subprocess.run(command, env={**os.environ, **environment}, check=False).returncode == code
    lines = (tmp_path / "engine.log").read_text().splitlines()
    words = [line.split()[0] for line in lines if line.split()[0] in {"volume", "run", "logs", "rm"}]
    assert words == ["volume", "run", "logs", "rm", "volume"]


# Its container is no child of its own and ignores SIGTERM, as a Python that is process 1 does.
STUBBORN = """#!/bin/bash
echo "$*" >> "$0.log"
case $1 in
run)
  trap "" TERM INT
  (setsid sh -c 'echo $$ > "$1"; exec sleep 600' sh "$0.pid.part" >/dev/null 2>&1 &)
  until [ -s "$0.pid.part" ]; do :; done
  mv "$0.pid.part" "$0.pid"; echo started
  tail --pid="$(cat "$0.pid")" -f /dev/null ;;
rm) kill -9 "$(cat "$0.pid")" ;;
esac
"""


@pytest.mark.parametrize(
    ("time_limit_s", "error"), [(4.0, RehearsalError), (600.0, KeyboardInterrupt), (600.0, ZeroDivisionError)]
)
def test_a_container_is_removed_however_its_job_ends(
    time_limit_s: float, error: type[BaseException], member: Path, tmp_path: Path
) -> None:
    config = ContainerConfig("strip_ai", time_limit_s=time_limit_s)
    write_container(member, config, Image("tag"), tmp_path / "container", lambda _: None)
    engine = tmp_path / "engine"
    engine.write_text(STUBBORN)
    engine.chmod(0o755)

    def log(line: str) -> None:
        if error is not RehearsalError and "started" in line:
            raise error

    (tmp_path / "job" / "input").mkdir(parents=True)
    container = Container(tmp_path / "container", config, Path("python"), True, str(engine))
    with pytest.raises(error) as caught:
        run_job(container, "a", tmp_path / "job", log)
    if isinstance(caught.value, RehearsalError):
        assert caught.value.kind is RehearsalKind.WALL
    assert is_gone(int((tmp_path / "engine.pid").read_text()))
    lines = [line.split() for line in (tmp_path / "engine.log").read_text().splitlines()]
    run = next(words for words in lines if words[0] == "run")
    assert ["rm", "-f", run[run.index("--name") + 1]] in lines
    assert [words[:2] for words in lines if words[0] == "volume"] == [["volume", "create"], ["volume", "rm"]]


def test_an_interrupted_job_leaves_no_process(tmp_path: Path) -> None:
    code = "import subprocess, sys, time\nprint(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)\n"
    folder, place = tmp_path / "container", tmp_path / "job"
    (folder / "app" / "clotkit" / "containers").mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("entry.py", f"{code}sys.stdout.flush()\ntime.sleep(600)\n")):
        (folder / "app" / "clotkit" / "containers" / name).write_text(text)
    (folder / "app" / "clotkit" / "__init__.py").touch()
    (place / "input").mkdir(parents=True)
    pids: list[int] = []

    def log(line: str) -> None:
        pids.append(int(line.rsplit(maxsplit=1)[-1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(Container(folder, CONFIG, Path(sys.executable), False), "a", place, log)
    assert is_gone(pids[0])


@pytest.mark.slow
def test_with_an_engine_the_image_is_built_and_its_script_does_the_jobs(
    test_split: Path, member: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out" / "container"
    engine = tmp_path / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text(ENGINE.replace("@PYTHON@", sys.executable).replace("@FOLDER@", str(folder)))
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{engine.parent}:{os.environ['PATH']}")
    assert engine_here() == "docker"
    clean, facts = rehearse(test_split, member, tmp_path / "out")
    assert clean
    assert facts["engine"] == "docker"
    unknown = [name for name, value in facts["peaks"].items() if value is None]
    assert unknown == ["memory_mb", "group_mb", "processes", "shared_mb"]
    lines = (tmp_path / "bin" / "docker.log").read_text().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["info", "build"]
    runs = [line for line in lines if line.startswith("run ")]
    assert len(runs) == len(facts["jobs"])
    for flags in (
        "--network none --cap-drop ALL --security-opt no-new-privileges --read-only",
        "--memory 16384m --memory-swap 16384m --shm-size 128m --pids-limit 256",
        "--name clotkit-rehearsal-",
    ):
        assert all(flags in line for line in runs)  # the limits are the engine's to enforce


def test_a_program_without_a_daemon_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engine_here() == ""
