"""Plots: reproducible PNGs, written atomically, with the right numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.calibration import calibration_curve

from clotkit.errors import SplitError, UsageError
from clotkit.evaluation.figures import ScoredUnits
from clotkit.evaluation.plots import (
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_roc,
    expected_calibration_error,
    reliability,
    wilson,
)

Draw = Callable[..., None]
OF_PREDICTIONS = (draw_confusion, draw_roc, draw_calibration)


def scored(classes: int, rows: int = 150) -> ScoredUnits:
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=rows)
    probabilities = rng.dirichlet(np.ones(classes), rows)
    probabilities[np.arange(rows), labels] += 0.4
    return ScoredUnits(labels, probabilities, np.arange(rows).astype(str))


def history() -> pd.DataFrame:
    epochs = np.arange(1, 6)
    one = pd.DataFrame({"epoch": epochs, "fold": 0, "loss": 1 / epochs, "accuracy": 1 - 0.5 / epochs})
    return pd.concat([one.assign(val_loss=1.2 / epochs, val_accuracy=0.9 - 0.5 / epochs), one.assign(fold="all")])


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).min() < 100  # something was drawn
        return picture.size


@pytest.mark.parametrize("draw", OF_PREDICTIONS)
@pytest.mark.parametrize("classes", [("blue", "green"), tuple(f"kind {number}" for number in range(9))])
def test_same_predictions_same_bytes(draw: Draw, classes: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw(tmp_path / name, scored(len(classes)), classes)
    assert min(size_of(tmp_path / "one.png")) > 300
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


@pytest.mark.parametrize("draw", OF_PREDICTIONS)
def test_the_positive_class_matters(draw: Draw, tmp_path: Path) -> None:
    rows = scored(2)
    rows.probabilities[:10] = 0.5  # where only the positive class decides
    for name in ("blue", "green"):
        draw(tmp_path / f"{name}.png", rows, ("blue", "green"), positive=name)
    assert (tmp_path / "blue.png").read_bytes() != (tmp_path / "green.png").read_bytes()
    with pytest.raises(UsageError, match="allowed: blue, green"):
        draw(tmp_path / "red.png", rows, ("blue", "green"), positive="red")
    assert not (tmp_path / "red.png").exists()


@pytest.mark.parametrize("draw", OF_PREDICTIONS)
def test_odd_names_and_missing_classes(draw: Draw, tmp_path: Path) -> None:
    names = ("a$b", "$x$", "{\\frac", "an unusually long name of a class that nobody would type")
    rows = ScoredUnits(np.zeros(5, np.int64), np.tile([0.7, 0.1, 0.1, 0.1], (5, 1)), np.array(list("pqrst")))
    draw(tmp_path / "odd.png", rows, names)
    assert size_of(tmp_path / "odd.png")[0] < 2400


@pytest.mark.parametrize("draw", OF_PREDICTIONS)
def test_names_that_the_font_cannot_draw_are_numbered(draw: Draw, tmp_path: Path) -> None:
    draw(tmp_path / "names.png", scored(3), ("血栓", "Röt", "정상"))
    draw(tmp_path / "numbers.png", scored(3), ("class 0", "Röt", "class 2"))
    assert (tmp_path / "names.png").read_bytes() == (tmp_path / "numbers.png").read_bytes()


def test_users_settings_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    draw_roc(tmp_path / "one.png", scored(2), ("blue", "green"))
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        draw_roc(tmp_path / "two.png", scored(2), ("blue", "green"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_curves(tmp_path: Path) -> None:
    full = history()
    networks = pd.concat([full.assign(network=number) for number in (0, 1)])
    tables = {
        "full": full,
        "loss": full[["epoch", "fold", "loss"]],
        "one": full.head(1),
        "networks": networks,
        "many": pd.concat([full.assign(fold=number) for number in range(15)]),
    }
    for name, table in tables.items():
        draw_curves(tmp_path / f"{name}.png", table)
    sizes = {name: size_of(tmp_path / f"{name}.png") for name in tables}
    assert sizes["full"][0] > 1.6 * sizes["loss"][0]  # two panels and one
    draw_curves(tmp_path / "again.png", full)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "full.png").read_bytes()


@pytest.mark.parametrize("columns", [["epoch", "loss"], ["fold", "loss"], ["epoch", "fold"], []])
def test_curves_refuse_a_table_without_them(columns: list[str], tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="give epoch, fold and loss or accuracy"):
        draw_curves(tmp_path / "no.png", history()[columns])
    assert not list(tmp_path.iterdir())


def test_curves_refuse_no_epoch(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="0 rows"):
        draw_curves(tmp_path / "no.png", history().head(0))


def test_reliability_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(500)
    right = rng.random(500) < said
    groups = reliability(said, right)
    share, mean = calibration_curve(right, said, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(groups[:, 1], mean)
    np.testing.assert_allclose(groups[:, 2], share)
    assert groups[:, 0].tolist() == [50] * 10
    assert (groups[:, 3] < groups[:, 2]).all()
    assert (groups[:, 4] > groups[:, 2]).all()
    assert expected_calibration_error(groups) < 0.07  # what sampling alone gives


def test_equal_probabilities_stay_together() -> None:
    said, right = np.array([0.3] * 6 + [0.7] * 4), np.array([True] * 3 + [False] * 3 + [True] * 4)
    groups = reliability(said, right)
    assert groups[:, :3].tolist() == pytest.approx(np.array([[6, 0.3, 0.5], [4, 0.7, 1.0]]))
    assert expected_calibration_error(groups) == pytest.approx(0.6 * 0.2 + 0.4 * 0.3)
    sure = np.arange(1001) >= 500  # more than half have the same probability, 1
    assert reliability(sure.astype(float), sure)[:, :3].tolist() == [[500, 0, 0], [501, 1, 1]]
    assert reliability(np.full(5, 0.4), np.ones(5, bool))[:, :3].tolist() == pytest.approx(np.array([[5, 0.4, 1.0]]))


@pytest.mark.parametrize(
    ("share", "count", "wanted"),
    # scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    [(0.5, 10, (0.236593, 0.763407)), (0.0, 10, (0.0, 0.277533)), (1.0, 50, (0.928652, 1.0))],
)
def test_wilson(share: float, count: int, wanted: tuple[float, float]) -> None:
    assert wilson(share, count) == pytest.approx(wanted, abs=1e-5)
