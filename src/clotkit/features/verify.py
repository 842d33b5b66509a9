"""`clotkit features --verify`: read every file of a folder once, and compare it with features.csv."""

from dataclasses import dataclass

from clotkit.competitions import Competition
from clotkit.engines import Lost, engine
from clotkit.errors import ClotkitError
from clotkit.features.files import FeatureFile, open_features, tiling_text
from clotkit.features.folder import TABLE, VERB
from clotkit.features.run import FeatureSettings, prepared
from clotkit.features.tasks import FeatureTask
from clotkit.progress import Log, progress
from clotkit.shards.table import ShardRow, read_shard_rows
from clotkit.shards.verify import (
    Fault,
    FaultKind,
    Verification,
    byte_fault,
    file_faults,
    likely_splits,
    listing_faults,
    verification_lines,
)
from clotkit.stores import Store, local_copy, store_of


@dataclass(frozen=True)
class FeatureCheck:
    """A file to check, and what to compare it with."""

    store: Store
    row: ShardRow
    encoder_sha256: str
    task: FeatureTask | None  # of the same slide in a run; None: the slide is not of the split


def verify_features(settings: FeatureSettings, competition: Competition, log: Log) -> Verification:
    """Compare every file of a folder with features.csv, and with what a run would make.

    That is bytes, sha256, tiles, key, numbers, encoder and tiling. Also checks that the table lists every slide of
    the split or of the shards once and nothing else, and that the folder has no other files of features.

    Raises:
        SplitError: There is no table, or some slides are unfinished.
        UsageError, ConfigError, ClusterError: The encoder is unknown, the backend cannot be used, or the tile shards
            were cut with another tiling than the recipe's.
    """
    store = store_of(settings.out)
    rows, listed = read_shard_rows(store, competition, TABLE, VERB), store.entries()
    done = [row for row in rows if row.file]
    with prepared(settings, competition, log, likely_splits(rows)) as job:
        faults = [
            *listing_faults([slide.image_id for slide in job.slides], rows),
            *file_faults(done, set(listed), ".h5"),
        ]
        encoder_sha256, tasks = job.encoder.sha256, job.tasks
    checks = [
        FeatureCheck(store.absolute(), row, encoder_sha256, tasks.get(row.image_id))
        for row in done
        if row.file in listed
    ]
    with engine(settings.backend, log) as workers, progress(len(checks), log) as advance:
        for check, found in workers.unordered(check_file, checks):
            fault = Fault(check.row.file, FaultKind.LOST, found.reason) if isinstance(found, Lost) else found
            if fault is not None:
                faults.append(fault)
            advance(f"{check.row.file} {'sound' if fault is None else fault.text}", fault is not None)
    result = Verification(len(done), sum(row.size_bytes for row in done), len(rows) - len(done), faults)
    for line in verification_lines(result, settings.out, "files", VERB):
        log(line)
    return result


def check_file(check: FeatureCheck) -> Fault | None:
    """Return the first fault of a file, or None; one of an object store is fetched."""
    try:
        with local_copy(check.store, check.row.file) as path:
            found = byte_fault(path, check.row)
            if found is None:
                features = open_features(path)
                features.read()
                listed, has = (check.row.tiles, check.row.key), (features.count, features.key)
                if listed != has:
                    found = FaultKind.CONTENT, f"has {has[0]} tiles and key {has[1]}, but {listed} are listed"
                else:
                    found = _other_origin(features, check)
    except (OSError, ClotkitError) as error:
        found = FaultKind.UNREADABLE, str(error)
    return None if found is None else Fault(check.row.file, *found)


def _other_origin(features: FeatureFile, check: FeatureCheck) -> tuple[FaultKind, str] | None:
    """Return how a file differs from what a run would make; None if it does not, or has no slide."""
    task, encoder_sha256 = check.task, features.encoder_sha256
    if encoder_sha256 != check.encoder_sha256:
        return FaultKind.ENCODER, f"is of the encoder {encoder_sha256}, not {check.encoder_sha256}"
    if task is None or task.key in {"", features.key}:
        return None
    if features.tiling not in {"", tiling_text(task.tilings[0])}:
        return FaultKind.TILING, f"its tiles were cut with another tiling than the recipe's: {features.tiling}"
    return FaultKind.OUTDATED, "is out of date: the slide, the tiling, the layout or the code that cuts is another"
