"""Rehearse the serving kernel: play a gateway against its bundle in the sandbox, with faults."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.errors import RehearsalError
from clotkit.files import atomic_write_json
from clotkit.kaggle.datasets import Attached
from clotkit.members.encoders.folder import check_encoders
from clotkit.members.folder import check_members
from clotkit.progress import Log
from clotkit.reasons import RehearsalKind
from clotkit.rehearsal.gateway import Gateway
from clotkit.rehearsal.gateway_faults import GatewayFault
from clotkit.rehearsal.sandbox import (
    LAYOUTS,
    REHEARSAL,
    Outcome,
    Rehearsal,
    Sandbox,
    Stage,
    attached_facts,
    cost_line,
    costs_of,
    make_sandbox,
    read_final_status,
    run_layouts,
)
from clotkit.rehearsal.scoring import check_agreement, datasets_of, split_folder
from clotkit.rehearsal.server import Server
from clotkit.rehearsal.standin.gateway import SUBMISSION
from clotkit.rehearsal.standin.layout import write_package
from clotkit.report import records
from clotkit.serving.discovery import PACKAGE
from clotkit.splits import read_slides
from clotkit.submission.checking import check_submission
from clotkit.supervise import STATUS

# The deadline of a batch with a fault, as a rehearsal waits for one: that of the slowest batch before, in which members
# were loaded, this many times, or the seconds if those are more.
FAULT_S, FAULT_TIMES = 15.0, 3
SEED = 2022


def rehearse_serving(split: str, weights: Path, rehearsal: Rehearsal) -> bool:
    """Build the bundle, and in one or both layouts commit it, serve a split, and play faults.

    The commit plays the competition's local gateway. The scoring re-run serves every slide of the split in random
    order, then a batch for each fault. Leaves the submission, rehearsal.json and the working folders in the rehearsal's
    folder. The arguments are those of clotkit.rehearsal.scoring.rehearse. Returns whether every slide is done.

    Raises:
        RehearsalError: The kernel fails, its server is not up in time, misses a deadline or answers wrongly, it changes
            its inputs, or the layouts differ.
        ClotkitError: The split, the weights or the wheels are wrong.
    """
    started = time.monotonic()
    competition, out, log = rehearsal.competition, rehearsal.out, rehearsal.log
    split_dir = split_folder(split, competition, log)
    slides = len(read_slides(split_dir, "test", competition))
    check_members(weights, competition.slug)
    check_encoders(weights)
    sandbox = make_sandbox(rehearsal)
    attached = datasets_of(rehearsal, weights)
    public = lay_out_data(split_dir, out / "data-public", competition, slides=True)
    hidden = lay_out_data(split_dir, out / "data-hidden", competition, slides=False)
    reruns, played = list[Outcome](), dict[str, dict[str, Any]]()
    for name in rehearsal.layouts:
        commit = run_layouts(sandbox, [name], attached, public, competition, {SUBMISSION, records.REPORT}, log)[0]
        _check_submission(commit.working / SUBMISSION, split_dir, competition)
        rerun, played[name] = _serve(sandbox, name, attached, hidden, split_dir, competition, log)
        reruns.append(rerun)
    check_agreement([one.working.parent / SUBMISSION for one in reruns])
    facts = sandbox.facts | attached_facts(attached) | {"split": str(split_dir), "gateway": played}
    _publish(reruns, facts, out, log)
    done = min(int(one["slides"]["done"]) for one in played.values())
    verdict = "passed" if done == slides else "passed with fallbacks"
    log(f"rehearsal {verdict}: {done} of {slides} slides done, {time.monotonic() - started:.0f} s in all")
    return done == slides


def _publish(reruns: Sequence[Outcome], facts: dict[str, Any], out: Path, log: Log) -> None:
    """Write rehearsal.json, and the submission of the last run."""
    status = reruns[-1].status
    facts |= {"state": status.state, "codes": status.codes, "layouts": costs_of(reruns)}
    facts["slides"] = facts["gateway"][reruns[-1].layout]["slides"]
    shutil.copyfile(reruns[-1].working.parent / SUBMISSION, out / SUBMISSION)
    atomic_write_json(out / REHEARSAL, facts)
    log(f"{out / SUBMISSION}: valid; {cost_line(reruns)}")


def lay_out_data(split_dir: Path, folder: Path, competition: Competition, slides: bool) -> Path:
    """Make the competition's data of links into a split, with a stand-in for its `kaggle_evaluation`.

    In the scoring re-run the server sees the tables, not the slides: those come through the gateway.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sample, table = competition.sample_path(split_dir), competition.table_path(split_dir, "test")
    for path in split_dir.resolve().iterdir():
        if path.name != PACKAGE and (slides or path.name in {sample.name, table.name}):
            (folder / path.name).symlink_to(path)
    write_package(folder, table.name if table.is_file() else sample.name, competition)
    return folder


def _serve(
    sandbox: Sandbox,
    name: str,
    attached: Attached,
    data: Path,
    split_dir: Path,
    competition: Competition,
    log: Log,
) -> tuple[Outcome, dict[str, Any]]:
    """Serve the split in one layout, then a batch for each fault; return the run and what came of it."""
    started = time.monotonic()
    folder = sandbox.out / f"{name}-rerun"
    stage = Stage(folder, LAYOUTS[name], competition.slug, attached, data, sandbox.namespace)
    before = stage.fingerprint()
    with Server(stage, sandbox, competition.serving, log) as server:
        gateway = Gateway(server, read_slides(split_dir, "test", competition), split_dir, competition)
        batches = gateway.batches(SEED)
        gateway.play(batches)
        lines, status = (
            records.read_report(stage.working / records.REPORT),
            read_final_status(stage, name, sandbox.wheels),
        )
        gateway.write_submission(stage.root / SUBMISSION)
        slowest_s = gateway.results.slowest_s
        server.batch_s = min(server.batch_s, max(FAULT_S, FAULT_TIMES * slowest_s))
        _play_faults(gateway, batches, stage, lines, log)
    for row in records.table(lines):
        log(row)
    _check(gateway, stage, before, name)
    if server.peak_mb > (allowed_mb := competition.limits.kernel_memory_mb):
        raise RehearsalError(
            f"layout {name}: memory limit: {server.peak_mb:.0f} MB, {allowed_mb} allowed", RehearsalKind.MEMORY
        )
    _check_submission(stage.root / SUBMISSION, split_dir, competition)
    facts = gateway.results.facts | {
        "slides": records.counts(lines),
        "up_s": server.up_s,
        "slowest_s": round(slowest_s, 1),
    }
    log(
        f"layout {name}: {gateway.results.batches} batches, the slowest {slowest_s:.1f} s of "
        f"{competition.serving.deadline_s:.0f} s; up after {', '.join(f'{one:.1f}' for one in server.up_s)} s"
    )
    return Outcome(name, stage.working, time.monotonic() - started, server.peak_mb, status), facts


def _play_faults(
    gateway: Gateway, batches: Sequence[Any], stage: Stage, lines: Sequence[records.SlideReport], log: Log
) -> None:
    """Send a batch for each fault, and compare its slides with `lines`, the report of the run without one."""
    before = {line.image_id: line.state == "fallback" for line in lines}
    known = 0  # lines of the report; a reset, which comes first, begins another
    for number, fault in enumerate(GatewayFault):
        log(f"gateway fault {fault}")
        batch = batches[number % len(batches)]
        gateway.play_fault(fault, batch, stage.root)
        report = records.read_report(stage.working / records.REPORT)
        gateway.check_states(fault, batch, before, report[known:])
        known = len(report)


def _check(gateway: Gateway, stage: Stage, before: object, name: str) -> None:
    """Raise RehearsalError if a batch failed, an input changed, or a file was left behind."""
    if gateway.results.failures:
        kind, what = gateway.results.failures[0]
        count = len(gateway.results.failures)
        raise RehearsalError(
            f"layout {name}: {count} of {gateway.results.batches} batches failed, 0 are allowed; {kind}: {what}",
            RehearsalKind.SERVER,
        )
    if stage.fingerprint() != before:
        raise RehearsalError(
            f"layout {name}: the kernel changed its inputs; on Kaggle they are read-only", RehearsalKind.INPUTS
        )
    left = sorted({path.name for path in stage.working.iterdir()} - {STATUS, records.REPORT})
    if left:
        raise RehearsalError(
            f"layout {name}: files left behind in the working folder: {', '.join(left)}", RehearsalKind.LEFT_BEHIND
        )


def _check_submission(path: Path, split_dir: Path, competition: Competition) -> None:
    """Raise RehearsalError if the submission that a gateway wrote is not valid."""
    problems: Sequence[object] = check_submission(path, competition.sample_path(split_dir), competition).problems
    if problems:
        raise RehearsalError(f"{path}: the submission of the answers is not valid: {problems[0]}", RehearsalKind.OUTPUT)
