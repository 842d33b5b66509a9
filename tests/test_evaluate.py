"""Test that a member is evaluated on images that are new to it, under any name, and on sound input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.data.grouped import read_grouped
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, UsageError
from clotkit.evaluation.evaluate import EvaluateSettings, evaluate
from clotkit.evaluation.known_images import UNKNOWN, KnownImages, read_known_images
from clotkit.evaluation.loaded_member import load_for_evaluation
from clotkit.members.folder import CALIBRATION, METRICS, SPLIT
from clotkit.synthetic.contours import write_contours

from .conftest import ROOT

MEMBER = ROOT / "weights" / "double_contour"


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return drawn pictures of a seed that no member was trained on."""
    out = tmp_path_factory.mktemp("contours") / "out"
    write_contours(out, 24, 91, quiet)
    return out


@pytest.fixture
def member(tmp_path: Path, pictures: Path, strip_ai: Competition) -> Path:
    """Return a copy of a member that was trained, by its split.csv, on the first half of the pictures."""
    copy = Path(shutil.copytree(MEMBER, tmp_path / "member"))
    tiles = read_grouped(load_recipe(copy / "recipe.toml"), pictures, strip_ai, None, quiet)
    names = list(dict.fromkeys(tiles.images.tolist()))
    folds = ["train"] * (len(names) // 2) + ["0"] * (len(names) - len(names) // 2)
    table = pd.DataFrame({"image": names, "fold": folds})
    table.assign(pixels=table["image"].map(tiles.digests())).to_csv(copy / SPLIT, index=False)
    return copy


def renamed(pictures: Path, out: Path) -> Path:
    """Copy pictures under other names, each class in another order."""
    for folder in ("no", "yes"):
        (out / folder).mkdir(parents=True)
        for number, path in enumerate(sorted((pictures / folder).iterdir(), reverse=True)):
            shutil.copy(path, out / folder / f"new_{number:03}.png")
    return out


def test_pictures_that_were_trained_on_are_left_out_under_any_name(
    member: Path, pictures: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    data = renamed(pictures, tmp_path / "data")
    as_they_were = evaluate(EvaluateSettings(member, pictures, tmp_path / "one"), strip_ai, quiet)
    under_new_names = evaluate(EvaluateSettings(member, data, tmp_path / "two"), strip_ai, quiet)
    assert (as_they_were["n"], as_they_were["renamed"], as_they_were["other_pixels"]) == (12, 0, 0)
    assert (under_new_names["n"], under_new_names["renamed"]) == (12, 24)
    assert under_new_names["in_sample"] is False
    for figure in ("accuracy", "auc", "weighted_log_loss"):
        assert under_new_names[figure] == pytest.approx(as_they_were[figure], abs=1e-6)


def test_a_member_trained_on_all_folds_is_scored_on_what_is_new_to_it(
    member: Path, pictures: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    calibration = json.loads((member / CALIBRATION).read_text())
    (member / CALIBRATION).write_text(json.dumps(calibration | {"folds": 2 * calibration["folds"][:1]}))
    table = pd.read_csv(member / SPLIT, dtype=str)
    known = table[table["fold"] == "train"].assign(fold=["0", "1"] * 6)
    known.to_csv(member / SPLIT, index=False)
    half_new = evaluate(EvaluateSettings(member, pictures, tmp_path / "half"), strip_ai, quiet)
    tiles = read_grouped(load_recipe(member / "recipe.toml"), pictures, strip_ai, None, quiet)
    of_known = set(tiles.patients[np.isin(tiles.images, known["image"])])
    new = set(tiles.images[~np.isin(tiles.patients, list(of_known))])
    assert (half_new["n"], half_new["in_sample"]) == (len(new), False)
    assert set(pd.read_csv(tmp_path / "half" / "predictions.csv", dtype=str)["image"]) == new
    assert half_new["of_known_patients"] == 12 - len(new) > 0
    table.assign(fold="1").to_csv(member / SPLIT, index=False)
    all_known = evaluate(EvaluateSettings(member, pictures, tmp_path / "all"), strip_ai, quiet)
    assert (all_known["n"], all_known["in_sample"]) == (24, True)


def test_predictions_say_which_pictures_are_unlike(
    member: Path, pictures: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    metrics = evaluate(EvaluateSettings(member, pictures, tmp_path / "out"), strip_ai, quiet)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    threshold = json.loads((member / "familiarity.json").read_text())["threshold"]
    assert table["unlike_training"].tolist() == (table["distance"] > threshold).tolist()
    assert metrics["unlike_training_images"] == len(table) == 12
    assert metrics["unlike_training_share"] == pytest.approx(table["unlike_training"].mean(), abs=1e-6)


def test_pictures_of_its_statistics_are_not_judged_by_them(
    member: Path, pictures: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    table = pd.read_csv(member / SPLIT, dtype=str)
    table.assign(fold="0").to_csv(member / SPLIT, index=False)  # as of folds: all had a part in the statistics
    metrics = evaluate(EvaluateSettings(member, pictures, tmp_path / "out"), strip_ai, quiet)
    assert metrics["n"] == 24
    assert (metrics["unlike_training_images"], metrics["unlike_training_share"]) == (0, None)


def test_a_folder_that_would_be_overwritten_is_refused_and_stays(
    member: Path, pictures: Path, strip_ai: Competition
) -> None:
    before = (member / METRICS).read_bytes()
    for out in (member, pictures / "results"):
        with pytest.raises(UsageError):
            evaluate(EvaluateSettings(member, pictures, out), strip_ai, quiet)
    assert (member / METRICS).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (SPLIT, ""),
        (SPLIT, "picture,fold\na,0\n"),
        (SPLIT, "image,fold\na,7\n"),
        (SPLIT, "image,fold\na,training\n"),
        (METRICS, "{}"),
        (METRICS, "[]"),
        (METRICS, '{"classes": 3}'),
        ("calibration.json", '{"method": "platt", "slope": 1' + "0" * 400 + ', "offsets": [0, 0], "floor": 0}'),
    ],
)
def test_a_damaged_file_of_a_member_is_refused(name: str, text: str, member: Path) -> None:
    (member / name).write_text(text)
    with pytest.raises(ConfigError):
        load_for_evaluation(member)


@pytest.mark.parametrize("folds", [0, -1, 1.5, True, "two", None])
def test_a_senseless_number_of_folds_is_refused(folds: object, member: Path) -> None:
    metrics = json.loads((member / METRICS).read_text())
    (member / METRICS).write_text(json.dumps(metrics | {"networks_of_folds": folds}))
    with pytest.raises(ConfigError):
        load_for_evaluation(member)


def tiles_of(levels: dict[str, int]) -> TileSet:
    """Return two tiles of one colour for each image."""
    names = np.repeat(np.array(list(levels)), 2)
    tiles = np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels.values() for _ in range(2)])
    blank = np.full(len(names), "")
    return TileSet(tiles, np.zeros(len(names), np.int64), names, names, blank, blank, ("no", "yes"))


def test_pixels_decide_before_names(tmp_path: Path) -> None:
    was = tiles_of({"a": 1, "b": 2, "c": 3, "d": 4, "e": 4}).digests()
    rows = [("a", "train"), ("b", "0"), ("c", "1"), ("d", "1"), ("e", "watch")]
    text = "".join(f"{name},{fold},{was[name]}\n" for name, fold in rows)
    (tmp_path / SPLIT).write_text("image,fold,pixels\n" + text + "f,near_duplicate,\n")
    known = read_known_images(tmp_path / SPLIT, 2)
    # a has b's pixels and the other way round; c has new pixels; g those of d and e, of which e was for training.
    found = known.match(tiles_of({"a": 2, "b": 1, "c": 9, "d": 4, "f": 8, "g": 4, "h": 7}))
    assert found.words[::2].tolist() == ["0", "train", "1", "1", "near_duplicate", "watch", ""]
    assert found.folds[::2].tolist() == [0, UNKNOWN, 1, 1, UNKNOWN, UNKNOWN, UNKNOWN]
    assert (found.renamed, found.other_pixels) == (3, 1)
    assert not known.all_in_folds()


def test_without_digests_names_decide(tmp_path: Path) -> None:
    (tmp_path / SPLIT).write_text("image,fold\na,0\nNA,1\n")
    known = read_known_images(tmp_path / SPLIT, 2)
    found = known.match(tiles_of({"a": 1, "NA": 2, "b": 1}))
    assert found.words[::2].tolist() == ["0", "1", ""]
    assert (found.renamed, found.other_pixels) == (None, None)
    assert known.all_in_folds()
    assert read_known_images(tmp_path / "none.csv", 2) == KnownImages()


def test_a_digest_is_of_all_tiles_of_an_image_in_their_order() -> None:
    tiles = tiles_of({"a": 1, "b": 2})
    mixed = TileSet(**{**vars(tiles), "images": np.array(["a", "b", "a", "b"])})
    assert len({*tiles.digests().values(), *mixed.digests().values()}) == 3
    assert all(len(digest) == 12 for digest in tiles.digests().values())


def test_a_new_image_of_a_known_patient_counts_as_that_patients(tmp_path: Path) -> None:
    rows = "a,0,p\nb,train,q\nc,0,q\nd,watch,r\ne,near_duplicate,\n"
    (tmp_path / SPLIT).write_text("image,fold,patient\n" + rows)
    known = read_known_images(tmp_path / SPLIT, 1)
    tiles = tiles_of(dict.fromkeys("acefgh", 1))
    patients = np.repeat(np.array(["p", "q", "", "q", "r", "s"]), 2)
    found = known.match(replace(tiles, patients=patients))
    assert found.words[::2].tolist() == ["0", "0", "near_duplicate", "train", "watch", ""]
    assert found.of_known_patients == 2
    assert replace(known, by_patient={}).match(tiles).of_known_patients is None


@pytest.mark.parametrize("are_indices", [True, False])
def test_a_new_image_in_a_group_with_a_known_one_counts_as_known(are_indices: bool, tmp_path: Path) -> None:
    """A near-duplicate's group has the name of one of its patients, whichever that is."""
    tiles = replace(
        tiles_of(dict(zip("abcdef", range(6), strict=True))), patients=np.repeat(np.array(list("gghhhi")), 2)
    )
    digests = tiles.digests()
    rows = f"b,1,g,{digests['b']}\nd,0,d,{digests['d']}\ne,train,h,{digests['e']}\n"
    (tmp_path / SPLIT).write_text("image,fold,patient,pixels\n" + rows)
    found = read_known_images(tmp_path / SPLIT, 2, are_indices).match(tiles)
    assert found.words[::2].tolist() == ["1", "1", "train", "0", "train", ""]
    assert (found.renamed, found.of_known_patients) == (0, 2)


def test_patients_that_near_duplicates_join_keep_their_own_names(tmp_path: Path) -> None:
    """A member knows its patients by their own names, whatever joins them in training or in new data."""
    tiles = tiles_of(dict.fromkeys("vwxyz", 1))
    named = np.repeat(np.array(["a", "p", "p", "q", "s"]), 2)
    groups = np.repeat(np.array(["a", "a", "a", "q", "s"]), 2)  # a picture of a new patient is near one of p
    (tmp_path / SPLIT).write_text("image,fold,patient\nb,train,p\nc,0,q\ne,train,Zoe\u0308\n")
    known = read_known_images(tmp_path / SPLIT, 1)
    assert known.match(replace(tiles, patients=np.full(10, "Zo\xeb"))).words[0] == "train"  # another form of Unicode
    found = known.match(replace(tiles, patients=groups, named_patients=named))
    assert found.words[::2].tolist() == ["train", "train", "train", "0", ""]
    assert found.of_known_patients == 4


def test_rows_by_image_are_in_the_order_of_first_tiles() -> None:
    tiles = replace(tiles_of({"a": 1, "b": 2, "c": 3}), images=np.array(["z", "b", "z", "a", "b", "z"]))
    assert [rows.tolist() for rows in tiles.rows_by_image()] == [[0, 2, 5], [1, 4], [3]]
    assert tiles.first_rows().tolist() == [0, 1, 3]
    assert tiles.where(np.zeros(6, bool)).rows_by_image() == []


def test_names_that_are_indices_say_nothing_of_other_pixels(tmp_path: Path) -> None:
    was = tiles_of({"a": 1, "b": 2}).digests()
    (tmp_path / SPLIT).write_text(
        f"image,fold,patient,pixels\na,train,a,{was['a']}\nb,0,b,{was['b']}\nc,near_duplicate,,\n"
    )
    tiles = tiles_of({"a": 7, "b": 2, "c": 8})
    found = [read_known_images(tmp_path / SPLIT, 1, are_indices).match(tiles) for are_indices in (True, False)]
    assert [one.words[::2].tolist() for one in found] == [["", "0", "near_duplicate"], ["train", "0", "near_duplicate"]]
    assert [one.other_pixels for one in found] == [1, 1]
