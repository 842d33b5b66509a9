"""Check the slides of a split against a competition: their files, ids and facts."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from clotkit.competitions import Competition
from clotkit.drafting.contents import read_contents
from clotkit.drafting.finding import Finding, some
from clotkit.errors import SplitError
from clotkit.reasons import Misfit, TableRepair
from clotkit.splits import SlideRow, read_sample_ids
from clotkit.splits.identity import without_suffix

LOOKED_UP = 20  # ids of missing slides that are looked for in the whole folder


def check_slides(competition: Competition, data: Path, split: str, slides: Sequence[SlideRow]) -> Iterator[Finding]:
    """Yield slides without a file, ids that are numbers, and facts that are unknown."""
    from_sample = any(TableRepair.FROM_SAMPLE in slide.repairs for slide in slides)
    where = competition.files.sample if from_sample else competition.files.table.format(split=split)
    missing = [slide for slide in slides if not slide.path.is_file()]
    yield from _missing_files(competition, data, split, where, slides, missing)
    yield from _numbers(competition, where, slides)
    for fact in competition.facts:
        unknown = [slide for slide in slides if not slide.facts.get(fact.name)]
        if unknown:
            text = (
                f"{fact.name} of {len(unknown)} of {len(slides)} slides is unknown: no such column, and no file by "
                f"{fact.missing_file}"
            )
            yield Finding(Misfit.NO_FACT, where, text, "facts.missing_file", unknown[0].row, len(unknown), len(slides))


def unused_patterns(competition: Competition, data: Path, slides: Sequence[SlideRow]) -> Iterator[Finding]:
    """Yield the patterns that no slide of either split needs."""
    for pattern, count in _files_of_patterns(competition, data, slides).items():
        if slides and not count:
            text = f"{pattern} names no file of {len(slides)} slides"
            yield Finding(Misfit.UNUSED_PATTERN, competition.source.name, text, "files.slide", of=len(slides))


def _missing_files(
    competition: Competition,
    data: Path,
    split: str,
    where: str,
    slides: Sequence[SlideRow],
    missing: Sequence[SlideRow],
) -> Iterator[Finding]:
    """Yield a finding for the rows without a file, with the patterns that were tried."""
    if not missing:
        return
    contents = read_contents(data)
    elsewhere = [name for slide in missing[:LOOKED_UP] for name in contents.named_after(slide.image_id)]
    if split == "test" and len(missing) == len(slides) and not elsewhere:
        text = f"no slide of its {len(slides)} rows is here; sound where the test set is hidden"
        yield Finding(Misfit.HIDDEN_TEST, where, text, "files.slide", missing[0].row, len(missing), len(slides))
        return
    counts = _files_of_patterns(competition, data, slides)
    tried = ", ".join(f"{pattern} has {count}" for pattern, count in counts.items())
    hint = f"; files with such names: {some(dict.fromkeys(elsewhere))}" if elsewhere else ""
    text = (
        f"{len(missing)} of {len(slides)} rows have no slide, {len(slides) - len(missing)} have one ({tried}): "
        f"{some([slide.image_id for slide in missing])}{hint}"
    )
    yield Finding(Misfit.NO_SLIDE, where, text, "files.slide", missing[0].row, len(missing), len(slides))


def _files_of_patterns(competition: Competition, data: Path, slides: Sequence[SlideRow]) -> dict[str, int]:
    """Return how many slides each pattern names a file of."""
    patterns = competition.files.slide
    return {pattern: sum((data / slide.names[at]).is_file() for slide in slides) for at, pattern in enumerate(patterns)}


def _numbers(competition: Competition, where: str, slides: Sequence[SlideRow]) -> Iterator[Finding]:
    """Yield the ids that a table program made numbers of: with .0, or without their file's zeros."""
    lost = [
        slide
        for slide in slides
        if TableRepair.ID_AS_NUMBER in slide.repairs
        or slide.image_id.endswith(".0")
        or (TableRepair.OTHER_FILE in slide.repairs and _zeros_lost(slide))
    ]
    if lost:
        names = some([f"{slide.image_id} ({slide.path.name})" for slide in lost])
        text = (
            f"{len(lost)} of {len(slides)} ids were read as numbers by a table program: {names}; fetch the table again"
        )
        yield Finding(Misfit.ID_AS_NUMBER, where, text, "columns.image", lost[0].row, len(lost), len(slides))


def _zeros_lost(slide: SlideRow) -> bool:
    """Return True if the file that was found has zeros at its start that the expected name lacks."""
    expected = [without_suffix(PurePosixPath(name).name) for name in slide.names]
    stem = without_suffix(slide.path.name)
    return any(stem != name and stem.lstrip("0") == name.lstrip("0") for name in expected)


def check_sample_ids(competition: Competition, data: Path, slides: Sequence[SlideRow]) -> Iterator[Finding]:
    """Yield ids of the sample without a slide, and test slides without a row in the sample."""
    ids: list[str] | None = None
    with suppress(SplitError):
        ids = read_sample_ids(competition.sample_path(data), competition)
    if ids is None or not slides:
        return
    unit = {slide.image_id if competition.by_image else slide.patient_id: slide for slide in slides}
    where, table = competition.files.sample, competition.files.table.format(split="test")
    if without := [one for one in ids if one not in unit]:
        text = f"{len(without)} of {len(ids)} ids have no row in {table}: {some(without)}"
        row = ids.index(without[0]) + 2
        yield Finding(Misfit.SAMPLE_WITHOUT_SLIDE, where, text, "submission.id", row, len(without), len(ids))
    known = set(ids)
    if extra := [slide for one, slide in unit.items() if one not in known]:
        names = some([slide.image_id for slide in extra])
        text = f"{len(extra)} of {len(unit)} have no row in {where}, so none in the output: {names}"
        yield Finding(Misfit.SLIDE_WITHOUT_SAMPLE, table, text, "submission.id", extra[0].row, len(extra), len(unit))
