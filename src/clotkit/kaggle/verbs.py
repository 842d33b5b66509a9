"""`clotkit kaggle …`: the command line of the delivery."""

import argparse
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from clotkit.bundle.build import SCORING, rehearsal_dir
from clotkit.competitions import DEFAULT
from clotkit.errors import RemoteError, UsageError
from clotkit.options import DONE, Verbs

if TYPE_CHECKING:
    from clotkit.kaggle.client import Kaggle
    from clotkit.kaggle.follow import Session

RECORDS = Path("build/kernel")
say = partial(print, flush=True)


def register(verbs: Verbs) -> None:
    """Add `kaggle` and the verbs below it."""
    text = "deliver: push datasets and kernels, follow a version, submit it, read its score"
    top = verbs.add_parser("kaggle", help=text, description=text)
    inner = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_doctor(inner)
    _add_datasets_push(inner)
    _add_kernel_push(inner)
    _add_session(inner, "wait", "wait for a kernel's version to end, showing its log", _wait)
    _add_session(inner, "logs", "show the log of a kernel's version, as it comes", _logs)
    verb = _add_session(inner, "output", "fetch the files that a kernel's version left", _output)
    verb.add_argument("--out", type=Path, metavar="DIR", help="default: build/kernel/output/SLUG-vN")
    verb.add_argument("--file", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    verb = _add_session(
        inner, "submit", "wait for a version, check what it wrote, submit it, and print its score", _submit
    )
    verb.add_argument("--sample", type=Path, metavar="FILE", help="the sample submission (default: the competition's)")
    verb.add_argument("--again", action="store_true", help="submit a version that was submitted before once more")
    _competition(verb)
    verb = _add_session(inner, "score", "follow the submission of a version to its score or its error", _score)
    verb.add_argument("--ref", type=int, metavar="N", help="the number of a submission (default: the version's last)")
    _competition(verb)


def _verb(verbs: Verbs, name: str, text: str, verb: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    made = verbs.add_parser(name, help=text, description=text)
    made.add_argument(
        "--dry-run", action="store_true", help="show what would be sent, and send nothing that changes anything"
    )
    made.set_defaults(verb=partial(_ending_dry, verb))
    return made


def _ending_dry(verb: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    from clotkit.kaggle.client import DryRun

    try:
        return verb(arguments)
    except DryRun:
        say("dry run: nothing was sent that changes anything")
        return DONE
    except OSError as error:  # of a file here: the client makes its own errors of the network's
        raise UsageError(f"{error.filename}: {error.strerror}; see to it, then run again") from error


def _competition(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--competition",
        default=DEFAULT,
        metavar="NAME",
        help=f"a competition that ships with the kit, or the path of its .toml (default: {DEFAULT})",
    )


def _client(arguments: argparse.Namespace) -> "Kaggle":
    from clotkit.kaggle.client import Kaggle
    from clotkit.kaggle.credentials import find_credentials

    return Kaggle(find_credentials(), log=say, dry=arguments.dry_run)


def _add_doctor(verbs: Verbs) -> None:
    verb = _verb(verbs, "doctor", "say whether a delivery can work: packages, credentials, limits, quota", _doctor)
    _competition(verb)


def _doctor(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition

    for package in ("kaggle", "kagglesdk", "certifi", "requests"):
        say(f"{package} {metadata.version(package)}")
    client = _client(arguments)
    kind = "a key" if client.credentials.username else "an access token"
    say(f"credentials: {kind} of {client.username}")
    say(f"endpoint: {client.endpoint}")
    slug = load_competition(arguments.competition).slug
    for what, ask in (("competition", partial(_say_competition, client, slug)), ("quota", partial(_say_quota, client))):
        try:
            ask()
        except RemoteError as error:
            say(f"{what}: {error}")
    return DONE


def _say_competition(client: "Kaggle", slug: str) -> None:
    entered = "entered" if client.competition(slug).get("userHasEntered") else "rules not accepted"
    limits = client.limits(slug)
    say(f"{slug}: {entered}, {limits.get('numToday') or 0} submissions today, {limits.get('numAllowedNow') or 0} left")


def _say_quota(client: "Kaggle") -> None:
    quota = client.quota()
    for name, key in (("GPU", "gpuQuota"), ("TPU", "tpuQuota")):
        said = quota.get(key) or {}
        say(f"{name}: {said.get('timeUsed') or '0s'} of {said.get('totalTimeAllowed') or '0s'} used this week")


def _add_datasets_push(verbs: Verbs) -> None:
    verb = _verb(
        verbs, "datasets-push", "push the datasets whose content is new, and wait until they are ready", _datasets_push
    )
    verb.add_argument("names", nargs="*", metavar="NAME", help="folders of datasets_meta (default: weights wheels)")
    verb.add_argument(
        "--weights", type=Path, default=Path("weights/demo"), metavar="DIR",
        help="a member, or a folder of members, for the dataset weights (default: weights/demo)",
    )  # fmt: skip
    verb.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="default: build/wheels")
    verb.add_argument("--folder", type=Path, metavar="DIR", help="of any other dataset (default: build/NAME)")
    verb.add_argument("--metadata", type=Path, default=Path("datasets_meta"), help="default: datasets_meta")


def _datasets_push(arguments: argparse.Namespace) -> int:
    from clotkit.kaggle.client import DryRun
    from clotkit.kaggle.datasets import check_files, files_in, push_dataset, read_stage, weights_files, wheels_files

    sources = {"weights": (weights_files, arguments.weights), "wheels": (wheels_files, arguments.wheels)}
    stages = []
    for name in arguments.names or ["weights", "wheels"]:
        make, folder = sources.get(name, (files_in, arguments.folder or Path("build") / name))
        stages.append(read_stage(arguments.metadata / name, make(folder)))
        check_files(stages[-1].files)  # of all, before the first is pushed
    client = _client(arguments)
    for stage in stages:
        try:
            push_dataset(client, stage)
        except DryRun:
            say(f"{stage.slug}: dry run, not pushed")
    return DONE


def _add_kernel_push(verbs: Verbs) -> None:
    verb = _verb(verbs, "kernel-push", "push a kernel that has passed its rehearsal, and verify the push", _kernel_push)
    verb.add_argument("--kernel", default=SCORING, metavar="NAME", help="a folder of kernels (default: infer)")
    verb.add_argument("--kernels", type=Path, default=Path("kernels"), metavar="DIR", help="default: kernels")
    verb.add_argument(
        "--rehearsal", type=Path, metavar="DIR", help="default: build/rehearsal, of another kernel build/rehearsal-NAME"
    )
    verb.add_argument(
        "--attach",
        action="append",
        default=[],
        metavar="NAME",
        help="a folder of datasets_meta whose dataset is attached too: the output of an earlier version, to go on from",
    )
    verb.add_argument("--metadata", type=Path, default=Path("datasets_meta"), help="default: datasets_meta")
    verb.add_argument("--again", action="store_true", help="push (and run) it although nothing has changed")
    _competition(verb)


def _kernel_push(arguments: argparse.Namespace) -> int:
    from clotkit.kaggle.datasets import read_stage
    from clotkit.kaggle.kernels import attaching, push_kernel, read_kernel

    rehearsal = arguments.rehearsal or rehearsal_dir(arguments.kernel)
    kernel = read_kernel(arguments.kernels / arguments.kernel, arguments.competition, rehearsal)
    kernel = attaching(kernel, [read_stage(arguments.metadata / name, {}).slug for name in arguments.attach])
    push_kernel(_client(arguments), kernel, _record(arguments.kernel), arguments.again, say)
    return DONE


def _record(kernel: str) -> Path:
    """Where the last push of a kernel is written down."""
    return RECORDS / ("pushed.json" if kernel == SCORING else f"pushed-{kernel}.json")


def _add_session(
    verbs: Verbs, name: str, text: str, verb: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    made = _verb(verbs, name, text, verb)
    made.add_argument(
        "--kernel",
        default=SCORING,
        metavar="NAME",
        help="a kernel that was pushed from here, or OWNER/SLUG (default: infer)",
    )
    made.add_argument("--version", type=int, metavar="N", help="default: the one that was pushed from here last")
    return made


def _session(arguments: argparse.Namespace, client: "Kaggle") -> "Session":
    from clotkit.kaggle.follow import Session
    from clotkit.kaggle.kernels import read_record

    if "/" in arguments.kernel:
        if arguments.version is None:
            raise UsageError(f"kernel {arguments.kernel}: which version? add --version N")
        return Session(client, arguments.kernel, arguments.version, say)
    record = _record(arguments.kernel)
    pushed = read_record(record)
    if pushed is None:
        raise UsageError(f"{record}: not there; make kernel-push writes it, or give --kernel OWNER/SLUG --version N")
    return Session(client, pushed.ref, arguments.version or pushed.version, say)


def _wait(arguments: argparse.Namespace) -> int:
    _session(arguments, _client(arguments)).wait()
    return DONE


def _logs(arguments: argparse.Namespace) -> int:
    _session(arguments, _client(arguments)).follow_log()
    return DONE


def _output(arguments: argparse.Namespace) -> int:
    session = _session(arguments, _client(arguments))
    session.note_newer()
    paths = session.fetch(arguments.out or _output_dir(session), arguments.file)
    missing = sorted(set(arguments.file) - {path.name for path in paths})
    if missing:
        raise RemoteError(f"{session.ref} version {session.version}: {', '.join(missing)} is not in its output")
    say(f"{len(paths)} files")
    return DONE


def _submit(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.kaggle import submissions

    competition = load_competition(arguments.competition)
    client = _client(arguments)
    session = _session(arguments, client)
    session.wait()
    out = _output_dir(session)
    submission = submissions.fetch_run(session, competition, out)
    submissions.check(client, competition, submission, arguments.sample, say)
    ref = submissions.submit(client, competition, session, arguments.again, say)
    submissions.follow(client, competition, ref, out, say)
    return DONE


def _score(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.kaggle import submissions

    competition = load_competition(arguments.competition)
    client = _client(arguments)
    if arguments.ref is not None:
        submissions.follow(client, competition, arguments.ref, RECORDS / "output", say)
        return DONE
    session = _session(arguments, client)
    ref = submissions.find_submission(client, competition, session)
    submissions.follow(client, competition, ref, _output_dir(session), say)
    return DONE


def _output_dir(session: "Session") -> Path:
    return RECORDS / "output" / f"{session.slug}-v{session.version}"
