"""Test synthetic double contours: reproducible bytes, class proportions, and the line that matters."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter1d
from sklearn.metrics import roc_auc_score

from clotkit.errors import UsageError
from clotkit.synthetic.contours import MARKER, SIDE_PX, TABLE, write_contours


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of 120 pictures; tests must not write into it."""
    out = tmp_path_factory.mktemp("contours") / "out"
    write_contours(out, 120, 3, lambda _: None)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def pictures(out: Path, name: str) -> list[npt.NDArray[np.uint8]]:
    return [np.asarray(Image.open(path)) for path in sorted((out / name).iterdir())]


def test_pictures_are_grey_and_one_in_six_is_yes(drawn: Path) -> None:
    yes, no = pictures(drawn, "yes"), pictures(drawn, "no")
    assert len(yes) + len(no) == 120
    assert 18 <= len(yes) <= 22
    assert {(picture.shape, picture.dtype) for picture in yes + no} == {((SIDE_PX, SIDE_PX), np.dtype(np.uint8))}
    assert all(picture.min() < 30 and picture.max() > 200 for picture in yes + no)


def test_the_table_names_every_picture_once(drawn: Path) -> None:
    with (drawn / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["file"] for row in rows) == sorted(name for name in contents(drawn) if name.endswith(".png"))
    of_patient = defaultdict(list)
    for row in rows:
        of_patient[row["patient"]].append(row["file"].split("/")[0])
    assert {len(files) for files in of_patient.values()} == {1, 2, 3, 4}
    assert all(len(set(files)) == 1 for files in of_patient.values())


def test_the_marker_says_synthetic(drawn: Path) -> None:
    marker = json.loads((drawn / MARKER).read_text())
    assert (marker["synthetic"], marker["seed"], marker["pictures"]) == (True, 3, 120)


def test_the_same_seed_gives_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    write_contours(tmp_path / "new", 14, 8, lambda _: None)
    before = contents(tmp_path / "new")
    write_contours(tmp_path / "new", 20, 9, lambda _: None)
    other = contents(tmp_path / "new")
    assert len([name for name in other if name.endswith(".png")]) == 20  # the earlier ones are removed
    write_contours(tmp_path / "new", 14, 8, lambda _: None)
    assert contents(tmp_path / "new") == before
    assert not set(before.values()) & set(contents(drawn).values())


def test_a_line_above_the_bone_separates_yes_from_no(drawn: Path) -> None:
    """Columns with a ridge 5 to 20 px above the lowest bright one rank the pictures, though not perfectly."""

    def share(picture: npt.NDArray[np.uint8]) -> float:
        smooth = gaussian_filter(picture.astype(float), (1, 5))
        ridge = (smooth > 80) & (smooth == maximum_filter1d(smooth, 7, axis=0))
        bone = SIDE_PX - 1 - ridge[::-1].argmax(0)
        above = bone - np.arange(SIDE_PX)[:, None]
        return float((ridge & (above >= 5) & (above <= 20)).any(0).mean())

    shares = [share(picture) for name in ("no", "yes") for picture in pictures(drawn, name)]
    auc = roc_auc_score([0] * len(pictures(drawn, "no")) + [1] * len(pictures(drawn, "yes")), shares)
    assert 0.8 < auc < 0.999


def test_numbers_out_of_bounds_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(UsageError, match="12 to 100000"):
        write_contours(tmp_path / "a", 5, 1, lines.append)
    with pytest.raises(UsageError, match="-1"):
        write_contours(tmp_path / "a", 12, -1, lines.append)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=MARKER):
        write_contours(tmp_path / "b", 12, 1, lines.append)
    assert not lines
    assert not (tmp_path / "a").exists()


def test_a_marker_cannot_remove_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARKER).write_text(json.dumps({"synthetic": True, "files": ["../mine.txt"]}))
    write_contours(tmp_path / "out", 12, 1, lambda _: None)
    assert (tmp_path / "mine.txt").read_text() == "mine"
