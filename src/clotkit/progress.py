"""Show progress: a tqdm bar on a terminal, one line per item elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

Log = Callable[[str], None]  # takes one line for people


@contextmanager
def progress(total: int, log: Log) -> Iterator[Callable[[str, bool], None]]:
    """Show a tqdm bar of slides on a terminal, and one log line per slide elsewhere.

    Call the function that it yields as each slide ends, with the slide's line, and whether to log that on a terminal
    too.
    """
    from tqdm import tqdm

    number = count(1)
    with tqdm(total=total, unit="slide", disable=not sys.stderr.isatty()) as bar:

        def advance(text: str, always: bool) -> None:
            done = next(number)
            if always or bar.disable:
                with bar.external_write_mode():
                    log(f"[{done}/{total}] {text}")
            bar.update()

        yield advance
