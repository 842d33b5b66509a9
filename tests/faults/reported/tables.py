"""Tables as people's programs write them.

A sound split of four slides is changed as a table program, an export or a person changes it. Either its slides and
patients are those of the sound split and the repairs are named, or the command ends with 2 and one line.
"""

import contextlib
import csv
import io
import json
import os
import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.cli import main
from clotkit.competitions import load_competition
from clotkit.reasons import Reason, TableRepair
from clotkit.slides.reader import open_slide
from clotkit.splits import read_sample_ids, read_slides
from clotkit.submission.answers import Fault
from clotkit.submission.checking import check_submission

from . import Reported

IMAGES = ("006388_0", "006388_1", "1e0003_0", "ab12cd_0")
PATIENTS = ("006388", "1e0003", "ab12cd")
HEADER = ("image_id", "center_id", "patient_id", "image_num")
DEMO = Path(__file__).resolve().parents[3] / "weights" / "demo"


@dataclass
class Split:
    """A split before it is written, for a case to change."""

    rows: list[list[str]] = field(
        default_factory=lambda: [list(HEADER), *([one, "4", one[:6], one[7]] for one in IMAGES)]
    )
    sample: list[list[str]] = field(
        default_factory=lambda: [["patient_id", "CE", "LAA"], *([one, "0.5", "0.5"] for one in PATIENTS)]
    )
    files: list[bytes] = field(default_factory=lambda: [f"{one}.tif".encode() for one in IMAGES])
    as_bytes: Callable[[str], bytes] = str.encode  # of test.csv
    delimiter: str = ","
    split: str = "test"

    def text(self) -> str:
        """Return the table's text."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n", delimiter=self.delimiter).writerows(self.rows)
        return text.getvalue()

    def write(self, folder: Path) -> Path:
        """Write the split into `folder` and return it."""
        (folder / self.split).mkdir(parents=True)
        for name in self.files:
            (folder / self.split / os.fsdecode(name)).write_bytes(b"a slide")
        (folder / f"{self.split}.csv").write_bytes(self.as_bytes(self.text()))
        with (folder / "sample_submission.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(self.sample)
        return folder


Change = Callable[[Split], None]


def says(number: int, cell: int, text: str) -> Change:
    """Return a change of one cell; the header is row 1."""

    def change(split: Split) -> None:
        split.rows[number - 1][cell] = text

    return change


def cells(cell: int, write: Callable[[str], str]) -> Change:
    """Return a change of one column."""

    def change(split: Split) -> None:
        for row in split.rows[1:]:
            row[cell] = write(row[cell])

    return change


def sample_cells(write: Callable[[str], str]) -> Change:
    """Return a change of the ids of the sample submission."""

    def change(split: Split) -> None:
        for row in split.sample[1:]:
            row[0] = write(row[0])

    return change


def written(as_bytes: Callable[[str], bytes], delimiter: str = ",") -> Change:
    """Return a change of the way in which the table is written."""

    def change(split: Split) -> None:
        split.as_bytes, split.delimiter = as_bytes, delimiter

    return change


def named(*files: str | bytes) -> Change:
    """Return a change of the slides' files."""

    def change(split: Split) -> None:
        split.files = [os.fsencode(name) for name in files]

    return change


def both(*changes: Change) -> Change:
    """Return several changes in one."""

    def change(split: Split) -> None:
        for one in changes:
            one(split)

    return change


def header(write: Callable[[str], str]) -> Change:
    """Return a change of the header's names."""

    def change(split: Split) -> None:
        split.rows[0] = [write(name) for name in split.rows[0]]

    return change


def row(*cells_of_row: str) -> Change:
    """Return a change that adds a row."""
    return lambda split: split.rows.append(list(cells_of_row))


def cut(number: int, width: int) -> Change:
    """Return a change that ends a row early."""

    def change(split: Split) -> None:
        split.rows[number - 1] = split.rows[number - 1][:width]

    return change


def train(*labels: str) -> Change:
    """Return a change into a train split with these labels."""

    def change(split: Split) -> None:
        split.split = "train"
        split.rows = [[*one, label] for one, label in zip(split.rows, ["label", *labels], strict=True)]

    return change


def excel(cell: str) -> str:
    """Return an id as a table program writes it that takes it for a number."""
    return f"{float(cell):g}" if cell.replace("e", "", 1).isdigit() else cell


def zipped(text: str) -> bytes:
    """Return a workbook, as far as its first bytes tell."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("[Content_Types].xml", text)
    return data.getvalue()


def quoted(text: str) -> bytes:
    """Return a table with every cell in quotes, and a space before each."""
    return "".join(f'"{line}"\n'.replace(",", '", "') for line in text.splitlines()).encode()


def read(change: Change, repairs: Sequence[TableRepair], folder: Path) -> str:
    """Check that the changed split has the slides and patients of the sound one, and these repairs."""
    split, competition, said = Split(), load_competition(), list[str]()
    change(split)
    where = split.write(folder)
    slides = read_slides(where, split.split, competition, said.append)
    assert [slide.patient_id for slide in slides] == [one[:6] for one in IMAGES]
    assert all(slide.path.is_file() for slide in slides)
    assert len({slide.path for slide in slides}) == len(IMAGES)
    assert read_sample_ids(competition.sample_path(where), competition) == list(PATIENTS)
    found = {repair for slide in slides for repair in slide.repairs}
    assert found == set(repairs)
    assert len(said) >= len(found)
    return ", ".join(sorted(found)) or "read as it is meant"


def refuse(change: Change, file: str, number: int | None, folder: Path) -> str:
    """Check that a run ends with 2, before it writes, in one line with the file and the row."""
    split = Split()
    change(split)
    where, said = split.write(folder / "split"), io.StringIO()
    verb = "run" if split.split == "test" else "tile"
    words = [verb, str(where), *(["--weights", str(DEMO), "--out"] if verb == "run" else []), str(folder / "out")]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main([*words, *(["--recipe", "demo"] if verb == "tile" else [])])
    lines = said.getvalue().splitlines()
    line = lines[-1]
    assert code == 2
    assert not (folder / "out").exists()
    assert line.startswith(f"clotkit: {where / file}")
    assert number is None or f"row {number}" in line
    assert "Traceback" not in said.getvalue()
    return line.partition(f"{where}/")[2].replace(f"{where}/", "")[:150]


def joined(name: str, change: Change, *repairs: TableRepair) -> Reported:
    """Return a case whose split is read as the sound one."""
    right = f"the sound split's slides and patients{', and ' if repairs else ''}{', '.join(repairs)}"
    return Reported(name, right, partial(read, change, repairs))


def refused(name: str, change: Change, number: int | None = None, file: str = "test.csv") -> Reported:
    """Return a case that ends with one line."""
    where = file if number is None else f"{file}, row {number}"
    return Reported(name, f"exit code 2, one line with {where}", partial(refuse, change, file, number))


# --- Numbers of a submission


def numbers(cell: str, fault: Fault | None, folder: Path) -> str:
    """Check a submission with this cell for a number."""
    competition = load_competition()
    split = Split()
    where = split.write(folder)
    split.sample[2][1] = cell
    submission = where / "submission.csv"
    with submission.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(split.sample)
    verdict = check_submission(submission, competition.sample_path(where), competition)
    assert [(problem.code, problem.row) for problem in verdict.problems] == ([(fault, 3)] if fault else [])
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(["check", str(submission), "--sample", str(competition.sample_path(where))])
    assert code == (2 if fault else 0)
    return str(verdict.problems[0]) if fault else "valid"


def number(cell: str, fault: Fault | None) -> Reported:
    """Return a case of a cell in a submission."""
    right = "row 3 is named, exit code 2" if fault else "valid: pandas reads it as a number"
    return Reported(f"a submission with {cell!r} for a number", right, partial(numbers, cell, fault))


# --- Whole runs


def scored(
    folder: Path, into: bytes, change: Change = lambda split: None
) -> tuple[int, list[list[str]], dict[str, Any]]:
    """Run a split of three drawn slides; return the exit code, the rows of the submission and run.json."""
    from clotkit.synthetic.phantom import write_split

    where, out = folder / os.fsdecode(into), folder / os.fsdecode(b"out of " + into)
    write_split(where, "test", 3, 4, load_competition(), size="640x640", log=lambda _: None)
    split = Split()
    for name, table in (("test.csv", split.rows), ("sample_submission.csv", split.sample)):
        table[:] = list(csv.reader(io.StringIO((where / name).read_text(), newline="")))
    change(split)
    (where / "test.csv").write_bytes(split.as_bytes(split.text()))
    (where / "sample_submission.csv").write_text("".join(f"{','.join(one)}\n" for one in split.sample))
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        code = main(["run", str(where), "--weights", str(DEMO), "--out", str(out), "--jobs", "2"])
    rows = list(csv.reader(io.StringIO((out / "submission.csv").read_text(), newline="")))
    assert (out / "report.html").is_file()
    return code, rows, json.loads((out / "run.json").read_text())


def not_utf8(folder: Path) -> str:
    """Score a split in a folder whose name is latin-1, into another one."""
    code, rows, facts = scored(folder, b"gr\xfcn \xff")
    assert code == 0
    assert ["0.500000", "0.500000"] not in [one[1:] for one in rows]
    assert str(facts["arguments"]["split"]).endswith(os.fsdecode(b"gr\xfcn \xff"))
    return "scored, and run.json has the name"


def by_libvips(folder: Path) -> str:
    """Read a slide that libvips decodes, in a folder and a file that are not UTF-8."""
    import tifffile

    where = folder / os.fsdecode(b"d\xe9p\xf4t")
    where.mkdir()
    path, pixels = where / os.fsdecode(b"\xff.tif"), np.full((200, 300, 3), 40_000, np.uint16)
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=50)
    slide = open_slide(path)
    (tile,) = slide.tiles([(0, 0)], 64, 1, (255, 255, 255))
    assert tile.min() == tile.max() == 40_000 >> 8
    return "read"


def long_name(folder: Path) -> str:
    """Tile a split with an image id that is longer than a file's name may be."""
    split = Split(files=[])
    split.rows.append([f"{'f' * 300}_0", "4", "006388", "2"])
    split.rows[1:-1] = []
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(["tile", str(split.write(folder / "split")), str(folder / "out"), "--recipe", "demo"])
    assert code == 3
    assert "Traceback" not in said.getvalue()
    (line,) = csv.DictReader(io.StringIO((folder / "out" / "shards.csv").read_text(), newline=""))
    assert line["code"] == Reason.DAMAGED
    return str(line["reason"])


def line_separators(folder: Path) -> str:
    """Score slides whose patient has U+0085 and U+2028 in its name."""

    def change(split: Split) -> None:
        patient = split.rows[1][2]
        odd = f"{patient[:3]}\x85\u2028{patient[3:]}"
        for one in (*split.rows, *split.sample):
            one[:] = [cell.replace(patient, odd) for cell in one]
        for path in (folder / "lines" / "test").glob(f"{patient}_*"):
            path.rename(path.with_name(path.name.replace(patient, odd)))

    code, rows, _ = scored(folder, b"lines", change)
    assert code == 0
    assert ["0.500000", "0.500000"] not in [one[1:] for one in rows]
    return "scored, with the report"


def stranger(folder: Path) -> str:
    """Score a slide whose patient is not in the sample, and a patient of the sample without a slide."""

    def change(split: Split) -> None:
        split.sample[1][0] = "facade"

    code, rows, facts = scored(folder, b"stranger", change)
    assert code == 3
    assert rows[1] == ["facade", "0.500000", "0.500000"]
    assert set(facts["repairs"]) == {TableRepair.NOT_IN_SAMPLE}
    assert facts["patients"]["without_slide"] == ["facade"]
    assert len(facts["patients"]["not_in_sample"]) == 1
    return "exit code 3; run.json names both patients"


A, P, N = 0, 2, 3  # columns of test.csv: image, patient, number
R = TableRepair
BARE = [f"{one}.tif" for one in IMAGES]

CASES = [
    # Identity.
    joined("one row with the patient of another row", says(4, P, "ab12cd"), R.CONTRADICTION),
    joined("one row with a patient that nobody knows", says(3, P, "ffffff"), R.CONTRADICTION),
    joined(
        "one image id that is not of its patient",
        both(says(5, A, "ffffff_0"), named(*BARE[:3], "ffffff_0.tif")),
        R.CONTRADICTION,
    ),
    joined("all rows with patients that the sample lacks", cells(P, lambda cell: f"P{cell}"), R.CONTRADICTION),
    refused(
        "the column of patients is sorted on its own",
        both(says(2, P, "ab12cd"), says(3, P, "1e0003"), says(4, P, "006388"), says(5, P, "006388")),
        2,
    ),
    joined("lost zeros in test.csv", cells(P, lambda cell: cell.lstrip("0")), R.ID_AS_NUMBER),
    joined("ids that became numbers, 1e0003 to 1000", cells(P, excel), R.ID_AS_NUMBER),
    joined("ids that became floats, 6388.0", says(2, P, "6388.0"), R.ID_AS_NUMBER),
    joined("ids that became 6.388E+03", says(2, P, "6.388E+03"), R.ID_AS_NUMBER),
    joined("lost zeros in the sample submission", sample_cells(excel)),
    joined("lost zeros in both tables", both(cells(P, excel), sample_cells(excel)), R.ID_AS_NUMBER),
    refused(
        "lost zeros in the sample, of a patient without a slide",
        lambda split: split.sample.append(["77", "1", "0"]),
        5,
        "sample_submission.csv",
    ),
    joined("patient ids in capitals", cells(P, str.upper), R.SPELLING),
    joined("a row that ends after its image id", cut(3, 1), R.BLANK_PATIENT),
    *(
        joined(f"the patient {word!r}", says(4, P, word), R.BLANK_PATIENT)
        for word in ("", "nan", "NA", "None", "NULL", "#N/A")
    ),
    refused("a blank patient, and an image id of another form", both(says(3, A, "scan 12"), says(3, P, "nan")), 3),
    joined("a slide that is listed twice", row(*["006388_1", "4", "006388", "1"]), R.REPEATED),
    joined(
        "a slide that is listed twice, for two patients",
        row(*["006388_1", "4", "ab12cd", "1"]),
        R.REPEATED,
        R.CONTRADICTION,
    ),
    refused(
        "a slide of another form that is listed twice, for two patients",
        both(row("scan", "4", "1e0003", "1"), row("scan", "4", "ab12cd", "1")),
        7,
    ),
    refused(
        "a slide under two classes",
        both(row(*["1e0003_0", "4", "1e0003", "0"]), train("CE", "CE", "CE", "LAA", "LAA")),
        6,
        "train.csv",
    ),
    refused("a patient of two classes", train("CE", "LAA", "CE", "LAA"), 3, "train.csv"),
    joined("labels in small letters", train("ce", "ce", "laa", "LAA")),
    refused("no patient of the table is in the sample", sample_cells(lambda cell: cell.replace(cell[0], "9"))),
    Reported("a slide whose patient is not in the sample", "exit code 3, named in run.json", stranger),
    # Tables.
    joined(
        "spaces around cells and names", both(header(lambda name: f" {name} "), cells(A, lambda cell: f"  {cell}\t"))
    ),
    joined(
        "no-break and zero-width spaces",
        both(cells(A, lambda cell: f"\xa0{cell}\u200b"), cells(P, lambda cell: f"{cell}\u3000")),
    ),
    joined("a file's extension in image ids", cells(A, lambda cell: f"{cell}.TIFF"), R.EXTENSION),
    joined("an OME extension in image ids", cells(A, lambda cell: f"{cell}.ome.tif"), R.EXTENSION),
    joined(
        "files in capitals",
        named(*(name.upper().replace("AB12CD", "ab12cd").replace("1E", "1e") for name in BARE)),
        R.OTHER_FILE,
    ),
    joined(
        "slides as .tiff, .svs and .ndpi",
        named("006388_0.tiff", "006388_1.svs", "1e0003_0.ndpi", "ab12cd_0.Tif"),
        R.OTHER_FILE,
    ),
    joined(
        "lost zeros in image ids and in patients",
        both(cells(A, lambda cell: cell.lstrip("0")), cells(P, lambda cell: cell.lstrip("0"))),
        R.ID_AS_NUMBER,
        R.OTHER_FILE,
    ),
    refused("a slide as .tiff and as .svs", named(*BARE[1:], "006388_0.tiff", "006388_0.svs")),
    joined("the expected file beside others", named(*BARE, "006388_0.svs", "006388_0.tif.part", "006388_0.xml")),
    refused("no slide has the name of a row", named("scan1.tif", "scan2.tif")),
    joined("semicolons", written(str.encode, ";")),
    joined(
        "Excel's sep= line, and semicolons",
        written(lambda text: b"sep=;\r\n" + text.replace("\n", "\r\n").encode(), ";"),
    ),
    joined("tabs", written(str.encode, "\t")),
    joined("bars", written(str.encode, "|")),
    joined("UTF-16 with a byte-order mark", written(lambda text: text.encode("utf-16"), "\t")),
    joined("big-endian UTF-16 without a byte-order mark", written(lambda text: text.encode("utf-16-be"))),
    joined("UTF-32", written(lambda text: text.encode("utf-32"))),
    joined("UTF-8 with a byte-order mark", written(lambda text: text.encode("utf-8-sig"))),
    joined("cp1252 in a centre's name", both(says(2, 1, "Zürich"), written(lambda text: text.encode("cp1252")))),
    joined("every cell in quotes, after spaces", written(quoted)),
    joined('ids as Excel\'s ="006388"', cells(P, lambda cell: f'="{cell}"')),
    joined("a header in capitals", header(str.upper)),
    joined("a header with spaces", header(lambda name: name.replace("_", " ").title())),
    joined(
        "a column Patient ID beside patient_id",
        lambda split: split.rows.__setitem__(
            slice(None), [[*one, "x" if at else "Patient ID"] for at, one in enumerate(split.rows)]
        ),
    ),
    joined("a header without underscores", header(lambda name: name.replace("_", ""))),
    joined("line ends of an old Macintosh", written(lambda text: text.replace("\n", "\r").encode())),
    joined("line ends that were doubled", written(lambda text: text.replace("\n", "\r\r\n").encode())),
    joined(
        "blank lines at the start and between", written(lambda text: b"\n\n" + text.replace("\n", "\n,,,\n\n").encode())
    ),
    joined(
        "a comment and a title above the header",
        written(lambda text: b"# from the scanner\nSlides of May\n" + text.encode()),
    ),
    joined("a header behind a #", written(lambda text: b"#" + text.encode())),
    joined("commas at the end of each line", written(lambda text: text.replace("\n", ",,\n").encode())),
    joined("a header again in the middle", lambda split: split.rows.insert(3, list(HEADER))),
    joined(
        "columns in another order, and one more",
        lambda split: split.rows.__setitem__(slice(None), [[*one[::-1], "x"] for one in split.rows]),
    ),
    joined(
        "a column of row numbers without a name",
        lambda split: split.rows.__setitem__(
            slice(None), [[str(at) if at else "", *one] for at, one in enumerate(split.rows)]
        ),
    ),
    refused(
        "a column of patients that is there twice",
        lambda split: split.rows.__setitem__(slice(None), [[*one, one[P]] for one in split.rows]),
        1,
    ),
    refused(
        "a comma in a cell without quotes",
        written(lambda text: text.replace("1e0003_0,4", "1e0003_0,Mayo, Rochester").encode()),
        4,
    ),
    refused("a quote that does not close", written(lambda text: text.replace("1e0003_0", '"1e0003_0').encode())),
    refused("a NUL in a cell", written(lambda text: text.replace("1e0003_0", "1e00\x0003_0").encode()), 4),
    refused("a control character in a cell", says(4, A, "1e0003\x1b_0"), 4),
    refused("a path for an image id", says(3, A, "../test/006388_1"), 3),
    refused("an Excel workbook that is named .csv", written(zipped)),
    refused("a web page that is named .csv", written(lambda text: b"\n<!doctype html><title>Sign in</title>")),
    refused("JSON that is named .csv", written(lambda text: json.dumps([text]).encode())),
    refused("a gzip that is named .csv", written(lambda text: b"\x1f\x8b\x08" + text.encode())),
    refused("an empty table", written(lambda text: b"")),
    refused("a header alone", lambda split: split.rows.__delitem__(slice(1, None))),
    refused("columns of other names", header(lambda name: name.replace("image_id", "slide"))),
    # Names.
    joined(
        "a file in decomposed Unicode",
        both(
            says(5, A, "ab12cd_0 é"),
            says(5, P, "ab12cd"),
            named(*BARE[:3], unicodedata.normalize("NFD", "ab12cd_0 é.tif")),
        ),
        R.OTHER_FILE,
    ),
    joined(
        "a file and its id in cp1252",
        both(
            says(5, A, "ab12cd_ö"),
            says(5, P, "ab12cd"),
            named(*BARE[:3], b"ab12cd_\xf6.tif"),
            written(lambda text: text.encode("cp1252")),
        ),
        R.OTHER_FILE,
    ),
    joined(
        "names that differ in capitals alone",
        both(says(3, A, "Scan"), says(4, A, "scan"), named("006388_0.tif", "Scan.tif", "scan.tif", "ab12cd_0.tif")),
    ),
    joined(
        "names with quotes, brackets and percent signs",
        both(
            says(3, A, "[page=1]%s{0}"),
            says(4, A, "a<b>&'c\";rm -r *"),
            named("006388_0.tif", "[page=1]%s{0}.tif", "a<b>&'c\";rm -r *.tif", "ab12cd_0.tif"),
        ),
    ),
    Reported("folders whose names are not UTF-8", "scored as any other", not_utf8, slow=True),
    Reported("a slide that libvips reads, in a folder that is not UTF-8", "read as any other", by_libvips),
    Reported("an image id of 300 letters", "that slide alone falls back", long_name),
    Reported("U+0085 and U+2028 in a patient's id", "scored as any other", line_separators, slow=True),
    # Numbers.
    *(
        number(cell, Fault.NOT_A_NUMBER)
        for cell in (
            "0_5",
            "\uff10.\uff15",
            "\u0665",
            "0x1p-2",
            "0x1",
            "0,5",
            "50%",
            "1e",
            "1d-1",
            "--1",
            "True",
            "1/2",
            "\xa00.5",
            "½",
            " nan",
            "NAN",
        )
    ),
    *(number(cell, Fault.INFINITE) for cell in ("Infinity", "-inf", "1e999")),
    *(number(cell, Fault.NAN) for cell in ("NaN", "null", "N/A")),
    *(number(cell, None) for cell in (" 0.5 ", "\t.5", "+0.5", "5.", "1e5", "2E-3", "00.5", "9" * 25)),
]
