"""Read a member folder: the names of its files, and its settings checked against the manifest.

A member folder holds one trained model. MANIFEST.json lies beside the member folders and lists the hash of each file.
No Keras here, so listing members stays cheap.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clotkit.config import Recipe, load_recipe
from clotkit.errors import ConfigError
from clotkit.files import sha256
from clotkit.members.calibration import Calibration
from clotkit.members.decision import Decision
from clotkit.members.onnx.header import NAME as ONNX_FILE
from clotkit.members.onnx.header import checked_header, external_files, sha256_of
from clotkit.members.weights import check_weights
from clotkit.units import many

RECIPE, WEIGHTS, CALIBRATION, METRICS = "recipe.toml", "model.weights.h5", "calibration.json", "metrics.json"
DECISION = "decision"  # entry of CALIBRATION, of a member whose answers are labels
HISTORY, CURVES, CARD = "history.csv", "curves.png", "README.md"
FAMILIARITY = "familiarity.json"  # statistics of the training pictures; members of slides have none
OUT_OF_FOLD = "oof.csv"  # one row per image: the out-of-fold prediction
SPLIT = "split.csv"  # one row per image: the number of the fold that held it out, or one of the three words below
SPLIT_TRAIN, SPLIT_VALIDATION = "train", "watch"  # words of SPLIT for images that no fold held out
SPLIT_PATIENT = "patient"  # column of SPLIT; members of earlier versions have none
SPLIT_PIXELS = "pixels"  # column of SPLIT, of pictures: the digest of each one's tiles, see TileSet.digests
SPLIT_DROPPED = "near_duplicate"  # word of SPLIT for images that were left out, near-identical to a test image
MANIFEST = "MANIFEST.json"  # beside the member folders
OWN = {RECIPE, WEIGHTS, CALIBRATION, METRICS, HISTORY, CURVES, CARD, FAMILIARITY, OUT_OF_FOLD, SPLIT, ONNX_FILE}
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")  # Kaggle unpacks NAME.tar to the folder NAME


@dataclass(frozen=True)
class MemberFiles:
    """The settings of a member as its files have them, once all files are present and unchanged."""

    recipe: Recipe
    metrics: dict[str, Any]  # metrics.json
    calibration: dict[str, Any]  # calibration.json
    weights_sha256: str
    folds: int  # the number of folds that it holds networks of, at least 1


def find_members(weights_dir: Path) -> list[Path]:
    """Return the member folders of `weights_dir`: itself, or those directly inside it, sorted by name.

    Raises ConfigError when there is none, or when one of two would be lost: an archive or another folder has a
    member's name, a member is reached twice, or one lies deeper.
    """
    single = (weights_dir / RECIPE).is_file()
    found = [weights_dir] if single else sorted(path.parent for path in weights_dir.glob(f"*/{RECIPE}"))
    folders = [folder for folder in found if single or not folder.name.startswith(".")]  # hidden: not written yet
    if not folders:
        raise ConfigError(
            f"{weights_dir}: 0 members here, at least 1 is needed; a member folder holds {RECIPE}, {CALIBRATION} and "
            f"{WEIGHTS} or {ONNX_FILE}; clotkit train or clotkit member import writes one"
        )
    if not single:
        check_clashes((path.name for path in weights_dir.iterdir()), [folder.name for folder in folders], weights_dir)
        _check_twice(folders)
    _check_nested(weights_dir, folders)
    return folders


def check_clashes(names: Iterable[str], folders: Sequence[str], where: Path | str) -> None:
    """Check that no other file or folder has the name of one of `folders`, be it that of an archive.

    Kaggle unpacks an archive to a folder of its name, and some file systems do not tell upper case from lower case.

    Args:
        names: of all files and folders.
        folders: the names of those that are needed.
        where: the folder of all these, for the message.

    Raises:
        ConfigError: One of two would be lost.
    """
    taken = {folder.casefold(): folder for folder in folders}
    for name in sorted(names):
        folder = taken.get(archive_stem(name).casefold())
        if folder is not None and folder != name:
            raise ConfigError(
                f"{where}: holds {folder} and {name}, of which one would be lost; rename one of them, or remove it"
            )


def archive_stem(name: str) -> str:
    """Return the name of the folder that an archive is unpacked to; other names are returned as they are."""
    suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)] if len(name) > len(suffix) else name


def _check_twice(folders: Sequence[Path]) -> None:
    """Raise ConfigError if two of `folders` are links to one: that member would count twice."""
    found: dict[Path, Path] = {}
    for folder in folders:
        other = found.setdefault(folder.resolve(), folder)
        if other != folder:
            raise ConfigError(f"{folder}: is the same folder as {other.name}, so it would count twice; remove one")


def _check_nested(weights_dir: Path, folders: Sequence[Path]) -> None:
    """Raise ConfigError if a member lies deeper than `folders`: it would be left out."""
    for path in sorted(path for depth in ("*", "*/*", "*/*/*") for path in weights_dir.glob(f"{depth}/{RECIPE}")):
        hidden = any(part.startswith(".") for part in path.relative_to(weights_dir).parts)
        if path.parent not in folders and not hidden:
            used = ", ".join(folder.name for folder in folders)
            raise ConfigError(
                f"{path.parent}: is a member too, but only {used} would be used; put all members side by side"
            )


def read_member(folder: Path) -> MemberFiles:
    """Read the recipe, the metrics and the calibration of a member.

    Raises ConfigError when a file is missing or unreadable, or when its hash differs from the one that MANIFEST.json
    beside the folder lists; WeightsError when the weights are not finite.
    """
    network = network_file(folder)
    for path in (network, folder / CALIBRATION):
        if not path.is_file():
            raise ConfigError(f"{folder}: {path.name} is missing; train the member again or attach the whole folder")
    checked_hashes(folder, (RECIPE, CALIBRATION, FAMILIARITY))
    digests = checked_hashes(folder, (path.name for path in network_files(network)))
    _check_network(network)
    metrics, digest = _json(folder / METRICS), sha256_of(digests)
    if metrics.get("onnx", {}).get("sha256", digest) != digest:
        raise ConfigError(f"{network}: sha256 is {digest[:12]}…, not that of its import; import the member again")
    recipe = _with_classes(load_recipe(folder / RECIPE), metrics)
    if recipe.is_onnx != (network.name == ONNX_FILE):
        raise ConfigError(f"{folder}: holds {network.name}, and model.name of its recipe is {recipe.model[0].name!r}")
    return MemberFiles(recipe, metrics, _json(folder / CALIBRATION), digest, _folds(metrics, folder))


def _folds(metrics: dict[str, Any], folder: Path) -> int:
    """Return the number of folds that a member holds networks of. Raises ConfigError if it is not one."""
    folds = metrics.get("networks_of_folds", 1)  # members of earlier versions have none
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < 1:
        raise ConfigError(
            f"{folder / METRICS}: networks_of_folds is {folds!r}; it takes a whole number from 1; copy the folder again"
        )
    return folds


def network_file(folder: Path) -> Path:
    """Return the file of a member's network: the weights, or else an ONNX file if there is one."""
    only_onnx = (folder / ONNX_FILE).is_file() and not (folder / WEIGHTS).is_file()
    return folder / (ONNX_FILE if only_onnx else WEIGHTS)


def network_files(network: Path) -> list[Path]:
    """Return all files of a network: itself, and an ONNX file's external data. Raises WeightsError."""
    return [network, *(external_files(network) if network.name == ONNX_FILE else [])]


def _check_network(network: Path) -> None:
    """Raise WeightsError for weights that are not finite, or an ONNX file that cannot run."""
    if network.name == ONNX_FILE:
        checked_header(network)
    else:
        check_weights(network)


def _with_classes(recipe: Recipe, metrics: dict[str, Any]) -> Recipe:
    """Return the recipe with the classes that its member was trained for, if it lists none itself.

    Those of slides stay the competition's.
    """
    if recipe.data.classes or recipe.data.source == "slides":
        return recipe
    return replace(recipe, data=replace(recipe.data, classes=tuple(metrics.get("classes", ()))))


def trained_for(folder: Path) -> str | None:
    """Return the slug of the competition that a member was trained for; None if it is unknown."""
    try:
        slug = _json(folder / METRICS).get("competition")
    except (ConfigError, AttributeError):
        return None
    return None if slug is None else str(slug)


def check_trained_for(folders: Sequence[Path], slug: str) -> None:
    """Raise ConfigError if every member was trained for another competition: no slide would be scored."""
    slugs = {folder.name: trained_for(folder) for folder in folders}
    if slugs and all(one not in {None, slug} for one in slugs.values()):
        name, other = next(iter(slugs.items()))
        raise ConfigError(
            f"{folders[0].parent}: {many(len(slugs), 'member')}, none of {slug}: {name} was trained for {other}; give "
            "--weights of this competition, or --competition"
        )


def check_member(folder: Path) -> None:
    """Check a member's weights and calibration without building its network. Raises ConfigError."""
    _check_network(network_file(folder))
    raw, where = _json(folder / CALIBRATION), str(folder / CALIBRATION)
    calibration = Calibration.from_json(raw, where)
    for of_fold in raw.get("folds", ()):
        Calibration.from_json(of_fold, where, len(calibration.offsets))
    read_decision(raw, where, len(calibration.offsets))


def read_decision(calibration: Any, where: str, classes: int) -> Decision | None:
    """Return the decision in the content of a calibration.json; None if it has none.

    Raises as Decision.from_json.
    """
    return Decision.from_json(calibration[DECISION], where, classes) if DECISION in calibration else None


def check_members(weights_dir: Path, slug: str) -> None:
    """Check every member of a folder, as check_member does.

    Raises ConfigError, also for no member, or if all are of another competition than `slug`.
    """
    folders = find_members(weights_dir)
    check_trained_for(folders, slug)
    for folder in folders:
        check_member(folder)


def checked_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each file that exists. Raises ConfigError if MANIFEST.json lists another."""
    digests = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    manifest = folder.parent / MANIFEST
    listed = _json(manifest) if manifest.is_file() else {}
    for name, digest in digests.items():
        wanted = listed.get(f"{folder.name}/{name}", {}).get("sha256", digest)
        if wanted != digest:
            raise ConfigError(
                f"{folder / name}: sha256 is {digest[:12]}…, {MANIFEST} lists {wanted[:12]}…; "
                "fetch the weights again or run make weights-demo"
            )
    return digests


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds a {type(found).__name__}; needed: a JSON object; train the member again")
    return found
