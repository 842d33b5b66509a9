"""List the faults, how each is made to happen, and its expected outcome.

One list, CASES, drives the tests (test_table.py) and docs/explanation/faults.md (`python -m tests.faults`). Cases
that name the same run share it: all bad slides of a run are in one split, among healthy ones. Slides' processes import
this module by name (`work`), so heavy imports are made where they are needed.
"""

import csv
import io
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition
from clotkit.files import sha256
from clotkit.reasons import Reason
from clotkit.scoring.budget import Budget
from clotkit.workers import Piece, Task, tile_task

from . import misbehaving

SLIDE_S, MEMORY_MB = 8, 2048  # of a slide, in the runs whose slides' processes misbehave
EMPTY = r"test\.csv: "  # a line about a table of 0 bytes
ORPHAN, STRANGER = "c0ffee", "facade"  # a patient of the sample without a slide, and one with a slide outside it


@dataclass
class Stage:
    """The folders of one run before it starts, for cases to change; `lay` writes the tables."""

    folder: Path
    competition: Competition
    header: list[str]
    rows: list[dict[str, str]]
    patients: list[str]
    healthy: list[str]
    line_end: str = "\n"
    mark: str = ""  # a byte-order mark
    sampled: bool = True  # whether there is a sample submission
    bad: dict[str, str] = field(default_factory=dict)  # image id of a case, by the case's name

    @property
    def split(self) -> Path:
        """The split's folder."""
        return self.folder / "split"

    @property
    def weights(self) -> Path:
        """The folder of members."""
        return self.folder / "weights"

    @property
    def sample(self) -> Path:
        """The sample submission."""
        return self.competition.sample_path(self.split)

    def slide(self, image_id: str) -> Path:
        """Return the path of a slide."""
        return self.competition.slide_path(self.split, "test", image_id)

    def add(self, image_id: str, listed: bool = True) -> Path:
        """Add a row for a slide, and (if `listed`) its patient to the sample; return the slide's path."""
        patient = image_id.rpartition("_")[0]
        self.rows.append({"image_id": image_id, "center_id": "1", "patient_id": patient, "image_num": "0"})
        self.patients += [patient] if listed else []
        return self.slide(image_id)

    def lay(self) -> None:
        """Write the two tables; without a header the first one has 0 bytes."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.header, extrasaction="ignore", restval="x", lineterminator=self.line_end)
        if self.header:
            writer.writeheader()
            writer.writerows(self.rows)
        table = self.competition.table_path(self.split, "test")
        table.write_bytes((self.mark + text.getvalue()).encode())
        lines = [",".join(self.competition.header), *(f"{patient},0.5,0.5" for patient in self.patients)]
        if self.sampled:
            self.sample.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Case:
    """One fault.

    `slide` writes the bad slide at a path; `stage` changes the folders of the run. `state` is the bad slide's, or that
    of the healthy slides if the fault is the run's own, or "valid" if only the submission counts.
    """

    name: str
    runs: tuple[str, ...]  # that it is part of
    state: str  # done, partial, fallback, valid; refused where the run does not start
    slide: Callable[[Path, Path], None] | None = None  # (where it is to be, a healthy slide)
    stage: Callable[[Stage], None] | None = None
    image_id: str = ""  # where its name is what tells `work` how to misbehave
    codes: Sequence[Reason] = ()  # of the bad slide's line, or of a healthy one's where the fault is the run's own
    said: str = ""  # a regular expression for a line that the run prints
    twin: bool = False  # the healthy slide's pixels in another form: the probabilities must be the same

    def apply(self, stage: Stage, number: int) -> None:
        """Make the fault happen."""
        if self.stage is not None:
            self.stage(stage)
        if self.slide is not None:
            image_id = self.image_id or f"{0xBAD000 + number:06x}_0"
            stage.bad[self.name] = image_id
            self.slide(stage.add(image_id, listed=image_id != f"{STRANGER}_0"), stage.slide(stage.healthy[0]))


# --- Slides -----------------------------------------------------------------------------------------------------------


@cache
def pixels(path: Path) -> Any:
    """Return a slide's pixels, uint8[h, w, 3]."""
    import tifffile

    return tifffile.imread(path)


def copied(path: Path, healthy: Path) -> None:
    """Link the healthy slide."""
    path.symlink_to(healthy)


def content(data: bytes) -> Callable[[Path, Path], None]:
    """Return a writer of a file with these bytes."""
    return lambda path, healthy: _written(path, data)


def _written(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def absent(path: Path, healthy: Path) -> None:
    """Write no file at all."""


def folder(path: Path, healthy: Path) -> None:
    """Make a folder with the slide's name."""
    path.mkdir()


def locked(path: Path, healthy: Path) -> None:
    """Copy the slide without read permission."""
    shutil.copyfile(healthy, path)
    path.chmod(0)


def cut(share: float) -> Callable[[Path, Path], None]:
    """Return a writer of the first part of a slide whose directory comes first, so that it opens."""

    def write(path: Path, healthy: Path) -> None:
        data = healthy.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


def flipped(tissue: bool) -> Callable[[Path, Path], None]:
    """Return a writer that flips every bit in the middle of one tile: the darkest tile, or the lightest."""

    def write(path: Path, healthy: Path) -> None:
        import tifffile

        with tifffile.TiffFile(healthy) as file:
            page = file.pages.first
            side, (height, width) = page.tilewidth, page.shape[:2]
            grid = pixels(healthy)[: height // side * side, : width // side * side]
            means = grid.reshape(height // side, side, width // side, side, 3).mean(axis=(1, 3, 4))
            row, column = np.unravel_index(means.argmin() if tissue else means.argmax(), means.shape)
            number = int(row) * -(-width // side) + int(column)
            start, count = page.dataoffsets[number], page.databytecounts[number]
        data = bytearray(healthy.read_bytes())
        middle = slice(start + count // 4, start + count * 3 // 4)
        data[middle] = bytes(255 - value for value in data[middle])
        path.write_bytes(data)

    return write


def directory_at(where: Callable[[bytes], tuple[int, int]]) -> Callable[[Path, Path], None]:
    """Return a writer that changes a directory offset; `where` gives the offset's place and new value."""

    def write(path: Path, healthy: Path) -> None:
        data = bytearray(healthy.read_bytes())
        struct.pack_into("<I", data, *where(bytes(data)))
        path.write_bytes(data)

    return write


def past_the_end(data: bytes) -> tuple[int, int]:
    """Put the first directory beyond the end of the file."""
    return 4, len(data) + 4096


def loop(data: bytes) -> tuple[int, int]:
    """Make the first directory its own successor."""
    first = struct.unpack_from("<I", data, 4)[0]
    (tags,) = struct.unpack_from("<H", data, first)
    return first + 2 + 12 * tags, first


def bomb(path: Path, healthy: Path) -> None:
    """Write a slide that claims to have 10^12 pixels."""
    import tifffile

    shutil.copyfile(healthy, path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages.first.tags[tag].overwrite(1_000_000, dtype="I")


def tiff(change: Callable[[Any], Any], **options: Any) -> Callable[[Path, Path], None]:
    """Return a writer of the healthy slide's pixels, changed, in another kind of TIFF."""

    def write(path: Path, healthy: Path) -> None:
        import tifffile

        tifffile.imwrite(
            path, change(pixels(healthy)), **{"photometric": "rgb", "tile": (128, 128), "metadata": None, **options}
        )

    return write


def jbig(path: Path, healthy: Path) -> None:
    """Write a slide that claims to be compressed with JBIG."""
    import tifffile

    shutil.copyfile(healthy, path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(34661)


def constant(height: int, width: int, value: int) -> Callable[[Path, Path], None]:
    """Return a writer of one grey level."""
    return tiff(lambda _: np.full((height, width, 3), value, np.uint8), compression="zlib")


def same(image: Any) -> Any:
    """Return the pixels as they are."""
    return image


def grey(image: Any) -> Any:
    """Return one band, uint8[h, w]."""
    return image.mean(axis=2).astype(np.uint8)


def deep(image: Any) -> Any:
    """Return 16-bit samples: 255 becomes 65,535."""
    return image.astype(np.uint16) * 257


def opaque(image: Any) -> Any:
    """Return RGBA, opaque everywhere."""
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def inks(image: Any) -> Any:
    """Return CMYK without black ink, which is the complement."""
    return np.dstack([255 - image, np.zeros(image.shape[:2], np.uint8)])


FILES = ("files", "kernel")
ZIP: dict[str, Any] = {"compression": "zlib"}
APERIO: dict[str, Any] = {"compression": "aperio_jp2000_rgb", "description": "Aperio Image Library\r\n|AppMag = 20"}
SLIDES = [
    Case("0 bytes", FILES, "fallback", content(b""), codes=[Reason.DAMAGED]),
    Case("no image", FILES, "fallback", content(b"this is no slide\n" * 50), codes=[Reason.DAMAGED]),
    Case("cut at 25 %", FILES, "fallback", cut(0.25), codes=[Reason.DAMAGED]),
    Case("cut at 50 %", FILES, "fallback", cut(0.5), codes=[Reason.DAMAGED]),
    Case("cut at 99 %", FILES, "fallback", cut(0.99), codes=[Reason.DAMAGED]),
    Case("flipped bytes in a tissue tile", FILES, "fallback", flipped(tissue=True), codes=[Reason.DAMAGED]),
    Case("flipped bytes in a background tile", FILES, "done", flipped(tissue=False), twin=True),
    Case("a TIFF directory past the end", FILES, "fallback", directory_at(past_the_end), codes=[Reason.DAMAGED]),
    Case("a loop of TIFF directories", FILES, "done", directory_at(loop), twin=True),
    Case("1,000,000 x 1,000,000 px claimed", FILES, "fallback", bomb, codes=[Reason.DAMAGED]),
    Case("the file is missing", FILES, "fallback", absent, codes=[Reason.DAMAGED]),
    Case("a folder in its place", FILES, "fallback", folder, codes=[Reason.DAMAGED]),
    Case("all white", FILES, "fallback", constant(1920, 1280, 255), codes=[Reason.NO_TISSUE]),
    Case("all black", FILES, "fallback", constant(1920, 1280, 0), codes=[Reason.NO_TISSUE]),
    Case("1 px", FILES, "fallback", constant(1, 1, 120), codes=[Reason.NO_TISSUE]),
    Case("1 x 100,000 px", FILES, "fallback", constant(100_000, 1, 120), codes=[Reason.NO_TISSUE]),
    Case("one band", FILES, "done", tiff(grey, photometric="minisblack", **ZIP)),
    Case("16-bit", FILES, "done", tiff(deep, **ZIP), twin=True),
    Case("RGBA", FILES, "done", tiff(opaque, extrasamples=["unassalpha"], **ZIP), twin=True),
    Case("CMYK", FILES, "done", tiff(inks, photometric="separated", **ZIP), twin=True),
    Case("ZSTD", FILES, "done", tiff(same, compression="zstd"), twin=True),
    Case("JPEG 2000 as Aperio writes it", FILES, "done", tiff(same, **APERIO), twin=True),
    Case("JPEG 2000 as GDAL writes it", FILES, "done", tiff(same, compression="jpeg2000"), twin=True),
    Case("a codec that nobody here reads", FILES, "fallback", jbig, codes=[Reason.UNSUPPORTED]),
    Case("no read permission", ("locked",), "fallback", locked, codes=[Reason.DAMAGED]),
]


# --- Processes of slides ----------------------------------------------------------------------------------------------


def work(task: Task) -> Iterator[tuple[int, Piece]]:
    """Do the work of `misbehaving.work`; a name that begins with "once" misbehaves the first time only."""
    if task.image_id.startswith("once") and task.budget == Budget.COARSER:
        return tile_task(task)
    if task.image_id.startswith("once"):
        return misbehaving.work(Task(task.image_id.removeprefix("once"), task.path, task.tilings))
    return misbehaving.work(task)


def process(name: str, kind: str, run: str, state: str, *codes: Reason) -> Case:
    """Return a case with a sound slide whose process does what `kind` says."""
    return Case(name, (run,), state, copied, image_id=f"{kind}_0", codes=codes)


PROCESSES = [
    process("its decoder is killed", "kill", "crashes", "fallback", Reason.CRASHED),
    process("its decoder is killed the first time", "oncekill", "crashes", "partial", Reason.CRASHED, Reason.COARSER),
    process("its decoder is killed after 8 tiles", "latekill", "crashes", "partial", Reason.CRASHED),
    process("its decoder crashes", "segv", "crashes", "fallback", Reason.CRASHED),
    process("its decoder ends without a word", "exit", "crashes", "fallback", Reason.CRASHED),
    process("its decoder raises", "raise", "crashes", "fallback", Reason.FAILED),
    process("its decoder hangs", "hang", "hangs", "fallback", Reason.TIMEOUT),
    process("its decoder hangs the first time", "oncehang", "hangs", "partial", Reason.TIMEOUT, Reason.COARSER),
    process("its decoder hangs after 8 tiles", "latehang", "hangs", "partial", Reason.TIMEOUT),
    process("its decoder ignores SIGTERM", "deaf", "hangs", "fallback", Reason.TIMEOUT),
    process("its decoder eats memory", "hog", "crashes", "fallback", Reason.OUT_OF_MEMORY),
    process(
        "its decoder eats memory the first time",
        "oncehog",
        "crashes",
        "partial",
        Reason.OUT_OF_MEMORY,
        Reason.COARSER,
    ),
    process("its decoder stalls after 8 tiles", "latehang", "stalls", "partial", Reason.STALLED),
    process("the deadline comes while a slide hangs", "hang", "deadline", "fallback", Reason.TIMEOUT),
]


# --- Tables -----------------------------------------------------------------------------------------------------------


def add_column(stage: Stage) -> None:
    """Put an unknown column first."""
    stage.header.insert(0, "scanner")


def drop_column(name: str) -> Callable[[Stage], None]:
    """Return a change that drops a column."""
    return lambda stage: stage.header.remove(name)


def with_line_ends(stage: Stage) -> None:
    """Use Windows line ends."""
    stage.line_end = "\r\n"


def with_mark(stage: Stage) -> None:
    """Begin with a byte-order mark."""
    stage.mark = "\ufeff"


def repeat(stage: Stage) -> None:
    """Repeat the first slide, for another patient."""
    stage.rows.append({**stage.rows[0], "patient_id": stage.rows[-1]["patient_id"]})


def orphan(stage: Stage) -> None:
    """Add a patient without a slide to the sample."""
    stage.patients.append(ORPHAN)


def no_rows(stage: Stage) -> None:
    """Write a table of 0 bytes."""
    stage.header.clear()


def no_sample(stage: Stage) -> None:
    """Write no sample submission."""
    stage.sampled = False


TABLES = [
    Case("test.csv with a column more", ("tables", "kernel"), "done", stage=add_column),
    Case("test.csv with CRLF", ("tables", "kernel"), "done", stage=with_line_ends),
    Case("test.csv with a byte-order mark", ("tables", "kernel"), "done", stage=with_mark),
    Case("an image_id that repeats", ("tables", "kernel"), "done", stage=repeat, said="repeat|again|twice"),
    Case("a patient not in the sample", ("tables", "kernel"), "done", copied, image_id=f"{STRANGER}_0", said=STRANGER),
    Case("a sample patient without a slide", ("tables", "kernel"), "done", stage=orphan, said=f"fallback: .*{ORPHAN}"),
    Case("test.csv without patient_id", ("ids",), "done", stage=drop_column("patient_id"), said="patient_id"),
    Case("test.csv without image_id", ("header",), "refused", stage=drop_column("image_id"), said="test.csv.*image_id"),
    Case("test.csv is empty", ("empty",), "refused", stage=no_rows, said=EMPTY),
    Case(
        "test.csv is empty, in the kernel",
        ("kernel empty",),
        "fallback",
        stage=no_rows,
        said=EMPTY,
    ),
    Case("no sample submission", ("no sample",), "refused", stage=no_sample, said="sample_submission.csv"),
]


# --- Members ----------------------------------------------------------------------------------------------------------


def another(change: Callable[[Path], None], name: str) -> Callable[[Stage], None]:
    """Return a change that adds a damaged copy of the sound member."""

    def make(stage: Stage) -> None:
        shutil.copytree(stage.weights / "tiny", stage.weights / name)
        change(stage.weights / name)

    return make


def alone(change: Callable[[Path], None], name: str) -> Callable[[Stage], None]:
    """Return a change that leaves a damaged copy of the sound member only."""

    def make(stage: Stage) -> None:
        another(change, name)(stage)
        shutil.rmtree(stage.weights / "tiny")

    return make


def listed(member: Path, name: str, digest: str) -> None:
    """Put the hash of a member's file into the manifest."""
    from clotkit.members.folder import MANIFEST

    path = member.parent / MANIFEST
    entries = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**entries, f"{member.name}/{name}": {"sha256": digest}}))


def wrong_hash(member: Path) -> None:
    """Write a manifest with the hash of other weights."""
    listed(member, "model.weights.h5", "0" * 64)


def other_size(member: Path) -> None:
    """Ask for larger tiles than the weights were trained on; the manifest has the recipe's old hash."""
    listed(member, "recipe.toml", sha256(member / "recipe.toml"))
    edited("tile_px = 32", "tile_px = 64")(member)


def without(name: str) -> Callable[[Path], None]:
    """Return a change that removes a file of the member."""
    return lambda member: (member / name).unlink()


def damaged(member: Path) -> None:
    """Write weights that are not an HDF5 file."""
    (member / "model.weights.h5").write_bytes(b"not HDF5")


def other_classes(member: Path) -> None:
    """Claim to be trained for other classes."""
    (member / "metrics.json").write_text(json.dumps({"classes": ["blue", "green"]}))


def edited(old: str, new: str) -> Callable[[Path], None]:
    """Return a change of the recipe after the training."""

    def change(member: Path) -> None:
        text = (member / "recipe.toml").read_text()
        assert old in text
        (member / "recipe.toml").write_text(text.replace(old, new))

    return change


def nan(member: Path) -> None:
    """Set all weights to NaN."""
    import h5py

    def fill(_: str, found: Any) -> None:
        if isinstance(found, h5py.Dataset):
            found[...] = np.nan

    with h5py.File(member / "model.weights.h5", "r+") as file:
        file.visititems(fill)


def no_members(stage: Stage) -> None:
    """Attach no weights."""
    shutil.rmtree(stage.weights)
    stage.weights.mkdir()


WEIGHTS = ("weights", "kernel")
MEMBERS = [
    Case("weights with a wrong hash", WEIGHTS, "done", stage=another(wrong_hash, "hash"), said="member hash left out"),
    Case("weights that are damaged", WEIGHTS, "done", stage=another(damaged, "torn"), said="member torn left out"),
    Case("no weights file in a member", ("half", "kernel"), "done", stage=another(without("model.weights.h5"), "bare"),
         said=r"member bare left out.*model\.weights\.h5"),
    Case("no calibration in a member", ("half", "kernel"), "done", stage=another(without("calibration.json"), "raw"),
         said=r"member raw left out.*calibration\.json"),
    Case("a member of other classes", WEIGHTS, "done", stage=another(other_classes, "moulds"),
         said="member moulds left out"),
    Case("a member whose recipe has other filters", WEIGHTS, "done", said="member other left out",
         stage=another(edited("filters = [4, 8]", "filters = [4, 16]"), "other")),
    Case("a member of another tile_px than its weights", ("size",), "done", stage=another(other_size, "wide"),
         said="member wide left out"),
    Case("a member that returns NaN", WEIGHTS, "done", stage=another(nan, "nan"), said="member nan left out"),
    Case("the only member returns NaN", ("nan alone",), "fallback", stage=alone(nan, "nan"),
         said="member nan left out"),
    Case("the only member has a wrong hash", ("no member",), "fallback", stage=alone(wrong_hash, "hash"),
         said="member hash left out"),
]  # fmt: skip


# --- The run and its surroundings -------------------------------------------------------------------------------------


def nothing(stage: Stage) -> None:
    """Change nothing: the fault is in how the run is started, or in what happens to it."""


def closed(stage: Stage) -> None:
    """Make a folder for runs without write permission."""
    (stage.folder / "closed").mkdir(mode=0o555)


RUNS = [
    Case("the deadline has passed", ("past",), "fallback", stage=nothing, codes=[Reason.DEADLINE]),
    Case("the disk is full", ("full",), "valid", stage=nothing, said="No space left"),
    Case("the output cannot be written", ("closed",), "refused", stage=closed, said="closed.*(denied|[Rr]ead-only)"),
    Case("the clock jumps", ("clock",), "done", stage=nothing),
    Case("no wheels", ("no wheels",), "done", stage=nothing, said="no wheels dataset"),
    Case("no weights dataset", ("no weights",), "fallback", stage=no_members, said="attach the weights dataset"),
    Case("SIGTERM to the kernel", ("terminated",), "valid", stage=nothing, said="SIGTERM"),
    Case("SIGTERM to the kernel as it starts", ("terminated early",), "valid", stage=nothing),
    Case("SIGKILL to the kernel's pipeline", ("restarted",), "done", stage=nothing, said="started once more"),
    Case("the deadline comes in the kernel", ("kernel past",), "fallback", stage=nothing, codes=[Reason.DEADLINE]),
]

CASES = [*SLIDES, *PROCESSES, *TABLES, *MEMBERS, *RUNS]
