"""The training kernel: each recipe's tiles to a member in /kaggle/working/weights, with MANIFEST.json beside them.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and this is the one script that Kaggle
runs. What is not done by the deadline is packed into /kaggle/working/NAME.state.tar, as its last whole epoch left it;
where that output is attached, a later version goes on from there, and takes over the members that are done. It ends
with 0 when every recipe has a member or can go on.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}

STATE = ".training"  # in the folder of a member that is not done
MANIFEST_S = 600


def main() -> int:
    """Train what is not trained yet; 1 when a recipe has neither a member nor anything to go on from."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as top:
        scratch = Path(top)
        code, wheels = unpack(scratch / "code"), scratch / "wheels"
        sys.path.insert(0, str(code))
        from clotkit.supervise import WORKING, datasets_beside, install_wheels, recipes_of, say, unpacked

        say(f"clotkit training kernel on Python {sys.version.split()[0]}, {devices()}")
        datasets = datasets_beside(None)
        install_wheels(datasets, wheels)
        datasets += unpacked(datasets, scratch / "tars")
        backbones = gather_backbones(datasets, scratch / "backbones")
        done = {}
        for recipe in recipes_of(SETTINGS):
            deadline = started + SETTINGS["deadline_s"]
            done[recipe] = make_member(recipe, datasets, backbones, (code, wheels), deadline)
        finish(done, (code, wheels), started)
        return 0 if all((WORKING / facts["path"]).exists() for facts in done.values()) else 1


def unpack(folder: Path) -> Path:
    """Write FILES below `folder` and return it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def devices() -> str:
    """The GPUs by name, in words: Kaggle has served others than were asked for, and none at all."""
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "no GPU: the CPU trains"
    names = [line.split("(")[0].strip() for line in said.stdout.splitlines() if line.startswith("GPU")]
    return ", ".join(names) or "no GPU: the CPU trains"


def gather_backbones(datasets: list[tuple[Path, list[str]]], target: Path) -> Path:
    """One folder with every file of ImageNet weights that is attached."""
    target.mkdir()
    for folder, names in datasets:
        for name in names:
            if "_notop" in name and name.endswith(".h5") and not (target / name).exists():
                (target / name).symlink_to(folder / name)
    return target


def find_tiles(recipe: str, datasets: list[tuple[Path, list[str]]]) -> Path | None:
    """The folder of shards that has the recipe's name, or the only one; training checks that they fit the recipe."""
    found = [folder for folder, names in datasets if "shards.csv" in names]
    named = [folder for folder in found if folder.name == recipe]
    return next(iter(named or (found if len(found) == 1 else [])), None)


def make_member(
    recipe: str, datasets: list[tuple[Path, list[str]]], backbones: Path, kit: tuple[Path, Path], deadline: float
) -> dict[str, Any]:
    """Train one recipe, or take its member over from an earlier version; what came of it, for the summary."""
    from clotkit.files import write_tar
    from clotkit.supervise import WORKING, list_files, say

    tiles = find_tiles(recipe, datasets)
    member, packed = WORKING / "weights" / recipe, WORKING / f"{recipe}.state.tar"
    facts = {"path": member.relative_to(WORKING).as_posix(), "status": "done", "key": ""}
    if tiles is None:
        say(f"{recipe}: no folder of that name with shards.csv is attached: attach the tiles dataset")
        return facts | {"status": "no tiles"}
    facts["key"] = key_of(recipe, tiles)
    earlier = find_member(recipe, facts["key"], datasets)
    if earlier is not None:
        say(f"{recipe}: done in an earlier version, taken over from {earlier}")
        shutil.copytree(earlier, member)
        return facts
    with tempfile.TemporaryDirectory(prefix="clotkit-member-", ignore_cleanup_errors=True) as folder:
        out = Path(folder) / recipe
        go_on_from(recipe, datasets, out)
        if train(recipe, tiles, backbones, kit, out, deadline):
            member.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(out, member)
            return facts
        if not (out / STATE / "key").is_file():
            return facts | {"status": "failed"}
        write_tar(packed, list_files(out / STATE))
    say(f"{recipe}: not done; {packed.name} is what a later version goes on from")
    return facts | {"path": packed.name, "status": "unfinished"}


def key_of(recipe: str, tiles: Path) -> str:
    """What a member depends on, as a sha256: the recipe's text and the table of shards, which has their keys."""
    text = FILES[f"clotkit/recipes/{recipe}.toml"]
    return hashlib.sha256(text.encode() + (tiles / "shards.csv").read_bytes()).hexdigest()


def find_member(recipe: str, key: str, datasets: list[tuple[Path, list[str]]]) -> Path | None:
    """The member of an earlier output that is attached, if it was made of the same recipe and tiles."""
    for folder, names in datasets:
        member = folder / "weights" / recipe
        if "summary.json" in names and (member / "metrics.json").is_file():
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            if summary.get("recipes", {}).get(recipe, {}).get("key") == key:
                return member
    return None


def go_on_from(recipe: str, datasets: list[tuple[Path, list[str]]], out: Path) -> None:
    """Put the state of an unfinished training where training looks for it; what does not fit is dropped there."""
    from clotkit.supervise import say

    for folder, names in datasets:
        if folder.name == f"{recipe}.state" and "key" in names:
            say(f"{recipe}: an unfinished training is attached: {folder}")
            shutil.copytree(folder, out / STATE)
            return


def train(recipe: str, tiles: Path, backbones: Path, kit: tuple[Path, Path], out: Path, deadline: float) -> bool:
    """Train a recipe into the folder `out` until `deadline` (of time.monotonic); once more when it was killed."""
    from clotkit import supervise
    from clotkit.supervise import name_of, run_until, say

    command = supervise.kit(*kit, "train", recipe, "--data", str(tiles), "--out", str(out))
    command += ["--backbones", str(backbones), "--competition", SETTINGS["competition"]]
    for again in ("it is started once more", "that was twice"):
        left = deadline - time.monotonic()
        if left <= 0:
            say(f"{recipe}: the deadline has come")
            return False
        status = run_until(command, left, f"training {recipe}", grace_s=0)
        if status >= 0 or time.monotonic() >= deadline:
            return status == 0
        say(f"{recipe}: training ended with {name_of(status)}; {again}")
    return False


def finish(done: dict[str, dict[str, Any]], kit: tuple[Path, Path], started: float) -> None:
    """Publish the manifest and the summary, and say what came of it."""
    from clotkit import supervise
    from clotkit.files import atomic_write_json
    from clotkit.supervise import WORKING, run_until, say

    if (WORKING / "weights").is_dir():
        run_until(supervise.kit(*kit, "manifest", str(WORKING / "weights")), MANIFEST_S, "the manifest")
    seconds = round(time.monotonic() - started)
    summary = {"competition": SETTINGS["competition"], "seconds": seconds, "recipes": done}
    atomic_write_json(WORKING / "summary.json", summary)
    for recipe, facts in done.items():
        say(f"{recipe}: {facts['status']}")
    say(f"summary.json is written, {seconds} s in all")


if __name__ == "__main__":
    sys.exit(main())
