"""Answer jobs inside the container, whatever their slides do: `python -m clotkit.containers.entry`.

The fallback answer is on disk before anything heavy is imported. A child process scores the job's images under a
deadline, and is started once more if it dies. The exit code is 0 whenever the output sockets have their values; the
codes of what went wrong are in /output/clotkit.json and in the log. Standard library only.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition, load_competition
from clotkit.console import unforeseen
from clotkit.containers.case import MOST_THREADS, as_case, fallback_of, read_answer, write_split
from clotkit.containers.config import CONFIG, FACTS, Api, ContainerConfig, read_config
from clotkit.containers.sockets import SUFFIXES, JobImage, find_images, image_sockets, write_answer
from clotkit.errors import ClotkitError, one_line
from clotkit.files import atomic_write_json
from clotkit.reasons import Reason
from clotkit.report.records import REPORT, SlideReport, counts, read_report
from clotkit.supervise import ENDED_WELL, State, code_of, name_of, run_until, say

APP = Path(__file__).resolve().parents[2]  # has the kit, the settings and perhaps the members
RECIPE = "recipe.toml"
UNREAD = [Reason.UNSUPPORTED]  # codes of an image that no socket carries
RESERVE_SHARE, RESERVE_S = 0.1, 60.0  # of the time limit, kept for the container's start and the last writes
PORT = 4743


@dataclass(frozen=True)
class Places:
    """The folders of a container; a test has others."""

    input: Path = Path("/input")
    output: Path = Path("/output")
    model: Path = Path("/opt/ml/model")  # where the platform unpacks a model that is uploaded apart
    app: Path = APP

    @classmethod
    def below(cls, root: Path) -> "Places":
        """Return the places of a rehearsal on a system that cannot give the container a root of its own."""
        return cls(root / "input", root / "output", root / "opt" / "ml" / "model")

    @property
    def weights(self) -> Path:
        """The folder of the members: the uploaded model, or the one in the image."""
        uploaded = self.model.is_dir() and any(self.model.iterdir())
        return self.model if uploaded else self.app / "model"


@dataclass
class JobFacts:
    """The content of clotkit.json: how a job ended."""

    state: State = State.STARTED
    codes: list[str] = field(default_factory=list)  # Reason codes, each once
    slides: list[dict[str, Any]] = field(default_factory=list)  # image, socket, state, codes, p by member
    seconds: float = 0.0

    def add(self, *codes: str) -> None:
        """Add reason codes that it does not have yet."""
        self.codes += [str(code) for code in dict.fromkeys(codes) if code and code not in self.codes]


def run_job(places: Places) -> int:
    """Answer one job; return 0, or 1 if its output could not be written."""
    started, facts = time.monotonic(), JobFacts()
    try:
        config = read_config(places.app / CONFIG)
        competition = as_case(load_competition(config.competition))
        write_answer(places.output, config, competition.classes.names, *fallback_of(competition))
    except (ClotkitError, OSError) as error:
        say(f"no answer can be written: {error}")
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="clotkit-job-", ignore_cleanup_errors=True) as scratch:
            _score(places, config, competition, Path(scratch), started, facts)
    except Exception as error:  # noqa: BLE001 - the fallback answer is there; nothing may fail the job
        facts.state = State.FALLBACK
        facts.add(Reason.FAILED)
        say(unforeseen(error))
    facts.seconds = round(time.monotonic() - started, 1)
    say(f"{facts.state}: {len(facts.slides)} slides, codes {', '.join(facts.codes) or 'none'}, {facts.seconds} s")
    try:
        atomic_write_json(places.output / FACTS, asdict(facts))
    except (ClotkitError, OSError) as error:  # the answer is there: at the memory limit, even a write can fail
        say(f"{FACTS} cannot be written: {one_line(error)}")
    return 0


def _score(
    places: Places, config: ContainerConfig, competition: Competition, scratch: Path, started: float, facts: JobFacts
) -> None:
    """Score the images of the job, and write its answer."""
    found = find_images(places.input, config.images)
    images = [image for image in found if image.is_carried]
    missing = _missing(places, config, found)
    # Whatever ends the job from here, each of its images is listed.
    facts.slides = [_slide(image, {}, missing) for image in found]
    facts.add(*missing, *UNREAD * (len(images) < len(found)))
    if missing or not images:
        facts.state = State.FALLBACK
        say(f"{', '.join(facts.codes)}: the answer is the fallback")
        return
    split, run_dir = scratch / "split", scratch / "run"
    write_split(split, images, competition)
    ended_well = _run(places, config, split, run_dir, started, facts)
    lines = _lines(run_dir)
    probabilities, label = read_answer(run_dir, competition)
    write_answer(places.output, config, competition.classes.names, probabilities, label)
    facts.slides = [_slide(image, lines) for image in found]
    facts.add(*(code for line in lines.values() for code in line.codes))
    states = counts(list(lines.values()))
    facts.state = State.DONE if ended_well and states["done"] == len(found) else State.PARTIAL
    if not states["done"] + states["partial"]:
        facts.state = State.FALLBACK


def _missing(places: Places, config: ContainerConfig, found: Sequence[JobImage]) -> list[Reason]:
    """Return the codes of what a job lacks to be scored, and log which of its images are not read."""
    sockets = image_sockets(places.input)
    for image in found:
        if not image.is_carried:
            say(f"{image.socket}: {image.path.name} is not read: it is none of {', '.join(SUFFIXES)}")
    if not found:
        say(f"image sockets of the job: {', '.join(sockets) or 'none'}; wanted: {', '.join(config.images) or 'any'}")
    no_member = not any(places.weights.rglob(RECIPE))
    if no_member:
        say(f"no member in {places.weights}")
    return [Reason.NO_SOCKET if sockets else Reason.NO_DATA] * (not found) + [Reason.NO_MEMBER] * no_member


def _run(places: Places, config: ContainerConfig, split: Path, run_dir: Path, started: float, facts: JobFacts) -> bool:
    """Run the child until the job's deadline, once more if it dies; return whether it ended well."""
    reserve_s = min(RESERVE_S, RESERVE_SHARE * config.time_limit_s)
    deadline = started + config.time_limit_s - reserve_s
    words = [places.app / CONFIG, split, places.weights, run_dir]
    command = [sys.executable, "-u", "-m", "clotkit.containers.case", *map(str, words)]
    for again in ([], ["resume"]):
        left_s = max(deadline - time.monotonic(), 0.1)
        ended = run_until(
            [*command, f"{deadline:.1f}", *again],
            left_s,
            "the pipeline",
            reserve_s / 4,
            split.parent,
        )
        if ended in ENDED_WELL:
            return True
        say(f"the pipeline ended with {name_of(ended)}; what it has published counts")
        if ended > 0 or time.monotonic() >= deadline:
            break
    facts.add(code_of(ended, deadline))
    return False


def _lines(run_dir: Path) -> dict[str, SlideReport]:
    """Return the lines of a run's report by image; none if it cannot be read."""
    try:
        return {line.image_id: line for line in read_report(run_dir / REPORT)}
    except (ClotkitError, ValueError, TypeError):
        return {}


def _slide(image: JobImage, lines: dict[str, SlideReport], codes: Sequence[Reason] = ()) -> dict[str, Any]:
    """Return the facts of one image; `codes` say why the report has no line of it: LOST by default."""
    line = lines.get(image.name)
    facts: dict[str, Any] = {"image": image.name, "socket": image.socket}
    if not image.is_carried:
        return facts | {"state": "fallback", "codes": UNREAD, "p": {}}
    if line is None:
        return facts | {"state": "fallback", "codes": list(codes) or [Reason.LOST], "p": {}}
    return facts | {"state": line.state, "codes": line.codes, "p": line.p}


def serve(places: Places, port: int = PORT) -> None:
    """Serve GET /health and POST /invoke until the process is told to stop; one job at a time."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        """Answers the platform."""

        def do_GET(self) -> None:
            """Say that the server is up."""
            self._answer(200 if self.path == "/health" else 404)

        def do_POST(self) -> None:
            """Do the job that is in /input."""
            if self.path != "/invoke":
                self._answer(404)
                return
            with turn:
                ended = run_job(places)
            self._answer(500 if ended else 201)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Log to stdout: the platform shows stderr as a warning."""
            say(format % args)

    with ThreadingHTTPServer(("0.0.0.0", port), Handler) as server:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        say(f"serving on port {server.server_address[1]}")
        server.serve_forever()


def main(places: Places | None = None) -> int:
    """Answer the job in /input, or serve, as the container's settings say."""
    places = places or Places.below(Path(os.environ.get("CLOTKIT_CONTAINER_ROOT", "/")))
    threads = str(min(MOST_THREADS, len(os.sched_getaffinity(0))))
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, threads)
    os.environ["PYTHONPATH"] = str(places.app)
    for name in ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        os.environ[name] = tempfile.gettempdir()  # everything else is read-only
    say(f"clotkit container on Python {sys.version.split()[0]}, {threads} threads, {_free_mb()} MB free in /tmp")
    if read_config(places.app / CONFIG).api is Api.INVOKE:
        serve(places)
        return 0
    return run_job(places)


def _free_mb() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free // 2**20


if __name__ == "__main__":
    sys.exit(main())
