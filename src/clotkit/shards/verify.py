"""`clotkit tile --verify`: read every shard of a folder once, and compare it with shards.csv."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.config import TilingConfig, load_recipe
from clotkit.engines import Backend, Lost, engine
from clotkit.errors import ClotkitError
from clotkit.files import sha256
from clotkit.progress import Log, progress
from clotkit.shards.cut import tiling_in, tiling_wanted
from clotkit.shards.shard import read_shard
from clotkit.shards.table import ShardRow, read_shard_rows
from clotkit.splits import read_slides, split_of, tables_of
from clotkit.stores import Place, Store, local_copy, store_of
from clotkit.units import MB


class FaultKind(StrEnum):
    """A way in which a folder of shards can disagree with its table or its split."""

    LISTING = "listing"  # a slide is not listed exactly once, or is not of the split
    MISSING = "missing"  # a shard is listed but not in the folder
    UNLISTED = "unlisted"  # a shard is in the folder but not listed
    SIZE = "size"  # another number of bytes than listed
    SHA256 = "sha256"  # another sha256 than listed
    CONTENT = "content"  # another number of tiles, or another key, than listed
    ENCODER = "encoder"  # features of another encoder than the one named
    TILING = "tiling"  # cut with another tiling than the recipe's
    OUTDATED = "outdated"  # features that the same command would make again
    UNREADABLE = "unreadable"  # cannot be read, or not a whole shard
    LOST = "lost"  # the workers of a cluster died while they read it


@dataclass(frozen=True)
class Fault:
    """One fault of a folder of shards."""

    name: str  # of the shard's file, or an image id
    kind: FaultKind
    text: str  # for people


@dataclass(frozen=True)
class Verification:
    """The result of a verification."""

    shards: int  # listed shards
    size_bytes: int  # of these, as listed
    failed: int  # slides that are listed without a shard
    faults: list[Fault] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """True if every slide has its shard, and every shard is as listed."""
        return not self.faults and not self.failed


@dataclass(frozen=True)
class ShardCheck:
    """A shard to check, and what to compare it with."""

    store: Store
    row: ShardRow
    tiling: TilingConfig | None  # None: any tiling will do


def verify(
    split_dir: Place, out: Place, recipe: str | None, competition: Competition, backend: Backend, log: Log = print
) -> Verification:
    """Compare every shard of a folder with shards.csv: its bytes, sha256, tiles, key and checksums.

    Also checks that the table lists every slide of the split once and nothing else, and that the folder has no other
    shards.

    Args:
        split_dir: The folder or URL of the split.
        out: The folder or URL of the shards.
        recipe: The recipe that the shards must have been cut with, or None for any.
        competition: The competition of the split.
        backend: The processes or workers that read the shards.
        log: Gets a line a shard.

    Raises:
        SplitError: There is no table, or some slides are unfinished.
        UsageError, ClusterError: The backend cannot be used.
    """
    store, tiling = store_of(out), load_recipe(recipe).tiling if recipe else None
    rows, listed = read_shard_rows(store, competition), store.entries()
    done = [row for row in rows if row.file]
    checks = [ShardCheck(store.absolute(), row, tiling) for row in done if row.file in listed]
    faults = [*listing_faults(_ids_of(split_dir, rows, competition), rows), *file_faults(done, set(listed))]
    with engine(backend, log) as workers, progress(len(checks), log) as advance:
        for check, found in workers.unordered(check_shard, checks):
            fault = Fault(check.row.file, FaultKind.LOST, found.reason) if isinstance(found, Lost) else found
            if fault is not None:
                faults.append(fault)
            advance(f"{check.row.file} {'sound' if fault is None else fault.text}", fault is not None)
    return Verification(len(done), sum(row.size_bytes for row in done), len(rows) - len(done), faults)


def check_shard(check: ShardCheck) -> Fault | None:
    """Return the first fault of a shard, or None; a shard of an object store is fetched."""
    try:
        with local_copy(check.store, check.row.file) as path:
            found = _content_fault(path, check)
    except (OSError, ClotkitError) as error:
        found = FaultKind.UNREADABLE, str(error)
    return None if found is None else Fault(check.row.file, *found)


def verification_lines(
    verification: Verification, out: Place, things: str = "shards", verb: str = "clotkit tile"
) -> Iterator[str]:
    """Yield a line for each fault, then a summary."""
    yield from (f"{fault.name}: {fault.text}" for fault in verification.faults)
    shards = f"{verification.shards} {things}, {verification.size_bytes / MB:,.1f} MB"
    failed = f", {verification.failed} slides without one" if verification.failed else ""
    count = len(verification.faults)
    faults = f"{count} faults; run {verb} to repair them" if count else "no faults"
    yield f"{out}: {shards}{failed}; {faults}"


def _content_fault(path: Path, check: ShardCheck) -> tuple[FaultKind, str] | None:
    row = check.row
    if fault := byte_fault(path, row):
        return fault
    shard = read_shard(path)
    if (len(shard.tiles), shard.key) != (row.tiles, row.key):
        return FaultKind.CONTENT, (
            f"has {len(shard.tiles)} tiles and key {shard.key}, but {row.tiles} and {row.key} are listed"
        )
    if check.tiling is not None and tiling_in(shard.facts) != tiling_wanted(check.tiling, shard.facts):
        return FaultKind.TILING, "was cut with another tiling than the recipe's"
    return None


def byte_fault(path: Path, row: ShardRow) -> tuple[FaultKind, str] | None:
    """Return how a file differs from its row in size or sha256; None if it does not. Raises OSError."""
    size_bytes = path.stat().st_size
    if size_bytes != row.size_bytes:
        return FaultKind.SIZE, f"has {size_bytes} bytes, but {row.size_bytes} are listed"
    digest = sha256(path)
    if digest != row.sha256:
        return FaultKind.SHA256, f"its sha256 is {digest}, but {row.sha256 or 'none'} is listed"
    return None


def likely_splits(rows: Sequence[ShardRow]) -> tuple[str, str]:
    """Return the splits that the rows may be of, the likelier first: only slides to train on have labels."""
    return ("train", "test") if any(row.label is not None for row in rows) else ("test", "train")


def _ids_of(split_dir: Place, rows: Sequence[ShardRow], competition: Competition) -> list[str]:
    with tables_of(split_dir, competition) as folder:
        split = split_of(folder, competition, likely_splits(rows))
        return [slide.image_id for slide in read_slides(folder, split, competition)]


def listing_faults(image_ids: Sequence[str], rows: Sequence[ShardRow]) -> Iterator[Fault]:
    """Yield the slides of a split that are not listed once, and the listed ones that are not of it."""
    wanted = dict.fromkeys(image_ids)
    counts = Counter(row.image_id for row in rows)
    for image_id in dict.fromkeys([*wanted, *counts]):
        if counts[image_id] != 1 or image_id not in wanted:
            slide = "a slide" if image_id in wanted else "not a slide"
            yield Fault(image_id, FaultKind.LISTING, f"is listed {counts[image_id]} times, and is {slide} of the split")


def file_faults(done: Sequence[ShardRow], files: set[str], suffix: str = ".npy") -> Iterator[Fault]:
    """Yield the files that are listed but missing, and those that are in the folder but not listed."""
    known = {row.file for row in done}
    for name in sorted(known - files):
        yield Fault(name, FaultKind.MISSING, "is listed but missing")
    for name in sorted(name for name in files - known if name.endswith(suffix)):
        yield Fault(name, FaultKind.UNLISTED, "is in the folder but not listed")
