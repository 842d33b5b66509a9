"""Words from outside as they may be shown: file names and reasons are text, never markup."""

import re

LONGEST = 160  # characters of a file's name, or of a reason with one in it
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # all of ASCII's: Markdown takes a backslash before each of them


def shown(text: str, most: int = LONGEST) -> str:
    """One line of at most `most` characters, without control characters or marks that turn the reading direction."""
    line = "".join(char if char.isprintable() else "·" for char in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def plain(text: str, most: int = LONGEST) -> str:
    """`shown`, and escaped for Markdown: no link, no picture, no formula, no colour comes of it."""
    return PUNCTUATION.sub(r"\\\1", shown(text, most))


def without_pictures(markdown: str) -> str:
    """A Markdown text without pictures: what they point at would be fetched by the browser."""
    return markdown.replace("![", "\\!\\[")
