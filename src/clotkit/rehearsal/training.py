"""The rehearsals of the kernels that make a member: tiling on a small train split, training on the tiles of that."""

import json
import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clotkit.bundle.build import read_settings
from clotkit.competitions import Competition, load_competition
from clotkit.errors import ClotkitError, RehearsalError, UsageError
from clotkit.files import atomic_write_json, sha256
from clotkit.kaggle.datasets import Attached, files_in, wheels_files
from clotkit.members.folder import MANIFEST, METRICS
from clotkit.members.loading import load_member
from clotkit.progress import Log
from clotkit.rehearsal.scoring import (
    REHEARSAL,
    Outcome,
    Sandbox,
    costs_of,
    hashes_of,
    make_sandbox,
    run_layouts,
    said_costs,
)
from clotkit.shards.shard import read_shard
from clotkit.shards.table import TABLE, read_shard_rows
from clotkit.splits import read_slides
from clotkit.stores import Folder

TILES, WEIGHTS, SUMMARY = "tiles", "weights", "summary.json"


def rehearse_tiling(
    split_dir: Path, wheels: Path, kernel: Path, competition_name: str, layout: str, out: Path, log: Log
) -> bool:
    """Run the tiling kernel's bundle over a train split and verify its shards; True when every slide gave one.

    Leaves the tiles in `out`/tiles, which the training kernel is rehearsed with, and rehearsal.json. Raises
    RehearsalError when the kernel fails, or leaves shards that are not whole, or other ones in the other layout;
    another ClotkitError when what it is to run with is wrong.
    """
    started = time.monotonic()
    competition, recipes = load_competition(competition_name), read_settings(kernel).said["rehearse"]
    slides = len(read_slides(split_dir, "train", competition))
    sandbox = make_sandbox(kernel, competition_name, wheels, out, log)
    attached = _attached(kernel, {"wheels": wheels_files(wheels)})
    outcomes = run_layouts(sandbox, layout, attached, split_dir, competition, {TILES, SUMMARY}, log)
    counts = [_check_tiles(outcome, recipes, competition, out / TILES) for outcome in outcomes]
    _check_alike(outcomes, [f"{TILES}/{recipe}.tar" for recipe in recipes])
    done = min(counts[-1].values())
    facts = {"split": str(split_dir), "slides": {"done": done, "failed": slides - done}, "recipes": recipes}
    _publish(sandbox, outcomes, facts, {name: files for name, files in attached.items() if name.endswith("wheels")})
    log(f"{out / TILES}: {done} of {slides} slides have a whole shard; {said_costs(outcomes)}")
    clean = "" if done == slides else " with slides left out"
    log(f"rehearsal passed{clean}, {time.monotonic() - started:.0f} s in all")
    return done == slides


def rehearse_training(
    tiles: Path, backbones: Path, wheels: Path, kernel: Path, competition_name: str, layout: str, out: Path, log: Log
) -> bool:
    """Run the training kernel's bundle on the tiles of a tiling rehearsal, load the members that come of it; True.

    `backbones` is the folder of the imagenet dataset, which may be empty. Leaves the members in `out`/weights, and
    rehearsal.json. Raises RehearsalError when the kernel fails or a member does not load; another ClotkitError when
    what it is to run with is wrong.
    """
    started = time.monotonic()
    competition, recipes = load_competition(competition_name), read_settings(kernel).said["rehearse"]
    if not any(tiles.glob(f"*/{TABLE}")):
        raise UsageError(f"{tiles}: 0 folders of shards here, at least 1 is needed; make dry-run KERNEL=tile makes it")
    sandbox = make_sandbox(kernel, competition_name, wheels, out, log)
    imagenet = {path.name: path for path in sorted(backbones.glob("*.h5"))}
    known = {"wheels": wheels_files(wheels), "tiles": files_in(tiles), "imagenet": imagenet}
    attached = _attached(kernel, known)
    outcomes = run_layouts(sandbox, layout, attached, None, competition, {WEIGHTS, SUMMARY}, log)
    for outcome in outcomes:
        _check_members(outcome, recipes, competition, log)
    shutil.rmtree(out / WEIGHTS, ignore_errors=True)
    shutil.copytree(outcomes[-1].working / WEIGHTS, out / WEIGHTS)
    images = [_metrics(outcomes[-1], recipe)["material"]["images"] for recipe in recipes]
    facts = {"tiles": str(tiles), "slides": {"done": min(images)}, "recipes": recipes}
    _publish(sandbox, outcomes, facts, {name: files for name, files in attached.items() if name.endswith("wheels")})
    log(f"{out / WEIGHTS}: {', '.join(recipes)} trained and loaded; {said_costs(outcomes)}")
    log(f"rehearsal passed, {time.monotonic() - started:.0f} s in all")
    return True


def _attached(kernel: Path, known: Mapping[str, Mapping[str, Path]]) -> Attached:
    """The files of the datasets that a kernel asks for, by how their names end."""
    sources = json.loads((kernel / "kernel-metadata.json").read_text(encoding="utf-8"))["dataset_sources"]
    names = [source.split("/")[1] for source in sources]
    return {name: known.get(name.rpartition("-")[2], {}) for name in names}


def _check_tiles(outcome: Outcome, recipes: Sequence[str], competition: Competition, out: Path) -> dict[str, int]:
    """Unpack the tiles into `out`, as Kaggle does, and read every shard in their tables; how many each recipe has."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(outcome.working / TILES, out)
    tars = sorted(out.glob("*.tar"))
    for path in tars:
        with tarfile.open(path) as archive:
            archive.extractall(out / path.stem, filter="data")
    _check_manifest(outcome, out)
    for path in tars:
        path.unlink()
    return {recipe: _check_shards(out / recipe, outcome, competition) for recipe in recipes}


def _check_shards(folder: Path, outcome: Outcome, competition: Competition) -> int:
    try:
        files = [folder / row.file for row in read_shard_rows(Folder(folder), competition) if row.file]
        for file in files:
            read_shard(file)
    except ClotkitError as error:
        raise RehearsalError(f"layout {outcome.layout}: {error}") from error
    return len(files)


def _check_members(outcome: Outcome, recipes: Sequence[str], competition: Competition, log: Log) -> None:
    for recipe in recipes:
        try:
            member = load_member(outcome.working / WEIGHTS / recipe, competition.classes.names)
        except ClotkitError as error:
            raise RehearsalError(f"layout {outcome.layout}: {error}") from error
        log(f"layout {outcome.layout}: member {member.name} loads, sha256 {member.weights_sha256[:12]}")
    _check_manifest(outcome, outcome.working / WEIGHTS)


def _check_manifest(outcome: Outcome, top: Path) -> None:
    """The manifest must name every file beside and below it, with its hash."""
    listed = json.loads((top / MANIFEST).read_text(encoding="utf-8")) if (top / MANIFEST).is_file() else {}
    found = {name: sha256(path) for name, path in files_in(top).items() if name != MANIFEST}
    if {name: entry["sha256"] for name, entry in listed.items()} != found:
        counts = f"names {len(listed)} files, {len(found)} are there"
        raise RehearsalError(f"layout {outcome.layout}: {top.name}/{MANIFEST} {counts}: not the same")


def _check_alike(outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    """The layouts must give the same files."""
    for name in names:
        if len({sha256(outcome.working / name) for outcome in outcomes}) > 1:
            raise RehearsalError(f"the layouts disagree: {name} is not the same in both")


def _metrics(outcome: Outcome, recipe: str) -> dict[str, Any]:
    return dict(json.loads((outcome.working / WEIGHTS / recipe / METRICS).read_text(encoding="utf-8")))


def _publish(sandbox: Sandbox, outcomes: Sequence[Outcome], facts: dict[str, Any], pinned: Attached) -> None:
    """Publish rehearsal.json; only of the `pinned` datasets must Kaggle have these files: others were stand-ins."""
    facts = sandbox.facts | facts | {"datasets": hashes_of(pinned), "layouts": costs_of(outcomes)}
    atomic_write_json(sandbox.out / REHEARSAL, facts)
