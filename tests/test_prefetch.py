"""Test prefetching: the same events in the same order, within bounds, and no thread left behind."""

import threading
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.config import TilingConfig
from clotkit.scoring.prefetch import prefetch
from clotkit.tiling.tilers import Batch
from clotkit.workers import Ended, Task, TileBatch

TASK = Task("a_0", Path("a_0.tif"), (TilingConfig("patches", 16, 1, 8, 4),))
SIZE = 16 * 16 * 3


def event(number: int) -> TileBatch | Ended:
    if number % 5 == 4:
        return Ended(TASK, str(number), 0.0, 0.0)
    return TileBatch(TASK, number, Batch(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 2), np.int32)))


class Source:
    """A source of events that counts those taken from it, and records that it was closed."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error, self.made, self.closed = count, error, 0, threading.Event()

    def __call__(self, stopped: Callable[[], bool]) -> Generator[TileBatch | Ended, None, None]:
        try:
            while self.made < self.count and not stopped():
                self.made += 1
                yield event(self.made - 1)
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


@given(st.integers(0, 40), st.integers(0, 10))
def test_the_events_are_the_same(count: int, room: int) -> None:
    got = list(prefetch(Source(count), room * SIZE))
    assert len(got) == count
    for number, one in enumerate(got):
        assert one.tiling == number if isinstance(one, TileBatch) else one.reason == str(number)


def test_no_more_waits_than_may() -> None:
    source = Source(1000)
    events = prefetch(source, 3 * SIZE)
    for taken in range(1, 50):
        next(events)
        assert source.made <= taken + 3 + 1 + taken // 5 + 1  # ends have no size
    events.close()
    assert source.closed.is_set()
    assert source.made < 1000


def test_an_error_comes_through_after_what_came_before_it() -> None:
    source = Source(7, ValueError("by the source"))
    events = prefetch(source)
    assert len([next(events) for _ in range(7)]) == 7
    with pytest.raises(ValueError, match="by the source"):
        next(events)
    assert source.closed.is_set()
