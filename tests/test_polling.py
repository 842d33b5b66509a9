"""Test the polling of something on Kaggle: pauses, limits and lines."""

from itertools import chain, repeat

import pytest

from clotkit.kaggle.polling import LONGEST_PAUSE_S, Poller
from clotkit.reasons import RemoteKind

from .delivery import Clock, remote_error


def poller(states: list[str], clock: Clock, lines: list[str], limit_s: float = 3_600.0) -> Poller[str]:
    left = chain(states, repeat(states[-1]))
    return Poller(lambda: next(left), "it", lines.append, clock.wait, lambda _: limit_s, "its page", 4.0, clock)


def test_the_pauses_grow_to_a_limit_and_start_again_when_something_has_changed(clock: Clock, lines: list[str]) -> None:
    for state in poller(["a"] * 12 + ["b"] * 3 + ["end"], clock, lines):
        if state == "end":
            break
    assert clock.waits[:3] == [4.0, 6.0, 9.0]
    assert clock.waits[11] == LONGEST_PAUSE_S
    assert clock.waits[12:] == [4.0, 6.0, 9.0]
    assert [line for line in lines if "minutes" not in line] == ["it: a", "it: b", "it: end"]


def test_somebody_who_sees_something_going_on_looks_again_soon(clock: Clock, lines: list[str]) -> None:
    polled = poller(["a"], clock, lines)
    for number, _ in enumerate(polled):
        if number == 3:
            polled.soon(2.0)
        if number == 5:
            polled.soon()
        if number == 6:
            break
    assert clock.waits[3:] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("hours", [1, 6, 13])
def test_the_number_of_looks_and_of_lines_is_bounded(clock: Clock, lines: list[str], hours: int) -> None:
    with remote_error(RemoteKind.TIMEOUT, "a for"):
        list(poller(["a"], clock, lines, hours * 3_600.0))
    assert hours * 3_600 < clock.now < hours * 3_600 + 2 * LONGEST_PAUSE_S
    assert len(clock.waits) < 40 * hours
    assert 2 <= len(lines) <= 9
