"""Make every reported fault happen, and check that its right value is seen."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import ROOT
from .reported import Reported, reported

DOCUMENT = ROOT / "docs" / "explanation" / "faults.md"
CASES = [(kind, case) for kind, cases in reported().items() for case in cases]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow_faults] if case.slow else []) for _, case in CASES],
)
def test_right_value(case: Reported, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    seen = case.check(tmp_path)
    assert seen
    assert "\n" not in seen
    assert str(tmp_path) not in seen
    record_property("reported", case.name)
    record_property("seen", seen)


def test_names_differ() -> None:
    assert len({case.name for _, case in CASES}) == len(CASES)


def test_the_document_has_these_faults() -> None:
    """`python -m tests.faults > docs/explanation/faults.md` writes the rows again."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("\n## Faults that others reported")[2].partition("\n## ")[0]
    rows = [line.removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows if not row.startswith("**")] == [case.name for _, case in CASES]
