"""Make text from outside safe to show: file names and reasons are text on one line."""

from clotkit.errors import on_one_line

LONGEST_NAME = 160  # characters of a file's name
LONGEST_REASON = 400  # characters of a reason or an error


def printable(text: str, most: int = LONGEST_NAME) -> str:
    """Return `text` on one line of at most `most` characters, safe to show."""
    line = on_one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"
