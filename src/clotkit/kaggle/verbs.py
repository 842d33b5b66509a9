"""Register `clotkit kaggle` and its verbs, which deliver a kernel: push, follow, submit, score."""

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clotkit.bundle.build import SCORING_KERNEL, rehearsal_dir
from clotkit.bundle.checkout import in_checkout
from clotkit.bundle.install import NAME as INSTALL_NAME
from clotkit.bundle.places import competition_stem, demo_weights
from clotkit.competitions import DEFAULT, Competition, load_competition
from clotkit.errors import RemoteError, UsageError, one_line
from clotkit.options import (
    DONE,
    FALLBACKS,
    Result,
    Verbs,
    add_competition,
    add_inputs,
    add_kernel_type,
    out_file,
    out_folder,
)
from clotkit.reasons import RemoteKind

if TYPE_CHECKING:
    from clotkit.kaggle.client import Kaggle
    from clotkit.kaggle.follow import KernelRun

RECORDS = Path("build/kernel")
INSTALL_SCRIPT = RECORDS / INSTALL_NAME
Verb: TypeAlias = Callable[[argparse.Namespace], Result]
say = partial(print, flush=True)


def register(verbs: Verbs) -> None:
    """Add `kaggle` and its verbs to the command line."""
    text = "push datasets and kernels to Kaggle, follow a kernel's version, submit it, read its score"
    top = verbs.add_parser("kaggle", help=text, description=text)
    inner = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_doctor(inner)
    _add_datasets_push(inner)
    _add_models_push(inner)
    _add_kernel_push(inner)
    _add_install_script(inner)
    _add_run_verb(inner, "wait", "wait until a kernel's version ends, and show its log", _wait)
    _add_run_verb(inner, "logs", "show the log of a kernel's version as it comes", _logs)
    verb = _add_run_verb(inner, "output", "fetch the output files of a kernel's version", _output)
    verb.add_argument("--out", type=out_folder, metavar="DIR", help="default: build/kernel/output/SLUG-vN")
    verb.add_argument(
        "--file", action="append", default=[], metavar="NAME", help="fetch only this file; may be repeated"
    )
    verb = _add_run_verb(
        inner, "submit", "wait until a version ends, check its submission, submit it, and print its score", _submit
    )
    verb.add_argument("--sample", type=Path, metavar="FILE", help="the sample submission (default: the competition's)")
    verb.add_argument("--again", action="store_true", help="submit a version again that was submitted before")
    verb = _add_run_verb(inner, "score", "follow the submission of a version until it has a score or an error", _score)
    verb.add_argument("--ref", metavar="N", help="the number of a submission (default: the version's last)")


def _verb(verbs: Verbs, name: str, text: str, verb: Verb) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the requests that would change something, and do not send them"
    )
    add_competition(parser)
    parser.set_defaults(verb=partial(run_verb, verb))
    return parser


def run_verb(verb: Verb, arguments: argparse.Namespace) -> Result:
    """Run a verb, or its dry run. Raises UsageError if a file here cannot be used."""
    from clotkit.kaggle.client import DryRun

    try:
        return verb(arguments)
    except DryRun:
        say("dry run: nothing was changed on Kaggle")
        return Result(DONE, {"dry_run": True})
    except OSError as error:  # about a file here: the client turns those of the network into its own
        what = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
        raise UsageError(f"{what}; correct that, then run again") from error


def _client(arguments: argparse.Namespace) -> "Kaggle":
    from clotkit.kaggle.client import sign_in

    return sign_in(say, arguments.dry_run)


def _add_doctor(verbs: Verbs) -> None:
    _verb(verbs, "doctor", "check what a delivery needs: packages, credentials, submission limits, quota", _doctor)


def _doctor(arguments: argparse.Namespace) -> Result:
    from clotkit.kaggle.public import check_hosted

    packages = {package: metadata.version(package) for package in ("kaggle", "kagglesdk", "certifi", "requests")}
    for package, version in packages.items():
        say(f"{package} {version}")
    client = _client(arguments)
    facts: dict[str, Any] = {"packages": packages, "credentials": _say_credentials(client), "endpoint": client.endpoint}
    say(f"endpoint: {client.endpoint}")
    competition = load_competition(arguments.competition)
    slug, ready = competition.slug, True
    checks = {
        "competition": partial(_say_competition, client, slug),
        "submissions": partial(_say_limits, client, slug),
        "quota": partial(_say_quota, client),
    }
    for name, check in checks.items():
        try:
            if name != "quota":
                check_hosted(competition)
            facts[name] = check()
            ready = ready and facts[name].get("entered", True)
        except RemoteError as error:
            if error.kind is RemoteKind.CREDENTIALS:  # the other checks would say the same
                raise RemoteError(
                    f"{client.credentials.source}: Kaggle does not accept it (401): {client.credentials.next_step}",
                    error.kind,
                ) from None
            facts[name], ready = {"error": _error(error)}, False
            say(f"{name}: {error}")
    return Result(DONE if ready else FALLBACKS, facts)


def _error(error: RemoteError) -> dict[str, str]:
    return {"code": error.kind, "message": str(error)}


def _say_credentials(client: "Kaggle") -> dict[str, Any]:
    """Say and return whose credentials are used, from where, and which others are here and are not used."""
    from clotkit.kaggle.login.credentials import CredentialKind, Credentials, list_credentials

    names = {
        CredentialKind.TOKEN: "an access token", CredentialKind.KEY: "a legacy key", CredentialKind.LOGIN: "a login"
    }  # fmt: skip
    used, others = client.credentials, list[dict[str, Any]]()
    say(f"credentials: {names[used.kind]} of {client.username}, from {used.source}")
    for entry in list_credentials():
        if not isinstance(entry, Credentials):
            say(f"credentials not used: {entry}")
            others.append({"error": _error(entry)})
        elif entry.source != used.source:
            say(f"credentials not used: {names[entry.kind]}, from {entry.source}")
            others.append({"kind": entry.kind, "source": entry.source})
    return {"kind": used.kind, "source": used.source, "username": client.username, "not_used": others}


def _say_competition(client: "Kaggle", slug: str) -> dict[str, Any]:
    entered = bool(client.competition(slug).get("userHasEntered"))
    say(f"{slug}: {'entered' if entered else 'rules not accepted'}")
    return {"slug": slug, "entered": entered}


def _say_limits(client: "Kaggle", slug: str) -> dict[str, Any]:
    limits = client.limits(slug)
    in_all = bool(limits.get("limitedByTotal"))
    made, left = limits.get("numTotal" if in_all else "numToday") or 0, limits.get("numAllowedNow") or 0
    say(f"{slug}: {made} submissions {'in all' if in_all else 'today'}, {left} left")
    return {"made": made, "left": left, "in_all": in_all}


def _say_quota(client: "Kaggle") -> dict[str, Any]:
    from clotkit.kaggle.metadata import NO_QUOTA, Accelerator

    quota, hours = client.quota(), {}
    for kind in Accelerator:
        week = kind.week(quota)
        renewed = f", renewed {quota['quotaRefreshTime']}" if week and quota.get("quotaRefreshTime") else ""
        say(f"{kind.name}: {week or NO_QUOTA}{renewed}")
        hours[str(kind)] = week and week._asdict()
    return hours | {"renewed": quota.get("quotaRefreshTime")}


def _add_datasets_push(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "datasets-push",
        "push the datasets whose content is new, and wait until Kaggle has them ready",
        _datasets_push,
    )
    verb.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="datasets, by their folders in datasets_meta (default: weights wheels, as far as they are datasets)",
    )
    verb.add_argument(
        "--weights", type=Path, metavar="DIR",
        help="a member, or a folder of members, for the dataset weights (default: weights/demo, of another competition "
        "build/weights-NAME)",
    )  # fmt: skip
    verb.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="default: build/wheels")
    verb.add_argument("--folder", type=Path, metavar="DIR", help="the files of any other dataset (default: build/NAME)")
    verb.add_argument("--metadata", type=Path, default=Path("datasets_meta"), help="default: datasets_meta")
    add_inputs(verb)


def _datasets_push(arguments: argparse.Namespace) -> Result:
    from clotkit.kaggle.datasets import (
        check_files,
        check_names,
        files_in,
        push_dataset,
        read_stage,
        weights_files,
        wheels_files,
    )
    from clotkit.kaggle.metadata import Inputs
    from clotkit.members.encoders.folder import check_encoders
    from clotkit.members.folder import check_members

    weights = arguments.weights or demo_weights(arguments.competition)
    sources = {"weights": (weights_files, weights), "wheels": (wheels_files, arguments.wheels)}
    metadata, competition = in_checkout(arguments.metadata, "--metadata DIR"), load_competition(arguments.competition)
    stages = []
    inputs = Inputs.of(competition, arguments.weights_as, arguments.wheels_as)
    for name in arguments.names or [name for name in ("weights", "wheels") if getattr(inputs, name) == "dataset"]:
        make, folder = sources.get(name, (files_in, arguments.folder or Path("build") / name))
        stages.append(read_stage(metadata / name, make(folder), competition))
        if name == "weights":
            check_members(folder, competition.slug)
            check_encoders(folder)
        check_files(stages[-1].files)  # of all datasets, before the first is pushed
        check_names(stages[-1], metadata.parent / "kernels", competition)
    if not stages:
        say("members and packages are not datasets here: nothing to push")
    return Result(DONE, {"datasets": _pushed(arguments, push_dataset, [(stage.slug, stage) for stage in stages])})


def _add_models_push(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "models-push",
        "push the members as a Kaggle Model if their content is new, and wait until Kaggle lists the files",
        _models_push,
    )
    verb.add_argument(
        "names", nargs="*", metavar="NAME", help="models, by their folders in models_meta (default: weights)"
    )
    verb.add_argument(
        "--weights", type=Path, metavar="DIR",
        help="a member, or a folder of members, for the model weights (default: weights/demo, of another competition "
        "build/weights-NAME)",
    )  # fmt: skip
    verb.add_argument("--folder", type=Path, metavar="DIR", help="the files of any other model (default: build/NAME)")
    verb.add_argument("--metadata", type=Path, default=Path("models_meta"), help="default: models_meta")


def _models_push(arguments: argparse.Namespace) -> Result:
    from clotkit.kaggle.datasets import check_files, files_in, weights_files
    from clotkit.kaggle.models import push_model, read_model_stage
    from clotkit.members.encoders.folder import check_encoders
    from clotkit.members.folder import check_members

    metadata, competition = in_checkout(arguments.metadata, "--metadata DIR"), load_competition(arguments.competition)
    weights = arguments.weights or demo_weights(arguments.competition)
    stages = []
    for name in arguments.names or ["weights"]:
        files = weights_files(weights) if name == "weights" else files_in(arguments.folder or Path("build") / name)
        stages.append(read_model_stage(metadata / name, files, competition))
        if name == "weights":
            check_members(weights, competition.slug)
            check_encoders(weights)
        check_files(files)  # of all models, before the first is pushed
    return Result(DONE, {"models": _pushed(arguments, push_model, [(stage.source, stage) for stage in stages])})


def _pushed(
    arguments: argparse.Namespace, push: Callable[["Kaggle", Any], Any], stages: Iterable[tuple[str, Any]]
) -> list[dict[str, Any]]:
    """Push each stage and return the facts of what Kaggle has then, without those of a dry run."""
    from clotkit.kaggle.client import DryRun

    client, pushed = _client(arguments), list[dict[str, Any]]()
    for name, stage in stages:
        try:
            pushed.append(asdict(push(client, stage)))
        except DryRun:
            say(f"{name}: dry run, not pushed")
    return pushed


def _add_install_script(verbs: Verbs) -> None:
    text = "write the script that installs the kernels' packages by hash, for Kaggle's Dependency Manager"
    verb = verbs.add_parser("install-script", help=text, description=text)
    verb.add_argument("--out", type=out_file, default=INSTALL_SCRIPT, metavar="FILE", help=f"default: {INSTALL_SCRIPT}")
    verb.add_argument(
        "--lines", action="store_true", help="lines of pip install with versions, without hashes, in place of a script"
    )
    verb.set_defaults(verb=_install_script)


def _install_script(arguments: argparse.Namespace) -> Result:
    from clotkit.bundle.install import install_lines, install_script
    from clotkit.files import atomic_write_text

    text = install_lines() if arguments.lines else install_script()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(arguments.out, text)
    say(f"{arguments.out}: {len(text.encode()):,} bytes; paste it into the notebook's Add-ons, Install dependencies")
    return Result(DONE, {"file": arguments.out})


def _add_kernel_push(verbs: Verbs) -> None:
    verb = _verb(verbs, "kernel-push", "push a kernel that has passed its rehearsal, and verify the push", _kernel_push)
    verb.add_argument(
        "--kernel", default=SCORING_KERNEL, metavar="NAME", help="a kernel, by its folder in kernels (default: infer)"
    )
    verb.add_argument("--kernels", type=Path, default=Path("kernels"), metavar="DIR", help="default: kernels")
    add_kernel_type(verb)
    add_inputs(verb)
    verb.add_argument(
        "--rehearsal",
        type=Path,
        metavar="DIR",
        help="default: build/rehearsal, with a hyphen and the name of another kernel, of another competition",
    )
    verb.add_argument(
        "--attach",
        action="append",
        default=[],
        metavar="NAME",
        help="attach this dataset of datasets_meta too: the output of an earlier version, to resume from",
    )
    verb.add_argument("--metadata", type=Path, default=Path("datasets_meta"), help="default: datasets_meta")
    verb.add_argument(
        "--accelerator",
        metavar="SHAPE",
        help="run on this machine shape of Kaggle's, like NvidiaTeslaT4 or TpuV5E8, or none "
        "(default: machine_shape of kernel-metadata.json)",
    )
    verb.add_argument("--again", action="store_true", help="push and run it even if nothing has changed")


def _kernel_push(arguments: argparse.Namespace) -> Result:
    from clotkit.kaggle.datasets import read_stage
    from clotkit.kaggle.kernels import attaching, push_kernel, read_kernel, running_on
    from clotkit.kaggle.metadata import Inputs

    rehearsal = arguments.rehearsal or rehearsal_dir(arguments.kernel, arguments.competition)
    kernels = in_checkout(arguments.kernels, "--kernels DIR")
    known = load_competition(arguments.competition)
    inputs = Inputs.of(known, arguments.weights_as, arguments.wheels_as)
    kernel = read_kernel(kernels / arguments.kernel, arguments.competition, rehearsal, arguments.kernel_type, inputs)
    if arguments.attach:
        metadata = in_checkout(arguments.metadata, "--metadata DIR")
        kernel = attaching(kernel, [read_stage(metadata / name, {}, known).slug for name in arguments.attach])
    if arguments.accelerator:
        kernel = running_on(kernel, arguments.accelerator)
    return Result(DONE, asdict(push_kernel(_client(arguments), kernel, _record(arguments), arguments.again, say)))


def _record(arguments: argparse.Namespace) -> Path:
    """Return the file that records the last push of a kernel for a competition."""
    kernel, stem = arguments.kernel, competition_stem(arguments.competition)
    words = ["pushed", *[kernel] * (kernel != SCORING_KERNEL), *[stem] * (stem != DEFAULT)]
    return RECORDS / f"{'-'.join(words)}.json"


def _hosted(name: str) -> Competition:
    """Return a competition that Kaggle has. Raises RemoteError for one of another platform."""
    from clotkit.kaggle.public import check_hosted

    competition = load_competition(name)
    check_hosted(competition)
    return competition


def _add_run_verb(verbs: Verbs, name: str, text: str, verb: Verb) -> argparse.ArgumentParser:
    parser = _verb(verbs, name, text, verb)
    parser.add_argument(
        "--kernel",
        default=SCORING_KERNEL,
        metavar="NAME",
        help="a kernel that was pushed from here, or OWNER/SLUG (default: infer)",
    )
    parser.add_argument("--version", metavar="N", help="default: the last one pushed from here")
    return parser


def _ordinal(option: str, text: str | None) -> int | None:
    """Return the number of an option, from 1 and in plain digits, or None without one. Raises UsageError."""
    if text is not None and (not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1):
        raise UsageError(f"{option} {text}: a whole number from 1 is needed")
    return None if text is None else int(text)


def _kernel_run(arguments: argparse.Namespace, client: "Kaggle", whole: bool = False) -> "KernelRun":
    """Return the run that the options name.

    Raises UsageError if they name none, or, with `whole`, if the last push was without a source that it needs.
    """
    from clotkit.kaggle.follow import KernelRun
    from clotkit.kaggle.kernels import read_record

    asked = _ordinal("--version", arguments.version)
    if "/" in arguments.kernel:
        if asked is None:
            raise UsageError(f"kernel {arguments.kernel}: no version is given; add --version N")
        return KernelRun(client, arguments.kernel, asked, say)
    record = _record(arguments)
    pushed = read_record(record)
    if pushed is None:
        raise UsageError(f"{record}: no such file; run make kernel-push, or give --kernel OWNER/SLUG --version N")
    version = asked or pushed.version
    if whole and version == pushed.version and pushed.missing:
        raise UsageError(
            f"{pushed.ref} version {version}: Kaggle runs it without {', '.join(pushed.missing)}; it is not submitted: "
            "push it again"
        )
    return KernelRun(client, pushed.ref, version, say, pushed_here=version == pushed.version)


def _wait(arguments: argparse.Namespace) -> Result:
    run = _kernel_run(arguments, _client(arguments))
    run.wait()
    return Result(DONE, _named(run))


def _logs(arguments: argparse.Namespace) -> Result:
    run = _kernel_run(arguments, _client(arguments))
    run.follow_log()
    return Result(DONE, _named(run))


def _named(run: "KernelRun") -> dict[str, Any]:
    return {"ref": run.ref, "version": run.version}


def _output(arguments: argparse.Namespace) -> Result:
    run = _kernel_run(arguments, _client(arguments))
    run.note_newer()
    paths = run.fetch(arguments.out or _output_dir(run), arguments.file)
    missing = sorted(set(arguments.file) - {path.name for path in paths})
    if missing:
        raise RemoteError(f"{run.ref} version {run.version}: {', '.join(missing)} is not in its output")
    say(f"{len(paths)} files")
    return Result(DONE, _named(run) | {"files": paths})


def _submit(arguments: argparse.Namespace) -> Result:
    from clotkit.kaggle import submissions

    competition = _hosted(arguments.competition)
    client = _client(arguments)
    run = _kernel_run(arguments, client, whole=True)
    run.wait()
    out = _output_dir(run)
    submission = submissions.fetch_run(run, competition, out)
    submissions.check(client, competition, submission, arguments.sample, say)
    ref = submissions.submit(client, competition, run, arguments.again, say)
    score = submissions.follow(client, competition, ref, out, say)
    return Result(DONE, _named(run) | {"submission": ref, "score": score})


def _score(arguments: argparse.Namespace) -> Result:
    from clotkit.kaggle import submissions

    competition, ref = _hosted(arguments.competition), _ordinal("--ref", arguments.ref)
    client = _client(arguments)
    if ref is not None:
        score = submissions.follow(client, competition, ref, RECORDS / "output", say)
        return Result(DONE, {"submission": ref, "score": score})
    run = _kernel_run(arguments, client)
    ref = submissions.find_submission(client, competition, run)
    score = submissions.follow(client, competition, ref, _output_dir(run), say)
    return Result(DONE, _named(run) | {"submission": ref, "score": score})


def _output_dir(run: "KernelRun") -> Path:
    return RECORDS / "output" / f"{run.slug}-v{run.version}"
