"""Test the way from slides to a member on Kaggle: shards, the tiling kernel, the training kernel."""

import csv
import json
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from clotkit.bundle.build import build_bundle
from clotkit.cli import main
from clotkit.competitions import Competition, load_competition
from clotkit.config import load_recipe
from clotkit.data.sources import read_source
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, SlideUnreadable, SplitError
from clotkit.files import sha256
from clotkit.kaggle.datasets import read_metadata
from clotkit.kaggle.kernels import read_kernel
from clotkit.members.loading import load_member
from clotkit.reasons import Reason
from clotkit.rehearsal.sandbox import Rehearsal
from clotkit.rehearsal.training import rehearse_tiling, rehearse_training
from clotkit.shards.shard import read_shard
from clotkit.shards.table import read_shard_rows
from clotkit.shards.tile import TileSettings, tile_split
from clotkit.stores import Folder
from clotkit.supervise import State, Wheels
from clotkit.training.train import TrainSettings, train

from .conftest import RECIPE, ROOT
from .test_kernel import start, status_of

SLIDES = 12
LIMIT_S = 300
WHEELS = ROOT / "build" / "wheels"


@pytest.fixture(scope="module")
def train_split(
    make_split: Callable[..., Path], strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a train split; nothing may write into it."""
    return make_split(tmp_path_factory.mktemp("train") / "split", strip_ai, split="train", slides=SLIDES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small recipe, for the module."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def shards(train_split: Path, tiny: Path, strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the split's shards; nothing may write into them."""
    out = tmp_path_factory.mktemp("shards") / "tiny"
    wanted = TileSettings(train_split, out, str(tiny), None, 2, 2048, preview=False, use_mtime=False)
    assert tile_split(wanted, strip_ai, lambda _: None)["failed"] == 0
    return out


@pytest.fixture(scope="module")
def whole(train_split: Path, tiny: Path, strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a member trained on the split's slides without a disturbance; nothing may write into it."""
    out = tmp_path_factory.mktemp("whole") / "tiny"
    train(TrainSettings(str(tiny), train_split, out), strip_ai, lambda _: None)
    return out


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    """Return a copy of the shards that may be written into."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


# Training on shards


def same(one: TileSet, other: TileSet) -> bool:
    names = ("tiles", "labels", "patients", "images", "centres", "parts")
    arrays = [(getattr(one, name), getattr(other, name)) for name in names]
    return one.classes == other.classes and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


@pytest.mark.parametrize("limit", [None, 2])
def test_shards_give_the_tiles_that_the_slides_give(
    train_split: Path, shards: Path, tiny: Path, strip_ai: Competition, limit: int | None
) -> None:
    recipe = load_recipe(tiny)
    cut, read = (read_source(recipe, data, strip_ai, limit, lambda _: None) for data in (train_split, shards))
    assert same(cut, read)
    assert set(read.centres) != {""}


def test_a_slide_that_gave_no_shard_is_left_out_by_name_as_it_is_of_a_split(
    train_split: Path, tiny: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    split = Path(shutil.copytree(train_split, tmp_path / "split"))
    broken = sorted((split / "train").glob("*.tif"))[3]
    broken.write_bytes(b"no slide")
    out, lines = tmp_path / "out", list[str]()
    tile_split(TileSettings(split, out, str(tiny), None, 2, 2048, preview=False), strip_ai, lambda _: None)
    recipe = load_recipe(tiny)
    cut, read = (read_source(recipe, data, strip_ai, None, lines.append) for data in (split, out))
    assert same(cut, read)
    assert len([line for line in lines if line.startswith(f"{broken.stem} is left out: ")]) == 2


def test_a_member_of_shards_is_the_member_of_the_slides(
    whole: Path, shards: Path, tiny: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    train(TrainSettings(str(tiny), shards, tmp_path / "read"), strip_ai, lambda _: None)
    assert (whole / "oof.csv").read_bytes() == (tmp_path / "read" / "oof.csv").read_bytes()
    cut, read = (json.loads((member / "metrics.json").read_text()) for member in (whole, tmp_path / "read"))
    assert cut == read
    assert read["data"].startswith("synthetic, seed 5")


def test_shards_of_another_tiling_are_refused_with_what_differs(
    shards: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(RECIPE.replace("tile_px = 32", "tile_px = 64"))
    assert main(["train", str(other), "--data", str(shards), "--out", str(tmp_path / "member")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tile_px 32" in line
    assert "tile_px 64" in line
    assert not (tmp_path / "member").exists()


def test_shards_that_cannot_be_trained_on_are_one_line(
    copied: Path, tiny: Path, strip_ai: Competition, tmp_path: Path, test_split: Path
) -> None:
    recipe = load_recipe(tiny)
    _forget_tiling(copied)
    with pytest.raises(ConfigError, match="cut with downsample None, max_tiles"):
        read_source(recipe, copied, strip_ai, None, lambda _: None)
    shard = sorted(copied.glob("*.npy"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SlideUnreadable, match="not a whole shard"):
        read_source(recipe, copied, strip_ai, None, lambda _: None)
    tile_split(
        TileSettings(test_split, tmp_path / "t", str(tiny), "test", 2, 2048, preview=False), strip_ai, lambda _: None
    )
    with pytest.raises(SplitError, match="no column label"):
        read_source(recipe, tmp_path / "t", strip_ai, None, lambda _: None)


def _forget_tiling(folder: Path) -> None:
    """Reduce the tiling in the first shard to its name and the side of its tiles."""
    from clotkit.shards.shard import write_shard
    from clotkit.tiling.tilers import Batch

    path = sorted(folder.glob("*.npy"))[0]
    shard = read_shard(path)
    known = {key: shard.facts["tiling"][key] for key in ("name", "tile_px")}
    write_shard(Folder(path.parent), path.name, [{"tiling": known}, Batch(np.array(shard.tiles), shard.xy)], shard.key)


# The kernels


def kernel_dir(name: str, tiny: Path, folder: Path, **settings: object) -> Path:
    """Return a copy of a kernel that works on the small recipe, with other settings."""
    copy = Path(shutil.copytree(ROOT / "kernels" / name, folder / name))
    shutil.copyfile(tiny, copy / "tiny.toml")
    said = {"job": name, "recipes": ["tiny.toml"], "rehearse": ["tiny.toml"], "deadline_s": 600, **settings}
    said = {"most_mb": 100, **said} if name == "tile" else said
    (copy / "settings.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items()))
    return copy


@pytest.fixture
def place(train_split: Path, tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make Kaggle's folders for a kernel: its script, an empty working folder, inputs as links."""

    def lay(kernel: str, settings: dict[str, object] | None = None, **inputs: Path) -> Path:
        root = Path(tmp_path / f"kaggle-{len(list(tmp_path.iterdir()))}")
        for folder in ("input", "working", "src"):
            (root / folder).mkdir(parents=True)
        for name, path in inputs.items():
            (root / "input" / name).symlink_to(path)
        if kernel == "tile":
            (root / "input" / "mayo-clinic-strip-ai").symlink_to(train_split)
        made = kernel_dir(kernel, tiny, root, **(settings or {}))
        (root / "src" / "script.py").write_text(build_bundle(made, "strip_ai"))
        return root

    return lay


def ran(root: Path, code: int = 0) -> str:
    """Run the kernel to its end, and return its log."""
    kernel = start(root)
    said, _ = kernel.communicate(timeout=LIMIT_S)
    assert kernel.returncode == code, said
    return said


def summary(root: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((root / "working" / "summary.json").read_text())["recipes"]["tiny"]
    return found


def unpacked(root: Path) -> Path:
    """Return the tiles of a tiling kernel, unpacked as Kaggle does."""
    out = root / "unpacked" / "tiny"
    with tarfile.open(root / "working" / "tiles" / "tiny.tar") as archive:
        archive.extractall(out, filter="data")
    return out


def manifest_holds(top: Path, files: Path) -> bool:
    listed = json.loads((top / "MANIFEST.json").read_text())
    return all(
        sha256(files / name if (files / name).exists() else top / name) == entry["sha256"]
        for name, entry in listed.items()
    )


def test_the_tiling_kernel_leaves_what_clotkit_tile_makes(
    place: Callable[..., Path], shards: Path, strip_ai: Competition
) -> None:
    root = place("tile")
    ran(root)
    status = status_of(root)
    assert (status.state, status.recipes, status.wheels) == (State.DONE, {"tiny": "done"}, Wheels.INSTALLED)
    assert status.slides == {"done": SLIDES, "failed": 0}
    assert sorted(path.name for path in (root / "working").iterdir()) == ["status.json", "summary.json", "tiles"]
    tiles = unpacked(root)
    assert sorted(path.name for path in tiles.iterdir()) == sorted(path.name for path in shards.iterdir())
    assert all(sha256(path) == sha256(shards / path.name) for path in tiles.glob("*.npy"))
    assert manifest_holds(root / "working" / "tiles", tiles.parent)
    assert summary(root)["done"] == len(read_shard_rows(Folder(tiles), strip_ai)) == SLIDES


def test_a_slide_that_fails_is_named_and_costs_itself(
    place: Callable[..., Path], train_split: Path, tmp_path: Path
) -> None:
    split = Path(shutil.copytree(train_split, tmp_path / "split"))
    broken = sorted((split / "train").glob("*.tif"))[0]
    broken.write_bytes(b"no slide")
    root = place("tile")
    (root / "input" / "mayo-clinic-strip-ai").unlink()
    (root / "input" / "mayo-clinic-strip-ai").symlink_to(split)
    ran(root)
    assert (status_of(root).state, status_of(root).slides["failed"]) == (State.PARTIAL, 1)
    assert list(summary(root)["left"]) == [broken.stem]  # type: ignore[call-overload]
    assert summary(root)["done"] == SLIDES - 1


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_tiling_goes_on_from_an_earlier_output(
    place: Callable[..., Path], shards: Path, tmp_path: Path, packed: bool
) -> None:
    earlier = tmp_path / "earlier"
    shutil.copytree(shards, earlier / "tiny")
    for shard in sorted((earlier / "tiny").glob("*.npy"))[:2]:
        shard.unlink()
    if packed:
        shutil.make_archive(str(earlier / "tiny"), "tar", earlier / "tiny")
        shutil.rmtree(earlier / "tiny")
    root = place("tile", tiles=earlier)
    said = ran(root)
    assert f"{SLIDES - 2} shards of an earlier version" in said
    assert f"{SLIDES - 2} shards are up to date" in said
    assert f"2 of {SLIDES} synthetic slides to tile" in said
    assert summary(root)["done"] == SLIDES


def test_tiling_stops_by_its_deadline_and_when_there_is_no_room(place: Callable[..., Path], shards: Path) -> None:
    root = place("tile", {"deadline_s": 0.001})
    ran(root, code=1)
    assert (status_of(root).state, status_of(root).codes) == (State.FAILED, [Reason.DEADLINE])
    assert summary(root)["done"] == 0
    root = place("tile", {"deadline_s": 0.001}, tiles=shards.parent)  # earlier shards are kept, so the kernel succeeds
    ran(root)
    assert summary(root)["done"] == SLIDES
    root = place("tile", {"most_mb": 0.001})
    ran(root, code=1)
    assert status_of(root).codes == [Reason.OUTPUT_FULL]


def test_a_tiling_that_is_killed_is_started_once_more_then_listed(place: Callable[..., Path]) -> None:
    root = place("tile")
    killed_at(root, [f"[3/{SLIDES}]", "shards are up to date"])
    status = status_of(root)
    assert (status.started_twice, Reason.CRASHED in status.codes) == (True, True)
    assert 2 <= int(str(summary(root)["done"])) <= SLIDES


def test_a_tiling_kernel_without_data_says_what_is_there(place: Callable[..., Path], shards: Path) -> None:
    root = place("tile", tiles=shards)
    (root / "input" / "mayo-clinic-strip-ai").unlink()
    said = ran(root, code=2)
    assert (status_of(root).state, status_of(root).codes) == (State.FAILED, [Reason.NO_DATA])
    assert "input/tiles" in said


def killed_at(root: Path, words: list[str], code: int = 0) -> list[str]:
    """Run the kernel, SIGKILL its child at the first line with each word in turn; return its log."""
    kernel = start(root)
    assert kernel.stdout is not None
    said, left = [], list(words)
    for line in kernel.stdout:
        said.append(line)
        if left and left[0] in line:
            left.pop(0)
            children = psutil.Process(kernel.pid).children()
            if children:
                children[0].send_signal(signal.SIGKILL)
    kernel.stdout.close()
    assert kernel.wait() == code, said
    assert left == [], said
    return said


@pytest.mark.slow
def test_the_training_kernel_leaves_a_member_that_loads(
    place: Callable[..., Path], shards: Path, strip_ai: Competition, whole: Path, tmp_path: Path
) -> None:
    shutil.make_archive(str(tmp_path / "packed" / "tiny"), "tar", shards)
    root = place("train", tiles=tmp_path / "packed")
    said = ran(root)
    assert f"{SLIDES} slides" in said
    assert sorted(path.name for path in (root / "working").iterdir()) == ["status.json", "summary.json", "weights"]
    weights = root / "working" / "weights"
    assert (status_of(root).state, status_of(root).recipes) == (State.DONE, {"tiny": "done"})
    assert load_member(weights / "tiny", strip_ai.classes.names).name == "tiny"
    assert manifest_holds(weights, weights)
    assert same_figures(weights / "tiny", whole)
    again = place("train", tiles=shards.parent, earlier=root / "working")
    said = ran(again)
    assert "done in an earlier version, taken over" in said
    assert "fold 1" not in said
    assert sha256(again / "working/weights/tiny/model.weights.h5") == sha256(weights / "tiny/model.weights.h5")


def same_figures(member: Path, other: Path) -> bool:
    found, wanted = (json.loads((folder / "metrics.json").read_text()) for folder in (member, other))
    return bool(found["weighted_log_loss"] == pytest.approx(wanted["weighted_log_loss"], abs=1e-5))


@pytest.mark.slow_recipes
def test_a_training_that_is_killed_twice_goes_on_in_a_later_version(
    place: Callable[..., Path], shards: Path, whole: Path
) -> None:
    root = place("train", tiles=shards.parent)
    killed_at(root, ["fold 1 of 2", "resumes an earlier run"])
    status = status_of(root)
    assert (status.state, status.started_twice, status.codes) == (State.PARTIAL, True, [Reason.CRASHED])
    left = sorted(path.name for path in (root / "working").iterdir())
    assert left == ["status.json", "summary.json", "tiny.state.tar"]
    later = place("train", tiles=shards.parent, earlier=root / "working")
    printed = "".join(ran(later))
    assert "an unfinished training is attached" in printed
    assert "resumes an earlier run" in printed
    assert same_figures(later / "working" / "weights" / "tiny", whole)
    assert not (later / "working" / "weights" / "tiny" / ".training").exists()


@pytest.mark.parametrize(
    ("settings", "attached", "code"),
    [
        ({}, False, Reason.NO_TILES),
        ({"deadline_s": 0.001}, True, Reason.DEADLINE),
    ],
)
def test_a_training_kernel_that_has_nothing_to_show_ends_with_1(
    place: Callable[..., Path], shards: Path, settings: dict[str, object], attached: bool, code: Reason
) -> None:
    root = place("train", settings, **({"tiles": shards.parent} if attached else {}))
    ran(root, code=1)
    assert (status_of(root).state, status_of(root).codes) == (State.FAILED, [code])


def test_other_tiles_are_no_reason_to_take_a_member_over(
    place: Callable[..., Path], copied: Path, shards: Path, tmp_path: Path
) -> None:
    earlier = tmp_path / "earlier"
    (earlier / "weights" / "tiny").mkdir(parents=True)
    (earlier / "weights" / "tiny" / "metrics.json").write_text("{}")
    (earlier / "summary.json").write_text(json.dumps({"recipes": {"tiny": {"key": "another"}}}))
    root = place("train", {"deadline_s": 0.001}, tiles=shards.parent, earlier=earlier)
    assert "taken over" not in ran(root, code=1)


# The rehearsals


@pytest.fixture(scope="module")
def wheels() -> Path:
    assert any(WHEELS.glob("pyvips_binary*.whl")), "make wheels has not run; make test runs it"
    return WHEELS


@pytest.mark.slow
def test_what_is_rehearsed_is_what_may_be_pushed(train_split: Path, tiny: Path, wheels: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    tile, learn = (kernel_dir(name, tiny, tmp_path) for name in ("tile", "train"))
    assert rehearse_tiling(train_split, Rehearsal(tile, "strip_ai", wheels, "new", tmp_path / "t", lines.append))
    tiles, empty = tmp_path / "t" / "tiles", tmp_path / "none"
    assert rehearse_training(tiles, empty, Rehearsal(learn, "strip_ai", wheels, "old", tmp_path / "w", lines.append))
    for kernel, out in ((tile, tmp_path / "t"), (learn, tmp_path / "w")):
        facts = json.loads((out / "rehearsal.json").read_text())
        assert (facts["state"], facts["slides"]["done"]) == ("done", SLIDES)
        assert list(facts["datasets"]) == ["clotkit-wheels"]  # the tiles of a rehearsal are not pushed
        assert read_kernel(kernel, "strip_ai", out).source == (out / "script.py").read_text()


@pytest.mark.slow
def test_a_slide_that_gives_no_shard_is_no_clean_rehearsal(
    train_split: Path, tiny: Path, wheels: Path, tmp_path: Path
) -> None:
    split = Path(shutil.copytree(train_split, tmp_path / "split"))
    sorted((split / "train").glob("*.tif"))[0].write_bytes(b"no slide")
    tile, lines = kernel_dir("tile", tiny, tmp_path), list[str]()
    assert not rehearse_tiling(split, Rehearsal(tile, "strip_ai", wheels, "old", tmp_path / "out", lines.append))
    facts = json.loads((tmp_path / "out" / "rehearsal.json").read_text())
    assert (facts["state"], facts["slides"]) == ("partial", {"done": SLIDES - 1, "failed": 1})


@pytest.mark.soak
def test_the_kernels_that_ship_pass_their_rehearsals_in_both_layouts(
    strip_ai: Competition, wheels: Path, make_split: Callable[..., Path], tmp_path: Path
) -> None:
    split = make_split(tmp_path / "split", strip_ai, split="train", slides=24, seed=2022)
    out = tmp_path / "tile"
    words = ["rehearse", "--wheels", str(wheels), "--layout", "both"]
    tile = [*words, "--kernel", str(ROOT / "kernels" / "tile"), "--split", str(split), "--out", str(out)]
    assert main(tile) == 0
    tiles = ["--tiles", str(out / "tiles"), "--backbones", str(tmp_path)]
    assert main([*words, "--kernel", str(ROOT / "kernels" / "train"), *tiles, "--out", str(tmp_path / "train")]) == 0
    assert sorted(json.loads((tmp_path / "train" / "rehearsal.json").read_text())["layouts"]) == ["new", "old"]
    assert load_member(tmp_path / "train" / "weights" / "demo", strip_ai.classes.names).recipe.name == "demo"


@pytest.mark.parametrize("competition", ["strip_ai", "panda"])
def test_the_chain_hands_on_what_the_next_kernel_asks_for(competition: str) -> None:
    """Check the datasets by name: the training kernel attaches the output of the tiling kernel, and so on."""
    known = load_competition(competition)
    asked = {
        name: read_metadata(ROOT / "kernels" / name / "kernel-metadata.json", known, "")
        for name in ("infer", "tile", "train")
    }
    paths = (ROOT / "datasets_meta").glob("*/*")
    datasets = {path.parent.name: read_metadata(path, known, "")["id"] for path in paths}
    assert asked["tile"]["dataset_sources"] == [datasets["wheels"]]
    assert asked["train"]["dataset_sources"] == [datasets[name] for name in ("tiles", "imagenet", "wheels")]
    assert asked["tile"]["competition_sources"] == asked["infer"]["competition_sources"]
    assert asked["train"]["machine_shape"] == "NvidiaTeslaT4"
    assert not any(metadata["enable_internet"] for metadata in asked.values())
    assert len({metadata["id"] for metadata in asked.values()}) == 3


def test_every_row_of_the_table_survives_a_round_trip(shards: Path, strip_ai: Competition, train_split: Path) -> None:
    with (train_split / "train.csv").open(newline="") as file:
        wanted = {row["image_id"]: row for row in csv.DictReader(file)}
    for row in read_shard_rows(Folder(shards), strip_ai):
        was = wanted[row.image_id]
        assert (row.patient_id, row.centre) == (was["patient_id"], was["center_id"])
        assert strip_ai.classes.names[row.label or 0] == was["label"]
        assert replace(row, reason="") == row
