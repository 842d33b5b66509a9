"""Page Runs: the runs below the roots; one's report, two compared, one followed, one started."""

import shlex
import threading
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import cast

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clotkit.app import untrusted
from clotkit.app.deepzoom.ids import id_of, path_of
from clotkit.app.processes import run_one
from clotkit.app.security import CONTENT_POLICY, status_of
from clotkit.app.standing import RunState, standing_folders, standing_run
from clotkit.app.starting import Running, Start, is_success, out_folder, started
from clotkit.app.viewer import competition_of_run, report_lines
from clotkit.app.web.jobs import Job, Kind, State
from clotkit.app.web.rendering import error_page, page
from clotkit.app.web.shared import Shared, found_job, job_of, needed, shared_of
from clotkit.app.web.slides import short
from clotkit.errors import ClotkitError, UsageError
from clotkit.files import ESCAPED
from clotkit.locks import is_held
from clotkit.planning.plan import Plan
from clotkit.planning.text import plan_lines
from clotkit.report.records import REPORT, SlideReport
from clotkit.splits import read_slides
from clotkit.workers import Limits, Task

HERE = "/runs"
LIMITS = Limits(slide_s=60.0, memory_mb=1536)  # of reading runs
NEWEST = 12  # slides of a run that is followed
MOST_MOVED = 200  # patients that are shown
REPORT_POLICY = (  # of a report, whose own script is in it and has its hash in the page's policy
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'self'; "
    "sandbox allow-scripts; form-action 'none'; base-uri 'none'"
)
REPORT_HEADERS = {
    "content-security-policy": REPORT_POLICY,
    "x-frame-options": "SAMEORIGIN",
    "cross-origin-opener-policy": "unsafe-none",  # a browser may refuse a sandboxed page that isolates its opener
}


def show(request: Request) -> Response:
    """Draw the list of runs, and the forms that compare two and start one."""
    shared = shared_of(request)
    splits, runs = standing_folders(shared.roots, shared.competition)
    tests = {id_of(one.folder, shared.roots): short(one.folder, shared) for one in splits if one.kind == "test"}
    names = {id_of(one.folder, shared.roots): short(one.folder, shared) for one in runs}
    members = {} if not tests else shared.slide_members()
    return page(
        request,
        "runs",
        "Runs",
        runs=list(zip(names, runs, strict=True)),
        names=names,
        tests=tests,
        members=members,
        name=f"run-{datetime.now():%Y%m%d-%H%M%S}",
    )


def one(request: Request) -> Response:
    """Draw one run: how far it is while it goes on, its report once it has ended."""
    shared, text = shared_of(request), needed(request, "run")
    folder = path_of(text, shared.roots)
    job = _job_of(shared, folder)  # before its files: a job that has ended has written all of them
    run = standing_run(folder, shared.roots)
    ours = job is not None and job.state is State.RUNNING
    live = ours or (run.state is RunState.RUNNING and (job is None or is_held(folder)))  # continued by another program
    lines = report_lines(shared.roots.inside(folder / REPORT)) if live else []  # no newest slides are shown of others
    total = _slides_of(run.facts, shared) if live else run.done
    response = page(
        request,
        "run",
        short(folder, shared),
        run=run,
        key=text,
        live=live,
        job=job,
        ours=ours,
        cause=None if job is None or run.changed.timestamp() > job.over_s else job.cause,  # since then it went on
        total=max(total, run.done),
        newest=[_row(line) for line in lines[-NEWEST:][::-1]],
        printed=list(cast(Running, job.result).lines) if job is not None and job.result is not None else [],
    )
    response.headers["content-security-policy"] = f"{CONTENT_POLICY}; frame-src 'self'"
    return response


def report(request: Request) -> Response:
    """Return the report of a run, made again from its files: a file that lies there is not trusted.

    If it cannot be made, the page that says why may be shown where the report would be, in the frame of the run's page.
    """
    shared = shared_of(request)
    try:
        folder = path_of(needed(request, "run"), shared.roots)
        shared.roots.inside(folder / REPORT)
        found = run_one(Task("report", shared.roots.closed(folder), ()), untrusted.report, LIMITS).facts
    except ClotkitError as error:
        if "text/html" not in request.headers.get("accept", ""):
            raise  # whoever asks is no browser, and gets the line that all errors have
        response = error_page(request, str(error), error.reason, status_of(error))
        response.headers.update(REPORT_HEADERS)
        return response
    text = cast(str, found["page"]).encode("utf-8", ESCAPED)
    return Response(text, media_type="text/html; charset=utf-8", headers=REPORT_HEADERS)


def compared(request: Request) -> Response:
    """Draw the difference of two runs."""
    shared = shared_of(request)
    texts = [needed(request, name) for name in ("first", "second")]
    folders = [path_of(text, shared.roots) for text in texts]
    if folders[0] == folders[1]:
        raise UsageError("these are one run; choose two")
    first, second = (shared.roots.closed(shared.roots.inside(folder / REPORT).parent) for folder in folders)
    names = [short(folder, shared) for folder in folders]
    found = run_one(Task("compare", first, ()), partial(untrusted.compared, second=second), LIMITS).facts["found"]
    return page(request, "compared", "Two runs compared", texts=texts, names=names, found=found, most=MOST_MOVED)


async def start_plan(request: Request) -> Response:
    """Predict a run that a form describes, and lead to its plan."""
    shared = shared_of(request)
    async with request.form() as form:
        split, member, name = (str(form.get(key, "")) for key in ("split", "member", "name"))
    start = await run_in_threadpool(_start, shared, split, member, name)
    about = {"name": name, "words": shlex.join(["clotkit", *start.words()])}
    job = shared.jobs.start(Kind.PLAN, f"Plan of {name}", lambda _: (start, start.plan()), about)
    return RedirectResponse(f"/runs/plan/{job.key}", 303)


def plan(request: Request) -> Response:
    """Draw the plan of a run, with the button that starts it."""
    job = job_of(request, Kind.PLAN)
    found = None if job.result is None else cast(tuple[Start, Plan], job.result)[1]
    lines = [] if found is None else list(plan_lines(found))
    return page(request, "plan", job.title, here=HERE, job=job, plan=found, lines=lines)


async def start_run(request: Request) -> Response:
    """Start a run whose plan was shown, and lead to its page."""
    shared = shared_of(request)
    async with request.form() as form:
        planned = found_job(shared, str(form.get("plan", "")), Kind.PLAN)
    if planned.state is not State.ENDED:
        raise UsageError("this run has no plan; plan it first")
    start, name = cast(tuple[Start, Plan], planned.result)[0], planned.about["name"]
    earlier = _job_of(shared, start.out)
    if start.out.exists() and (earlier is None or earlier.state is State.FAILED):
        raise _taken(name)
    about = {"out": str(start.out), "plan": planned.key}
    job = shared.jobs.start(Kind.RUN, name, lambda job: _run(start, job), about, only=str(start.out))
    if job.about["plan"] != planned.key:  # a second click has the same plan, and leads to the run that it started
        raise _taken(name)
    return RedirectResponse(f"/runs/started/{job.key}", 303)


def begun(request: Request) -> Response:
    """Draw what a started run prints until its report begins, then lead to the run's page."""
    shared, job = shared_of(request), job_of(request, Kind.RUN)
    out = Path(job.about["out"])
    running = cast(Running | None, job.result)
    where = f"/runs/one?run={id_of(out, shared.roots)}" if (out / REPORT).is_file() else ""
    lines = [] if running is None else list(running.lines)
    return page(request, "begun", job.title, here=HERE, job=job, where=where, printed=lines)


def stop(request: Request) -> Response:
    """End a run that was started here."""
    job = job_of(request, Kind.RUN)
    job.stop.set()
    return RedirectResponse(f"/runs/started/{job.key}", 303)


def _start(shared: Shared, split: str, member: str, name: str) -> Start:
    folder = path_of(split, shared.roots)
    weights = shared.members[shared.chosen(member)]
    return Start(folder, weights, out_folder(shared.roots, folder, name), shared.competition)


def _run(start: Start, job: Job) -> Running:
    """Run until the end. Raises UsageError, with the last line printed, if there is no submission."""
    if start.out.exists() or start.out.is_symlink():
        raise _taken(start.out.name)
    with started(start) as running:
        job.result = running
        threading.Thread(target=_end_with, args=(job, running), daemon=True).start()
        code = running.follow()
    if not is_success(code):
        last = next((line for line in reversed(running.lines) if line), "nothing was printed")
        raise UsageError(f"the run ended with exit code {code}: {last}")
    return running


def _taken(name: str) -> UsageError:
    return UsageError(f"{name}: exists already; choose another name")


def _end_with(job: Job, running: Running) -> None:
    job.stop.wait()
    running.end()


def _job_of(shared: Shared, folder: Path) -> Job | None:
    """Return a snapshot of the newest job of a run that was started here, a failed one last."""
    jobs = [job.snapshot() for job in shared.jobs.all() if job.about.get("out") == str(folder)]
    return min(jobs, key=lambda job: job.state is State.FAILED, default=None)


def _slides_of(facts: dict[str, object], shared: Shared) -> int:
    """Return how many slides a run that goes on has; 0 if its split cannot be read."""
    try:
        arguments = cast(dict[str, str], facts["arguments"])
        split = shared.roots.inside(Path(arguments["split"]).absolute())
        competition = competition_of_run(facts, shared.competition)
        shared.roots.holding(split, competition.tables())
        return len(read_slides(split, "test", competition, log=lambda _: None))
    except (LookupError, TypeError, ValueError, OSError, ClotkitError):
        return 0


def _row(line: SlideReport) -> dict[str, str | int | float]:
    return {
        "slide": line.image_id,
        "state": line.state,
        "tiles": line.tiles,
        "seconds": f"{line.seconds:.1f}",
        "reason": line.reason,
    }
