"""`clotkit features --plan`: forecast the files, MB, minutes and memory of a run before it starts.

Slides are opened and sampled as `clotkit plan` does, and the encoder is measured in a process of its own.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import UsageError
from clotkit.features.probe import EncoderTiming, described_timing, read_use, time_encoder
from clotkit.features.run import FeatureSettings, Job, is_shards, prepared
from clotkit.planning.plan import PlanSettings, plan_slides, wall_seconds
from clotkit.progress import Log
from clotkit.scoring.prefetch import MAX_BYTES
from clotkit.shards.table import read_shard_rows
from clotkit.stores import store_of
from clotkit.units import MB, many

FILE_BYTES = 2**14  # of a file, beside its features and corners


@dataclass(frozen=True)
class FeaturePlan:
    """The forecast of a run."""

    slides: int
    failing: dict[str, str]  # by image id, why a slide will get no file
    tiles: int
    files_mb: float
    batch_tiles: int
    encoder: EncoderTiming
    encode_s: float  # of all tiles, one batch after the other
    wall_s: float  # with the slides that are cut at the same time, and the encoder's load and measurement
    peak_mb: float  # of this process and those of the slides, if all peak at once


def plan_features(settings: FeatureSettings, competition: Competition, log: Log) -> FeaturePlan:
    """Log the forecast of a run, and return it."""
    plan = forecast_features(settings, competition, log)
    for image_id, reason in plan.failing.items():
        log(f"{image_id} will fail: {reason}")
    log(f"encoder: {described_timing(plan.encoder, plan.batch_tiles)}")
    minutes = f"{plan.wall_s / 60:,.1f} minutes, {plan.encode_s / 60:,.1f} of them the encoder's"
    log(
        f"{many(plan.slides - len(plan.failing), 'file')}, {many(plan.tiles, 'tile')}, {plan.files_mb:,.1f} MB; "
        f"{minutes}; {plan.peak_mb:,.0f} MB of memory"
    )
    return plan


def forecast_features(settings: FeatureSettings, competition: Competition, log: Log) -> FeaturePlan:
    """Return the forecast of a run over all slides of a split, up to date or not.

    Raises as extract_split does.
    """
    with prepared(settings, competition, log) as job:
        started = time.perf_counter()
        timing = time_encoder(job.encoder, job.recipe.tiling.tile_px)
        probe_s = time.perf_counter() - started
        use = read_use(job.store)
        known = use.batch_tiles if use is not None and use.sha256 == job.encoder.sha256 else None
        batch = settings.batch_tiles or known or timing.batch_within(settings.encoder_memory_mb)
        slides, failing, child_mb = _tiles_and_seconds(job, competition)
    tiles, tile_bytes = sum(count for count, _ in slides), 2 * timing.width + 16
    waiting = min(MAX_BYTES, tiles * 3 * job.recipe.tiling.tile_px**2)  # bytes of tiles that wait for the encoder
    held = (settings.jobs + 1) * max((count for count, _ in slides), default=0) * tile_bytes  # features, until they end
    encode_s = [timing.slide_s(count, batch) for count, _ in slides]
    seconds = [(cut_s, each_s) for (_, cut_s), each_s in zip(slides, encode_s, strict=True)]
    return FeaturePlan(
        slides=len(slides) + len(failing),
        failing=failing,
        tiles=tiles,
        files_mb=(tiles * tile_bytes + len(slides) * FILE_BYTES) / MB,
        batch_tiles=batch,
        encoder=timing,
        encode_s=sum(encode_s),
        wall_s=(0.0 if known else probe_s) + timing.load_s + wall_seconds(seconds, settings.jobs),
        peak_mb=timing.peak_mb(batch) + settings.jobs * child_mb + (waiting + held) / MB,
    )


def _tiles_and_seconds(job: Job, competition: Competition) -> tuple[list[tuple[int, float]], dict[str, str], float]:
    """Return tiles and seconds of each slide, the slides that will fail, and the MB of a process."""
    settings = job.settings
    source = store_of(settings.split_dir)
    if is_shards(source):
        rows = read_shard_rows(source, competition)
        failing = {row.image_id: row.reason for row in rows if not row.file}
        return [(row.tiles, 0.0) for row in rows if row.file], failing, 0.0
    if not isinstance(settings.split_dir, Path):
        raise UsageError(f"{settings.split_dir}: every slide is read for a plan; give a local folder")
    wanted = PlanSettings(
        split_dir=settings.split_dir,
        weights_dir=None,
        recipe=settings.recipe,
        split=settings.split,
        jobs=settings.jobs,
        deadline_s=float("inf"),
        memory_mb=settings.memory_mb,
    )
    plan = plan_slides(job.slides, wanted, competition)
    sound = [slide for slide in plan.slides if slide.code is None]
    return (
        [(slide.tiles, slide.process_s + slide.decode_s) for slide in sound],
        {slide.image_id: slide.reason for slide in plan.failing},
        plan.child_mb,
    )
