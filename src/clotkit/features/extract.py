"""Encode the tiles of slides as they are cut, and write a file of features a slide.

On one machine each slide is cut in a process of its own, and this process encodes the tiles of all. On a cluster each
worker does the same with one slide at a time.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from clotkit.errors import ClotkitError, ClusterError, described
from clotkit.features.files import LEVEL0_MPP, TILING, FeatureWriter, Layout, tiling_text
from clotkit.features.tasks import FeatureTask, feature_task
from clotkit.files import sha256
from clotkit.members.encoders.encoder import Encoder, FoundEncoder
from clotkit.reasons import Reason
from clotkit.scoring.prefetch import prefetch
from clotkit.scratch import scratch
from clotkit.shards.cut import CutResult
from clotkit.shards.shard import ShardFile
from clotkit.tiling.preview import kept_size_px
from clotkit.versions import SCORING, Versions, versions_here
from clotkit.workers import Ended, Limits, TileBatch, Work, stream, unchanged

OBJECTIVE_UM = 10.0  # micrometres per pixel times magnification, by convention: 0.25 is 40 x
ENCODING = (*SCORING, "onnxruntime", "h5py")
_LOADING = threading.Lock()
_LOADED: dict[tuple[str, int, int], Encoder] = {}


class GrowingFeatures:
    """The features of one slide while its tiles are encoded; they are in memory until it ends."""

    def __init__(self, task: FeatureTask, layout: Layout) -> None:
        self.task, self._writer = task, FeatureWriter(layout)
        self.failure: CutResult | None = None  # why it gets no file

    def add(self, encoder: Encoder, event: TileBatch) -> None:
        """Encode a batch. A failure ends the slide, and `failure` keeps it."""
        if self.failure is not None:
            return
        try:
            features = encoder.encode(event.batch.tiles)
        except Exception as error:  # noqa: BLE001 - any error of a network costs this slide, and the table names it
            self.failure = CutResult(Reason.FAILED, f"encoder {encoder.name}: {described(error)}")
            return
        try:
            self._writer.append(np.asarray(features), event.batch.xy)
        except ValueError as error:
            self.failure = CutResult(Reason.BAD_FEATURES, f"encoder {encoder.name} gave {error}")

    def finish(self, facts: dict[str, str | int | float]) -> ShardFile:
        """Write the file, atomically. Raises SlideError, StoreError or OSError."""
        self._writer.facts.update(facts)
        with self.task.store.atomic_write(self.task.shard) as path:
            self._writer.write(path)
            return ShardFile(sum(map(len, self._writer.corners)), path.stat().st_size, sha256(path))


def encode_slides(
    tasks: Sequence[FeatureTask],
    encoder: Encoder,
    limits: Limits,
    jobs: int,
    layout: Layout,
    work: Work = feature_task,
) -> Generator[tuple[FeatureTask, CutResult], None, None]:
    """Encode the tiles of slides, `jobs` of them at a time, and yield how each ended.

    Whatever a slide's process does costs only that slide.
    """
    slides: dict[str, GrowingFeatures] = {}
    with closing(prefetch(partial(stream, tasks, limits, jobs, work, unchanged))) as events:
        for event in events:
            assert isinstance(event.task, FeatureTask)
            if isinstance(event, TileBatch):
                slides.setdefault(event.image_id, GrowingFeatures(event.task, layout)).add(encoder, event)
                continue
            yield event.task, _ended(event, slides.pop(event.image_id, None), encoder)
            if event.task.stored is not None:
                event.task.path.unlink(missing_ok=True)  # a download for this slide only


def _ended(ended: Ended, slide: GrowingFeatures | None, encoder: Encoder) -> CutResult:
    """Write the file of a slide whose process has ended, unless it or the encoder failed."""
    if ended.code is not None:
        found = CutResult(ended.code, ended.reason)
    elif slide is None:
        found = CutResult(Reason.NO_TILES, "no tiles were cut")
    else:
        found = slide.failure or _written(slide, facts_of(ended, slide.task, encoder))
    return replace(found, seconds=ended.seconds, peak_mb=ended.peak_mb)


def _written(slide: GrowingFeatures, facts: dict[str, str | int | float]) -> CutResult:
    """Write the file of a slide; an object store, or STAMP's layout without a resolution, may refuse it."""
    try:
        return CutResult(None, "", shard=slide.finish(facts))
    except ClotkitError as error:
        return CutResult(error.reason, str(error))


def facts_of(ended: Ended, task: FeatureTask, encoder: Encoder) -> dict[str, str | int | float]:
    """Return the attributes of a slide's file; see features.files.OF_COORDS for those that TRIDENT reads."""
    found, (tiling,) = ended.facts, task.tilings
    width_px, height_px = int(found.get("width_px", 0)), int(found.get("height_px", 0))
    side_px = max(kept_size_px(tiling, width_px, height_px, found))
    downsample = side_px / tiling.tile_px
    facts: dict[str, str | int | float] = {
        "encoder": encoder.name, "extractor": encoder.name, "encoder_sha256": encoder.sha256, "key": task.key,
        "patch_size": tiling.tile_px, "tile_size_px": tiling.tile_px, "patch_size_level0": side_px,
        "overlap": round(tiling.overlap * tiling.tile_px), "name": task.image_id, "savetodir": ".",
        "level0_width": width_px, "level0_height": height_px, "patch_level": 0,
        "custom_downsample": _whole(downsample), TILING: tiling_text(tiling),
    }  # fmt: skip
    if mpp := found.get("mpp"):
        magnification = max(1, round(OBJECTIVE_UM / mpp))
        facts |= {
            LEVEL0_MPP: float(mpp),
            "level0_magnification": magnification,
            "target_magnification": _whole(magnification / downsample),
        }
    return facts


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


@dataclass(frozen=True)
class EncodeRequest:
    """A request to a worker: encode the tiles of one slide."""

    task: FeatureTask
    encoder: FoundEncoder
    encoder_sha256: str
    tile_px: int
    batch_tiles: int
    layout: Layout
    stall_s: float
    memory_mb: int
    work: Work
    versions: Versions = field(default_factory=lambda: versions_here(ENCODING))  # of the machine that asks


def encode_request(request: EncodeRequest) -> CutResult:
    """Encode the tiles of a slide on this worker.

    Raises ClusterError if this machine's kit, packages or encoder differ from the client's, ConfigError if it has none.
    """
    request.versions.check()
    encoder = _loaded(request)
    task, limits = request.task, Limits(float("inf"), request.memory_mb, stall_s=request.stall_s)
    with scratch() as folder:
        local = replace(task, path=folder / task.path.name) if task.stored is not None else task
        ((_, result),) = encode_slides([local], encoder, limits, 1, request.layout, request.work)
    return result


def _loaded(request: EncodeRequest) -> Encoder:
    """Return the encoder, loaded once in this process; threads of a worker share it."""
    key = (request.encoder_sha256, request.tile_px, request.batch_tiles)
    with _LOADING:
        if key not in _LOADED:
            encoder = request.encoder.load(request.tile_px, request.batch_tiles)
            if encoder.sha256 != request.encoder_sha256:
                raise ClusterError(
                    f"{request.encoder.path}: a worker's encoder is {encoder.sha256[:12]}…, this machine's "
                    f"{request.encoder_sha256[:12]}…; put the same files on both"
                )
            _LOADED[key] = encoder
    return _LOADED[key]
