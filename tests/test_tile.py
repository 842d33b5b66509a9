"""`clotkit tile`: shards are whole or absent, and are cut again exactly when an input changes."""

import csv
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.config import TilingConfig, load_recipe
from clotkit.engines import Backend
from clotkit.errors import ConfigError, SplitError, UsageError
from clotkit.files import sha256
from clotkit.reasons import Reason
from clotkit.shards.cut import ShardTask, shard_task, tiling_in
from clotkit.shards.shard import read_shard, write_shard
from clotkit.shards.table import read_shard_rows
from clotkit.shards.tile import TileSettings, tile_split
from clotkit.shards.verify import verify
from clotkit.splits import read_slides
from clotkit.stores import Folder
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.workers import Ended, Limits, Task, Work, stream

from .conftest import RECIPE

TILING = TilingConfig("patches", tile_px=32, downsample=8, max_tiles=6, batch_tiles=4)
DOOMED = "doomed"  # a file beside OUT with the id of the slide whose process is killed


def killed_midway(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Cut a slide; the process of the slide in DOOMED is killed after its first batch."""
    assert isinstance(task, ShardTask)
    assert isinstance(task.store, Folder)
    doomed = task.store.path.parent / DOOMED

    def dying() -> Iterator[dict[str, Any] | Batch]:
        for piece in tile_slide(task.path, task.tilings[0]):
            yield piece
            if isinstance(piece, Batch):
                os.kill(os.getpid(), signal.SIGKILL)

    if task.image_id == doomed.read_text():
        write_shard(task.store, task.shard, dying(), task.key)
    yield from shard_task(task)


def killed_at_once(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Kill the process at once: for runs that must not start any."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield from shard_task(task)


@pytest.fixture(scope="module")
def cut_once(test_split: Path, strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut the test split with previews, once for the module; read-only."""
    folder = tmp_path_factory.mktemp("cut_once")
    (folder / "tiny.toml").write_text(RECIPE)
    settings = TileSettings(test_split, folder / "out", str(folder / "tiny.toml"), None, 2, 2048, preview=True)
    assert tile_split(settings, strip_ai, lambda _: None) == {"new": 4, "up_to_date": 0, "failed": 0}
    return folder / "out"


@pytest.fixture
def out(cut_once: Path, tmp_path: Path) -> Path:
    """Copy these shards into a folder that a test may change; their keys still fit the slides."""
    return Path(shutil.copytree(cut_once, tmp_path / "out"))


@pytest.fixture
def tile(split: Path, recipe: Path, strip_ai: Competition, tmp_path: Path) -> Callable[..., dict[str, int]]:
    """Return a function that tiles the split into tmp_path/out; `lines` gets the log."""

    def run(
        lines: list[str] | None = None, work: Work | None = None, preview: bool = False, **more: Any
    ) -> dict[str, int]:
        log = [] if lines is None else lines
        settings = TileSettings(split, tmp_path / "out", str(recipe), None, 2, 2048, preview, **more)
        return tile_split(settings, strip_ai, log.append, work)

    return run


def contents(out: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modification time and the bytes of every file below a folder."""
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in out.rglob("*")
        if path.is_file()
    }


def data_of(out: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    return {path: data for path, (_, data) in contents(out).items()}


def slides_of(split: Path) -> list[Path]:
    return sorted((split / "test").glob("*.tif"))


def table(out: Path) -> list[dict[str, str]]:
    with (out / "shards.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_slide_gets_the_tiles_of_its_recipe(
    tile: Callable[..., dict[str, int]], split: Path, recipe: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    lines: list[str] = []
    assert tile(lines) == {"new": 4, "up_to_date": 0, "failed": 0}
    assert len([line for line in lines if line.startswith("[")]) == 4
    for slide in slides_of(split):
        pieces = list(tile_slide(slide, load_recipe(recipe).tiling))
        shard = read_shard(tmp_path / "out" / f"{slide.stem}.npy")
        batches = [piece for piece in pieces if isinstance(piece, Batch)]
        assert np.array_equal(shard.tiles, np.concatenate([batch.tiles for batch in batches]))
        assert np.array_equal(shard.xy, np.concatenate([batch.xy for batch in batches]))
        assert shard.facts["width_px"] == 1280
    rows = table(tmp_path / "out")
    known = ["image_id", "patient_id", "center_id"]
    assert list(rows[0]) == [*known, "file", "tiles", "key", "bytes", "sha256", "state", "reason", "code"]
    assert {row["image_id"] for row in rows} == {slide.stem for slide in slides_of(split)}
    assert {(row["state"], row["code"], row["reason"]) for row in rows} == {("done", "", "")}
    found = read_shard_rows(Folder(tmp_path / "out"), strip_ai)
    assert [(row.tiles, row.key) for row in found] == [(int(row["tiles"]), row["key"]) for row in rows]
    for row in found:
        path = tmp_path / "out" / row.file
        assert read_shard(path).key == row.key
        assert (path.stat().st_size, sha256(path)) == (row.size_bytes, row.sha256)


def test_a_second_run_does_nothing(tile: Callable[..., dict[str, int]], out: Path) -> None:
    before, lines = contents(out), list[str]()
    assert tile(lines, killed_at_once, preview=True) == {"new": 0, "up_to_date": 4, "failed": 0}
    assert contents(out) == before
    assert tile(lines, killed_at_once) == {"new": 0, "up_to_date": 4, "failed": 0}
    assert contents(out) == before


def test_the_same_slides_give_the_same_bytes(
    tile: Callable[..., dict[str, int]], cut_once: Path, tmp_path: Path
) -> None:
    tile(preview=True)
    assert data_of(tmp_path / "out") == data_of(cut_once)


def test_another_tiling_cuts_all_again(tile: Callable[..., dict[str, int]], out: Path, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("max_tiles = 6", "max_tiles = 1"))
    assert tile(preview=True) == {"new": 4, "up_to_date": 0, "failed": 0}
    assert {len(read_shard(path).tiles) for path in out.glob("*.npy")} == {1}
    recipe.write_text(recipe.read_text().replace("epochs = 2", "epochs = 9"))  # cuts nothing
    assert tile(work=killed_at_once, preview=True)["up_to_date"] == 4


def test_a_touched_slide_is_tiled_again_alone(tile: Callable[..., dict[str, int]], split: Path, out: Path) -> None:
    before = contents(out)
    slide = slides_of(split)[1]
    os.utime(slide, ns=(0, slide.stat().st_mtime_ns + 1))
    assert tile() == {"new": 1, "up_to_date": 3, "failed": 0}
    after = contents(out)
    changed = {path for path in before if before[path] != after.get(path)}
    # its preview shows the old slide: it is deleted, and drawn again in a run with previews
    assert changed == {f"{slide.stem}.npy", "shards.csv", f"preview/{slide.stem}.jpg"}
    assert set(before) - set(after) == {f"preview/{slide.stem}.jpg"}


def test_a_short_shard_and_a_missing_preview_are_made_again(tile: Callable[..., dict[str, int]], out: Path) -> None:
    before = data_of(out)
    shards = sorted(out.glob("*.npy"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    (out / "preview" / f"{shards[1].stem}.jpg").unlink()
    untouched = shards[1].stat().st_mtime_ns
    assert tile(preview=True) == {"new": 2, "up_to_date": 2, "failed": 0}
    assert shards[1].stat().st_mtime_ns == untouched
    assert data_of(out) == before


def test_a_bad_slide_costs_only_itself(
    tile: Callable[..., dict[str, int]], split: Path, out: Path, strip_ai: Competition
) -> None:
    damaged, missing, *good = slides_of(split)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    missing.unlink()
    lines: list[str] = []
    assert tile(lines, preview=True) == {"new": 0, "up_to_date": 2, "failed": 2}
    assert all(len([line for line in lines if slide.stem in line]) == 1 for slide in (damaged, missing))
    # the old shard of a changed slide is deleted; that of a missing slide stays, and is not listed
    kept = sorted(slide.stem for slide in [missing, *good])
    assert sorted(path.stem for path in out.glob("*.npy")) == kept
    assert sorted(path.stem for path in (out / "preview").iterdir()) == kept
    rows = {row["image_id"]: row for row in table(out)}
    assert {name for name, row in rows.items() if row["state"] == "failed"} == {damaged.stem, missing.stem}
    assert all(not rows[slide.stem]["file"] and rows[slide.stem]["reason"] for slide in (damaged, missing))
    assert {rows[slide.stem]["code"] for slide in (damaged, missing)} == {Reason.DAMAGED}
    failed = [row for row in read_shard_rows(Folder(out), strip_ai) if not row.file]
    assert {(row.image_id, row.code) for row in failed} == {
        (damaged.stem, Reason.DAMAGED),
        (missing.stem, Reason.DAMAGED),
    }


def test_a_table_of_an_earlier_version_has_no_codes(out: Path, strip_ai: Competition) -> None:
    text = (out / "shards.csv").read_text()
    rows = [line.rsplit(",", 1)[0] for line in text.splitlines()]
    cells = rows[1].split(",")
    rows[1] = ",".join([*cells[:3], "", "0", "", "", "", "failed", "its process died"])
    (out / "shards.csv").write_text("\n".join(rows) + "\n")
    first, *others = read_shard_rows(Folder(out), strip_ai)
    assert (first.state, first.code, first.reason) == ("failed", Reason.FAILED, "its process died")
    assert {(row.state, row.code) for row in others} == {("done", None)}
    (out / "shards.csv").write_text(text.replace(",done,,", ",failed,later,a_new_code", 1).replace(first.file, ""))
    assert all(row.code in (None, Reason.FAILED) for row in read_shard_rows(Folder(out), strip_ai))


def test_a_process_killed_while_it_writes_leaves_no_shard(
    tile: Callable[..., dict[str, int]], split: Path, tmp_path: Path
) -> None:
    doomed = slides_of(split)[2].stem
    (tmp_path / DOOMED).write_text(doomed)
    assert tile(work=killed_midway) == {"new": 3, "up_to_date": 0, "failed": 1}
    assert {row["image_id"]: row["code"] for row in table(tmp_path / "out") if row["code"]} == {doomed: Reason.CRASHED}
    sound = {f"{slide.stem}.npy" for slide in slides_of(split)} - {f"{doomed}.npy"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == sound | {"shards.csv", "phantom.json"}
    (tmp_path / DOOMED).write_text("")
    assert tile(work=killed_midway) == {"new": 1, "up_to_date": 3, "failed": 0}
    assert len(list((tmp_path / "out").glob("*.npy"))) == 4


def test_a_killed_run_leaves_nothing_harmful(tile: Callable[..., dict[str, int]], split: Path, tmp_path: Path) -> None:
    """A run killed while a slide's process writes leaves a temporary file and no shards.csv."""
    out, slide = tmp_path / "out", slides_of(split)[0]
    (tmp_path / DOOMED).write_text(slide.stem)
    (out / "preview").mkdir(parents=True)
    task = ShardTask(slide.stem, slide, (TILING,), store=Folder(out), shard=f"{slide.stem}.npy", key="key")
    (ended,) = stream([task], Limits(60, 2048), 1, killed_midway)
    assert isinstance(ended, Ended)
    assert ended.code is Reason.CRASHED
    (left,) = [path for path in out.iterdir() if path.is_file()]
    assert left.name.startswith(f".{slide.stem}")
    assert left.stat().st_size > 0
    (out / "preview" / f".{slide.stem}.abcdefgh.jpg").write_bytes(b"half")
    assert tile() == {"new": 4, "up_to_date": 0, "failed": 0}
    assert not list(out.rglob(".*"))


def test_a_process_that_writes_no_shard_has_failed(tile: Callable[..., dict[str, int]], tmp_path: Path) -> None:
    assert tile(work=idle) == {"new": 0, "up_to_date": 0, "failed": 4}
    assert {row["code"] for row in table(tmp_path / "out")} == {Reason.CRASHED}


def idle(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Report tiles without writing any."""
    yield 0, {"tiles": 6}


def test_slides_past_the_deadline_are_cut_by_the_next_run(tile: Callable[..., dict[str, int]], out: Path) -> None:
    shutil.rmtree(out)
    assert tile(deadline_s=0.0) == {"new": 0, "up_to_date": 0, "failed": 4}
    assert {row["code"] for row in table(out)} == {Reason.DEADLINE}
    assert not list(out.glob("*.npy"))
    assert tile(deadline_s=600.0) == {"new": 4, "up_to_date": 0, "failed": 0}


def test_no_slide_starts_once_the_folder_is_full(tile: Callable[..., dict[str, int]], out: Path, split: Path) -> None:
    os.utime(slides_of(split)[0], ns=(0, 0))  # one slide to cut, and no room for it
    used_mb = sum(path.stat().st_size for path in out.glob("*.npy")) / 2**20
    assert tile(max_output_mb=used_mb) == {"new": 0, "up_to_date": 3, "failed": 1}
    assert [row["code"] for row in table(out) if row["state"] == "failed"] == [Reason.OUTPUT_FULL]
    assert tile(max_output_mb=2 * used_mb) == {"new": 1, "up_to_date": 3, "failed": 0}


def test_without_mtimes_shards_outlive_a_copy_of_their_slides(
    tile: Callable[..., dict[str, int]], split: Path, tmp_path: Path
) -> None:
    assert tile(use_mtime=False)["new"] == 4
    for slide in slides_of(split):
        os.utime(slide, ns=(0, 1))
    assert tile(use_mtime=False, work=killed_at_once)["up_to_date"] == 4
    with slides_of(split)[0].open("ab") as file:
        file.write(b"more")
    assert tile(use_mtime=False) == {"new": 1, "up_to_date": 3, "failed": 0}


def test_a_shard_holds_its_tiling(cut_once: Path) -> None:
    for path in cut_once.glob("*.npy"):
        assert tiling_in(read_shard(path).facts) == asdict(TILING)
        assert not {"downsample_if", "row"} & {*read_shard(path).facts, *read_shard(path).facts["tiling"]}
    assert (cut_once / "phantom.json").is_file()  # the slides are synthetic


def test_a_shard_with_old_keys_holds_the_same_tiling() -> None:
    old = {"downsample": "shrink", "min_tissue_share": "min_share"}
    facts = {"tiling": {old.get(key, key): value for key, value in asdict(TILING).items()}}
    assert tiling_in(facts) == asdict(TILING)


def test_a_column_of_the_table_chooses_the_downsample(
    split: Path, recipe: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    slides = read_slides(split, "test", strip_ai)
    column = strip_ai.columns.number
    settings = TileSettings(split, tmp_path / "out", str(recipe), None, 2, 2048, preview=True)
    tiling = load_recipe(recipe).tiling
    two = {slide.image_id for slide in slides if slide.facts[column] == "0"}
    assert 0 < len(two) < len(slides)
    recipe.write_text(recipe.read_text().replace("[tiling]", f'[tiling]\ndownsample_if = ["{column} = 0: 4"]'))
    assert tile_split(settings, strip_ai, lambda _: None)["new"] == len(slides)
    for slide in slides:
        shard = read_shard(tmp_path / "out" / f"{slide.image_id}.npy")
        own = replace(tiling, downsample=4 if slide.image_id in two else tiling.downsample)
        assert tiling_in(shard.facts) == asdict(own)
        tiles = [piece.tiles for piece in tile_slide(slide.path, own) if isinstance(piece, Batch)]
        assert np.array_equal(shard.tiles, np.concatenate(tiles))
    assert tile_split(settings, strip_ai, lambda _: None)["up_to_date"] == len(slides)
    checked = verify(split, settings.out, str(recipe), strip_ai, Backend(jobs=1), lambda _: None)
    assert not checked.faults
    recipe.write_text(recipe.read_text().replace("= 0: 4", "= 0: 2"))
    checked = verify(split, settings.out, str(recipe), strip_ai, Backend(jobs=1), lambda _: None)
    assert {fault.name for fault in checked.faults} == {f"{image_id}.npy" for image_id in two}
    assert tile_split(settings, strip_ai, lambda _: None) == {
        "new": len(two), "up_to_date": len(slides) - len(two), "failed": 0,
    }  # fmt: skip
    recipe.write_text(recipe.read_text().replace(f"{column} = 0", "is_tma = 0"))
    with pytest.raises(ConfigError, match="is_tma"):
        tile_split(settings, strip_ai, lambda _: None)


def test_tiles_are_cut_without_tensorflow() -> None:
    code = "import sys, clotkit.shards.tile, clotkit.tiling.preview; print({'tensorflow', 'keras'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_two_runs_do_not_share_a_folder(tile: Callable[..., dict[str, int]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(UsageError, match="out"):
            tile()
    finally:
        os.close(handle)


def test_a_train_split_is_found_and_its_labels_listed(
    make_split: Callable[..., Path], strip_ai: Competition, recipe: Path, tmp_path: Path
) -> None:
    data = make_split(tmp_path / "both", strip_ai, split="train", slides=2)
    make_split(data, strip_ai, split="test", slides=1)
    assert main(["tile", str(data), str(tmp_path / "out"), "--recipe", str(recipe)]) == 0
    rows = table(tmp_path / "out")
    assert len(rows) == 2
    assert {row["label"] for row in rows} <= set(strip_ai.classes.names)
    listed = read_shard_rows(Folder(tmp_path / "out"), strip_ai)
    assert [strip_ai.classes.names[row.label or 0] for row in listed] == [row["label"] for row in rows]
    words = ["tile", str(data), str(tmp_path / "test"), "--recipe", str(recipe), "--split-name", "test", "--jobs", "1"]
    assert main(words) == 0
    assert len(table(tmp_path / "test")) == 1


def test_another_competition_has_its_own_columns(
    make_split: Callable[..., Path], other: Competition, other_toml: Path, recipe: Path, tmp_path: Path
) -> None:
    data = make_split(tmp_path / "data", other, slides=1)
    words = ["tile", str(data), str(tmp_path / "out"), "--recipe", str(recipe), "--competition", str(other_toml)]
    assert main(words) == 0
    assert list(table(tmp_path / "out")[0])[:2] == ["picture", "person"]
    with pytest.raises(SplitError, match="cannot be read"):
        read_shard_rows(Folder(tmp_path), other)


def test_exit_code_3_where_a_slide_failed(
    split: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = slides_of(split)[0]
    slide.write_bytes(b"no slide at all")
    words = ["tile", str(split), str(tmp_path / "out"), "--recipe", str(recipe), "--memory", "2GB", "--preview"]
    assert main(words) == 3
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if slide.stem in line]) == 1
    assert summary.startswith(f"{tmp_path / 'out'}: 3 of 4 slides, ")
    slide.unlink()
    shutil.copyfile(slides_of(split)[0], slide)
    untouched = sorted((tmp_path / "out").glob("*.npy"))
    before = [path.stat().st_mtime_ns for path in untouched]
    assert main(words) == 0
    assert [path.stat().st_mtime_ns for path in untouched] == before


def test_wrong_input_ends_with_2_in_one_line(
    split: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(RECIPE.replace('"patches"', '"crumbs"'))
    sound = {"split": str(split), "out": str(tmp_path / "new"), "--recipe": str(recipe)}
    cases = [
        ({"split": str(tmp_path / "none")}, "train.csv"),
        ({"--recipe": "unknown"}, "unknown"),
        ({"--recipe": str(wrong)}, "crumbs"),
        ({"--split-name": "train"}, "train.csv"),
        ({"--jobs": "0"}, "--jobs"),
        ({"--memory": "100MB"}, "100 MB"),
    ]
    for change, named in cases:
        options = sound | change
        words = [options.pop("split"), options.pop("out"), *(word for pair in options.items() for word in pair)]
        assert main(["tile", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line


def test_most_is_the_earlier_name_of_max_output(split: Path, recipe: Path, tmp_path: Path) -> None:
    for option in ("--max-output", "--most"):
        words = ["tile", str(split), str(tmp_path / option[2:]), "--recipe", str(recipe), option, "0.001MB"]
        assert main(words) == 3
        codes = {row["code"] for row in table(tmp_path / option[2:])}
        assert Reason.OUTPUT_FULL in codes
    assert not (tmp_path / "new").exists()
