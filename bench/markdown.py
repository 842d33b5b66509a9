"""Write tables in Markdown, and put them into a page."""

from collections.abc import Iterator, Sequence

from clotkit.errors import UsageError


def markdown_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; the first row is its head."""
    for number, cells in enumerate(rows):
        yield f"| {' | '.join(cells)} |"
        if not number:
            yield "|" + "---|" * len(cells)


def with_table(page: str, table: str, marks: tuple[str, str]) -> str:
    """Return a page with the table between its two marks. Raises UsageError if it lacks them."""
    begin, end = marks
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise UsageError(f"the page has no pair of lines {begin!r} and {end!r}; add them where the table is to be")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"
