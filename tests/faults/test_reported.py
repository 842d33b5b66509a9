"""Make every reported fault happen, and check that its right value is seen."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .reported import Reported, reported

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
