"""Test the arithmetic of the benchmark of small slides, and the split that it makes."""

from pathlib import Path

import pytest

from bench.small_slides import Timing, facts_of, link_slides
from clotkit.competitions import load_competition
from clotkit.splits import read_slides


def timings(tile_s: float, run_s: float) -> list[Timing]:
    """Return three rounds whose median CPU is 1.1 times these seconds forked, and 1.1 times 60 spawned."""
    return [
        Timing(verb, method, 3 * seconds, seconds * slower, 40.0 if verb == "run" else None)
        for slower in (1.0, 1.5, 1.1)
        for verb, fork_s in (("tile", tile_s), ("run", run_s))
        for method, seconds in (("spawn", 60.0), ("fork", fork_s))
    ]


@pytest.mark.parametrize(("run_s", "holds"), [(30.0, True), (31.0, False)])
def test_both_commands_have_to_be_twice_as_fast(run_s: float, holds: bool) -> None:
    facts = facts_of(timings(20.0, run_s), 330)
    assert facts["holds"] is holds
    assert facts["tile"] == {
        "spawn": {"slides_a_second": 1.83, "cpu_s_a_slide": 0.2, "slide_mb": None},
        "fork": {"slides_a_second": 5.5, "cpu_s_a_slide": 0.067, "slide_mb": None},
        "times_as_fast": 3.0,
        "times_as_fast_by_cpu": 3.0,
    }
    assert facts["run"]["fork"]["slide_mb"] == 40.0


def test_drawn_slides_are_linked_until_there_are_enough(test_split: Path, tmp_path: Path) -> None:
    competition = load_competition("strip_ai")
    drawn = read_slides(test_split, "test", competition)
    count = 2 * len(drawn) + 1
    link_slides(test_split, tmp_path / "split", count)
    slides = read_slides(tmp_path / "split", "test", competition)
    assert len({slide.patient_id for slide in slides}) == len(slides) == count
    assert slides[-1].path.samefile(drawn[0].path)
