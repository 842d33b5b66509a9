"""Shards where they can be mapped: in place in a local folder; of an object store, fetched once, as they are needed.

A fetched shard's name is its sha256, so whoever trains on the same tiles shares it, whatever their folder is called.
No TensorFlow here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clotkit.errors import SlideUnreadable, StoreError, UsageError
from clotkit.files import atomic_write, sha256
from clotkit.shards.reading import Listed
from clotkit.shards.shard import Shard, read_shard
from clotkit.shards.table import ShardRow
from clotkit.stores import Store


@dataclass(frozen=True)
class Opener:
    """Opens the shards of a folder or URL; those of a URL are kept in `cache`. `check` sees each, and may refuse it."""

    store: Store
    cache: Path
    check: Callable[[Shard, str], None]

    def listed(self, row: ShardRow) -> Listed:
        """A shard of the table, not opened yet."""
        return Listed(row.tiles, row.key, lambda verify: self.open(row, verify))

    def open(self, row: ShardRow, verify: bool = True) -> Shard:
        """A shard; with `verify` every byte is read. One that was fetched and is damaged now is fetched once more.

        Raises SlideUnreadable for a shard that is damaged or is not the one of the table, StoreError where it cannot be
        fetched, UsageError where the cache cannot be written, and what `check` raises.
        """
        name = self.store.url(row.file)
        local = self.store.local(row.file)
        shard = self._cached(row, verify) if local is None else read_shard(local, verify)
        if shard.key != row.key or len(shard.tiles) != row.tiles:
            raise SlideUnreadable(
                f"{name}: {len(shard.tiles)} tiles of key {shard.key[:12]}…, the table says {row.tiles} of "
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
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                self.store.fetch(row.file, temporary)
                found = sha256(temporary)
                if found != row.sha256:
                    raise StoreError(
                        f"{self.store.url(row.file)}: sha256 is {found[:12]}…, the table says {row.sha256[:12]}…; "
                        "run clotkit tile again, or clotkit tile --verify"
                    )
        except FileNotFoundError as error:
            raise StoreError(f"{self.store.url(row.file)}: is not there; run clotkit tile again") from error
        except OSError as error:
            raise UsageError(
                f"--cache {self.cache}: cannot be written: {error.strerror or error}; free it, or name another"
            ) from error
