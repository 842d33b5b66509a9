"""Submit a kernel's version, after checks here, and follow it to its score."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, RemoteError, RemoteMissing, SubmissionError, one_line
from clotkit.kaggle.client import Answer, Kaggle
from clotkit.kaggle.follow import KernelRun
from clotkit.kaggle.polling import Poller
from clotkit.kaggle.public import download
from clotkit.kaggle.states import SubmissionFailure, SubmissionState
from clotkit.metric import METRICS
from clotkit.progress import Log
from clotkit.reasons import RemoteKind
from clotkit.report import records
from clotkit.submission.checking import check_submission
from clotkit.submission.parquet import SUFFIX, parquet_to_csv
from clotkit.submission.writing import PROBABILITIES
from clotkit.supervise import STATUS, read_status

POLL_S = 15.0  # before the second look at a submission; the pauses grow
SCORE_LIMIT_S = 13 * 3_600.0  # a scoring run may take as long as a session
MISSING_TRIES, MISSING_WAIT_S = 4, 30.0  # while Kaggle does not find a version that has just ended
NEAR_SHARE = 0.85  # of a limit: close enough to be the likely cause of a failure
MEANINGS = {
    SubmissionFailure.EXCEPTION: "the script ended with an error on the hidden slides; the scoring kernel ends with 0 "
    "whenever it has a submission, so look for a missing dataset or a change of Kaggle's image",
    SubmissionFailure.TIMEOUT: "the run on the hidden slides took longer than Kaggle allows",
    SubmissionFailure.COMPUTE: "memory, disk or accelerator passed a limit on the hidden slides",
    SubmissionFailure.NO_FILE: "no file of the expected name was in /kaggle/working when the run ended",
    SubmissionFailure.SCORING: "the file was there, but its rows, columns or values do not fit the hidden sample",
    SubmissionFailure.KAGGLE: "an error of Kaggle's own, after which Kaggle advises to submit again: "
    "run clotkit kaggle submit --again",
    SubmissionFailure.UNKNOWN: "Kaggle gives no other details",
}


def fetch_run(run: KernelRun, competition: Competition, out: Path) -> Path:
    """Fetch a run's submission and the reports beside it into `out`, and return the submission.

    The state of the run, by its status.json, is logged; older kernels left none. Raises RemoteError if the
    run left no submission.
    """
    name = competition.files.submission
    paths = run.fetch(out, [name, PROBABILITIES, *records.FILES, STATUS])
    if out / name not in paths:
        raise RemoteError(
            f"{run.ref} version {run.version}: there is no {name} in its output; see its log",
            RemoteKind.MISSING,
        )
    status = read_status(out) if out / STATUS in paths else None
    if status is not None:
        slides = ", ".join(f"{count} {state}" for state, count in status.slides.items())
        codes = f"; {', '.join(status.codes)}" if status.codes else ""
        run.log(f"{run.ref} version {run.version}: {status.state}; slides: {slides}{codes}")
    return out / name


def check(client: Kaggle, competition: Competition, submission: Path, sample: Path | None, log: Log = print) -> None:
    """Check a submission against the sample, fetched if it is None. Raises SubmissionError if wrong."""
    if sample is None:
        download(client, competition.slug, competition.files.sample, submission.parent)
        sample = submission.parent / competition.files.sample
    with tempfile.TemporaryDirectory(prefix="clotkit-") as scratch:
        verdict = check_submission(_as_csv(submission, Path(scratch)), sample, competition)
    if not verdict.valid:
        raise SubmissionError(
            f"{submission}: {verdict.problems[0]} ({len(verdict.problems)} problems in all); it is not submitted"
        )
    for note in verdict.notes:
        log(note)


def _as_csv(submission: Path, scratch: Path) -> Path:
    """Return a submission as CSV, Parquet as a copy in `scratch`.

    Raises SubmissionError if it cannot be read.
    """
    if submission.suffix != SUFFIX:
        return submission
    table = scratch / "submission.csv"
    try:
        parquet_to_csv(submission, table)
    except ImportError as error:
        raise SubmissionError(
            f"{submission}: nothing here reads Parquet: it is not checked, and not submitted; pip install pyarrow"
        ) from error
    except ValueError as error:
        raise SubmissionError(f"{submission}: cannot be read as Parquet: {one_line(error)}") from error
    return table


def submit(
    client: Kaggle,
    competition: Competition,
    run: KernelRun,
    again: bool = False,
    log: Log = print,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """Submit a version, and return the number of the submission.

    A version that was submitted before is submitted again only with `again`; else its last number is returned.
    Raises RemoteError if Kaggle's limits do not allow it, or Kaggle refuses.
    """
    before = _submissions_of(client, competition.slug, run)
    if before and not again:
        log(f"{run.ref} version {run.version} was submitted before, as {before[0]['ref']}; nothing is sent")
        return int(before[0]["ref"])
    _check_limits(client, competition.slug, log, now)
    description = _description(run, len(before))

    def lookup() -> Answer | None:
        return next(
            (one for one in client.submissions(competition.slug) if one.get("description") == description), None
        )

    fields = {
        "competition_name": competition.slug,
        "kernel_owner": run.owner,
        "kernel_slug": run.slug,
        "kernel_version": run.version,
        "file_name": competition.files.submission,
        "submission_description": description,
    }
    answer = _send(client, lookup, fields, log)
    ref = int(answer.get("ref") or 0) or int((lookup() or {}).get("ref") or 0)
    if not ref:
        message = " ".join(str(answer.get("message")).split())[:200]
        raise RemoteError(
            f"{competition.slug}: Kaggle gave the submission no number ({message}): see its page", RemoteKind.UNCLEAR
        )
    log(f"submitted: {run.ref} version {run.version} as {ref}")
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
    """Follow a submission to its public score, and return the score as Kaggle's text.

    `run_dir` may hold the report.jsonl and run.json of the run that was submitted. Raises RemoteError with the likely
    causes if the submission fails, or if it has no score after `limit_s`.
    """
    answer: Answer = {}

    def look() -> SubmissionState:
        answer.clear()
        answer.update(client.submission(ref))
        return SubmissionState.read(str(answer.get("status") or ""))

    name = f"submission {ref}"
    for state in Poller(look, name, log, client.wait, lambda _: limit_s, "the competition's page", POLL_S, clock):
        if state is SubmissionState.COMPLETE:
            score = str(answer.get("publicScore") or "")
            metric = competition.metric.name
            better = "higher" if METRICS[metric].higher_is_better else "lower"
            log(f"{name}: score {score} ({metric}, {better} is better)" if score else f"{name}: score not shown")
            return score
        if state is SubmissionState.ERROR:
            error = str(answer.get("errorDescription") or "")
            raise RemoteError(explain(error, ref, run_dir, competition), RemoteKind.FAILED)
    raise AssertionError


def find_submission(client: Kaggle, competition: Competition, run: KernelRun) -> int:
    """Return the number of the last submission of a version. Raises RemoteError if there is none."""
    submitted = _submissions_of(client, competition.slug, run)
    if not submitted:
        raise RemoteError(
            f"{run.ref} version {run.version} was not submitted: run clotkit kaggle submit", RemoteKind.MISSING
        )
    return int(submitted[0]["ref"])


def explain(error: str, ref: int, run_dir: Path, competition: Competition) -> str:
    """Return one line on a failed submission: Kaggle's error, its meaning, evidence from the report."""
    error = " ".join(error.split())[:200]
    failure = SubmissionFailure.read(error)
    parts = [f"submission {ref}: {error or 'failed without a message'}", MEANINGS[failure]]
    details = list(evidence(failure, run_dir, competition))
    return "; ".join([*parts, *(details or ["nothing in this run's report points to a cause; see the run's log"])])


def evidence(failure: SubmissionFailure, run_dir: Path, competition: Competition) -> Iterator[str]:
    """Yield what the run's report says about the likely causes of a failure."""
    lines, run = _read_run(run_dir)
    if not lines:
        return
    limits = competition.limits
    peak_mb = max(line.peak_mb for line in lines)
    if failure in (SubmissionFailure.COMPUTE, SubmissionFailure.EXCEPTION):
        near = "near" if peak_mb > NEAR_SHARE * limits.slide_memory_mb else "far from"
        yield f"the largest slide took {peak_mb:.0f} MB, {near} its limit of {limits.slide_memory_mb}"
    if failure in (SubmissionFailure.TIMEOUT, SubmissionFailure.COMPUTE) and limits.hidden_slides:
        slide_s = float(run.get("seconds") or sum(line.seconds for line in lines)) / len(lines)
        minutes = slide_s * limits.hidden_slides / 60
        near = "near or over" if minutes * 60 > NEAR_SHARE * limits.deadline_s else "far from"
        yield (
            f"{limits.hidden_slides} slides at the {slide_s:.0f} s of this run are {minutes:.0f} minutes, "
            f"{near} the {limits.kernel_wall_s / 60:.0f} that Kaggle allows"
        )
    fallbacks = [line for line in lines if line.state != "done"]
    if fallbacks:
        yield f"{len(fallbacks)} of {len(lines)} slides fell back: {fallbacks[0].image_id}, {fallbacks[0].reason}"


def _read_run(run_dir: Path) -> tuple[Sequence[records.SlideReport], dict[str, Any]]:
    """Return the lines of report.jsonl and the object of run.json; empty if they cannot be read."""
    try:
        lines = records.read_report(run_dir / records.REPORT)
        run = json.loads((run_dir / records.RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, ClotkitError):
        return [], {}
    return lines, run if isinstance(run, dict) else {}


def _description(run: KernelRun, number: int) -> str:
    """Return the description of a version's submission, by which it is recognised later."""
    return f"clotkit {run.ref} v{run.version}" + (f" again {number}" if number else "")


def _submissions_of(client: Kaggle, slug: str, run: KernelRun) -> list[Answer]:
    """Return the submissions of a version that clotkit made, the last one first."""
    first = _description(run, 0)

    def is_of_version(submission: Answer) -> bool:
        description = str(submission.get("description"))
        return bool(submission.get("ref")) and (description == first or description.startswith(f"{first} "))

    return sorted(filter(is_of_version, client.submissions(slug)), key=lambda one: -int(one["ref"]))


def _check_limits(client: Kaggle, slug: str, log: Log, now: Callable[[], datetime]) -> None:
    """Raise RemoteError if Kaggle would refuse a submission; log the number of those that are left."""
    page = f"kaggle.com/competitions/{slug}"
    competition = client.competition(slug)
    if not competition.get("userHasEntered"):
        raise RemoteError(
            f"{slug}: you have not entered: accept the rules once at {page}/rules, then run again", RemoteKind.RULES
        )
    if competition.get("submissionsDisabled"):
        raise RemoteError(f"{slug}: Kaggle accepts no more submissions to it: see {page}", RemoteKind.REFUSED)
    if not competition.get("isKernelsSubmissionsOnly"):
        log(f"{slug}: not a code competition; a kernel's version may be refused")
    if _has_passed(str(competition.get("deadline") or ""), now()):
        log(f"{slug}: its deadline has passed; a late submission is scored but not ranked")
    _check_left(client, slug, int(competition.get("maxDailySubmissions") or 0), log)


def _check_left(client: Kaggle, slug: str, daily: int, log: Log) -> None:
    """Log how many submissions are left, or that Kaggle does not tell. Raises RemoteError for none."""
    try:
        limits = client.limits(slug)
    except RemoteError as error:
        if error.kind in (RemoteKind.CREDENTIALS, RemoteKind.BUSY):
            raise
        log(f"{slug}: how many submissions are left is unknown, going on ({error})")
        return
    left, by_total = int(limits.get("numAllowedNow") or 0), bool(limits.get("limitedByTotal"))
    if left < 1 and by_total:
        raise RemoteError(
            f"{slug}: {int(limits.get('numTotal') or 0)} submissions in all, and the competition allows no more, today "
            "or later: choose among those on its page",
            RemoteKind.NO_TOTAL,
        )
    if left < 1:
        raise RemoteError(
            f"{slug}: {int(limits.get('numToday') or 0)} submissions today, {daily} a day are allowed, 0 are left: run "
            "again tomorrow (UTC)",
            RemoteKind.NO_QUOTA,
        )
    log(f"{slug}: {left} submissions are left {'in all' if by_total else 'today'}")


def _has_passed(deadline: str, now: datetime) -> bool:
    try:
        then = datetime.fromisoformat(deadline)
    except ValueError:
        return False
    return (then if then.tzinfo else then.replace(tzinfo=UTC)) < now


def _send(client: Kaggle, lookup: Callable[[], Answer | None], fields: Answer, log: Log) -> Answer:
    """Submit, and try again while Kaggle does not find the version itself."""
    for _ in range(MISSING_TRIES - 1):
        try:
            return client.submit(lookup, fields)
        except RemoteMissing as error:
            log(f"{error}; trying again in {MISSING_WAIT_S:.0f} s")
            client.wait(MISSING_WAIT_S)
    return client.submit(lookup, fields)
