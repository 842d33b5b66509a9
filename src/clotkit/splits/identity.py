"""Tell which patient a row of a table is about: by its cell, its image id and the sample submission.

A table program loses zeros, makes numbers of ids, or leaves cells blank. Where only one patient is possible the row is
joined to it, and the row says so; else the table is refused.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import PurePosixPath

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.reasons import TableRepair
from clotkit.splits.tables import Row

BLANK = frozenset({"", "nan", "na", "n/a", "none", "null", "nil", "<na>", "#n/a", "#name?", "#ref!", "?", "-"})
SLIDE_SUFFIXES = frozenset(
    {".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".svslide", ".czi", ".vsi"}
    | {".dcm", ".jp2", ".png", ".jpg", ".jpeg"}
)
NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Identity:
    """The ids of one row, and how they were read otherwise than they are written."""

    image_id: str
    patient_id: str
    row: Row
    repairs: tuple[TableRepair, ...] = ()


@dataclass(frozen=True)
class Joiner:
    """Joins the rows of one table to their patients."""

    where: str  # the table, in errors
    competition: Competition
    known: Collection[str] | None  # patients of the sample submission; None: there is no sample
    agree: int  # rows whose image id has the patient of their cell
    contradict: int  # rows whose image id has another one

    def identity(self, row: Row) -> Identity:
        """Return the ids of a row. Raises SplitError if its patient is uncertain."""
        image_id, repairs = self._image(row)
        embedded = patient_of(image_id, self.competition)
        if not self.competition.columns.patient:
            return Identity(image_id, embedded or image_id, row, tuple(repairs))
        patient, repair = self._patient(row, embedded)
        repairs += [repair] if repair else []
        if self.known is not None and patient not in self.known:
            similar = _similar(patient, self.known)
            if len(similar) == 1:
                patient, repair = similar[0]
                repairs += [repair]
            else:
                repairs.append(TableRepair.NOT_IN_SAMPLE)
        return Identity(image_id, patient, row, tuple(dict.fromkeys(repairs)))

    def _image(self, row: Row) -> tuple[str, list[TableRepair]]:
        """Return the image id of a row, without a file's extension. Raises SplitError if it is no file name."""
        column = self.competition.columns.image
        cell = row[column]
        image_id = without_suffix(cell)
        as_written = self.competition.ids.has_extension or image_id == cell
        if not image_id or "/" in image_id or image_id in {".", ".."}:
            raise SplitError(f"{self.where}: row {row.number}: {column} {cell!r} is not a file name; correct the cell")
        return image_id, [] if as_written else [TableRepair.EXTENSION]

    def _patient(self, row: Row, embedded: str | None) -> tuple[str, TableRepair | None]:
        """Return the patient of a row, whose image id has the patient `embedded`, and how it was found."""
        column = self.competition.columns.patient
        cell = row.get(column, "")
        in_sample = self.known is not None and cell in self.known
        if cell == embedded or (in_sample and embedded is None):
            return cell, None
        if in_sample and self.known is not None and embedded not in self.known:
            return cell, TableRepair.CONTRADICTION
        if embedded is None:
            return self._of_another_form(row, cell), None
        return (embedded, None) if column not in row else self._of_image(row, cell, embedded)

    def _of_another_form(self, row: Row, cell: str) -> str:
        """Return the patient in the cell of a row whose image id has none. Raises SplitError if it is blank."""
        columns = self.competition.columns
        if cell.casefold() in BLANK:
            raise SplitError(
                f"{self.where}: row {row.number}: {columns.patient} is {cell or 'blank'}, and {columns.image} "
                f"{row[columns.image]!r} is not of the form {self.competition.ids.image}, which has the patient; fill "
                "the cell"
            )
        return cell

    def _of_image(self, row: Row, cell: str, embedded: str) -> tuple[str, TableRepair]:
        """Return the patient of a row whose cell is not the patient `embedded` in its image id."""
        if cell.casefold() in BLANK:
            return embedded, TableRepair.BLANK_PATIENT
        for repair, same in SIMILARITIES.items():
            if same(embedded, cell):
                return embedded, repair
        return self._contradicted(row, cell, embedded)

    def _contradicted(self, row: Row, cell: str, embedded: str) -> tuple[str, TableRepair]:
        """Return the patient of a row whose image id has another patient than its cell.

        The image id counts where the sample has its patient alone, or where most rows confirm that image ids have
        their patient. The cells count where no row confirms it and nothing else is known.
        """
        in_sample = self.known is not None and embedded in self.known and cell not in self.known
        if in_sample or self.agree > self.contradict:
            return embedded, TableRepair.CONTRADICTION
        if self.known is None and not self.agree:
            return cell, TableRepair.CONTRADICTION
        columns = self.competition.columns
        raise SplitError(
            f"{self.where}: row {row.number}: {columns.patient} {cell!r} contradicts {columns.image} "
            f"{row[columns.image]!r}, as in {self.contradict} of {self.agree + self.contradict} rows; correct the cells"
        )


def joined(rows: Sequence[Row], where: str, competition: Competition, known: Collection[str] | None) -> list[Identity]:
    """Return the ids of every row; without a column of patients, every slide is a patient of its own.

    Args:
        rows: the rows of a table with the competition's image column.
        where: the table, in errors.
        competition: says the form of ids.
        known: the patients of the sample submission; None: there is no sample, or its rows are slides.

    Raises:
        SplitError: an image id is no file name, or a patient is uncertain.
    """
    pairs = [
        (
            row.get(competition.columns.patient, ""),
            patient_of(without_suffix(row[competition.columns.image]), competition),
        )
        for row in rows
    ]
    formed = [(cell, embedded) for cell, embedded in pairs if embedded is not None and cell.casefold() not in BLANK]
    agree = sum(cell == embedded for cell, embedded in formed)
    contradict = sum(not any(same(embedded, cell) for same in SIMILARITIES.values()) for cell, embedded in formed)
    joiner = Joiner(where, competition, known, agree, contradict)
    return [joiner.identity(row) for row in rows]


def in_sample(identities: Sequence[Identity], known: Collection[str]) -> list[Identity]:
    """Return the ids of rows, image ids as the sample submission spells them where one only can be meant."""
    taken = {one.image_id for one in identities}
    free = [one for one in known if one not in taken]
    meant = {one: similar[0] for one in taken.difference(known) if len(similar := _similar(one, free)) == 1}
    counts = Counter(image_id for image_id, _ in meant.values())
    unique = {one: respelled for one, respelled in meant.items() if counts[respelled[0]] == 1}
    return [_respelled(one, *unique[one.image_id]) if one.image_id in unique else one for one in identities]


def _respelled(one: Identity, image_id: str, repair: TableRepair) -> Identity:
    """Return an identity with the image id as the sample spells it."""
    patient_id = image_id if one.patient_id == one.image_id else one.patient_id
    return replace(one, image_id=image_id, patient_id=patient_id, repairs=(*one.repairs, repair))


def without_suffix(name: str) -> str:
    """Return the name of a slide's file without its extension; a name without one stays."""
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    if suffix.casefold() not in SLIDE_SUFFIXES:
        return name
    bare = name[: -len(suffix)]
    return bare[: -len(".ome")] if stem.casefold().endswith(".ome") else bare


def patient_of(image_id: str, competition: Competition) -> str | None:
    """Return the patient id within an image id; None for an image id of another form."""
    if not competition.ids.image:
        return None
    patient = competition.ids.patient or ".+"
    form = re.escape(competition.ids.image).replace(re.escape("{patient}"), f"(?P<patient>{patient})")
    match = re.fullmatch(form.replace(re.escape("{number}"), "[0-9]+"), image_id)
    return None if match is None else match["patient"]


def same_number(known: str, other: str) -> bool:
    """Return whether `other` is `known` as a table program writes it: zeros lost, a float, 1e5 for 100000."""
    if len(other) == len(known) and other.isalnum():  # an id itself, not a number: 0001e5 is not 100e03
        return other == known
    if other and known.lstrip("0") == other.lstrip("0"):
        return True
    if "." in known or not (NUMBER.fullmatch(known) and NUMBER.fullmatch(other)):
        return False
    return Decimal(known) == Decimal(other)


def same_spelling(known: str, other: str) -> bool:
    """Return whether two ids differ in case or in the form of Unicode only."""
    return folded(known) == folded(other)


def folded(text: str) -> str:
    """Return a name without its capitals, in one form of Unicode."""
    return composed(composed(text).casefold())


def composed(text: str) -> str:
    """Return a name in one form of Unicode, as another system may write it otherwise."""
    return unicodedata.normalize("NFC", text)


SIMILARITIES = {TableRepair.SPELLING: same_spelling, TableRepair.ID_AS_NUMBER: same_number}


def _similar(patient: str, known: Iterable[str]) -> list[tuple[str, TableRepair]]:
    """Return the known patients that `patient` may be, with how it is written otherwise."""
    return [
        (one, repair)
        for one in known
        for repair in [next((repair for repair, same in SIMILARITIES.items() if same(one, patient)), None)]
        if repair is not None
    ]
