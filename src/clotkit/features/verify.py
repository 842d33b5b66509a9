"""`clotkit features --verify`: read every file of a folder once, and compare it with features.csv."""

from dataclasses import dataclass

from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.engines import Lost, engine
from clotkit.errors import ClotkitError
from clotkit.features.files import open_features
from clotkit.features.folder import TABLE, VERB
from clotkit.features.run import FeatureSettings, is_shards, wanted_encoder
from clotkit.progress import Log, progress
from clotkit.shards.table import ShardRow, read_shard_rows
from clotkit.shards.verify import (
    Fault,
    FaultKind,
    Verification,
    byte_fault,
    file_faults,
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


def verify_features(settings: FeatureSettings, competition: Competition, log: Log) -> bool:
    """Compare every file of a folder with features.csv: bytes, sha256, tiles, key, numbers and encoder.

    Also checks that the table lists every slide of the split once and nothing else, and that the folder has no other
    files of features.

    Returns:
        True if every slide has its file, and each is as listed.

    Raises:
        SplitError: There is no table, or some slides are unfinished.
        UsageError, ConfigError, ClusterError: The encoder is unknown, or the backend cannot be used.
    """
    store = store_of(settings.out)
    encoder = wanted_encoder(settings, load_recipe(settings.recipe))
    rows, listed = read_shard_rows(store, competition, TABLE, VERB), store.entries()
    done = [row for row in rows if row.file]
    checks = [FeatureCheck(store.absolute(), row, encoder.sha256) for row in done if row.file in listed]
    faults = list(file_faults(done, set(listed), ".h5"))
    if not is_shards(store_of(settings.split_dir)):
        faults += listing_faults(settings.split_dir, rows, competition)
    with engine(settings.backend, log) as workers, progress(len(checks), log) as advance:
        for check, found in workers.unordered(check_file, checks):
            fault = Fault(check.row.file, FaultKind.LOST, found.reason) if isinstance(found, Lost) else found
            if fault is not None:
                faults.append(fault)
            advance(f"{check.row.file} {'sound' if fault is None else fault.text}", fault is not None)
    result = Verification(len(done), sum(row.size_bytes for row in done), len(rows) - len(done), faults)
    for line in verification_lines(result, settings.out, "files", VERB):
        log(line)
    return result.sound


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
                elif features.encoder_sha256 != check.encoder_sha256:
                    found = (
                        FaultKind.ENCODER,
                        f"is of the encoder {features.encoder_sha256}, not {check.encoder_sha256}",
                    )
    except (OSError, ClotkitError) as error:
        found = FaultKind.UNREADABLE, str(error)
    return None if found is None else Fault(check.row.file, *found)
