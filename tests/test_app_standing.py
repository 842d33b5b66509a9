"""The state of a run on the pages, by its files."""

import json
import os
import time
from pathlib import Path

import pytest

from clotkit.app.roots import Roots
from clotkit.app.standing import QUIET_S, RunState, standing_folders, standing_run
from clotkit.app.viewer import MOST_FACTS_MB
from clotkit.competitions import Competition
from clotkit.errors import UsageError
from clotkit.locks import exclusive_folder
from clotkit.report.records import REPORT, RUN, ReportFile, SlideReport
from clotkit.units import MB

UNREADABLE = {
    "cut": b'{"state": "ended", "arg',
    "empty": b"",
    "binary": b"\xff\xfe\0",
    "no object": b'["ended"]',
    "null": b"null",
    "deep": b"[" * 100_000,
    "too large": b'{"state": "ended"}' + b" " * (MOST_FACTS_MB * MB),
    "another state": b'{"state": "paused"}',
    "no word": b'{"state": 5}',
    "no state": b'{"state": null}',
}
READABLE = {
    b'{"state": "ended"}': RunState.ENDED,
    b"{}": RunState.ENDED,  # of an older kit
    b'{"arguments": {}}': RunState.ENDED,
    b'{"state": "running"}': RunState.RUNNING,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Make a run of two slides without run.json."""
    folder = tmp_path / "root" / "run"
    folder.mkdir(parents=True)
    with ReportFile(folder / REPORT) as file:
        file.add(SlideReport("a", "a", "done", "", 4, 1.0, 40.0))
        file.add(SlideReport("b", "b", "fallback", "damaged", 0, 1.0, 40.0))
    return folder


def state(run: Path) -> RunState:
    """Return the state of a run, whose slides are counted whatever it is."""
    found = standing_run(run, Roots.of([run.parent]))
    assert (found.done, found.slides["fallback"]) == (2, 1)
    return found.state


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_run_whose_facts_cannot_be_read_has_not_ended(name: str, run: Path, strip_ai: Competition) -> None:
    (run / RUN).write_bytes(UNREADABLE[name])
    assert state(run) is RunState.UNKNOWN
    _, runs = standing_folders(Roots.of([run.parent]), strip_ai)
    assert [one.state for one in runs] == [RunState.UNKNOWN]


@pytest.mark.parametrize("content", READABLE)
def test_a_run_whose_facts_are_read_has_the_state_that_they_say(content: bytes, run: Path) -> None:
    (run / RUN).write_bytes(content)
    assert state(run) is READABLE[content]


def test_a_run_that_lost_its_facts_is_not_known_to_have_ended(run: Path) -> None:
    assert state(run) is RunState.UNKNOWN
    with exclusive_folder(run, "clotkit run"):
        assert state(run) is RunState.RUNNING
    long_ago = time.time() - 2 * QUIET_S
    os.utime(run / REPORT, (long_ago, long_ago))
    assert state(run) is RunState.UNKNOWN


def test_facts_that_are_no_file_are_not_waited_for(run: Path) -> None:
    os.mkfifo(run / RUN)
    assert state(run) is RunState.UNKNOWN
    (run / RUN).unlink()
    (run / RUN).mkdir()
    assert state(run) is RunState.UNKNOWN
    (run / RUN).rmdir()
    (run / RUN).symlink_to("nowhere")
    assert state(run) is RunState.UNKNOWN


def test_facts_outside_the_roots_are_not_read(run: Path, tmp_path: Path) -> None:
    (tmp_path / RUN).write_text(json.dumps({"state": "ended"}))
    (run / RUN).symlink_to(tmp_path / RUN)
    with pytest.raises(UsageError):
        standing_run(run, Roots.of([run.parent]))
