"""Read and write the features of one slide: an HDF5 file of the kit, of TRIDENT or of STAMP.

The kit's file has TRIDENT's layout: `features` float16[n, D], `coords` int64[n, 2] with the upper left corners of the
tiles in pixels of level 0, and the tiles' sizes as attributes of `coords`. STAMP's has `feats`, and `coords` in
micrometres; the kit writes it too, if asked. Every chunk has a checksum (Fletcher-32), so that a damaged file is
noticed when it is read.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit import __version__
from clotkit.config import TilingConfig
from clotkit.errors import NoTissue, ResolutionUnknown, SlideUnreadable, one_line
from clotkit.files import atomic_write

FEATURES, FEATS, COORDS = "features", "feats", "coords"
CHUNK_BYTES = 2**16  # of one chunk
BLOCK_BYTES = 2**25  # read at a time
LARGEST = 65504.0  # of float16
HISTORIC_PX, HISTORIC_UM = 224, 256.0  # STAMP 1 counted in pixels of tiles of 224 px and 256 um
# Facts that are attributes of `coords`, named as TRIDENT names them; `patch_level` and `custom_downsample` are those of
# CLAM, which TRIDENT reads where a slide states no magnification.
OF_COORDS = (
    "patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap", "name", "savetodir",
    "level0_width", "level0_height", "patch_level", "custom_downsample",
)  # fmt: skip
LARGEST_PLACE = 2.0**31  # pixels or micrometres
LEVEL0_MPP = "level0_mpp"  # the fact with the micrometres per pixel of the slide
TILING = "tiling"  # the fact with the tiling of the slide, see tiling_text
NOT_OF_TILES = {"batch_tiles", "downsample_if"}  # keys of a slide's tiling that change none of its tiles

Features = npt.NDArray[np.float16]  # [n, D]
Coords = npt.NDArray[np.int64]  # [n, 2]
Facts = Mapping[str, str | int | float]


class Layout(StrEnum):
    """The tool whose layout a file has."""

    CLOTKIT = "clotkit"
    TRIDENT = "trident"
    STAMP = "stamp"


class Unit(StrEnum):
    """The unit of coordinates."""

    PX = "px"  # pixels of level 0
    UM = "um"  # micrometres


@dataclass(frozen=True)
class FeatureFile:
    """The features of one slide, read when they are asked for; it can be pickled."""

    path: Path
    layout: Layout
    count: int  # number of tiles
    width: int  # number of features of a tile
    facts: dict[str, Any]  # the attributes of the file and of `coords`
    dataset: str = field(repr=False)  # name of the features' dataset

    @property
    def encoder_sha256(self) -> str:
        """The sha256 of the encoder; "" if the file does not state it."""
        return str(self.facts.get("encoder_sha256", ""))

    @property
    def key(self) -> str:
        """The key of the features (see features.tasks.feature_key); "" in files of other tools."""
        return str(self.facts.get("key", ""))

    @property
    def tiling(self) -> str:
        """The tiling of the slide, see tiling_text; "" if the file does not state it."""
        return str(self.facts.get(TILING, ""))

    @cached_property
    def unit(self) -> Unit:
        """The unit of `coords`: micrometres if the file has these and does not say how large a pixel is."""
        return Unit.UM if self.layout is Layout.STAMP and not self.facts.get(LEVEL0_MPP) else Unit.PX

    @cached_property
    def coords(self) -> Coords:
        """The upper left corners of the tiles, int64[n, 2], in `unit`, rounded. Raises SlideUnreadable."""
        with _opened(self.path) as file:
            found = np.asarray(_squeezed(file[COORDS]), np.float64)
        if self.layout is Layout.STAMP:
            scale = 1.0 if _states_um(self.facts) else HISTORIC_UM / HISTORIC_PX
            found = found * scale / (_number(self.facts.get(LEVEL0_MPP, 0)) or 1.0)
        if not (np.abs(found) <= LARGEST_PLACE).all():
            raise SlideUnreadable(f"{self.path}: coords has NaN or is beyond any slide; extract the features again")
        return np.rint(found).astype(np.int64)

    def read(self, rows: npt.ArrayLike | None = None) -> Features:
        """Read the features of all tiles, or of some of them in this order: float16[n, D].

        Memory is bounded by what is returned and BLOCK_BYTES, whatever the size of the file.

        Raises SlideUnreadable if the file is damaged, or has a NaN, an infinity or a value beyond float16.
        """
        wanted = np.arange(self.count) if rows is None else np.asarray(rows, np.int64)
        found = np.empty((len(wanted), self.width), np.float16)
        with _opened(self.path) as file:
            data = file[self.dataset]
            step = max(1, BLOCK_BYTES // (self.width * data.dtype.itemsize))
            for start in range(0, self.count, step):
                here = np.flatnonzero((wanted >= start) & (wanted < start + step))
                if len(here):
                    block = _rows(data, slice(start, start + step))
                    found[here] = self._checked(block, start)[wanted[here] - start]
        return found

    def start_sha256(self) -> str:
        """Return a hash of the features of the first tiles, about a chunk. Raises SlideUnreadable."""
        with _opened(self.path) as file:
            data = file[self.dataset]
            rows = _rows(data, slice(max(1, CHUNK_BYTES // (self.width * data.dtype.itemsize))))
            return hashlib.sha256(rows.tobytes()).hexdigest()

    def _checked(self, block: npt.NDArray[Any], start: int) -> Features:
        """Return a block as float16. Raises SlideUnreadable for numbers that float16 cannot hold."""
        bad = ~(np.abs(block) <= LARGEST).all(axis=1)  # a NaN compares as false
        if bad.any():
            raise SlideUnreadable(
                f"{self.path}: {self.dataset} has NaN, infinity or values beyond {LARGEST:.0f} in {int(bad.sum())} of "
                f"{len(block)} tiles, first in row {start + int(bad.argmax())}; extract the features again"
            )
        return block.astype(np.float16)


def _rows(data: Any, place: slice) -> npt.NDArray[Any]:
    """Return rows of a dataset, which may have a leading axis of 1."""
    return np.asarray(data[place] if data.ndim == 2 else data[0, place])


def tiling_text(tiling: TilingConfig) -> str:
    """Return the text of a slide's tiling (see config.tiling_for): equal texts, equal tiles."""
    used = {key: value for key, value in asdict(tiling).items() if key not in NOT_OF_TILES}
    return json.dumps(used, sort_keys=True)


def open_features(path: Path) -> FeatureFile:
    """Open an HDF5 file of the kit, TRIDENT or STAMP, and check names, shapes and types.

    No features are read. Datasets may have a leading axis of 1, as some tools write them.

    Raises:
        SlideUnreadable: The file is missing, damaged, or not such a file.
        NoTissue: It has no tiles.
    """
    with _opened(path) as file:
        dataset = next((name for name in (FEATURES, FEATS) if name in file), None)
        if dataset is None or COORDS not in file:
            raise SlideUnreadable(
                f"{path}: has {', '.join(file) or 'nothing'}; {FEATURES} (TRIDENT, clotkit) or {FEATS} (STAMP) and "
                f"{COORDS} are needed"
            )
        count, width = _shape(path, dataset, file[dataset])
        if _shape(path, COORDS, file[COORDS]) != (count, 2):
            raise SlideUnreadable(
                f"{path}: {COORDS} is {file[COORDS].shape}, {dataset} {file[dataset].shape}; one row (x, y) a tile is "
                "needed"
            )
        facts = {key: _plain(value) for owner in (file, file[COORDS]) for key, value in owner.attrs.items()}
    layout = Layout.STAMP if dataset == FEATS else Layout.CLOTKIT if "clotkit_version" in facts else Layout.TRIDENT
    if not count:
        raise NoTissue(f"{path}: has no tiles")
    return FeatureFile(path, layout, count, width, facts, dataset)


def write_features(path: Path, features: npt.NDArray[Any], coords: npt.NDArray[Any], facts: Facts) -> None:
    """Write the features [n, D] of a slide and the corners [n, 2] of its tiles; see FeatureWriter."""
    with atomic_write(path) as temporary, feature_writer(temporary) as writer:
        writer.append(features, coords)
        writer.facts.update(facts)


@dataclass
class FeatureWriter:
    """The content of a new file, batch by batch; the same batches and facts give the same bytes."""

    layout: Layout = Layout.CLOTKIT
    facts: dict[str, str | int | float] = field(default_factory=dict)  # attributes; see OF_COORDS
    features: list[Features] = field(default_factory=list)
    corners: list[Coords] = field(default_factory=list)

    def append(self, features: npt.NDArray[Any], coords: npt.NDArray[Any]) -> None:
        """Append the features [n, D] and upper left corners [n, 2] of some tiles, in pixels of level 0.

        Raises ValueError for numbers that float16 cannot hold.
        """
        bad = ~(np.abs(features) <= LARGEST).all(axis=1)
        if bad.any():
            raise ValueError(f"NaN, infinity or values beyond {LARGEST:.0f} in {int(bad.sum())} of {len(bad)} tiles")
        self.features.append(features.astype(np.float16))
        self.corners.append(np.asarray(coords, np.int64))

    def write(self, path: Path) -> None:
        """Write the file.

        It is made in memory: on a full disk the HDF5 library would crash the process.

        Raises:
            NoTissue: There are no tiles.
            ResolutionUnknown: STAMP's layout needs LEVEL0_MPP among the facts.
            OSError: The file cannot be written.
        """
        import h5py

        if not self.corners:
            raise NoTissue("the slide gave no tiles")
        corners: npt.NDArray[Any] = np.concatenate(self.corners)
        facts = {"clotkit_version": __version__, "feat_type": "tile", "unit": str(Unit.PX), **self.facts}
        if self.layout is Layout.STAMP:
            mpp = float(facts.get(LEVEL0_MPP, 0))
            if not mpp:
                raise ResolutionUnknown("the slide states no plausible size of a pixel, which STAMP's layout needs")
            corners = (corners * mpp).astype(np.float32)
            facts |= {"unit": str(Unit.UM), "tile_size_um": mpp * float(facts["patch_size_level0"])}
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            name = FEATS if self.layout is Layout.STAMP else FEATURES
            features = _create(file, name, (len(corners), self.features[0].shape[1]), np.float16)
            end = 0
            for batch in self.features:
                start, end = end, end + len(batch)
                features[start:end] = batch
            features.flush()  # chunks get their places now: when they are closed, the order is not always the same
            places = _create(file, COORDS, (len(corners), 2), corners.dtype)
            places[:] = corners
            places.flush()
            for key in sorted(facts):
                file[COORDS if key in OF_COORDS else "/"].attrs[key] = facts[key]
        with path.open("wb") as written:
            written.write(content.getbuffer())


def _create(file: Any, name: str, shape: tuple[int, int], dtype: npt.DTypeLike) -> Any:
    """Create a dataset whose chunks have checksums."""
    rows = max(1, min(shape[0], CHUNK_BYTES // (shape[1] * np.dtype(dtype).itemsize)))
    return file.create_dataset(name, shape, dtype, maxshape=(None, shape[1]), chunks=(rows, shape[1]), fletcher32=True)


@contextmanager
def feature_writer(path: Path, layout: Layout = Layout.CLOTKIT) -> Iterator[FeatureWriter]:
    """Give the writer of a new file at `path`, which is written at the end of the context."""
    writer = FeatureWriter(layout)
    yield writer
    writer.write(path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file to read. Raises SlideUnreadable for a damaged one."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {one_line(error, path)}"
        raise SlideUnreadable(f"{path}: {why}; an HDF5 file of features is needed") from error


def _shape(path: Path, name: str, data: Any) -> tuple[int, int]:
    """Return the rows and columns of a dataset. Raises SlideUnreadable for other shapes and types."""
    shape, kind = getattr(data, "shape", None), getattr(getattr(data, "dtype", None), "kind", "")
    kinds = "f" if name != COORDS else "iuf"
    if shape is None or kind not in kinds or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise SlideUnreadable(
            f"{path}: {name} is {getattr(data, 'dtype', 'a group')}{list(shape or ())}; "
            f"{'float' if name != COORDS else 'numbers'}[tiles, {'features' if name != COORDS else 2}] is needed"
        )
    if not shape[-1]:
        raise SlideUnreadable(f"{path}: {name} has no columns; at least 1 is needed")
    return int(shape[-2]), int(shape[-1])


def _squeezed(data: Any) -> Any:
    """Return the array of a dataset without a leading axis of 1."""
    return data[()] if len(data.shape) == 2 else data[0]


def _states_um(facts: Mapping[str, Any]) -> bool:
    """Tell whether STAMP's attributes say that coordinates are micrometres, as those of STAMP 2 do."""
    return bool(facts.get("tile_size_um") or (facts.get("tile_size") and facts.get("unit") == Unit.UM))


def _number(value: Any) -> float:
    """Return an attribute as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _plain(value: Any) -> Any:
    """Return an attribute as a number, a string or a list."""
    with suppress(AttributeError):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        return _plain(value[0])
    return value.decode(errors="replace") if isinstance(value, bytes) else value
