"""The tiling kernel: cuts the train split into shards, one per slide and recipe, in working/tiles.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and puts the source of `unpack` in place
of its import; the result is the single script that Kaggle runs. A slide that fails does not affect the others. The
kernel stops at its deadline, and before its output is full; if that output is attached, a later version resumes from
it. It ends with 0 if every recipe has a shard. The shards of a recipe are published as one tar, because Kaggle serves
only the first 500 output files of a run. status.json says how the run ended, for programs.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clotkit.bundle.unpack import unpack

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}

LISTING_S = 0.001  # a deadline before any slide: the shards that are there are listed


def main() -> int:
    """Cut what is not cut yet; return 0, 1 if a recipe has no shard, or 2 without a train split."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as top:
        scratch = Path(top)
        code = unpack(FILES, scratch / "code")
        from clotkit.competitions import load_competition
        from clotkit.reasons import Reason
        from clotkit.supervise import Kit, State, Status, find_split, say, supervised

        competition, status = load_competition(SETTINGS["competition"]), Status("tile")
        kit = Kit(code, scratch / "wheels")
        say(f"clotkit tiling kernel on Python {sys.version.split()[0]}")
        split = find_split(competition, lambda folder: competition.table_path(folder, "train"))
        if split is None:
            status.add(Reason.NO_DATA)
            status.write(State.FAILED, started)
            return 2
        status.write(State.STARTED, started)
        return supervised(lambda: tile(competition, split, kit, scratch, started, status), status, started)


def tile(competition: Any, split: Path, kit: Any, scratch: Path, started: float, status: Any) -> int:
    """Cut the split with every recipe of the kernel; return the exit code."""
    from clotkit.supervise import WORKING, prepare, recipes_of

    datasets, tiles = prepare(split, kit, scratch, status), scratch / "tiles"
    recipes = {}
    for recipe in recipes_of(SETTINGS):
        take_earlier_shards(datasets, tiles / recipe)
        cut(tiles / recipe, split, kit, started + SETTINGS["deadline_s"], status)
        recipes[recipe] = outcome(tiles / recipe, competition, status)
    pack(tiles, WORKING / "tiles")
    return finish(recipes, started, status)


def take_earlier_shards(datasets: list[tuple[Path, list[str]]], out: Path) -> None:
    """Take the shards of an earlier version from the datasets; tiling keeps those that are up to date."""
    from clotkit.supervise import say

    out.mkdir(parents=True, exist_ok=True)
    for folder, names in datasets:
        shards = [name for name in names if name.endswith(".npy") and not (out / name).exists()]
        if folder.name == out.name and shards:
            say(f"{out.name}: {len(shards)} shards of an earlier version, from {folder}")
            for name in shards:
                link_or_copy(folder / name, out / name)


def link_or_copy(source: Path, target: Path) -> None:
    """Link `source` at `target`, or copy it to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def cut(out: Path, split: Path, kit: Any, deadline: float, status: Any) -> None:
    """Tile the split with the recipe `out` is named after, until `deadline` or the size limit.

    `deadline` is a time of time.monotonic. A tiling that fails is started once more.
    """
    from clotkit.supervise import ENDED_WELL, bytes_of, code_of, list_files, name_of, run_until, say
    from clotkit.units import MB

    recipe = out.name
    others = [path for name, path in list_files(out.parent).items() if not name.startswith(f"{recipe}/")]
    room_mb = max(SETTINGS["most_mb"] - bytes_of(others) / MB, 0)
    command = kit.command("tile", str(split), str(out), "--recipe", recipe, "--split-name", "train")
    command += ["--competition", SETTINGS["competition"], "--undated", "--max-output", f"{room_mb + 0.001:.3f}MB"]
    for again in (True, False):
        left_s = max(deadline - time.monotonic(), LISTING_S)
        ended = run_until([*command, "--deadline", f"{left_s:.3f}s"], left_s, f"tiling with {recipe}")
        if ended in ENDED_WELL:
            return
        status.started_twice |= again
        step = "it is started once more" if again else "the shards that are there are listed"
        say(f"{recipe}: tiling ended with {name_of(ended)}; {step}")
    status.add(code_of(ended, deadline))
    run_until([*command, "--deadline", f"{LISTING_S}s"], LISTING_S, f"listing the shards of {recipe}")


def outcome(folder: Path, competition: Any, status: Any) -> dict[str, Any]:
    """Return the facts of a recipe: how many of its slides are done, and why the others are not."""
    from clotkit.errors import ClotkitError
    from clotkit.shards.table import read_shard_rows
    from clotkit.stores import Folder
    from clotkit.supervise import bytes_of

    try:
        rows = read_shard_rows(Folder(folder), competition)
    except ClotkitError as error:
        status.add(error.reason)
        return {"slides": 0, "done": 0, "tiles": 0, "bytes": 0, "left": {}, "error": str(error)}
    shards = [folder / row.file for row in rows if row.file]
    left = {row.image_id: row.reason for row in rows if not row.file}
    status.add(*(row.code or "" for row in rows))
    tiles = sum(row.tiles for row in rows)
    return {"slides": len(rows), "done": len(shards), "tiles": tiles, "bytes": bytes_of(shards), "left": left}


def pack(tiles: Path, out: Path) -> None:
    """Publish a tar of each recipe's shards in `out`, and MANIFEST.json with the hashes of tars and files."""
    from clotkit.files import atomic_write, atomic_write_json, sha256, write_tar
    from clotkit.supervise import list_files

    out.mkdir(exist_ok=True)
    listed = {name: path for name, path in list_files(tiles).items() if "/" in name}
    for folder in sorted({name.partition("/")[0] for name in listed}):
        inner = {name.partition("/")[2]: path for name, path in listed.items() if name.startswith(f"{folder}/")}
        with atomic_write(out / f"{folder}.tar") as temporary:
            write_tar(temporary, inner)
    listed |= {path.name: path for path in out.glob("*.tar")}
    manifest = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in sorted(listed.items())}
    atomic_write_json(out / "MANIFEST.json", manifest)


def finish(recipes: dict[str, dict[str, Any]], started: float, status: Any) -> int:
    """Write the summary and the status, print them for people, and return the exit code."""
    from clotkit.supervise import State, say, worst_of, write_summary
    from clotkit.units import MB

    seconds = write_summary(SETTINGS, recipes, started)
    for recipe, facts in recipes.items():
        for image, reason in facts["left"].items():
            say(f"{recipe}: {image} has no shard: {reason}")
        counts = f"{facts['done']} of {facts['slides']} slides, {facts['tiles']} tiles, {facts['bytes'] / MB:,.0f} MB"
        say(f"{recipe}: {facts.get('error') or counts}")
        status.recipes[recipe] = state_of(facts)
    done = sum(facts["done"] for facts in recipes.values())
    status.slides = {"done": done, "failed": sum(facts["slides"] for facts in recipes.values()) - done}
    worst = worst_of(status.recipes.values())
    status.write(worst, started)
    say(f"summary.json, status.json and tiles/MANIFEST.json are written, {seconds} s in all")
    return 1 if worst is State.FAILED else 0


def state_of(facts: dict[str, Any]) -> str:
    """Return the state of a recipe: failed without a shard, partial with some, done with all."""
    from clotkit.supervise import State

    if not facts["done"]:
        return State.FAILED
    return State.DONE if facts["done"] == facts["slides"] else State.PARTIAL


if __name__ == "__main__" and (code := main()):  # in a notebook every SystemExit is an error, that of 0 too
    sys.exit(code)
