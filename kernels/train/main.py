"""The training kernel: trains a member of each recipe on its tiles, in working/weights.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and puts the source of `unpack` in place
of its import; the result is the single script that Kaggle runs. The state of a training that is not done by the
deadline, as its last complete epoch left it, is packed into working/NAME.state.tar; if that output is attached, a later
version resumes from it, and takes over the members that are done. The kernel ends with 0 if every recipe has a member
or a state. status.json says how the run ended, for programs.
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

from clotkit.bundle.unpack import unpack

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}

STATE = ".training"  # in the folder of a member that is not done
MANIFEST_S = 600


def main() -> int:
    """Train what is not trained yet; return 0, or 1 if a recipe has neither a member nor a state."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as top:
        scratch = Path(top)
        code = unpack(FILES, scratch / "code")
        from clotkit.supervise import Kit, State, Status, say, supervised

        kit, status = Kit(code, scratch / "wheels"), Status("train")
        status.write(State.STARTED, started)
        say(f"clotkit training kernel on Python {sys.version.split()[0]}, {devices()}")
        return supervised(lambda: make_members(kit, scratch, started, status), status, started)


def make_members(kit: Any, scratch: Path, started: float, status: Any) -> int:
    """Train every recipe of the kernel; return the exit code."""
    from clotkit.supervise import prepare, recipes_of

    datasets = prepare(None, kit, scratch, status)
    backbones = link_backbones(datasets, scratch / "backbones")
    deadline, recipes = started + SETTINGS["deadline_s"], {}
    for recipe in recipes_of(SETTINGS):
        recipes[recipe] = make_member(recipe, datasets, backbones, kit, deadline, status)
    return finish(recipes, kit, started, status)


def devices() -> str:
    """Return the names of the GPUs for the log: Kaggle has served others than asked for, and none."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "no GPU: the CPU trains"
    names = [line.split("(")[0].strip() for line in listed.stdout.splitlines() if line.startswith("GPU")]
    return ", ".join(names) or "no GPU: the CPU trains"


def link_backbones(datasets: list[tuple[Path, list[str]]], target: Path) -> Path:
    """Link every attached file of ImageNet weights into the folder `target`, and return it."""
    target.mkdir()
    for folder, names in datasets:
        for name in names:
            if "_notop" in name and name.endswith(".h5") and not (target / name).exists():
                (target / name).symlink_to(folder / name)
    return target


def find_tiles(recipe: str, datasets: list[tuple[Path, list[str]]]) -> Path | None:
    """Return the folder of shards with the recipe's name, or the only one; training checks that it fits."""
    folders = [folder for folder, names in datasets if "shards.csv" in names]
    named = [folder for folder in folders if folder.name == recipe]
    return next(iter(named or (folders if len(folders) == 1 else [])), None)


def make_member(
    recipe: str, datasets: list[tuple[Path, list[str]]], backbones: Path, kit: Any, deadline: float, status: Any
) -> dict[str, Any]:
    """Train one recipe, or take its member from an earlier version; return its facts for the summary."""
    from clotkit.files import write_tar
    from clotkit.reasons import Reason
    from clotkit.supervise import WORKING, list_files, say

    tiles = find_tiles(recipe, datasets)
    member, packed = WORKING / "weights" / recipe, WORKING / f"{recipe}.state.tar"
    facts = {"path": member.relative_to(WORKING).as_posix(), "status": "done", "key": ""}
    if tiles is None:
        status.add(Reason.NO_TILES)
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
        take_earlier_state(recipe, datasets, out)
        if train(recipe, tiles, backbones, kit, out, deadline, status):
            member.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(out, member)
            return facts
        if not (out / STATE / "key").is_file():
            return facts | {"status": "failed"}
        write_tar(packed, list_files(out / STATE))
    say(f"{recipe}: not done; a later version resumes from {packed.name}")
    return facts | {"path": packed.name, "status": "unfinished"}


def key_of(recipe: str, tiles: Path) -> str:
    """Return the sha256 of the recipe's text and of the table of shards, which has the keys of its tiles."""
    text = FILES[f"clotkit/recipes/{recipe}.toml"]
    return hashlib.sha256(text.encode() + (tiles / "shards.csv").read_bytes()).hexdigest()


def find_member(recipe: str, key: str, datasets: list[tuple[Path, list[str]]]) -> Path | None:
    """Return the member in an attached earlier output, if it was made from the same recipe and tiles."""
    for folder, names in datasets:
        member = folder / "weights" / recipe
        if "summary.json" in names and (member / "metrics.json").is_file():
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            if summary.get("recipes", {}).get(recipe, {}).get("key") == key:
                return member
    return None


def take_earlier_state(recipe: str, datasets: list[tuple[Path, list[str]]], out: Path) -> None:
    """Copy the state of an unfinished training to where training finds it, and drops what does not fit."""
    from clotkit.supervise import say

    for folder, names in datasets:
        if folder.name == f"{recipe}.state" and "key" in names:
            say(f"{recipe}: an unfinished training is attached: {folder}")
            shutil.copytree(folder, out / STATE)
            return


def train(recipe: str, tiles: Path, backbones: Path, kit: Any, out: Path, deadline: float, status: Any) -> bool:
    """Train a recipe into `out` until `deadline` (of time.monotonic), and return whether it is done.

    A training that is killed is started once more.
    """
    from clotkit.reasons import Reason
    from clotkit.supervise import code_of, name_of, run_until, say

    command = kit.command("train", recipe, "--data", str(tiles), "--out", str(out))
    command += ["--backbones", str(backbones), "--competition", SETTINGS["competition"]]
    for again in (True, False):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            status.add(Reason.DEADLINE)
            say(f"{recipe}: the deadline has come")
            return False
        ended = run_until(command, left_s, f"training {recipe}", grace_s=0)
        if ended == 0:
            return True
        if ended > 0 or time.monotonic() >= deadline:
            break
        status.started_twice |= again
        say(f"{recipe}: training ended with {name_of(ended)}; {'it is started once more' if again else 'twice now'}")
    status.add(code_of(ended, deadline))
    return False


def finish(recipes: dict[str, dict[str, Any]], kit: Any, started: float, status: Any) -> int:
    """Write the manifest, the summary and the status, print them for people, and return the exit code."""
    from clotkit.supervise import WORKING, State, run_until, say, worst_of, write_summary

    if (WORKING / "weights").is_dir():
        run_until(kit.command("manifest", str(WORKING / "weights")), MANIFEST_S, "the manifest")
    seconds = write_summary(SETTINGS, recipes, started)
    for recipe, facts in recipes.items():
        say(f"{recipe}: {facts['status']}")
        there = (WORKING / facts["path"]).exists()
        status.recipes[recipe] = (State.DONE if facts["status"] == "done" else State.PARTIAL) if there else State.FAILED
    worst = worst_of(status.recipes.values())
    status.write(worst, started)
    say(f"summary.json and status.json are written, {seconds} s in all")
    return 1 if worst is State.FAILED else 0


if __name__ == "__main__" and (code := main()):  # in a notebook every SystemExit is an error, that of 0 too
    sys.exit(code)
