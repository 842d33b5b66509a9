"""Show progress: a tqdm bar on a terminal, one line per item elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

Log = Callable[[str], None]  # takes one line for people


@contextmanager
def progress(total: int, log: Log) -> Iterator[Callable[[str, bool], None]]:
    """A tqdm bar of slides on a terminal, a plain line a slide elsewhere; what it yields is called as each ends.

    It is given what is said of the slide, and whether that is a line on a terminal too.
    """
    from tqdm import tqdm

    number = count(1)
    with tqdm(total=total, unit="slide", disable=not sys.stderr.isatty()) as bar:

        def advance(said: str, always: bool) -> None:
            done = next(number)
            if always or bar.disable:
                with bar.external_write_mode():
                    log(f"[{done}/{total}] {said}")
            bar.update()

        yield advance
