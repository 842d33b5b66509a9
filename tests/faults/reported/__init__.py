"""List faults that users of other readers, tilers and pipelines reported, each with its right value.

Each module of this package holds the cases of one kind in a list CASES. A case makes its input in an empty folder, runs
the product on it, asserts the right value, and returns what it saw. `python -m tests.faults` prints them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

MODULES: tuple[str, ...] = (
    "decoders",
    "background",
    "clusters",
    "delivery",
    "members",
    "output",
    "pages",
    "runs",
    "tables",
)


@dataclass(frozen=True)
class Reported:
    """One reported fault.

    `check` makes the fault happen in an empty folder and returns what was seen, in a few words without this machine's
    paths, times or sizes of memory. It raises AssertionError if the right value was not seen, and calls pytest.skip
    where the system cannot make the fault happen.
    """

    name: str  # what happened to the user: "a label comes before the slide"
    right: str  # the right value: "the largest page is scored, and the report names it"
    check: Callable[[Path], str]
    slow: bool = False  # more than a few seconds: only with the mark slow_faults


def reported() -> dict[str, list[Reported]]:
    """Return the cases by kind: the first line of each module's docstring, without its full stop."""
    modules = [import_module(f"{__name__}.{name}") for name in MODULES]
    return {str(module.__doc__).splitlines()[0].rstrip("."): module.CASES for module in modules}
