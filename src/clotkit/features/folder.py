"""Feature files by image id, in a folder or at a URL, whose files are fetched once, into a cache."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from clotkit.errors import ConfigError, SlideError, SlideUnreadable
from clotkit.features.files import FeatureFile, open_features
from clotkit.shards.cache import fetch_into_cache
from clotkit.stores import Entry, Place, Store, store_of

TABLE, VERB = "features.csv", "clotkit features"  # of the files that the kit has made, and what makes them
SUFFIXES = (".h5", ".hdf5")
CACHE = Path("build/cache")


@dataclass
class FeatureFolder:
    """The feature files of a folder, of the kit, TRIDENT or STAMP; files below subfolders count too.

    All have one width, and one encoder if they state it: those of the first file by name that can be read.
    """

    place: Place
    cache: Path = CACHE  # for files of an object store
    wanted: Collection[str] | None = None  # image ids whose files count as the first; None: all
    _store: Store = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise UsageError for a URL that cannot be used."""
        self._store = store_of(self.place)

    @cached_property
    def files(self) -> dict[str, str]:
        """The names of the files by image id, sorted. Raises ConfigError for none, or for two of one id."""
        found: dict[str, str] = {}
        for name in sorted(self._entries):
            if not name.endswith(SUFFIXES):
                continue
            image_id = PurePosixPath(name).stem
            if image_id in found:
                raise ConfigError(
                    f"{self._store.url(name)}: {found[image_id]} has the features of {image_id} too; keep one of them"
                )
            found[image_id] = name
        if not found:
            raise ConfigError(f"{self._store.url()}: no {' or '.join(SUFFIXES)} here; clotkit features writes them")
        return found

    @property
    def ids(self) -> list[str]:
        """The image ids that have a file, sorted."""
        return list(self.files)

    @property
    def width(self) -> int:
        """The number of features of a tile."""
        return self._first.width

    @property
    def encoder_sha256(self) -> str:
        """The sha256 of the encoder; "" if the files do not state it."""
        return self._first.encoder_sha256

    def open(self, image_id: str) -> FeatureFile:
        """Open the features of a slide.

        Raises:
            SlideUnreadable, NoTissue: The slide has no file, or it is damaged or empty.
            ConfigError: It has another width or another encoder than the first file.
            StoreError: It cannot be fetched.
        """
        if image_id not in self.files:
            raise SlideUnreadable(f"{self._store.url()}: no features of {image_id}; run clotkit features again")
        found = open_features(self._local(self.files[image_id]))
        ours = (self.width, self.encoder_sha256)
        if (found.width, found.encoder_sha256) != ours:
            raise ConfigError(
                f"{self._store.url(self.files[image_id])}: {found.width} features of the encoder "
                f"{found.encoder_sha256[:12]}, {self._first.path.stem} has {ours[0]} of {ours[1][:12]}: "
                "put features of one encoder in one folder"
            )
        return found

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return self._store.entries()

    @cached_property
    def _first(self) -> FeatureFile:
        """The first file by name that can be read. Raises SlideUnreadable if none can."""
        wanted = self.files if self.wanted is None else self.wanted
        for name in (name for image_id, name in self.files.items() if image_id in wanted):
            with suppress(SlideError):
                return open_features(self._local(name))
        raise SlideUnreadable(f"{self._store.url()}: none of {len(self.files)} files can be read; extract them again")

    def _local(self, name: str) -> Path:
        """Return the path of a file, or of its copy in the cache."""
        path = self._store.local(name)
        if path is not None:
            return path
        entry = self._entries[name]
        copy = self.cache / "features" / f"{PurePosixPath(name).stem}-{_short(self._store.url(name), entry)}.h5"
        if not copy.is_file():
            fetch_into_cache(self._store, name, copy, self.cache, VERB)
        return copy


def _short(url: str, entry: Entry) -> str:
    """Return a short hash of a file's address, size and version."""
    import hashlib

    return hashlib.sha256(f"{url} {entry.size_bytes} {entry.version}".encode()).hexdigest()[:16]
