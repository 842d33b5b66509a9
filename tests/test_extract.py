"""`clotkit features`: a whole file a slide or none, the same bytes however often the run was killed."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.engines import Backend
from clotkit.errors import ConfigError, UsageError
from clotkit.features.files import open_features, tiling_text
from clotkit.features.folder import TABLE, FeatureFolder
from clotkit.features.plan import forecast_features
from clotkit.features.probe import EncoderTiming
from clotkit.features.run import FeatureSettings, extract_split
from clotkit.features.tasks import feature_task
from clotkit.features.verify import verify_features
from clotkit.files import sha256
from clotkit.members.encoders.encoder import BATCH_TILES, GPU_BATCH_TILES, find_encoder, load_encoder
from clotkit.members.encoders.folder import read_encoder
from clotkit.reasons import Reason
from clotkit.shards.folder import PREVIEWS
from clotkit.shards.tile import TileSettings, tile_split
from clotkit.stores import local_copy, store_of
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.training.member_folder import write_manifest
from clotkit.workers import Task

from .cluster import KEYS, Cluster, copy_in, object_store
from .conftest import RECIPE
from .feature_files import read_stamp, read_trident, write_trident

WIDTH = 12


def make_encoder(folder: Path, seed: int = 1, bad_above: float | None = None) -> Path:
    """Write an encoder that is small and quick: a convolution, ReLU, the mean of each map.

    Tiles whose mean pixel is above `bad_above`, in 0..1, get numbers that float16 cannot hold.
    """
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(WIDTH, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["maps"], strides=[4, 4]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
        helper.make_node("Flatten", ["means"], ["plain"]),
        helper.make_node("ReduceMean", ["x"], ["light"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["light"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["mean", "limit"], ["over"]),
        helper.make_node("Relu", ["over"], ["excess"]),
        helper.make_node("Mul", ["excess", "huge"], ["too_large"]),
        helper.make_node("Add", ["plain", "too_large"], ["features"]),
    ]
    limit = 2.0 if bad_above is None else bad_above
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", WIDTH])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, kernel.shape, kernel.ravel()),
            helper.make_tensor("limit", TensorProto.FLOAT, [1], [limit]),
            helper.make_tensor("huge", TensorProto.FLOAT, [1], [3e38]),
        ],
    )
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "encoder.toml").write_text('title = "tiny"\n[onnx]\noutput = "features"\n')
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the encoders `tiny`, `other` and `broken`."""
    folder = tmp_path_factory.mktemp("encoders")
    make_encoder(folder / "tiny")
    make_encoder(folder / "other", seed=2)
    make_encoder(folder / "broken", bad_above=0.0)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the tiny recipe."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def settings(test_split: Path, encoders: Path, recipe: str, tmp_path: Path) -> FeatureSettings:
    """Return the settings of a run over the test split."""
    return FeatureSettings(test_split, tmp_path / "out", recipe, "tiny", (encoders,), jobs=2, batch_tiles=4)


def quiet(_: str) -> None:
    """Log nothing."""


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / TABLE).open(encoding="utf-8") as file:
        return {row["image_id"]: row for row in csv.DictReader(file)}


def test_features_are_those_of_the_tiles(settings: FeatureSettings, strip_ai: Competition, encoders: Path) -> None:
    assert extract_split(settings, strip_ai, quiet) == {"new": 4, "up_to_date": 0, "failed": 0}
    tiling = load_recipe(settings.recipe).tiling
    encoder = load_encoder("tiny", tiling.tile_px, [encoders])
    assert isinstance(settings.split_dir, Path)
    assert isinstance(settings.out, Path)
    for path in sorted((settings.split_dir / "test").glob("*.tif")):
        found = open_features(settings.out / f"{path.stem}.h5")
        batches = [piece for piece in tile_slide(path, tiling) if isinstance(piece, Batch)]
        assert np.array_equal(found.coords, np.concatenate([batch.xy for batch in batches]))
        wanted = np.concatenate([encoder.encode(batch.tiles) for batch in batches])
        assert np.allclose(found.read(), wanted, rtol=1e-3)
        assert (found.encoder_sha256, found.facts["name"]) == (encoder.sha256, path.stem)
        assert found.tiling == tiling_text(replace(tiling, batch_tiles=tiling.batch_tiles + 1))
        assert found.tiling != tiling_text(replace(tiling, max_tiles=tiling.max_tiles + 1))
        assert read_trident(found.path).side == tiling.tile_px * tiling.downsample
    before = hashes(settings.out)
    assert extract_split(settings, strip_ai, quiet) == {"new": 0, "up_to_date": 4, "failed": 0}
    assert hashes(settings.out) == before


def test_only_what_an_encoder_or_a_slide_changes_is_done_again(
    settings: FeatureSettings, strip_ai: Competition
) -> None:
    extract_split(settings, strip_ai, quiet)
    assert isinstance(settings.out, Path)
    first, *_ = sorted(settings.out.glob("*.h5"))
    first.unlink()
    assert extract_split(settings, strip_ai, quiet)["new"] == 1
    first.write_bytes(first.read_bytes()[:-100])
    assert extract_split(settings, strip_ai, quiet)["new"] == 1
    assert extract_split(replace(settings, encoder="other"), strip_ai, quiet)["new"] == 4


class StoppedError(Exception):
    """A fault of the machine."""


def test_a_run_that_is_stopped_midway_goes_on(settings: FeatureSettings, strip_ai: Competition, tmp_path: Path) -> None:
    extract_split(settings, strip_ai, quiet)
    assert isinstance(settings.out, Path)
    wanted = hashes(settings.out)
    again = replace(settings, out=tmp_path / "again", jobs=1)
    lines: list[str] = []

    def stopping(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:  # the batch, then slide after slide
            raise StoppedError

    with pytest.raises(StoppedError):
        extract_split(again, strip_ai, stopping)
    done = sorted(path.name for path in (tmp_path / "again").iterdir() if path.suffix == ".h5")
    assert 0 < len(done) < 4
    assert not list((tmp_path / "again").glob(".*"))
    assert extract_split(again, strip_ai, quiet)["up_to_date"] == len(done)
    assert hashes(tmp_path / "again") == wanted


def command(settings: FeatureSettings, out: Path, *more: str) -> list[str]:
    where = [str(settings.split_dir), str(out), "--encoders", str(settings.search[0])]
    what = ["--encoder", str(settings.encoder), "--recipe", settings.recipe, "--jobs", "2"]
    return [*where, *what, *more]


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_instant_gives_the_same_files(
    make_split: Callable[..., Path], settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    split = make_split(tmp_path / "split", strip_ai, slides=10, seed=8)
    settings = replace(settings, split_dir=split)
    extract_split(settings, strip_ai, quiet)
    assert isinstance(settings.out, Path)
    run = [sys.executable, "-m", "clotkit.cli", "features", *command(settings, tmp_path / "again", "--batch", "4")]
    rng, killed = random.Random(4), 0
    for _ in range(6):
        with subprocess.Popen(run, stdout=subprocess.DEVNULL) as process:
            try:
                process.wait(rng.uniform(0.6, 2.5))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    assert killed
    assert hashes(tmp_path / "again") == hashes(settings.out)


def dying(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Cut a slide, and die after the first batch of the one that the file `doomed` names."""
    doomed = (task.path.parents[1] / "doomed").read_text()
    for piece in feature_task(task):
        yield piece
        if task.image_id == doomed and isinstance(piece[1], Batch):
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_broken_slide_costs_itself(settings: FeatureSettings, strip_ai: Competition, tmp_path: Path) -> None:
    split = Path(shutil.copytree(settings.split_dir, tmp_path / "split"))
    junk, doomed, *_ = sorted((split / "test").glob("*.tif"))
    junk.write_bytes(b"II*\0" + bytes(500))
    (split / "doomed").write_text(doomed.stem)
    found = extract_split(replace(settings, split_dir=split), strip_ai, quiet, dying)
    assert found == {"new": 2, "up_to_date": 0, "failed": 2}
    assert isinstance(settings.out, Path)
    rows = table(settings.out)
    assert (rows[junk.stem]["code"], rows[doomed.stem]["code"]) == (Reason.DAMAGED, Reason.CRASHED)
    assert {path.stem for path in settings.out.glob("*.h5")} == set(rows) - {junk.stem, doomed.stem}
    assert not list(settings.out.glob(".*"))


def test_files_of_another_program_are_not_touched(
    settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    """That of a sound slide would be replaced, that of a broken one removed."""
    split, out = Path(shutil.copytree(settings.split_dir, tmp_path / "split")), tmp_path / "theirs"
    slides = sorted((split / "test").glob("*.tif"))
    slides[0].write_bytes(b"II*\0" + bytes(500))
    for slide in slides[:2]:
        out.mkdir(exist_ok=True)
        write_trident(out / f"{slide.stem}.h5", np.ones((5, 8), np.float32), np.zeros((5, 2), np.int64))
        before = hashes(out)
        with pytest.raises(UsageError, match=slide.stem):
            extract_split(replace(settings, split_dir=split, out=out), strip_ai, quiet)
        assert hashes(out) == before
        shutil.rmtree(out)


def test_numbers_beyond_float16_cost_the_slide(settings: FeatureSettings, strip_ai: Competition) -> None:
    assert extract_split(replace(settings, encoder="broken"), strip_ai, quiet)["failed"] == 4
    assert isinstance(settings.out, Path)
    assert {row["code"] for row in table(settings.out).values()} == {Reason.BAD_FEATURES}
    assert not list(settings.out.glob("*.h5"))


def cut_shards(settings: FeatureSettings, out: Path, competition: Competition, preview: bool = False) -> None:
    """Cut the split into shards."""
    tile_split(TileSettings(settings.split_dir, out, settings.recipe, None, 2, 2048, preview), competition, quiet)


@pytest.mark.slow
@pytest.mark.parametrize("by_column", [False, True])
def test_tile_shards_give_the_same_features(
    by_column: bool, settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    rule = f'[tiling]\ndownsample_if = ["{strip_ai.columns.number} = 0: 4"]' if by_column else "[tiling]"
    (tmp_path / "mine.toml").write_text(RECIPE.replace("[tiling]", rule))
    settings = replace(settings, recipe=str(tmp_path / "mine.toml"))
    extract_split(settings, strip_ai, quiet)
    shards = tmp_path / "shards"
    cut_shards(settings, shards, strip_ai)
    found = extract_split(replace(settings, split_dir=shards, out=tmp_path / "again"), strip_ai, quiet)
    assert found == {"new": 4, "up_to_date": 0, "failed": 0}
    assert isinstance(settings.out, Path)
    for path in settings.out.glob("*.h5"):
        one, other = open_features(path), open_features(tmp_path / "again" / path.name)
        assert np.array_equal(one.read(), other.read())
        assert np.array_equal(one.coords, other.coords)
        assert one.facts == other.facts
    sides = {open_features(path).facts["patch_size_level0"] for path in settings.out.glob("*.h5")}
    assert len(sides) == 1 + by_column


def test_shards_of_another_tiling_are_refused(settings: FeatureSettings, strip_ai: Competition, tmp_path: Path) -> None:
    shards, path = tmp_path / "shards", tmp_path / "other.toml"
    cut_shards(settings, shards, strip_ai)
    path.write_text(RECIPE.replace("downsample = 8", "downsample = 4"))
    with pytest.raises(ConfigError, match=r"downsample 8.*downsample 4"):
        extract_split(replace(settings, split_dir=shards, recipe=str(path)), strip_ai, quiet)
    assert isinstance(settings.out, Path)
    assert not settings.out.exists()


def test_verification_knows_what_a_run_would_make(
    settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    path, lines = tmp_path / "other.toml", list[str]()
    path.write_text(RECIPE.replace("downsample = 8", "downsample = 4"))
    extract_split(settings, strip_ai, quiet)
    assert verify_features(settings, strip_ai, quiet).sound
    assert not verify_features(replace(settings, recipe=str(path)), strip_ai, lines.append).sound
    assert isinstance(settings.out, Path)
    files = {path.name for path in settings.out.glob("*.h5")}
    assert files <= {line.split(":")[0] for line in lines}
    assert not verify_features(replace(settings, use_mtime=False), strip_ai, quiet).sound


def test_slides_without_a_shard_are_listed_as_failed(
    settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    split = Path(shutil.copytree(settings.split_dir, tmp_path / "split"))
    junk, *_ = sorted((split / "test").glob("*.tif"))
    junk.write_bytes(b"II*\0" + bytes(500))
    shards = tmp_path / "shards"
    cut_shards(replace(settings, split_dir=split), shards, strip_ai)
    settings = replace(settings, split_dir=shards)
    assert extract_split(settings, strip_ai, quiet) == {"new": 3, "up_to_date": 0, "failed": 1}
    assert isinstance(settings.out, Path)
    assert table(settings.out)[junk.stem]["code"] == Reason.DAMAGED
    assert extract_split(settings, strip_ai, quiet) == {"new": 0, "up_to_date": 3, "failed": 1}
    assert set(forecast_features(settings, strip_ai, quiet).failing) == {junk.stem}
    lines: list[str] = []
    assert not verify_features(settings, strip_ai, lines.append).sound
    assert not any(line.startswith(junk.stem) for line in lines)  # listed as failed, so no fault of the folder
    text = (settings.out / TABLE).read_text().splitlines(keepends=True)
    (settings.out / TABLE).write_text("".join(line for line in text if not line.startswith(junk.stem)))
    assert not verify_features(settings, strip_ai, lines.append).sound
    assert any(line.startswith(junk.stem) for line in lines)


def test_previews_of_shards_in_the_same_folder_stay(settings: FeatureSettings, strip_ai: Competition) -> None:
    assert isinstance(settings.out, Path)
    cut_shards(settings, settings.out, strip_ai, preview=True)
    before = hashes(settings.out / PREVIEWS)
    assert len(before) == 4
    extract_split(replace(settings, split_dir=settings.out), strip_ai, quiet)
    assert hashes(settings.out / PREVIEWS) == before


def test_the_layout_of_stamp_takes_slides_with_a_resolution(
    settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    path = tmp_path / "um.toml"
    path.write_text(RECIPE.replace("downsample = 8", "mpp = 4.0\nmpp_default = 0.5"))
    by_um = replace(settings, recipe=str(path), layout=type(settings.layout)("stamp"))
    assert extract_split(by_um, strip_ai, quiet)["new"] == 4
    assert isinstance(settings.out, Path)
    theirs = read_stamp(next(iter(settings.out.glob("*.h5"))))
    assert theirs.side == 32 * 4.0
    without = replace(settings, layout=by_um.layout, out=tmp_path / "without")
    assert extract_split(without, strip_ai, quiet)["failed"] == 4
    assert {row["code"] for row in table(tmp_path / "without").values()} == {Reason.NO_RESOLUTION}


def test_the_command_line_and_its_exit_codes(
    settings: FeatureSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["features", *command(settings, out, "--batch", "4")]) == 0
    assert main(["features", *command(settings, out, "--verify")]) == 0
    first, second, *_ = sorted(out.glob("*.h5"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.unlink()
    (out / "stray.h5").write_bytes(b"")
    capsys.readouterr()
    assert main(["features", *command(settings, out, "--verify")]) == 3
    said = capsys.readouterr().out
    assert all(name in said for name in (first.name, second.name, "stray.h5"))
    assert main(["features", *command(replace(settings, encoder="other"), tmp_path / "out", "--verify")]) == 3
    assert main(["features", *command(replace(settings, encoder="nothing"), out)]) == 2
    for batch in ("0", "-1"):
        assert main(["features", *command(settings, tmp_path / "none", "--batch", batch)]) == 2
        assert "--batch" in capsys.readouterr().err
    (out / TABLE).write_text((out / TABLE).read_text().replace(f",{first.name},", f",{first.name},x"))
    assert main(["features", *command(settings, out, "--verify")]) == 2
    assert "clotkit features" in capsys.readouterr().err


def test_a_plan_counts_files_tiles_and_bytes(settings: FeatureSettings, strip_ai: Competition) -> None:
    plan = forecast_features(settings, strip_ai, quiet)
    extract_split(settings, strip_ai, quiet)
    assert isinstance(settings.out, Path)
    rows = table(settings.out).values()
    assert (plan.slides, plan.failing, plan.batch_tiles) == (4, {}, 4)
    assert plan.tiles == pytest.approx(sum(int(row["tiles"]) for row in rows), rel=0.5)
    assert plan.encoder.width == WIDTH
    assert plan.encode_s == pytest.approx(plan.tiles * plan.encoder.tile_s)  # an ONNX file is not padded on a CPU
    assert plan.peak_mb > plan.encoder.base_mb > 0


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("[onnx]", "onnx.output"),
        ('[onnx]\noutput = "logits"', "onnx.output"),
        ('[onnx]\noutput = "features"\nlayout = "x"', "onnx.layout"),
        ('tile_px = 3\n[onnx]\noutput = "features"', "tile_px"),
        ('tile_px = 64\n[onnx]\noutput = "features"', "64 px"),
        ("title = 3", "title"),
        ('title = "a"', "neither"),
        ('side = 3\n[onnx]\noutput = "features"', "side"),
        ('[keras]\nname = "efficientnet_lite0"', "model.weights.h5"),
        ('[keras]\nname = "cnn"\nweights = "model.onnx"', "cnn"),
        ('[keras]\nname = "efficientnet_lite0"\nweights = "../x.h5"', "x.h5"),
        ("[onnx", "TOML"),
    ],
)
def test_a_wrong_encoder_is_one_line(toml: str, named: str, encoders: Path, tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "mine")
    (folder / "encoder.toml").write_text(toml)
    with pytest.raises(ConfigError, match=named) as caught:
        load_encoder(folder, 32)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_manifest_lists_an_encoder_beside_members(
    make_member: Callable[..., Path], strip_ai: Competition, tmp_path: Path
) -> None:
    folder = make_encoder(tmp_path / "mine")
    metrics = make_member(tmp_path / "member", strip_ai.classes.names) / "metrics.json"
    about = {"material": {"images": 4}, "recipe": "tiny", "seed": 1, "data": "none"}
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | about))
    assert write_manifest(tmp_path) == 1
    assert {f"mine/{name}" for name in ("encoder.toml", "model.onnx")} < set(
        json.loads((tmp_path / "MANIFEST.json").read_text())
    )
    assert read_encoder(folder).title == "tiny"
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"model\.onnx.*MANIFEST"):
        read_encoder(folder)


def test_a_hash_changes_with_the_network_and_its_input(encoders: Path) -> None:
    tiny = find_encoder("tiny", [encoders])
    assert tiny.sha256 == find_encoder(encoders / "tiny").sha256
    assert tiny.sha256 != find_encoder("other", [encoders]).sha256
    assert tiny.sha256 != replace(tiny, settings=replace(tiny.settings, input_px=64)).sha256


def test_the_recipe_may_name_the_encoder(
    settings: FeatureSettings, strip_ai: Competition, encoders: Path, tmp_path: Path
) -> None:
    path, of_recipe = tmp_path / "heads.toml", replace(settings, encoder=None)
    with pytest.raises(UsageError):
        extract_split(of_recipe, strip_ai, quiet)
    for sha256_of, fits in (("", True), (find_encoder("tiny", [encoders]).sha256, True), ("f" * 64, False)):
        table = f'[encoder]\nname = "tiny"\nsha256 = "{sha256_of}"\n'
        path.write_text(RECIPE.replace('"cnn"\nfilters = [4, 8]', '"abmil"') + table)
        with nullcontext() if fits else pytest.raises(ConfigError, match="tiny"):
            assert sum(extract_split(replace(of_recipe, recipe=str(path)), strip_ai, quiet).values()) == 4


@pytest.mark.slow
def test_from_a_bucket_to_a_bucket(
    settings: FeatureSettings, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    undated = replace(settings, use_mtime=False)
    extract_split(undated, strip_ai, quiet)
    assert isinstance(settings.split_dir, Path)
    assert isinstance(settings.out, Path)
    with object_store() as url:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": url}).items():
            monkeypatch.setenv(name, value)
        copy_in(settings.split_dir, "s3://bucket/split")
        there = replace(undated, split_dir="s3://bucket/split", out="s3://bucket/out")
        assert extract_split(there, strip_ai, quiet) == {"new": 4, "up_to_date": 0, "failed": 0}
        store = store_of("s3://bucket/out")
        assert set(store.entries()) == set(hashes(settings.out))
        for name, wanted in hashes(settings.out).items():
            with local_copy(store, name) as path:
                assert sha256(path) == wanted


@pytest.mark.slow
def test_a_cluster_gives_the_same_files(settings: FeatureSettings, strip_ai: Competition, tmp_path: Path) -> None:
    extract_split(settings, strip_ai, quiet)
    cluster = Cluster(tmp_path / "cluster")
    cluster.folder.mkdir()
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        backend = Backend("dask", 1, cluster.address)
        found = extract_split(replace(settings, out=tmp_path / "again", backend=backend), strip_ai, quiet)
    finally:
        cluster.close()
    assert found == {"new": 4, "up_to_date": 0, "failed": 0}
    assert isinstance(settings.out, Path)
    assert hashes(tmp_path / "again") == hashes(settings.out)


def test_a_bare_onnx_file_takes_the_recipes_table(
    settings: FeatureSettings, strip_ai: Competition, encoders: Path, tmp_path: Path
) -> None:
    path = tmp_path / "with.toml"
    path.write_text(RECIPE + '[onnx]\noutput = "features"\n')
    bare = replace(settings, encoder=str(encoders / "tiny" / "model.onnx"))
    with pytest.raises(ConfigError, match=r"\[onnx\]"):
        extract_split(bare, strip_ai, quiet)
    assert extract_split(replace(bare, recipe=str(path)), strip_ai, quiet)["new"] == 4


def test_an_object_store_takes_the_files_and_gives_them_back(
    settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    url = f"memory://{tmp_path.name}/features"
    extract_split(settings, strip_ai, quiet)
    assert extract_split(replace(settings, out=url), strip_ai, quiet)["new"] == 4
    assert extract_split(replace(settings, out=url), strip_ai, quiet)["up_to_date"] == 4
    assert isinstance(settings.out, Path)
    here, there = FeatureFolder(settings.out), FeatureFolder(url, tmp_path / "cache")
    assert there.ids == here.ids
    for image_id in here.ids:
        assert np.array_equal(there.open(image_id).read(), here.open(image_id).read())
    assert len(list((tmp_path / "cache").rglob("*.h5"))) == 4


def test_a_network_that_cannot_be_measured_is_one_line(
    settings: FeatureSettings, strip_ai: Competition, tmp_path: Path
) -> None:
    folder = make_encoder(tmp_path / "cut")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:200])
    with pytest.raises(ConfigError, match="cut") as caught:
        extract_split(replace(settings, encoder=str(folder), batch_tiles=None), strip_ai, quiet)
    assert "\n" not in str(caught.value)


@given(base_mb=st.floats(0, 5000), tile_mb=st.floats(0, 500), memory_mb=st.floats(1, 20000), on_gpu=st.booleans())
def test_a_batch_fits_the_memory_or_is_one_tile(base_mb: float, tile_mb: float, memory_mb: float, on_gpu: bool) -> None:
    timing = EncoderTiming(8, 1.0, 0.1, base_mb, tile_mb, on_gpu)
    batch = timing.batch_within(memory_mb)
    most = GPU_BATCH_TILES if on_gpu else BATCH_TILES
    assert 1 <= batch <= most
    assert batch == 1 or timing.peak_mb(batch) <= memory_mb
    assert batch == most or timing.peak_mb(2 * batch) > memory_mb
