"""Results that pages share: each is made once however many ask, and few are kept."""

import gc
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.app.web.shared import Cache

WAIT_S = 60.0


class Maker:
    """Counts what it makes; `gate` holds it back until it is set."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls, self.error = 0, error
        self.begun, self.gate = threading.Event(), threading.Event()

    def __call__(self) -> object:
        """Make a result of its own, or raise the error."""
        self.calls += 1
        self.begun.set()
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return object()


def never() -> object:
    """Fail: what is kept is not made again."""
    raise AssertionError


def absent() -> object:
    """Fail as what is damaged or missing does."""
    raise LookupError


def test_who_asks_while_it_is_made_waits_for_it_though_others_fill_the_cache() -> None:
    cache, slow = Cache(1), Maker()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(cache.get, "slow", slow)
        assert slow.begun.wait(WAIT_S)
        others = [threads.submit(cache.get, "slow", slow) for _ in range(6)]
        for number in range(10):  # each of them pushes the one before out
            assert cache.get(number, lambda number=number: number) == number  # type: ignore[misc]
        late = threads.submit(cache.get, "slow", slow)
        slow.gate.set()
        found = {id(one.result(WAIT_S)) for one in (first, *others, late)}
    assert (slow.calls, len(found)) == (1, 1)
    assert id(cache.get("slow", never)) in found


class Key:
    """A key that notes the threads that have looked it up."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __hash__(self) -> int:
        """Note the thread."""
        self.threads.add(threading.get_ident())
        return 1


@pytest.mark.parametrize("error", [ValueError("damaged"), SystemExit(2), KeyboardInterrupt()], ids=type)
def test_an_error_reaches_all_who_waited_and_is_made_again(error: BaseException) -> None:
    cache, key, failing, caught = Cache(4), Key(), Maker(error), list[BaseException]()

    def ask() -> None:
        try:
            cache.get(key, failing)
        except BaseException as one:  # noqa: BLE001 - it is what the test looks for
            caught.append(one)

    threads, pause, end = [threading.Thread(target=ask) for _ in range(5)], threading.Event(), time.monotonic() + WAIT_S
    for one in threads:
        one.start()
    while len(key.threads) < len(threads):
        assert time.monotonic() < end
        pause.wait(0.01)
    failing.gate.set()
    for one in threads:
        one.join(WAIT_S)
    assert (caught, failing.calls) == ([error] * 5, 1)
    assert cache.get(key, lambda: 7) == 7
    assert cache.get(key, never) == 7


def test_many_errors_leave_nothing_behind() -> None:
    cache, keys = Cache(2), [Key() for _ in range(50)]
    for key in keys:
        with pytest.raises(LookupError):
            cache.get(key, absent)
    watched = [weakref.ref(key) for key in keys]
    del key, keys
    gc.collect()
    assert not [one for one in watched if one() is not None]


@given(st.integers(1, 4), st.lists(st.integers(0, 6), max_size=40))
def test_it_keeps_the_newest_asked_for_and_no_more(most: int, keys: list[int]) -> None:
    cache, made, kept = Cache(most), Counter[int](), list[int]()
    for key in keys:
        before = made[key]
        assert cache.get(key, lambda key=key: (made.update([key]), key)[1]) == key  # type: ignore[misc]
        assert made[key] == before + (key not in kept)
        kept = [*(one for one in kept if one != key), key][-most:]


def test_many_threads_with_few_places_get_each_its_own_result() -> None:
    cache, running, twice = Cache(2), Counter[int](), list[int]()
    lock = threading.Lock()

    def make(key: int) -> int:
        with lock:
            running[key] += 1
            twice.extend([key] if running[key] > 1 else [])
        threading.Event().wait(0.0005)
        with lock:
            running[key] -= 1
        if key % 3 == 0:
            raise LookupError(key)
        return key

    def ask(number: int) -> bool:
        key = number * 7 % 11
        try:
            return cache.get(key, lambda: make(key)) == key
        except LookupError as error:
            return error.args == (key,) and key % 3 == 0

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(2000)))
    assert not twice, "no key is made twice at a time"
