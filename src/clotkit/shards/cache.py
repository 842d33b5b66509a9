"""Open shards: of a local folder in place, of an object store from a cache.

A shard of an object store is fetched once, when it is first needed. Its name in the cache is its sha256, so folders
with the same tiles share it, whatever they are called. No TensorFlow here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clotkit.errors import SlideUnreadable, StoreError, UsageError
from clotkit.files import atomic_write, sha256
from clotkit.shards.reading import LazyShard
from clotkit.shards.shard import Shard, read_shard
from clotkit.shards.table import ShardRow
from clotkit.stores import Store


@dataclass(frozen=True)
class ShardOpener:
    """Opens the shards of a local folder or of an object store."""

    store: Store
    cache: Path  # local folder for shards of an object store
    check: Callable[[Shard, str], None]  # gets each opened shard and its name, and may raise

    def lazy(self, row: ShardRow) -> LazyShard:
        """Return a shard of the table that is not opened yet."""
        return LazyShard(row.tiles, row.key, lambda verify: self.open(row, verify))

    def open(self, row: ShardRow, verify: bool = True) -> Shard:
        """Open the shard of a row of shards.csv.

        A cached shard that is damaged is fetched once more.

        Args:
            row: The row of shards.csv.
            verify: Read every byte and compare checksums.

        Raises:
            SlideUnreadable: The shard is damaged, or differs from the table.
            StoreError: The shard cannot be fetched.
            UsageError: The cache cannot be written.
            Exception: Whatever `check` raises.
        """
        name = self.store.url(row.file)
        local = self.store.local(row.file)
        shard = self._cached(row, verify) if local is None else read_shard(local, verify)
        if shard.key != row.key or len(shard.tiles) != row.tiles:
            raise SlideUnreadable(
                f"{name}: {len(shard.tiles)} tiles with key {shard.key[:12]}…, but the table lists {row.tiles} with "
                f"{row.key[:12]}…; run clotkit tile again"
            )
        self.check(shard, name)
        return shard

    def _cached(self, row: ShardRow, verify: bool) -> Shard:
        path = self.cache / f"{row.sha256}.npy"
        if path.is_file():
            try:
                return read_shard(path, verify)
            except SlideUnreadable:
                path.unlink(missing_ok=True)
        self._fetch(row, path)
        return read_shard(path, verify=False)  # its sha256 was compared

    def _fetch(self, row: ShardRow, path: Path) -> None:
        def check(temporary: Path) -> None:
            if (found := sha256(temporary)) != row.sha256:
                raise StoreError(
                    f"{self.store.url(row.file)}: sha256 is {found[:12]}…, but the table lists "
                    f"{row.sha256[:12]}…; run clotkit tile again, or clotkit tile --verify"
                )

        fetch_into_cache(self.store, row.file, path, self.cache, "clotkit tile", check)


def fetch_into_cache(
    store: Store, name: str, path: Path, cache: Path, verb: str, check: Callable[[Path], None] = lambda _: None
) -> None:
    """Fetch a file of an object store to `path` in the cache, atomically.

    `verb` is what writes such files, and `check` may raise for one that is not what is listed.

    Raises:
        StoreError: The file cannot be fetched.
        UsageError: The cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            store.fetch(name, temporary)
            check(temporary)
    except FileNotFoundError as error:
        raise StoreError(f"{store.url(name)}: is missing; run {verb} again") from error
    except OSError as error:
        raise UsageError(
            f"--cache {cache}: cannot be written: {error.strerror or error}; free some space, or choose another folder"
        ) from error
