"""A competition, its files and submissions: what Kaggle's API answers."""

from typing import Any

from .reply import RefusedError, Reply, as_json, as_redirect, page_of
from .state import DATE, Submission, World

Body = dict[str, Any]


def get_competition(world: World, body: Body) -> Reply:
    """Return a competition, and whether the user may submit."""
    _known(world, body)
    competition = world.competition
    return as_json(
        {
            "id": 37333,
            "ref": f"https://www.kaggle.com/competitions/{competition.slug}",
            "title": competition.title,
            "url": f"https://www.kaggle.com/competitions/{competition.slug}",
            "deadline": competition.deadline,
            "userHasEntered": competition.entered,
            "submissionsDisabled": competition.disabled,
            "isKernelsSubmissionsOnly": competition.kernels_only,
            "maxDailySubmissions": competition.max_daily,
            "evaluationMetric": competition.metric,
        }
    )


def get_submission_limits(world: World, body: Body) -> Reply:
    """Return the number of submissions left today."""
    _known(world, body)
    today = _today(world)
    left = max(0, world.competition.max_daily - today)
    in_all = left if world.total_allowed is None else max(0, world.total_allowed - today)
    limits = {"numToday": today, "numTotal": today, "numAllowedNow": min(left, in_all)}
    return as_json({**limits, "limitedByTotal": in_all < left})


def create_code_submission(world: World, body: Body) -> Reply:
    """Submit what a kernel's version wrote."""
    _known(world, body)
    _may_submit(world)
    ref = f"{body.get('kernelOwner')}/{body.get('kernelSlug')}"
    number, name = int(body.get("kernelVersion") or 0), str(body.get("fileName", ""))
    kernel = world.kernels.get(ref)
    version = kernel.version(number) if kernel else None
    if version is None or version.status != "COMPLETE":
        raise RefusedError(404, "Could not find provided notebook")
    if name not in version.outputs:
        raise RefusedError(400, "Could not find provided output file")
    made = Submission(1001 + len(world.submissions), ref, number, name, str(body.get("submissionDescription", "")))
    world.submissions.append(made)
    return as_json({"message": f"Successfully submitted to {world.competition.title}", "ref": made.ref})


def get_submission(world: World, body: Body) -> Reply:
    """Return the state of a submission."""
    found = [submission for submission in world.submissions if submission.ref == body.get("ref")]
    if not found:
        raise RefusedError(404, "Submission not found")
    world.poll_submission(found[0])
    return as_json(_submission(world, found[0]))


def list_submissions(world: World, body: Body) -> Reply:
    """List the submissions, the last one first."""
    _known(world, body)
    for submission in world.submissions:
        world.poll_submission(submission)
    page, token = page_of(world.submissions[::-1], body, world.page_limit)
    return as_json({"submissions": [_submission(world, submission) for submission in page], "nextPageToken": token})


def list_data_files(world: World, body: Body) -> Reply:
    """List the competition's files, page by page."""
    _known(world, body)
    _may_read(world)
    files = world.competition.files
    names, token = page_of(list(files), body, world.page_limit)
    listed = [{"name": name, "ref": name, "totalBytes": len(files[name]), "creationDate": DATE} for name in names]
    return as_json({"files": listed, "nextPageToken": token})


def download_data_file(world: World, body: Body) -> Reply:
    """Redirect to one of the competition's files."""
    _known(world, body)
    _may_read(world)
    name = str(body.get("fileName", ""))
    if name not in world.competition.files:
        raise RefusedError(404, "File not found")
    return as_redirect(world.sign(name, world.competition.files[name]))


def _known(world: World, body: Body) -> None:
    if body.get("competitionName") != world.competition.slug:
        raise RefusedError(404, "Competition not found")


def _may_read(world: World) -> None:
    if not world.competition.entered:
        raise RefusedError(403, "You must accept this competition's rules before you can continue")


def _may_submit(world: World) -> None:
    if not world.competition.entered:
        raise RefusedError(400, "You must accept this competition's rules before you can submit")
    if world.competition.disabled:
        raise RefusedError(400, "Submissions are disabled for this competition")
    if _today(world) >= world.competition.max_daily:
        raise RefusedError(400, "You have reached your daily submission limit")


def _today(world: World) -> int:
    return world.competition.used_today + len(world.submissions)


def _submission(world: World, submission: Submission) -> Body:
    return {
        "ref": submission.ref,
        "status": submission.status,
        "publicScore": submission.public_score,
        "privateScore": "",
        "errorDescription": submission.error,
        "date": DATE,
        "description": submission.description,
        "fileName": submission.file_name,
        "submittedBy": world.username,
        "url": f"https://www.kaggle.com/code/{submission.kernel}",
    }


METHODS = {
    "competitions.CompetitionApiService/GetCompetition": get_competition,
    "competitions.CompetitionApiService/GetSubmissionLimits": get_submission_limits,
    "competitions.CompetitionApiService/CreateCodeSubmission": create_code_submission,
    "competitions.CompetitionApiService/GetSubmission": get_submission,
    "competitions.CompetitionApiService/ListSubmissions": list_submissions,
    "competitions.CompetitionApiService/ListDataFiles": list_data_files,
    "competitions.CompetitionApiService/DownloadDataFile": download_data_file,
}
