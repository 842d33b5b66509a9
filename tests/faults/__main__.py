"""Make every fault and print the page of them: python -m tests.faults > docs/explanation/faults.md.

The tables are what the tests of test_table.py and test_reported.py saw. Nothing is printed unless every one of them
passed, or was skipped because the fault cannot be made here, which the tables then say.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cases import CASES, Case
from .reported import Reported, reported

MOST = 130

HEAD = """# What happens when

Every row is a test that makes the fault happen for real, among healthy slides that must come out as if nothing had
happened. While a run goes on, its submission.csv is checked whenever it has changed.

- **done**, **partial**: the slide counts in full; a partial one was scored with fewer tiles, fewer members or a second
  try.
- **fallback**: the slide was not scored. Its patient's other slides count; without any, the patient gets the constant
  of the competition's TOML (0.5 / 0.5 for STRIP AI).
- **refused**: the command could not start.
- **valid**: submission.csv is valid, with what was scored so far.

`clotkit run` ends with exit code 0 if all slides are done, 3 if some are not, and 2 with one line if it could not
start. The kernel ends with 0 in every row.

`python -m tests.faults > docs/explanation/faults.md` writes this page. `make test` runs most of the rows,
`make test-faults` the slow rest.

| fault | outcome | reason, or what the run says | in |
|---|---|---|---|
"""

TAIL = """
## More faults of slides

| fault | outcome | test |
|---|---|---|
| float, signed, 32-bit samples | fallback; the reason names the sample type | test_odd_slides |
| a codec that nothing reads (JBIG, …) | fallback; the reason names the codec | test_reader |
| a size that the file cannot hold | fallback: … would expand 25,000,000-fold; 2,000-fold is allowed | test_odd_slides |
| palette, rotated; PNG, JPEG | read as 8-bit RGB, upright | test_odd_slides |
| pen marks, shadows | excluded while there is other tissue | test_tissue, test_marks |
| less tissue than on any real slide | done, with the tiles that it has | test_tissue |

## More faults of the run

| fault | outcome | test |
|---|---|---|
| SIGKILL of the run, before or after the first slide | submission.csv on disk is valid, with what was scored; report.jsonl has whole lines | test_pipeline |
| the kernel's child hangs | it is killed a minute after the deadline; the file is checked, and the kernel ends with 0 | test_rehearsal |
| SIGKILL of the kernel | submission.csv on disk is valid | test_rehearsal |
| the parent dies while a slide hangs | the slide's process dies with it | faults/test_workers |
| wheels that pip refuses | slides are read by OpenSlide | test_rehearsal |
| no competition data | the kernel prints what is mounted; exit code 2 | test_rehearsal |
| an image id that is not a file name | one line, exit code 2, nothing written | test_pipeline |
| a run folder that holds something else | one line, exit code 2, nothing written | test_pipeline |
| a slide's picture, or the page, cannot be made | one line; the run goes on and ends as it would have | test_report_page |
| `clotkit report` on a folder that is not a run, or on a damaged one | one line, exit code 2, nothing written | test_report_page |

[Scale](../guides/scale.md#what-happens-when) has the table for clusters and object stores,
[Deliver](../guides/deliver.md#what-happens-when) the one for Kaggle.

## What a rehearsal refuses

A rehearsal refuses a kernel that ends with an exit code other than 0, imports the repository or what the wheels should
bring, opens a connection, writes to its inputs, leaves files other than those of a run, exceeds the memory or wall-clock
limit, or gives different submissions in the two layouts (test_rehearsal).
"""  # noqa: E501 - a row of a table is one line


REPORTED = """
## Faults that others reported

Each row is something that a user of another reader, tiler or pipeline reported in public. The test makes it happen,
and checks the right value.

| fault | right | seen |
|---|---|---|
"""


class Outcomes:
    """A pytest plugin that keeps what the tests recorded.

    `by_case` is the (state, reason) of each case and run, `seen` what each reported fault's test saw.
    """

    def __init__(self) -> None:
        self.by_case: dict[tuple[str, str], tuple[str, str]] = {}
        self.seen: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome that a test recorded."""
        found = dict(report.user_properties)
        if "case" in found:
            case, run, state, reason = (str(found[name]) for name in ("case", "run", "state", "reason"))
            self.by_case[case, run] = (state, reason)
        if "reported" in found:
            self.seen[str(found["reported"])] = str(found["seen"])


def row(case: Case, outcomes: Outcomes) -> str:
    """Return the row of a case; its runs have the same outcome."""
    found = [outcomes.by_case[case.name, run] for run in case.runs if (case.name, run) in outcomes.by_case]
    state, reason = found[0] if found else ("not made here", "")
    where = ", ".join(dict.fromkeys(place(run) for run in case.runs))
    return f"| {case.name} | {state} | {shown(reason)} | {where} |"


def reported_rows(outcomes: Outcomes) -> Iterator[str]:
    """Yield the rows of the reported faults, a line with the kind before those of each kind."""
    for kind, cases in reported().items():
        yield f"| **{kind}** | | |"
        yield from (reported_row(case, outcomes) for case in cases)


def reported_row(case: Reported, outcomes: Outcomes) -> str:
    """Return the row of a reported fault."""
    return f"| {case.name} | {case.right} | {shown(outcomes.seen.get(case.name, 'not made here'))} |"


def shown(reason: str) -> str:
    """Return a reason as a table's cell: its first MOST letters, with Markdown's characters escaped."""
    text = reason.removeprefix("clotkit: ").replace("|", "/").replace("<", "&lt;")
    return text if len(text) <= MOST else f"{text[:MOST].rstrip()} …"


def place(run: str) -> str:
    """Return "kernel" or "run": the command that meets the fault in this run of the table."""
    from .test_table import PLANS

    return "kernel" if PLANS[run].kernel else "run"


def main() -> int:
    """Print the page, or nothing if a test fails."""
    outcomes = Outcomes()
    tests = [str(Path(__file__).with_name(name)) for name in ("test_table.py", "test_reported.py")]
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main([*tests, "-q", "-m", "", "-k", "not the_document"], plugins=[outcomes])
    if code == 0:
        table = "\n".join(row(case, outcomes) for case in CASES)
        print(HEAD + table + "\n" + REPORTED + "\n".join(reported_rows(outcomes)) + "\n" + TAIL, end="")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
