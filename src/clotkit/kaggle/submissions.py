"""A kernel's version as a submission: what it wrote is checked here, limits are read, then it is sent and followed."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, RemoteError, RemoteMissing, SubmissionError
from clotkit.kaggle.client import Answer, Kaggle
from clotkit.kaggle.follow import Session
from clotkit.kaggle.public import download
from clotkit.progress import Log
from clotkit.report import records
from clotkit.scoring.submission import check_submission

POLL_S, LONGEST_POLL_S = 15.0, 120.0
SCORE_LIMIT_S = 13 * 3_600.0  # a scoring run may take as long as a session
UNSEEN_TRIES, UNSEEN_WAIT_S = 4, 30.0  # while Kaggle cannot find a version that has just ended
NEAR = 0.85  # of a limit: close enough to be the likely cause
CAUSES = {  # what Kaggle says of a submission that failed, and no more than that
    "Notebook Threw Exception": "the script ended with an error on the hidden slides; the scoring kernel ends with 0 "
    "whenever a submission is there, so look for a missing dataset or a change of Kaggle's image",
    "Notebook Timeout": "the run on the hidden slides took longer than Kaggle allows",
    "Notebook Exceeded Allowed Compute": "memory, disk or accelerator passed a limit on the hidden slides",
    "Submission CSV Not Found": "no file of the expected name was in /kaggle/working when the run ended",
    "Submission Scoring Error": "the file was there, and its rows, columns or values do not fit the hidden sample",
}


def fetch_run(session: Session, competition: Competition, out: Path) -> Path:
    """Fetch what a run says of itself into `out`; the path of its submission.

    Raises RemoteError when it left no submission.
    """
    name = competition.files.submission
    paths = session.fetch(out, [name, *records.FILES])
    found = next((path for path in paths if path == out / name), None)
    if found is None:
        raise RemoteError(f"{session.ref} version {session.version}: there is no {name} in its output; see its log")
    return found


def check(client: Kaggle, competition: Competition, submission: Path, sample: Path | None, log: Log = print) -> None:
    """Hold a submission against the sample (fetched, where none is given). SubmissionError for its first fault."""
    if sample is None:
        download(client, competition.slug, competition.files.sample, submission.parent)
        sample = submission.parent / competition.files.sample
    verdict = check_submission(submission, sample, competition)
    if not verdict.valid:
        raise SubmissionError(
            f"{submission}: {verdict.problems[0]} ({len(verdict.problems)} problems in all); it is not submitted"
        )
    for note in verdict.notes:
        log(note)


def submit(
    client: Kaggle,
    competition: Competition,
    session: Session,
    again: bool = False,
    log: Log = print,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """Submit a version and return the number of the submission; one that was submitted before is not sent twice.

    Raises RemoteError when it may not be submitted, or Kaggle says no.
    """
    before = _of_version(client, competition.slug, session)
    if before and not again:
        log(f"{session.ref} version {session.version} was submitted before, as {before[0]['ref']}; nothing is sent")
        return int(before[0]["ref"])
    _check_limits(client, competition.slug, log, now)
    description = _marker(session, len(before))

    def look() -> Answer | None:
        return next(
            (one for one in client.submissions(competition.slug) if one.get("description") == description), None
        )

    fields = {
        "competition_name": competition.slug,
        "kernel_owner": session.owner,
        "kernel_slug": session.slug,
        "kernel_version": session.version,
        "file_name": competition.files.submission,
        "submission_description": description,
    }
    said = _send(client, look, fields, log)
    ref = int(said.get("ref") or 0) or int((look() or {}).get("ref") or 0)
    if not ref:
        message = " ".join(str(said.get("message")).split())[:200]
        raise RemoteError(f"{competition.slug}: Kaggle gave the submission no number ({message}): see its page")
    log(f"submitted: {session.ref} version {session.version} as {ref}")
    return ref


def follow(
    client: Kaggle,
    competition: Competition,
    ref: int,
    run_dir: Path,
    log: Log = print,
    clock: Callable[[], float] = time.monotonic,
    limit_s: float = SCORE_LIMIT_S,
) -> str:
    """Follow a submission to its public score, and return that. RemoteError for an error, with likely causes.

    `run_dir` may hold the report.jsonl and run.json of the run that was submitted.
    """
    started, pause_s, last = clock(), POLL_S, ""
    while True:
        said = client.submission(ref)
        status = str(said.get("status") or "PENDING").upper()
        if status != last:
            log(f"submission {ref}: {status}")
        last = status
        if status.endswith("COMPLETE"):
            score = str(said.get("publicScore") or "")
            log(f"submission {ref}: score {score or 'not shown'}")
            return score
        if status.endswith("ERROR"):
            raise RemoteError(explain(str(said.get("errorDescription") or ""), ref, run_dir, competition))
        if clock() - started > limit_s:
            raise RemoteError(
                f"submission {ref}: {status} after {limit_s / 3600:.0f} hours; see the competition's page"
            )
        client.wait(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_POLL_S)


def find_submission(client: Kaggle, competition: Competition, session: Session) -> int:
    """The number of the last submission of a version. Raises RemoteError when there is none."""
    found = _of_version(client, competition.slug, session)
    if not found:
        raise RemoteError(f"{session.ref} version {session.version} was not submitted; clotkit kaggle submit does")
    return int(found[0]["ref"])


def explain(error: str, ref: int, run_dir: Path, competition: Competition) -> str:
    """One line: what Kaggle said of a failed submission, what that means, and what this run's own report points to."""
    error = " ".join(error.split())[:200]
    known = next((name for name in CAUSES if name.lower() in error.lower()), "")
    said = [f"submission {ref}: {error or 'failed without a word'}", CAUSES.get(known, "Kaggle says no more")]
    evidence = list(_evidence(known, run_dir, competition))
    return "; ".join([*said, *(evidence or ["nothing in this run's report points to a cause; see the run's log"])])


def _evidence(known: str, run_dir: Path, competition: Competition) -> Iterator[str]:
    lines, run = _read_run(run_dir)
    if not lines:
        return
    limits = competition.limits
    peak_mb = max(line.peak_mb for line in lines)
    if known in ("Notebook Exceeded Allowed Compute", "Notebook Threw Exception"):
        near = "near" if peak_mb > NEAR * limits.slide_memory_mb else "far from"
        yield f"the largest slide took {peak_mb:.0f} MB, {near} its limit of {limits.slide_memory_mb}"
    if known in ("Notebook Timeout", "Notebook Exceeded Allowed Compute") and limits.hidden_slides:
        took_s = float(run.get("seconds") or sum(line.seconds for line in lines))
        minutes = took_s / len(lines) * limits.hidden_slides / 60
        near = "near or over" if minutes * 60 > NEAR * limits.deadline_s else "far from"
        yield (
            f"{limits.hidden_slides} slides at the {took_s / len(lines):.0f} s of this run are {minutes:.0f} minutes, "
            f"{near} the {limits.kernel_wall_s / 60:.0f} that Kaggle allows"
        )
    fallen = [line for line in lines if line.state != "done"]
    if fallen:
        yield f"{len(fallen)} of {len(lines)} slides fell back: {fallen[0].image_id}, {fallen[0].reason}"


def _read_run(run_dir: Path) -> tuple[Sequence[records.SlideReport], dict[str, Any]]:
    try:
        lines = records.read_report(run_dir / records.REPORT)
        run = json.loads((run_dir / records.RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, ClotkitError):
        return [], {}
    return lines, run if isinstance(run, dict) else {}


def _marker(session: Session, number: int) -> str:
    """The description of a version's submission: what it is found again by."""
    return f"clotkit {session.ref} v{session.version}" + (f" again {number}" if number else "")


def _of_version(client: Kaggle, slug: str, session: Session) -> list[Answer]:
    """The submissions of a version that were made here, the last one first."""
    marker = _marker(session, 0)
    found = [
        one for one in client.submissions(slug)
        if one.get("ref") and (one.get("description") == marker or str(one.get("description")).startswith(f"{marker} "))
    ]  # fmt: skip
    return sorted(found, key=lambda one: -int(one["ref"]))


def _check_limits(client: Kaggle, slug: str, log: Log, now: Callable[[], datetime]) -> None:
    page = f"kaggle.com/competitions/{slug}"
    said = client.competition(slug)
    if not said.get("userHasEntered"):
        raise RemoteError(f"{slug}: you have not entered: accept the rules once at {page}/rules, then run again")
    if said.get("submissionsDisabled"):
        raise RemoteError(f"{slug}: Kaggle takes no submissions to it any more: see {page}")
    if not said.get("isKernelsSubmissionsOnly"):
        log(f"{slug}: not a code competition; a kernel's version may be refused")
    if _passed(str(said.get("deadline") or ""), now()):
        log(f"{slug}: its deadline has passed; a late submission is scored, and not ranked")
    limits = client.limits(slug)
    allowed = int(limits.get("numAllowedNow") or 0)
    if allowed < 1:
        raise RemoteError(
            f"{slug}: {int(limits.get('numToday') or 0)} submissions today, "
            f"{int(said.get('maxDailySubmissions') or 0)} a day are allowed, 0 are left: run again tomorrow"
        )
    log(f"{slug}: {allowed} submissions are left today")


def _passed(deadline: str, now: datetime) -> bool:
    try:
        then = datetime.fromisoformat(deadline)
    except ValueError:
        return False
    return (then if then.tzinfo else then.replace(tzinfo=UTC)) < now


def _send(client: Kaggle, look: Callable[[], Answer | None], fields: Answer, log: Log) -> Answer:
    """Submit, and again while Kaggle has not yet seen the version itself."""
    for _ in range(UNSEEN_TRIES - 1):
        try:
            return client.submit(look, fields)
        except RemoteMissing as error:
            log(f"{error}; trying again in {UNSEEN_WAIT_S:.0f} s")
            client.wait(UNSEEN_WAIT_S)
    return client.submit(look, fields)
