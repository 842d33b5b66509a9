"""The tiling kernel: cuts the train split with each recipe's tiling, a shard a slide, into /kaggle/working/tiles.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and this is the one script that Kaggle
runs. A slide that fails costs itself alone. By the deadline, and before the output is full, it stops with what there
is; where that output is attached, a later version goes on from there. It ends with 0 when every recipe has a shard.
The shards of a recipe leave as one tar: of a run's output files Kaggle gives out the first 500.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}

MB = 2**20
LISTING_S = 0.001  # a deadline that lets nothing begin: what is there is listed


def main() -> int:
    """Cut what is not cut yet; 1 when a recipe has no shard in the end, 2 when there is no train split."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as scratch:
        code, wheels = unpack(Path(scratch) / "code"), Path(scratch) / "wheels"
        sys.path.insert(0, str(code))
        from clotkit import supervise
        from clotkit.competitions import load_competition
        from clotkit.supervise import INPUT, WORKING, find_split, recipes_of, say

        competition = load_competition(SETTINGS["competition"])
        say(f"clotkit tiling kernel on Python {sys.version.split()[0]}")
        split = find_split(competition, lambda folder: competition.table_path(folder, "train"))
        if split is None:
            say(f"no train table under {INPUT}: attach the competition's data. What is there:")
            supervise.say_what_is_there()
            return 2
        datasets = supervise.datasets_beside(split)
        supervise.install_wheels(datasets, wheels)
        datasets += supervise.unpacked(datasets, Path(scratch) / "tars")
        tiles = Path(scratch) / "tiles"
        done = {}
        for recipe in recipes_of(SETTINGS):
            go_on_from(datasets, tiles / recipe)
            cut(tiles / recipe, split, code, wheels, started + SETTINGS["deadline_s"])
            done[recipe] = outcome(tiles / recipe, competition)
        pack(tiles, WORKING / "tiles")
        return finish(done, started)


def unpack(folder: Path) -> Path:
    """Write FILES below `folder` and return it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def go_on_from(datasets: list[tuple[Path, list[str]]], out: Path) -> None:
    """Take the shards of an earlier version, wherever they are attached: those that are as they must be are kept."""
    from clotkit.supervise import say

    out.mkdir(parents=True, exist_ok=True)
    for folder, names in datasets:
        shards = [name for name in names if name.endswith(".npy") and not (out / name).exists()]
        if folder.name == out.name and shards:
            say(f"{out.name}: {len(shards)} shards of an earlier version, from {folder}")
            for name in shards:
                link_or_copy(folder / name, out / name)


def link_or_copy(source: Path, target: Path) -> None:
    """Have the bytes of `source` at `target`, twice on the disk only where that cannot be helped."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def cut(out: Path, split: Path, code: Path, wheels: Path, deadline: float) -> None:
    """Tile the split with the recipe `out` is named for, until `deadline` (of time.monotonic) or as there is room."""
    from clotkit.supervise import bytes_of, kit, list_files, name_of, run_until, say

    recipe = out.name
    others = [path for name, path in list_files(out.parent).items() if not name.startswith(f"{recipe}/")]
    room_mb = max(SETTINGS["most_mb"] - bytes_of(others) / MB, 0)
    command = kit(code, wheels, "tile", str(split), str(out), "--recipe", recipe, "--split-name", "train")
    command += ["--competition", SETTINGS["competition"], "--undated", "--most", f"{room_mb + 0.001:.3f}MB"]
    for again in ("it is started once more", "what is there is listed"):
        left = max(deadline - time.monotonic(), LISTING_S)
        status = run_until([*command, "--deadline", f"{left:.3f}s"], left, f"tiling with {recipe}")
        if status in (0, 3):
            return
        say(f"{recipe}: tiling ended with {name_of(status)}; {again}")
    run_until([*command, "--deadline", f"{LISTING_S}s"], LISTING_S, f"listing the shards of {recipe}")


def outcome(folder: Path, competition: Any) -> dict[str, Any]:
    """What became of the slides, by shards.csv: how many are done, and the reasons of the others."""
    from clotkit.errors import ClotkitError
    from clotkit.shards.table import read_shard_rows
    from clotkit.stores import Folder
    from clotkit.supervise import bytes_of

    try:
        rows = read_shard_rows(Folder(folder), competition)
    except ClotkitError as error:
        return {"slides": 0, "done": 0, "tiles": 0, "bytes": 0, "left": {}, "error": str(error)}
    shards = [folder / row.file for row in rows if row.file]
    left = {row.image_id: row.reason for row in rows if not row.file}
    tiles = sum(row.tiles for row in rows)
    return {"slides": len(rows), "done": len(shards), "tiles": tiles, "bytes": bytes_of(shards), "left": left}


def pack(tiles: Path, out: Path) -> None:
    """Publish a tar of each recipe's shards into `out`, and MANIFEST.json: hashes of the tars, and of all in them."""
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


def finish(done: dict[str, dict[str, Any]], started: float) -> int:
    """Publish the summary, and say what came of it; the exit status."""
    from clotkit.files import atomic_write_json
    from clotkit.supervise import WORKING, say

    seconds = round(time.monotonic() - started)
    summary = {"competition": SETTINGS["competition"], "seconds": seconds, "recipes": done}
    atomic_write_json(WORKING / "summary.json", summary)
    for recipe, facts in done.items():
        for image, reason in facts["left"].items():
            say(f"{recipe}: {image} has no shard: {reason}")
        counts = f"{facts['done']} of {facts['slides']} slides, {facts['tiles']} tiles, {facts['bytes'] / MB:,.0f} MB"
        say(f"{recipe}: {facts.get('error') or counts}")
    say(f"summary.json and tiles/MANIFEST.json are written, {seconds} s in all")
    return 0 if all(facts["done"] for facts in done.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
