"""Members whose network is an ONNX file are loaded, run and evaluated as those of Keras."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clotkit.batching import noise, tta_views
from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.evaluation.loaded_member import load_for_evaluation
from clotkit.evaluation.predict import predict
from clotkit.members.folder import MANIFEST, check_member, read_member
from clotkit.members.heat import occlusion_map
from clotkit.members.loading import load_member
from clotkit.planning.plan import PlanSettings, plan_split
from clotkit.reasons import Reason
from clotkit.scoring.pipeline import run
from clotkit.scoring.settings import RunSettings

from . import onnx_models as models
from .onnx_members import TABLE, onnx_recipe, write_onnx_member

CLASSES = ("CE", "LAA")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def expected(tiles: np.ndarray) -> np.ndarray:
    return softmax((tiles / 255).mean(axis=(1, 2)) @ models.weights())


@pytest.mark.parametrize(
    ("table", "inference", "classes"),
    [
        (TABLE, "", 2),
        (TABLE, '[inference]\npooling = "logits"\n', 2),
        (TABLE, "[inference]\ntta = 8\n", 2),
        (TABLE, "", 1),
        ("[onnx]\n", "", 2),
    ],
)
def test_rows_are_those_of_a_network_of_the_kit(table: str, inference: str, classes: int, tmp_path: Path) -> None:
    made = models.model(output="logits" if table == TABLE else "probabilities", classes=classes)
    folder = write_onnx_member(tmp_path / "one", CLASSES, made, onnx_recipe(table, inference))
    member = load_member(folder, CLASSES)
    tiles = noise(32, 6)
    p = member.pooling.tile_probabilities(member.predict(tiles))
    wanted = expected(tiles)
    if classes == 1:
        logits = (tiles / 255).mean(axis=(1, 2)) @ models.weights(1)
        wanted = softmax(np.concatenate([np.zeros_like(logits), logits], axis=1))
    np.testing.assert_allclose(p, wanted, atol=1e-5)
    assert member.pooling.pool(member.predict(tiles)).shape == (2,)
    assert member.notes == []


def test_test_time_augmentation_averages_the_views(tmp_path: Path) -> None:
    corner = models.corner()
    folder = write_onnx_member(tmp_path / "one", CLASSES, corner, onnx_recipe(TABLE, "[inference]\ntta = 8\n"))
    plain = write_onnx_member(tmp_path / "two", CLASSES, corner)
    tiles = noise(32, 3)
    views = [load_member(plain, CLASSES).predict(view) for view in tta_views(tiles, 8)]
    np.testing.assert_allclose(load_member(folder, CLASSES).predict(tiles), np.mean(views, axis=0), atol=1e-6)


def test_a_member_is_loaded_without_keras(tmp_path: Path) -> None:
    import subprocess

    folder = write_onnx_member(tmp_path / "one", CLASSES)
    code = (
        "import sys; from pathlib import Path; from clotkit.members.loading import load_member; "
        f"load_member(Path({str(folder)!r}), {CLASSES!r}); sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_scores_with_it(test_split: Path, tmp_path: Path, strip_ai: Competition) -> None:
    write_onnx_member(tmp_path / "weights" / "one", CLASSES)
    settings = RunSettings(test_split, tmp_path / "weights", tmp_path / "run", deadline_s=300.0, memory_mb=4096, jobs=1)
    assert run(settings, strip_ai)["done"] == 4
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["members"]["one"]["weights_sha256"] == read_member(tmp_path / "weights" / "one").weights_sha256


@pytest.mark.parametrize("fault", ["cut", "custom", "nan"])
def test_a_run_goes_on_without_one_that_fails(
    fault: str, test_split: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    good, bad = (write_onnx_member(tmp_path / "weights" / name, CLASSES) for name in ("good", "bad"))
    network = bad / "model.onnx"
    if fault == "cut":
        network.write_bytes(network.read_bytes()[:-20])
    else:
        models.save(models.foreign() if fault == "custom" else models.not_a_number(), network)
    settings = RunSettings(test_split, good, tmp_path / "alone", deadline_s=300.0, memory_mb=4096, jobs=1)
    run(settings, strip_ai)
    counts = run(replace(settings, weights_dir=tmp_path / "weights", run_dir=tmp_path / "both"), strip_ai)
    facts = json.loads((tmp_path / "both" / "run.json").read_text())
    assert counts["partial" if fault == "nan" else "done"] == 4
    assert facts["left_out_codes"] == ({} if fault == "nan" else {"bad": Reason.BAD_WEIGHTS})
    alone, both = (tmp_path / name / "submission.csv" for name in ("alone", "both"))
    assert alone.read_bytes() == both.read_bytes()


def test_a_plan_times_it(test_split: Path, tmp_path: Path, strip_ai: Competition) -> None:
    write_onnx_member(tmp_path / "weights" / "one", CLASSES)
    plan = plan_split(PlanSettings(test_split, tmp_path / "weights", "", "test", 1, 600.0, 4096), strip_ai)
    assert plan.network_measured
    assert plan.sound


def test_single_slides_are_predicted_and_explained(slides: list[Path], tmp_path: Path, strip_ai: Competition) -> None:
    folder = write_onnx_member(tmp_path / "one", CLASSES)
    (one,) = predict(folder, slides[:1], strip_ai)
    assert one.label in CLASSES
    tile = noise(32, 1)[0]
    heat = load_for_evaluation(folder).heat(tile, 1)
    assert heat.shape == (32, 32)
    assert 0 <= heat.min() <= heat.max() <= 1


def test_occlusion_finds_the_square_that_speaks_for_a_class() -> None:
    tile = np.zeros((28, 28, 3), np.uint8)
    tile[4:8, 20:24] = 255  # the square of row 1, column 5

    def bright(tiles: np.ndarray) -> np.ndarray:
        p = 0.1 + 0.8 * tiles[:, 4:8, 20:24].mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - p, p], axis=1)

    heat = occlusion_map(bright, tile, 1)
    row, column = divmod(int(heat.argmax()), 28)
    assert (row // 4, column // 4) == (1, 5)
    assert heat.max() == 1
    assert heat[:, :14].max() == 0
    assert occlusion_map(bright, tile, 0).max() == 0


def test_a_manifest_guards_every_file(tmp_path: Path) -> None:
    folder = write_onnx_member(tmp_path / "one", CLASSES)
    (folder / "model.onnx").unlink()
    models.save_external(models.model(output="logits"), folder / "model.onnx")
    check_member(folder)
    from clotkit.files import sha256

    listed = {f"one/{path.name}": {"sha256": sha256(path)} for path in folder.iterdir()}
    (tmp_path / MANIFEST).write_text(json.dumps(listed))
    read_member(folder)
    data = bytearray((folder / "weights.bin").read_bytes())
    data[1] ^= 1
    (folder / "weights.bin").write_bytes(data)
    with pytest.raises(ConfigError, match=r"weights\.bin: sha256"):
        read_member(folder)


@pytest.mark.parametrize(
    ("made", "recipe", "told"),
    [
        (None, onnx_recipe('[onnx]\noutput = "features"\n'), "features"),
        (models.model(output="logits", classes=3), None, "returns 3 values.*2 classes"),
        (models.foreign(), None, "Stain of my.ops"),
        (None, onnx_recipe().replace('name = "onnx"', 'name = "cnn"\nfilters = [4]'), "missing key training"),
    ],
)
def test_what_is_no_member_is_one_line(made: object, recipe: str | None, told: str, tmp_path: Path) -> None:
    folder = write_onnx_member(tmp_path / "one", CLASSES, made, recipe)
    with pytest.raises(ConfigError, match=told) as error:
        load_member(folder, CLASSES)
    assert "\n" not in str(error.value)


def test_a_keras_recipe_beside_an_onnx_file_is_named(tmp_path: Path, recipe: Path) -> None:
    folder = write_onnx_member(tmp_path / "one", CLASSES, None, recipe.read_text())
    with pytest.raises(ConfigError, match=r"holds model\.onnx.*'cnn'"):
        load_member(folder, CLASSES)
