"""Make text from outside safe to show: file names and reasons are text, never markup."""

import re

LONGEST_NAME = 160  # characters of a file's name
LONGEST_REASON = 400  # characters of a reason or an error
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # all of ASCII's: Markdown takes a backslash before each of them


def printable(text: str, most: int = LONGEST_NAME) -> str:
    """Return `text` on one line of at most `most` characters.

    Control characters, and marks that turn the reading direction, become dots.
    """
    line = "".join(char if char.isprintable() else "·" for char in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def escaped(text: str, most: int = LONGEST_NAME) -> str:
    """Return `printable` text escaped for Markdown: it makes no link, image, formula or colour."""
    return PUNCTUATION.sub(r"\\\1", printable(text, most))


def escaped_reason(reason: object) -> str:
    """Return an error, or the sentence of a reason, escaped for Markdown."""
    return escaped(str(reason), LONGEST_REASON)


def without_images(markdown: str) -> str:
    """Return a Markdown text without its images, which the browser would fetch from where they point."""
    return markdown.replace("![", "\\!\\[")
