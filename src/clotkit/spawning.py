"""Start processes that do not run the program's main module again."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_main() -> Iterator[None]:
    """Start children that do not import the main module first, as spawned ones do.

    A script that calls the kit without `if __name__ == "__main__"` would call it again in every child, and a program
    from standard input has no file to import. Functions of the main module cannot be sent to children meanwhile.
    """
    program = sys.modules["__main__"]
    names: tuple[str, ...] = ("__spec__", "__file__")
    kept = {name: vars(program).pop(name) for name in names if name in vars(program)}
    program.__spec__ = None
    try:
        yield
    finally:
        vars(program).update(kept)
