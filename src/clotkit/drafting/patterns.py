"""Guess how files of slides are named, by the ids and cells of their rows."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clotkit.drafting.contents import Contents, as_word, with_word

BESIDE = re.compile(r"thumb|mask|label|annot|preview|overview|macro|segment")  # not the slide, but a file beside it
SAMPLED = 60  # rows of a split whose files are looked at for patterns
MOST_PATTERNS = 30  # that are tried on every row
IMAGE, PATIENT, SPLIT = "\1", "\2", "\3"  # stand for placeholders while names are replaced
PLACEHOLDERS = {IMAGE: "{image_id}", PATIENT: "{patient_id}", SPLIT: "{split}"}
KEPT = 20  # patterns of one competition


@dataclass(frozen=True)
class Named:
    """A slide's row with what may be in its file's name."""

    split: str
    image_id: str
    patient_id: str
    cells: Mapping[str, str]  # of other columns that every table has

    def file(self, pattern: str) -> str:
        """Return the name of its file by a pattern."""
        names = {**self.cells}
        names.update(split=self.split, image_id=self.image_id, patient_id=self.patient_id)
        return pattern.format_map(names)


def find_patterns(rows: Sequence[Named], contents: Contents) -> list[str]:
    """Return the patterns that name the files of the rows, the one with most files first.

    Masks and thumbnails count only where there is nothing else. Where two patterns name as many files, the larger
    files are the slides.
    """
    tried = Counter(
        pattern
        for row in sampled(rows)
        for name in contents.named_after(row.image_id)[:8]
        for pattern in patterns_of(name, row)
    )
    slides = [pattern for pattern in tried if not BESIDE.search(pattern.casefold())] or list(tried)
    slides = sorted(slides, key=lambda pattern: -tried[pattern])[:MOST_PATTERNS]
    there = set(contents.slides)
    covered = {pattern: {at for at, row in enumerate(rows) if row.file(pattern) in there} for pattern in slides}
    chosen: list[str] = []
    left = set(range(len(rows)))
    while covered and left and len(chosen) < KEPT:
        most = max(len(found & left) for found in covered.values())
        best = [pattern for pattern, found in covered.items() if len(found & left) == most]
        if not most:
            break
        chosen.append(max(best, key=lambda one: (_bytes(rows, covered[one], one, contents.root), -one.count("{"))))
        left -= covered[chosen[-1]]
    return chosen


def find_missing_file(rows: Sequence[Named], truth: Sequence[bool], contents: Contents) -> str:
    """Return the pattern of a file that exactly the rows of a false `truth` have; empty if there is none."""
    beside = [name for name in contents.slides if BESIDE.search(name.casefold())]
    tried = Counter(
        pattern
        for row in sampled(rows)
        for name in with_word(beside, row.image_id)[:8]
        for pattern in patterns_of(name, row)
    )
    there = set(beside)
    for pattern, _ in tried.most_common(MOST_PATTERNS):
        if all((row.file(pattern) not in there) is value for row, value in zip(rows, truth, strict=True)):
            return pattern
    return ""


def sampled(rows: Sequence[Named]) -> Iterable[Named]:
    """Yield some rows of each split, evenly spaced."""
    for split in ("train", "test"):
        of_split = [row for row in rows if row.split == split]
        yield from of_split[:: max(1, len(of_split) // SAMPLED)]


def patterns_of(name: str, row: Named) -> set[str]:
    """Return the patterns by which a row may name this file."""
    marked = name
    for mark, text in ((IMAGE, row.image_id), (PATIENT, row.patient_id)):
        marked = as_word(text).sub(mark, marked) if text else marked
    *folders, file = re.sub(rf"(?<![A-Za-z]){row.split}(?![A-Za-z])", SPLIT, marked).split("/")
    if IMAGE not in "/".join([*folders, file]):
        return set()
    cells = [[key for key, cell in row.cells.items() if cell and cell == folder] for folder in folders]
    bare, *parts = map(_escaped, [file, *folders])
    by_cell = [f"{{{found[0]}}}" if found else part for part, found in zip(parts, cells, strict=True)]
    found = {"/".join([*parts, bare]), "/".join([*by_cell, bare])}
    return {_unmarked(pattern) for pattern in found}


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _unmarked(pattern: str) -> str:
    for mark, placeholder in PLACEHOLDERS.items():
        pattern = pattern.replace(mark, placeholder)
    return pattern


def _bytes(rows: Sequence[Named], at: Collection[int], pattern: str, root: Path) -> int:
    """Return the size of the largest of the first files of a pattern."""
    sizes = [0]
    for one in sorted(at)[:5]:
        with suppress(OSError):
            sizes.append((root / rows[one].file(pattern)).stat().st_size)
    return max(sizes)
