"""`clotkit tile --verify`: every shard of a folder read once, and held against what shards.csv says of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.config import TilingConfig, load_recipe
from clotkit.engines import Backend, Lost, engine
from clotkit.errors import ClotkitError
from clotkit.files import sha256
from clotkit.progress import Log, progress
from clotkit.shards.cut import TILING
from clotkit.shards.shard import read_shard
from clotkit.shards.table import ShardRow, read_shard_rows
from clotkit.splits import read_slides, split_of, tables_of
from clotkit.stores import Place, Store, at_hand, store_of
from clotkit.units import MB


@dataclass(frozen=True)
class Verdict:
    """What a folder of shards is worth: `wrong` are lines, one a fault; `failed` slides are listed without a shard."""

    shards: int
    size_bytes: int
    failed: int
    wrong: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every slide has its shard, and every shard is as it is listed."""
        return not self.wrong and not self.failed


@dataclass(frozen=True)
class Claim:
    """A row of shards.csv, the store of its shard, and what it must have been cut with (None: that does not matter)."""

    store: Store
    row: ShardRow
    tiling: TilingConfig | None


def verify(
    split_dir: Place, out: Place, recipe: str | None, competition: Competition, backend: Backend, log: Log = print
) -> Verdict:
    """Read every shard that the folder `out` lists, and compare its bytes, sha256, tiles, key and checksums.

    That every slide of the split is listed, each once, and that nothing else is there, is looked at too; with a recipe,
    that the shards were cut with it. Raises SplitError where there is no table, or the folder's last run did not come
    to its end, and what `engine` raises.
    """
    store, tiling = store_of(out), load_recipe(recipe).tiling if recipe else None
    rows, listed = read_shard_rows(store, competition), store.entries()
    done = [row for row in rows if row.file]
    claims = [Claim(store.absolute(), row, tiling) for row in done if row.file in listed]
    wrong = [*_not_listed(split_dir, rows, competition), *_not_there(done, set(listed))]
    with engine(backend, log) as workers, progress(len(claims), log) as advance:
        for claim, found in workers.unordered(check, claims):
            fault = found.reason if isinstance(found, Lost) else found
            wrong += [f"{claim.row.file}: {fault}"] if fault else []
            advance(f"{claim.row.file} {fault or 'sound'}", bool(fault))
    return Verdict(len(done), sum(row.size_bytes for row in done), len(rows) - len(done), wrong)


def check(claim: Claim) -> str:
    """What is wrong with a shard, in a few words; "" where nothing is. From an object store it is fetched."""
    try:
        with at_hand(claim.store, claim.row.file) as path:
            return _fault(path, claim)
    except (OSError, ClotkitError) as error:
        return str(error)


def lines(verdict: Verdict, out: Place) -> Iterator[str]:
    """The verdict for a person: every fault, and a summary."""
    yield from verdict.wrong
    shards = f"{verdict.shards} shards, {verdict.size_bytes / MB:,.1f} MB"
    failed = f", {verdict.failed} slides without one" if verdict.failed else ""
    faults = f"{len(verdict.wrong)} faults: clotkit tile mends them" if verdict.wrong else "all as listed"
    yield f"{out}: {shards}{failed}; {faults}"


def _fault(path: Path, claim: Claim) -> str:
    row, size_bytes = claim.row, path.stat().st_size
    if size_bytes != row.size_bytes:
        return f"{size_bytes} bytes; {row.size_bytes} are listed"
    digest = sha256(path)
    if digest != row.sha256:
        return f"its sha256 is {digest}; {row.sha256 or 'none'} is listed"
    shard = read_shard(path)
    if (len(shard.tiles), shard.key) != (row.tiles, row.key):
        return f"{len(shard.tiles)} tiles, key {shard.key}; listed are {row.tiles}, {row.key}"
    if claim.tiling is not None and shard.facts.get(TILING) != asdict(claim.tiling):
        return "cut with another tiling than the recipe's"
    return ""


def _not_listed(split_dir: Place, rows: Sequence[ShardRow], competition: Competition) -> Iterator[str]:
    """Slides of the split that the table does not have once."""
    with tables_of(split_dir, competition) as folder:
        split = split_of(folder, competition, ("train", "test") if rows[0].label is not None else ("test", "train"))
        wanted = dict.fromkeys(slide.image_id for slide in read_slides(folder, split, competition))
    counts = Counter(row.image_id for row in rows)
    for image_id in dict.fromkeys([*wanted, *counts]):
        if counts[image_id] != 1 or image_id not in wanted:
            slide = "a slide" if image_id in wanted else "not a slide"
            yield f"{image_id}: is listed {counts[image_id]} times, and is {slide} of the split"


def _not_there(done: Sequence[ShardRow], there: set[str]) -> Iterator[str]:
    """Shards that are listed and not there, and those that are there and not listed."""
    known = {row.file for row in done}
    yield from (f"{name}: is listed and not there" for name in sorted(known - there))
    strays = sorted(name for name in there - known if name.endswith(".npy"))
    yield from (f"{name}: is there and not listed" for name in strays)
