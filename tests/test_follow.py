"""Test a kernel's version on Kaggle: its log, its end, its files, its submission and its score."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from clotkit.competitions import Competition
from clotkit.errors import RemoteError, RemoteMissing, SubmissionError, UsageError
from clotkit.kaggle import submissions
from clotkit.kaggle.client import DryRun, Kaggle
from clotkit.kaggle.follow import POLL_S, KernelRun
from clotkit.kaggle.login.credentials import Credentials
from clotkit.kaggle.states import SubmissionFailure
from clotkit.reasons import RemoteKind
from clotkit.report.records import SlideReport

from .delivery import TOKEN, Clock, one_line, remote_error
from .kaggle_server import Fault, KaggleServer, KernelVersion

REF = "alice/a-kernel"
SHOWN = ["  | the run starts", "  | 4 patients scored", "  | the run ends"]
NOW = datetime(2026, 11, 21, tzinfo=UTC)
FIELDS = {"slug": REF, "new_title": "a kernel", "text": "1", "language": "python", "kernel_type": "script"}


@pytest.fixture
def session(server: KaggleServer, client: Kaggle, clock: Clock, lines: list[str]) -> KernelRun:
    """The first version of a kernel, just pushed."""
    client.save_kernel(lambda: None, FIELDS)
    server.calls.clear()
    return KernelRun(client, REF, 1, lines.append, clock)


def run_of(server: KaggleServer) -> KernelVersion:
    return server.kernels[REF].versions[0]


def shown(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("  | ")]


# The run


def test_a_run_is_followed_to_its_end(server: KaggleServer, session: KernelRun, lines: list[str]) -> None:
    session.wait()
    assert lines == [
        f"{REF} version 1: QUEUED", f"{REF} version 1: RUNNING", *SHOWN, f"{REF} version 1: COMPLETE"
    ]  # fmt: skip
    assert {said["versionLabel"] for said in server.asked("GetKernelSessionStatus")} == {"v1"}
    assert {said["versionLabel"] for said in server.asked("GetKernelSessionLogsStream")} == {"v1"}


def test_the_log_of_a_run_that_is_over_is_shown(server: KaggleServer, session: KernelRun, lines: list[str]) -> None:
    server.end(run_of(server))
    session.wait()
    assert lines == [f"{REF} version 1: COMPLETE", *SHOWN]


@pytest.mark.parametrize("kind", ["truncated", "slow", "reset", "silent", "html", "status"])
@pytest.mark.parametrize("part", [0, 90, 150, 10_000])
def test_a_log_that_is_cut_is_gone_on_with(
    server: KaggleServer, clock: Clock, lines: list[str], session: KernelRun, kind: str, part: int
) -> None:
    session.client = Kaggle(Credentials(TOKEN), server.endpoint, clock.wait, timeout_s=(5, 0.2))
    server.faults.add(Fault("GetKernelSessionLogsStream", kind, 2, n=part, status=503 if kind == "status" else None))
    session.wait()
    assert shown(lines) == SHOWN
    assert lines[-1].endswith("COMPLETE") or lines[-1] == SHOWN[-1]


def test_a_log_in_pieces_is_shown_in_lines(server: KaggleServer, session: KernelRun, lines: list[str]) -> None:
    def on_run(version: KernelVersion) -> None:
        version.log = [{"stream_name": "stdout", "time": 1.0, "data": data} for data in ("a", "b\nc", "\n\u00e9 d", "")]

    server.on_run = on_run
    session.wait()
    assert shown(lines) == ["  | ab", "  | c", "  | \u00e9 d"]


def test_a_log_that_cannot_be_had_does_not_stop_the_wait(
    server: KaggleServer, session: KernelRun, lines: list[str]
) -> None:
    server.faults.add(Fault("GetKernelSessionLogsStream", "status", None, status=403))
    session.wait()
    assert any("COMPLETE" in line for line in lines)
    assert shown(lines) == []


@pytest.mark.parametrize(("fate", "kind"), [("ERROR", RemoteKind.FAILED), ("CANCEL", RemoteKind.CANCELLED)])
def test_a_run_that_does_not_complete_is_one_line_with_the_end_of_its_log(
    server: KaggleServer, session: KernelRun, fate: str, kind: RemoteKind
) -> None:
    server.kernel_fate[REF] = fate
    with remote_error(kind, "the run starts / 4 patients scored / the run ends"):
        session.wait()


@pytest.mark.parametrize(("fate", "says"), [("QUEUED", "QUEUED for 6.0 hours"), ("RUNNING", "RUNNING for 13.0 hours")])
def test_a_run_that_never_starts_or_ends_is_one_line(
    server: KaggleServer, session: KernelRun, clock: Clock, fate: str, says: str
) -> None:
    server.kernel_fate[REF] = fate
    with remote_error(RemoteKind.TIMEOUT, says):
        session.wait()
    assert clock.now < 14 * 3600


def test_a_log_that_goes_on_is_looked_at_again_soon(
    server: KaggleServer, session: KernelRun, clock: Clock, lines: list[str]
) -> None:
    server.kernel_fate[REF] = "RUNNING"
    log: list[str | dict[str, object]] = []
    waited = clock.wait

    def wait(seconds: float) -> None:
        waited(seconds)
        log.append(f"line {len(log)}\n")
        if len(log) == 20:
            run_of(server).ends = "COMPLETE"
            server.kernel_fate.clear()

    session.client.wait = wait
    session.client.session_log = lambda *_: iter([str(one) for one in log])  # type: ignore[method-assign]
    session.wait()
    assert max(clock.waits[1:]) <= POLL_S
    assert len(shown(lines)) >= 20


@pytest.mark.parametrize(("pushed_here", "calls"), [(True, 7), (False, 4)])
def test_a_version_that_does_not_show_yet_is_waited_for(
    server: KaggleServer, session: KernelRun, clock: Clock, pushed_here: bool, calls: int
) -> None:
    run = KernelRun(session.client, REF, 1, session.log, clock, pushed_here=pushed_here)
    server.kernels[REF].unseen_polls = calls
    run.wait()
    server.kernels[REF].unseen_polls = calls + 1
    with pytest.raises(RemoteMissing):
        run.wait()


def test_a_number_far_above_the_newest_is_refused_at_once(session: KernelRun, clock: Clock) -> None:
    with remote_error(RemoteKind.MISSING, "1 version of"):
        KernelRun(session.client, REF, 12, print, clock).wait()
    assert clock.waits == []


def test_silence_is_no_progress(server: KaggleServer, session: KernelRun) -> None:
    server.leave_out_defaults = True  # a status that is left out is the first one
    server.kernel_fate[REF] = "QUEUED"
    with remote_error(RemoteKind.TIMEOUT, "QUEUED"):
        session.wait()


def test_a_newer_version_is_said_and_this_one_followed(
    server: KaggleServer, session: KernelRun, lines: list[str], tmp_path: Path
) -> None:
    server.push_elsewhere(REF)
    session.wait()
    assert lines[0] == f"{REF}: version 2 is newer; this is about version 1"
    assert shown(lines) == SHOWN
    assert [path.name for path in session.fetch(tmp_path)] == ["submission.csv"]


@pytest.mark.parametrize(("ref", "version", "says"), [("alice/no-kernel", 1, "no versions"), (REF, 2, "1 version of")])
def test_a_version_that_is_not_there_is_one_line(
    client: Kaggle, session: KernelRun, ref: str, version: int, says: str
) -> None:
    with remote_error(RemoteKind.MISSING, says):
        KernelRun(client, ref, version, print).wait()


@pytest.mark.parametrize(("ref", "version"), [("a", 1), ("a/b/c", 1), ("/b", 1), ("a/b", 0)])
def test_a_name_that_is_none_is_refused(client: Kaggle, ref: str, version: int) -> None:
    with pytest.raises(UsageError, match="OWNER/SLUG"):
        KernelRun(client, ref, version)


@pytest.mark.parametrize("said", ["RUNNING", "KERNEL_WORKER_STATUS_RUNNING", "running", "kernelWorkerStatusRunning"])
def test_a_status_is_read_however_it_is_written(server: KaggleServer, session: KernelRun, said: str) -> None:
    run_of(server).status = said
    run_of(server).polls = -9
    server.kernel_fate[REF] = "QUEUED"
    assert session.status() == ("RUNNING", "")


def test_a_status_that_nobody_knows_is_an_error(server: KaggleServer, session: KernelRun) -> None:
    run_of(server).status = "DREAMING"
    server.kernel_fate[REF] = "QUEUED"
    with remote_error(RemoteKind.UNCLEAR, "DREAMING"):
        session.status()


def test_the_log_alone_is_followed_to_the_end_of_the_run(
    server: KaggleServer, session: KernelRun, lines: list[str]
) -> None:
    server.faults.add(Fault("GetKernelSessionLogsStream", "truncated", 6, n=90))
    session.follow_log()
    assert shown(lines) == SHOWN


# Its files


def outputs(server: KaggleServer, **files: bytes) -> None:
    server.end(run_of(server))
    run_of(server).outputs = {name.replace("__", "/"): content for name, content in files.items()}


def test_files_are_fetched_from_every_page(server: KaggleServer, session: KernelRun, tmp_path: Path) -> None:
    server.page_limit = 2
    outputs(server, a=b"1", b=b"22", c=b"333", d__e=b"4444")
    session.fetch(tmp_path)
    assert (server.count("ListKernelSessionOutput"), server.count("ListKernelFiles")) == (2, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name in "abce"} == {
        "a": b"1", "b": b"22", "c": b"333", "e": b"4444"
    }  # fmt: skip
    assert [path.name for path in session.fetch(tmp_path / "only", ["b"])] == ["b"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil"])
def test_a_name_that_leads_out_is_refused(server: KaggleServer, session: KernelRun, tmp_path: Path, name: str) -> None:
    server.end(run_of(server))
    run_of(server).outputs = {name: b"x"}
    with remote_error(RemoteKind.UNSAFE):
        session.fetch(tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("fault", [("expired", 1), ("html", 1), ("html", 5), ("reset", 1), ("truncated", 4)])
def test_a_file_that_fails_at_first_comes_whole(
    server: KaggleServer, session: KernelRun, tmp_path: Path, fault: tuple[str, int]
) -> None:
    outputs(server, submission=b"0123456789")
    server.faults.add(Fault("GET", fault[0], fault[1]))
    session.fetch(tmp_path)
    assert (tmp_path / "submission").read_bytes() == b"0123456789"


@pytest.mark.parametrize("kind", ["expired", "html", "reset", "truncated"])
def test_an_error_page_is_never_taken_for_the_file(
    server: KaggleServer, session: KernelRun, tmp_path: Path, kind: str
) -> None:
    outputs(server, submission=b"0123456789")
    (tmp_path / "submission").write_bytes(b"of the last time")
    server.faults.add(Fault("GET", kind, None))
    with pytest.raises(RemoteError) as caught:
        session.fetch(tmp_path)
    one_line(caught)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["submission"]
    assert (tmp_path / "submission").read_bytes() == b"of the last time"


def test_a_size_that_is_not_the_listed_one_is_refused(server: KaggleServer, session: KernelRun, tmp_path: Path) -> None:
    outputs(server, submission=b"0123456789")
    signed = server.sign
    server.sign = lambda name, content: signed(name, content[:4])  # type: ignore[method-assign]
    with remote_error(RemoteKind.MISMATCH, "4 bytes", "10"):
        session.fetch(tmp_path / "out")


def test_files_come_without_their_sizes_too(server: KaggleServer, session: KernelRun, tmp_path: Path) -> None:
    outputs(server, submission=b"0123456789")
    server.faults.add(Fault("ListKernelFiles", "status", None, status=404))
    session.fetch(tmp_path)
    assert (tmp_path / "submission").read_bytes() == b"0123456789"


# Its submission


@pytest.fixture
def over(server: KaggleServer, session: KernelRun) -> KernelRun:
    """The session, once its run is over."""
    server.end(run_of(server))
    return session


def submit(client: Kaggle, competition: Competition, session: KernelRun, again: bool = False) -> int:
    return submissions.submit(client, competition, session, again, session.log, lambda: NOW)


def test_a_submission_is_sent_and_followed_to_its_score(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun, tmp_path: Path, lines: list[str]
) -> None:
    ref = submit(client, strip_ai, over)
    assert server.asked("CreateCodeSubmission") == [
        {
            "competitionName": "mayo-clinic-strip-ai",
            "kernelOwner": "alice",
            "kernelSlug": "a-kernel",
            "kernelVersion": 1,
            "fileName": "submission.csv",
            "submissionDescription": f"clotkit {REF} v1",
        }
    ]
    assert submissions.follow(client, strip_ai, ref, tmp_path, lines.append) == "0.65432"
    assert lines[-2:] == [
        "submission 1001: COMPLETE",
        "submission 1001: score 0.65432 (balanced_log_loss, lower is better)",
    ]


def test_a_version_is_submitted_once(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun, lines: list[str]
) -> None:
    assert submit(client, strip_ai, over) == submit(client, strip_ai, over) == 1001
    assert "was submitted before, as 1001; nothing is sent" in lines[-1]
    assert submissions.find_submission(client, strip_ai, over) == 1001
    assert submit(client, strip_ai, over, again=True) == 1002
    assert server.submissions[1].description == f"clotkit {REF} v1 again 1"
    assert submissions.find_submission(client, strip_ai, over) == 1002


def test_version_1_is_not_version_12(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun
) -> None:
    submit(client, strip_ai, over)
    server.submissions[0].description = f"clotkit {REF} v12"
    with remote_error(RemoteKind.MISSING):
        submissions.find_submission(client, strip_ai, over)


@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize(("kind", "status"), [("reset", None), ("html", 200), ("status", 500), ("status", 503)])
def test_nothing_is_submitted_twice(
    server: KaggleServer,
    client: Kaggle,
    strip_ai: Competition,
    over: KernelRun,
    after_effect: bool,
    kind: str,
    status: int | None,
) -> None:
    server.faults.add(Fault("CreateCodeSubmission", kind, after_effect=after_effect, status=status))
    assert submit(client, strip_ai, over) == 1001
    assert len(server.submissions) == 1


def test_a_version_that_kaggle_does_not_see_yet_is_tried_again(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun
) -> None:
    server.faults.add(
        Fault("CreateCodeSubmission", "status", 2, status=404, message="Could not find provided notebook")
    )
    assert submit(client, strip_ai, over) == 1001
    server.faults.add(Fault("CreateCodeSubmission", "status", None, status=404, message="Could not find"))
    with remote_error(RemoteKind.MISSING, "Could not find"):
        submit(client, strip_ai, over, again=True)
    assert len(server.submissions) == 1


def no_more_today(server: KaggleServer) -> None:
    server.competition.used_today = 5


def not_entered(server: KaggleServer) -> None:
    server.competition.entered = False


def disabled(server: KaggleServer) -> None:
    server.competition.disabled = True


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (no_more_today, RemoteKind.NO_QUOTA),
        (not_entered, RemoteKind.RULES),
        (disabled, RemoteKind.REFUSED),
    ],
)
def test_what_kaggle_would_refuse_is_not_sent(
    server: KaggleServer,
    client: Kaggle,
    strip_ai: Competition,
    over: KernelRun,
    change: Callable[[KaggleServer], None],
    kind: RemoteKind,
    leave_out: bool,
) -> None:
    server.leave_out_defaults = leave_out
    change(server)
    with remote_error(kind):
        submit(client, strip_ai, over)
    assert server.count("CreateCodeSubmission") == 0


def test_a_late_submission_is_sent_and_said_to_be_late(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun, lines: list[str]
) -> None:
    server.competition.deadline, server.competition.kernels_only = "2022-10-06T23:59:00Z", False
    assert submit(client, strip_ai, over) == 1001
    assert any("its deadline has passed" in line for line in lines)
    assert any("not a code competition" in line for line in lines)


@pytest.mark.parametrize("status", [400, 401, 403, 409])
def test_a_refusal_is_one_line(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun, status: int
) -> None:
    server.faults.add(Fault("CreateCodeSubmission", "status", None, status=status, message="because"))
    kinds = {401: RemoteKind.CREDENTIALS, 403: RemoteKind.RULES}
    with remote_error(kinds.get(status, RemoteKind.REFUSED), "because"):
        submit(client, strip_ai, over)
    assert server.count("CreateCodeSubmission") == 1


def test_a_dry_run_sends_nothing(
    server: KaggleServer, strip_ai: Competition, over: KernelRun, lines: list[str]
) -> None:
    dry = Kaggle(Credentials(TOKEN), server.endpoint, log=lines.append, dry=True)
    with pytest.raises(DryRun):
        submit(dry, strip_ai, over)
    assert server.submissions == []
    assert '"kernelVersion": 1' in lines[-1]


def test_what_the_run_wrote_is_checked_before_it_is_submitted(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun, tmp_path: Path
) -> None:
    path = submissions.fetch_run(over, strip_ai, tmp_path / "run")
    submissions.check(client, strip_ai, path, None, print)
    path.write_text("patient_id,CE,LAA\n006388,0.5,0.5\n")
    with pytest.raises(SubmissionError, match=r"submission\.csv"):
        submissions.check(client, strip_ai, path, tmp_path / "run" / "sample_submission.csv", print)
    run_of(server).outputs = {"other.csv": b"x"}
    with remote_error(RemoteKind.MISSING, "submission.csv"):
        submissions.fetch_run(over, strip_ai, tmp_path / "empty")


# Its score


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The reports of a slow run with a slide that fell back: 100 s a slide, 3,900 MB."""
    folder = tmp_path / "run"
    folder.mkdir()
    reports = [
        SlideReport("a_0", "a", "done", "", 24, 100.0, 3900.0),
        SlideReport("b_0", "b", "fallback", "time limit: 300 s", 0, 300.0, 50.0),
    ]
    (folder / "report.jsonl").write_text("".join(json.dumps(vars(line)) + "\n" for line in reports))
    (folder / "run.json").write_text(json.dumps({"seconds": 220.0}))
    return folder


@pytest.mark.parametrize(
    ("error", "failure", "numbers"),
    [
        ("Notebook Threw Exception", SubmissionFailure.EXCEPTION, ["3900 MB"]),
        ("Notebook Timeout", SubmissionFailure.TIMEOUT, ["280 slides", "110 s", "513 minutes", "540"]),
        ("Notebook Exceeded Allowed Compute", SubmissionFailure.COMPUTE, ["3900 MB", "4096"]),
        ("Submission CSV Not Found", SubmissionFailure.NO_FILE, []),
        ("Submission Scoring Error", SubmissionFailure.SCORING, []),
        ("Kaggle Error", SubmissionFailure.KAGGLE, ["--again"]),
        ("Something new\nin two lines", SubmissionFailure.UNKNOWN, ["Something new in two lines"]),
        ("", SubmissionFailure.UNKNOWN, []),
    ],
)
def test_a_failed_submission_is_told_with_its_likely_causes(
    server: KaggleServer,
    client: Kaggle,
    strip_ai: Competition,
    over: KernelRun,
    run_dir: Path,
    tmp_path: Path,
    error: str,
    failure: SubmissionFailure,
    numbers: list[str],
) -> None:
    assert SubmissionFailure.read(error) is failure
    ref = submit(client, strip_ai, over)
    server.submissions[0].status, server.submissions[0].error = "ERROR", error
    with remote_error(RemoteKind.FAILED, submissions.MEANINGS[failure], *numbers, "1 of 2", "b_0, time limit: 300 s"):
        submissions.follow(client, strip_ai, ref, run_dir, print)
    assert list(submissions.evidence(failure, tmp_path / "nothing", strip_ai)) == []
    with remote_error(RemoteKind.FAILED, submissions.MEANINGS[failure]):
        submissions.follow(client, strip_ai, ref, tmp_path / "nothing", print)


def test_a_fast_small_run_is_far_from_the_limits(strip_ai: Competition, run_dir: Path) -> None:
    line = vars(SlideReport("a_0", "a", "done", "", 24, 2.0, 100.0))
    (run_dir / "report.jsonl").write_text(json.dumps(line) + "\n")
    (run_dir / "run.json").write_text(json.dumps({"seconds": 2.0}))
    memory, time = submissions.evidence(SubmissionFailure.COMPUTE, run_dir, strip_ai)
    assert "far from its limit of 4096" in memory
    assert "9 minutes, far from the 540" in time


@pytest.mark.parametrize("text", ["", "{", "[3]", '{"a": 1}\n'])
def test_a_damaged_report_is_no_evidence(strip_ai: Competition, run_dir: Path, text: str) -> None:
    (run_dir / "report.jsonl").write_text(text + "\n")
    assert list(submissions.evidence(SubmissionFailure.TIMEOUT, run_dir, strip_ai)) == []


def test_a_score_that_never_comes_is_one_line(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun, clock: Clock, tmp_path: Path
) -> None:
    server.submission_polls = 10**9
    ref = submit(client, strip_ai, over)
    with remote_error(RemoteKind.TIMEOUT, "PENDING", "13.0 hours"):
        submissions.follow(client, strip_ai, ref, tmp_path, print, clock)


def test_the_state_of_a_run_is_shown_if_it_left_one(
    server: KaggleServer, strip_ai: Competition, over: KernelRun, tmp_path: Path, lines: list[str]
) -> None:
    status = {"job": "score", "state": "partial", "codes": ["timeout"], "slides": {"done": 3}, "wheels": "used"}
    run_of(server).outputs |= {"status.json": json.dumps(status).encode()}
    submissions.fetch_run(over, strip_ai, tmp_path)
    assert all(word in lines[-1] for word in ("partial", "timeout", "3 done"))


def test_a_score_that_is_not_shown_is_said_so(
    server: KaggleServer, client: Kaggle, strip_ai: Competition, over: KernelRun, tmp_path: Path, lines: list[str]
) -> None:
    server.public_score = ""
    assert submissions.follow(client, strip_ai, submit(client, strip_ai, over), tmp_path, lines.append) == ""
    assert lines[-1] == "submission 1001: score not shown"


@pytest.mark.parametrize("kind", ["status", "html", "reset", "truncated"])
@pytest.mark.parametrize(
    "method",
    ["GetKernel", "GetKernelSessionStatus", "ListKernelSessionOutput", "GetCompetition", "GetSubmissionLimits",
     "ListSubmissions", "GetSubmission"],
)  # fmt: skip
def test_a_read_that_fails_once_does_not_show(
    server: KaggleServer,
    client: Kaggle,
    strip_ai: Competition,
    session: KernelRun,
    tmp_path: Path,
    method: str,
    kind: str,
) -> None:
    server.faults.add(Fault(method, kind, status=502 if kind == "status" else None))
    session.wait()
    submissions.fetch_run(session, strip_ai, tmp_path)
    ref = submit(client, strip_ai, session)
    assert submissions.follow(client, strip_ai, ref, tmp_path, print) == "0.65432"
    assert (server.faults.pending, len(server.submissions)) == ([], 1)


@pytest.mark.parametrize("change", [None, "cell", "bytes", "polars"])
def test_a_gateways_parquet_is_checked_as_a_table(
    change: str | None,
    client: Kaggle,
    test_split: Path,
    strip_ai: Competition,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # polars reads Parquet alone
    if change == "polars":
        monkeypatch.setitem(sys.modules, "polars", None)
    sample, path = strip_ai.sample_path(test_split), tmp_path / "submission.parquet"
    frame = pd.read_csv(sample, dtype={strip_ai.submission.id: str})
    if change == "cell":
        frame.iloc[0, 1] = float("nan")
    pl.DataFrame(frame.to_dict("list")).write_parquet(path)
    if change == "bytes":
        path.write_bytes(path.read_bytes()[:100])
    if change is None:
        submissions.check(client, strip_ai, path, sample, lambda _: None)
    else:
        with pytest.raises(SubmissionError):
            submissions.check(client, strip_ai, path, sample, lambda _: None)
    assert not path.with_suffix(".csv").exists()
