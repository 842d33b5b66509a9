"""Rehearse the kernels that make a member: tiling on a small train split, training on its tiles."""

import json
import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clotkit.bundle.build import read_settings
from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, RehearsalError, UsageError
from clotkit.files import atomic_write_json, sha256
from clotkit.kaggle.datasets import Attached, files_in, wheels_files
from clotkit.kaggle.kernels import datasets_attached
from clotkit.members.encoders.loading import load_member
from clotkit.members.folder import MANIFEST, METRICS
from clotkit.progress import Log
from clotkit.reasons import RehearsalKind
from clotkit.rehearsal.sandbox import (
    REHEARSAL,
    Outcome,
    Rehearsal,
    Sandbox,
    attached_facts,
    cost_line,
    costs_of,
    make_sandbox,
    run_layouts,
)
from clotkit.shards.shard import read_shard
from clotkit.shards.table import TABLE, read_shard_rows
from clotkit.splits import read_slides
from clotkit.stores import Folder
from clotkit.supervise import SUMMARY

TILES, WEIGHTS = "tiles", "weights"


def rehearse_tiling(split_dir: Path, rehearsal: Rehearsal) -> bool:
    """Run the tiling kernel's bundle over a train split; return whether every slide gave a shard.

    Leaves rehearsal.json, and in `out`/tiles the tiles that the rehearsal of the training kernel needs.

    Raises:
        RehearsalError: The kernel fails, or leaves shards that are damaged or differ between the layouts.
        ClotkitError: The split or the wheels are wrong.
    """
    started = time.monotonic()
    competition, out, log = rehearsal.competition, rehearsal.out, rehearsal.log
    recipes = read_settings(rehearsal.kernel, competition).bundled["rehearse"]
    slides = len(read_slides(split_dir, "train", competition))
    sandbox = make_sandbox(rehearsal)
    attached = _attached(rehearsal, {"wheels": wheels_files(rehearsal.wheels)})
    outcomes = run_layouts(sandbox, rehearsal.layouts, attached, split_dir, competition, {TILES, SUMMARY}, log)
    counts = [_check_tiles(outcome, recipes, competition, out / TILES) for outcome in outcomes]
    _check_alike(outcomes, [f"{TILES}/{recipe}.tar" for recipe in recipes])
    done = min(counts[-1].values())
    facts = {"split": str(split_dir), "slides": {"done": done, "failed": slides - done}, "recipes": recipes}
    _publish(sandbox, outcomes, facts, {name: files for name, files in attached.items() if name.endswith("wheels")})
    log(f"{out / TILES}: {done} of {slides} slides have a whole shard; {cost_line(outcomes)}")
    clean = "" if done == slides else " with slides left out"
    log(f"rehearsal passed{clean}, {time.monotonic() - started:.0f} s in all")
    return done == slides


def rehearse_training(tiles: Path, backbones: Path, rehearsal: Rehearsal) -> bool:
    """Run the training kernel's bundle on the tiles of a tiling rehearsal, load its members, return True.

    Leaves rehearsal.json, and the members in `out`/weights. `backbones` is the folder of the imagenet dataset, which
    may be empty.

    Raises:
        RehearsalError: The kernel fails, or a member does not load.
        ClotkitError: The tiles or the wheels are wrong.
    """
    started = time.monotonic()
    competition, out, log = rehearsal.competition, rehearsal.out, rehearsal.log
    recipes = read_settings(rehearsal.kernel, competition).bundled["rehearse"]
    if not any(tiles.glob(f"*/{TABLE}")):
        raise UsageError(f"{tiles}: 0 folders of shards here, at least 1 is needed; run make dry-run KERNEL=tile")
    sandbox = make_sandbox(rehearsal)
    imagenet = {path.name: path for path in sorted(backbones.glob("*.h5"))}
    known = {"wheels": wheels_files(rehearsal.wheels), "tiles": files_in(tiles), "imagenet": imagenet}
    attached = _attached(rehearsal, known)
    outcomes = run_layouts(sandbox, rehearsal.layouts, attached, None, competition, {WEIGHTS, SUMMARY}, log)
    for outcome in outcomes:
        _check_members(outcome, recipes, competition, log)
    shutil.rmtree(out / WEIGHTS, ignore_errors=True)
    shutil.copytree(outcomes[-1].working / WEIGHTS, out / WEIGHTS)
    images = [_metrics(outcomes[-1], recipe)["material"]["images"] for recipe in recipes]
    facts = {"tiles": str(tiles), "slides": {"done": min(images)}, "recipes": recipes}
    _publish(sandbox, outcomes, facts, {name: files for name, files in attached.items() if name.endswith("wheels")})
    log(f"{out / WEIGHTS}: {', '.join(recipes)} trained and loaded; {cost_line(outcomes)}")
    log(f"rehearsal passed, {time.monotonic() - started:.0f} s in all")
    return True


def _attached(rehearsal: Rehearsal, known: Mapping[str, Mapping[str, Path]]) -> Attached:
    """Return the datasets of a kernel's metadata, with the `known` files for the last word of their names."""
    names = datasets_attached(rehearsal.kernel, rehearsal.competition, rehearsal.inputs)
    return {name: known.get(name.rpartition("-")[2], {}) for name in names}


def _check_tiles(outcome: Outcome, recipes: Sequence[str], competition: Competition, out: Path) -> dict[str, int]:
    """Unpack the tiles into `out`, as Kaggle does, read every shard, and return their number by recipe."""
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
    """Read every shard of a folder, and return their number."""
    try:
        files = [folder / row.file for row in read_shard_rows(Folder(folder), competition) if row.file]
        for file in files:
            read_shard(file)
    except ClotkitError as error:
        raise RehearsalError(f"layout {outcome.layout}: {error}", RehearsalKind.OUTPUT) from error
    return len(files)


def _check_members(outcome: Outcome, recipes: Sequence[str], competition: Competition, log: Log) -> None:
    """Load the member of every recipe."""
    for recipe in recipes:
        try:
            member = load_member(outcome.working / WEIGHTS / recipe, competition.classes.names, competition.slug)
        except ClotkitError as error:
            raise RehearsalError(f"layout {outcome.layout}: {error}", RehearsalKind.OUTPUT) from error
        log(f"layout {outcome.layout}: member {member.name} loads, sha256 {member.weights_sha256[:12]}")
    _check_manifest(outcome, outcome.working / WEIGHTS)


def _check_manifest(outcome: Outcome, top: Path) -> None:
    """Raise RehearsalError unless the manifest has every file below `top`, with its hash."""
    listed = json.loads((top / MANIFEST).read_text(encoding="utf-8")) if (top / MANIFEST).is_file() else {}
    hashes = {name: sha256(path) for name, path in files_in(top).items() if name != MANIFEST}
    if {name: entry["sha256"] for name, entry in listed.items()} != hashes:
        counts = f"names {len(listed)} files, {len(hashes)} are there"
        raise RehearsalError(
            f"layout {outcome.layout}: {top.name}/{MANIFEST} {counts}: names or hashes differ", RehearsalKind.OUTPUT
        )


def _check_alike(outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    """Raise RehearsalError if the layouts gave different files."""
    for name in names:
        if len({sha256(outcome.working / name) for outcome in outcomes}) > 1:
            raise RehearsalError(f"the layouts disagree: {name} is not the same in both", RehearsalKind.LAYOUTS)


def _metrics(outcome: Outcome, recipe: str) -> dict[str, Any]:
    return dict(json.loads((outcome.working / WEIGHTS / recipe / METRICS).read_text(encoding="utf-8")))


def _publish(sandbox: Sandbox, outcomes: Sequence[Outcome], facts: dict[str, Any], pinned: Attached) -> None:
    """Write rehearsal.json, with the hashes of the `pinned` datasets.

    A push requires that Kaggle has the same files in these; the other datasets of a rehearsal are substitutes.
    """
    status = outcomes[-1].status
    facts |= {"state": status.state, "codes": status.codes}
    facts = sandbox.facts | facts | attached_facts(pinned) | {"layouts": costs_of(outcomes)}
    atomic_write_json(sandbox.out / REHEARSAL, facts)
