"""Test the looks at something on Kaggle: how often, how long, and what is said."""

from itertools import chain, repeat

import pytest

from clotkit.kaggle.looks import LONGEST_PAUSE_S, Looks
from clotkit.reasons import RemoteKind

from .delivery import Clock, remote_error


def looks(states: list[str], clock: Clock, lines: list[str], limit_s: float = 3_600.0) -> Looks[str]:
    left = chain(states, repeat(states[-1]))
    return Looks(lambda: next(left), "it", lines.append, clock.wait, lambda _: limit_s, "its page", 4.0, clock)


def test_the_pauses_grow_to_a_limit_and_start_again_when_something_has_changed(clock: Clock, lines: list[str]) -> None:
    for state in looks(["a"] * 12 + ["b"] * 3 + ["end"], clock, lines):
        if state == "end":
            break
    assert clock.waits[:3] == [4.0, 6.0, 9.0]
    assert clock.waits[11] == LONGEST_PAUSE_S
    assert clock.waits[12:] == [4.0, 6.0, 9.0]
    assert [line for line in lines if "minutes" not in line] == ["it: a", "it: b", "it: end"]


def test_somebody_who_sees_something_going_on_looks_again_soon(clock: Clock, lines: list[str]) -> None:
    looking = looks(["a"], clock, lines)
    for number, _ in enumerate(looking):
        if number == 3:
            looking.soon(2.0)
        if number == 5:
            looking.soon()
        if number == 6:
            break
    assert clock.waits[3:] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("hours", [1, 6, 13])
def test_the_number_of_looks_and_of_lines_is_bounded(clock: Clock, lines: list[str], hours: int) -> None:
    with remote_error(RemoteKind.TIMEOUT, "a for"):
        list(looks(["a"], clock, lines, hours * 3_600.0))
    assert hours * 3_600 < clock.now < hours * 3_600 + 2 * LONGEST_PAUSE_S
    assert len(clock.waits) < 40 * hours
    assert 2 <= len(lines) <= 9
