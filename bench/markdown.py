"""Write tables in Markdown."""

from collections.abc import Iterator, Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; the first row is its head."""
    for number, cells in enumerate(rows):
        yield f"| {' | '.join(cells)} |"
        if not number:
            yield "|" + "---|" * len(cells)
