"""Every source gives the same kind of TileSet, and a mistake in its data is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clotkit.competitions import Competition
from clotkit.config import DataConfig, ModelConfig, Recipe, TilingConfig, TrainingConfig, load_recipe
from clotkit.data.pictures import check_out_of_data
from clotkit.data.sources import read_source
from clotkit.data.tiles import TileSet
from clotkit.errors import ClotkitError, ConfigError, SplitError, UsageError
from clotkit.splits import read_slides

from .conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
CLASSES = ("no", "yes")

Read = Callable[..., TileSet]


def recipe_of(data: DataConfig, name: str = "whole", tile_px: int = 16) -> Recipe:
    tiling = TilingConfig(name, tile_px, downsample=1, max_tiles=4, batch_tiles=8)
    training = TrainingConfig(seed=1, epochs=1, batch_tiles=8, learning_rate=1e-3)
    return Recipe("trial", tiling, (ModelConfig("cnn"),), training, data)


def grey(level: int, side: int = 16) -> npt.NDArray[np.uint8]:
    return np.full((side, side, 3), level, np.uint8)


def draw(path: Path, level: int, side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey(level, side)).save(path)


@pytest.fixture
def read(strip_ai: Competition) -> Read:
    """Return a function that reads a source with some settings of [data]; `lines` gets the log."""

    def run(
        data: Path, source: str, *, limit: int | None = None, lines: list[str] | None = None, tiler: str = "whole",
        classes: tuple[str, ...] = CLASSES, **settings: str,
    ) -> TileSet:  # fmt: skip
        config = DataConfig(source=source, classes=classes, **settings)  # type: ignore[arg-type]
        return read_source(recipe_of(config, tiler), data, strip_ai, limit, ([] if lines is None else lines).append)

    return run


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Write a folder for each class, with other files too; each picture has its own grey level."""
    for index, name in enumerate(("no/b.png", "no/a.PNG", "no/deeper/c.jpg", "yes/d.bmp", "yes/e.tif")):
        draw(tmp_path / "data" / name, 10 * index)
    (tmp_path / "data" / "no" / "notes.txt").write_text("no picture")
    (tmp_path / "data" / "no" / "._b.png").write_text("no picture either")
    return tmp_path / "data"


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a MedMNIST file of 4 train, 2 val and 2 test pictures.

    Its arguments replace arrays, or remove them (None).
    """

    def write(**changes: npt.NDArray[np.generic] | None) -> Path:
        arrays: dict[str, npt.NDArray[np.generic] | None] = {}
        for index, (part, count) in enumerate((("train", 4), ("val", 2), ("test", 2))):
            arrays[f"{part}_images"] = np.full((count, 16, 16), 50 * index, np.uint8)
            arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
        kept: dict[str, Any] = {name: array for name, array in (arrays | changes).items() if array is not None}
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez_compressed(tmp_path / "npz" / "data.npz", **kept)
        return tmp_path / "npz"

    return write


def check(tiles: TileSet) -> None:
    """Check the shapes and types of a TileSet."""
    assert tiles.tiles.dtype == np.uint8
    assert tiles.tiles.shape[1:] == (16, 16, 3)
    assert tiles.labels.dtype == np.int64
    for column in (tiles.labels, tiles.patients, tiles.images, tiles.centres, tiles.parts):
        assert column.shape == (len(tiles),)


def test_folders(read: Read, folders: Path) -> None:
    lines: list[str] = []
    (folders / "maybe").mkdir()
    tiles = read(folders, "folders", lines=lines)
    check(tiles)
    assert tiles.images.tolist() == ["no/a.PNG", "no/b.png", "no/deeper/c.jpg", "yes/d.bmp", "yes/e.tif"]
    assert tiles.patients.tolist() == tiles.images.tolist()
    assert tiles.labels.tolist() == [0, 0, 0, 1, 1]
    assert tiles.tiles[:, 0, 0, 0].tolist() == [10, 0, 20, 30, 40]
    assert set(tiles.parts) == set(tiles.centres) == {""}
    assert tiles.classes == CLASSES
    assert len(lines) == 3
    assert "maybe" in lines[0]
    assert "1 .txt" in lines[1]


def test_files_that_are_not_read_are_counted_in_one_line(read: Read, folders: Path, tmp_path: Path) -> None:
    (folders / "no" / "notes.txt").unlink()
    lines: list[str] = []
    read(folders, "folders", lines=lines)
    assert len(lines) == 1  # all files are pictures, or hidden
    for name in ("no/a.dcm", "no/b.DCM", "yes/c.jfif", "yes/none"):
        (folders / name).write_bytes(b"x")
    draw(folders / "loose.png", 7)
    draw(tmp_path / "more" / "g.png", 70)
    (folders / "yes" / "more").symlink_to(tmp_path / "more")
    (folders / "yes" / "gone.png").symlink_to(tmp_path / "gone.png")
    lines.clear()
    assert len(read(folders, "folders", lines=lines)) == 5
    assert len(lines) == 2
    counts = {
        "7 files",
        "2 .dcm",
        "1 .jfif",
        "1 without a suffix",
        "1 links to folders",
        "1 broken links",
        "1 picture ",
    }
    assert [count for count in counts if count not in lines[0]] == []


def test_classes_are_the_names_of_the_folders(read: Read, folders: Path) -> None:
    lines: list[str] = []
    for name in (".cache/a.png", "__MACOSX/b.png", "no/.ipynb_checkpoints/a.png", "Perhaps/f.png"):
        draw(folders / name, 90)
    (folders / ".hidden.png").write_bytes(b"")
    tiles = read(folders, "folders", lines=lines, classes=())
    check(tiles)
    assert tiles.classes == ("Perhaps", "no", "yes")
    assert tiles.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert tiles.images.tolist()[:2] == ["Perhaps/f.png", "no/a.PNG"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ((), ("0 folders", "2")),
        (("all/a.png",), ("1 folders", "all", "2")),
        (("all/a.png", ".git/b.png", "c.png"), ("1 folders", "all", "2")),
        (("no/a.png", "yes/notes.txt"), ("class yes has 0 pictures", "no, yes", ".png")),
        (("train/no/a.png", "test/no/a.png", "Val/no/a.png"), ("Val, test, train", "no classes")),
        (("train/a.png", "test/b.png", "holdout/c.png"), ("holdout, test, train",)),
        (("Train/a.png", "eval/b.png"), ("Train, eval",)),
        (("train/a.png", "dev/b.png"), ("dev, train",)),
        (("train/a.png", "val/b.png", "test/c.png", "images/d.png"), ("test, train, val",)),
        (("a/a.png", "k\udce4se/b.png"), (r"b'k\xe4se'", "UTF-8")),
    ],
)
def test_folders_that_are_no_classes_are_refused(
    read: Read, tmp_path: Path, made: tuple[str, ...], named: tuple[str, ...]
) -> None:
    (tmp_path / "data").mkdir()
    for name in made:
        draw(tmp_path / "data" / name, 9) if name.endswith("png") else (tmp_path / "data" / name).parent.mkdir()
    with pytest.raises(SplitError) as raised:
        read(tmp_path / "data", "folders", classes=())
    assert missing_from(raised.value, (str(tmp_path / "data"), *named)) == []


def test_a_class_may_have_the_name_of_a_part(read: Read, tmp_path: Path) -> None:
    for name in ("control/a.png", "test/b.png"):
        draw(tmp_path / "one" / name, 9)
        draw(tmp_path / "listed" / name.replace("control", "train"), 9)
    assert read(tmp_path / "one", "folders", classes=()).classes == ("control", "test")
    assert read(tmp_path / "listed", "folders", classes=("train", "test")).classes == ("train", "test")


def test_results_in_the_folder_of_class_folders_are_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folders)
    config = DataConfig(source="folders")
    for out in (folders, folders / "out", folders / "no" / "out", tmp_path / "link" / "out"):
        with pytest.raises(UsageError):
            check_out_of_data(out, folders, config)
    check_out_of_data(tmp_path / "data-out", folders, config)
    check_out_of_data(folders / "out", folders, DataConfig(source="table"))


def test_the_order_of_classes_is_the_recipes(read: Read, folders: Path) -> None:
    tiles = read(folders, "folders", classes=("yes", "no"))
    assert tiles.labels.tolist() == [0, 0, 1, 1, 1]
    assert tiles.images[0] == "yes/d.bmp"


def test_a_table_in_folders_names_patients_and_centres(read: Read, folders: Path) -> None:
    rows = ["file,patient,centre", "no/a.PNG,p,x", "./no/b.png,p,x", "no/deeper/c.jpg,q,y", "yes/d.bmp,r,y",
            "yes/e.tif,s,x", "yes/gone.png,t,x"]  # fmt: skip
    (folders / "metadata.csv").write_text("\n".join(rows))
    tiles = read(folders, "folders")
    assert tiles.patients.tolist() == list("ppqrs")
    assert tiles.centres.tolist() == list("xxyyx")
    (folders / "metadata.csv").write_text("\n".join(rows[:-3]))
    with pytest.raises(SplitError, match=r"2 of 5 .*yes/d\.bmp"):
        read(folders, "folders")


@pytest.mark.parametrize("source", ["folders", "table"])
def test_a_table_is_found_whatever_its_capitals(read: Read, folders: Path, source: str) -> None:
    text = "file,label,patient\nno/a.PNG,no,p\nno/b.png,no,p\nno/deeper/c.jpg,no,q\nyes/d.bmp,yes,r\nyes/e.tif,yes,s\n"
    (folders / "Metadata.CSV").write_text(text)
    assert read(folders, source).patients.tolist() == list("ppqrs")
    (folders / "metadata.csv").write_text(text)
    with pytest.raises(SplitError) as raised:
        read(folders, source)
    assert missing_from(raised.value, ("2 tables", "Metadata.CSV, metadata.csv")) == []


def test_a_table(read: Read, folders: Path) -> None:
    rows = ["path,what,who,site,part", "yes/d.bmp,yes,p,x,train", "no/a.PNG,no,q,x,val", "no/b.png,no,p,,test"]
    (folders / "list.csv").write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    names = {"file_column": "path", "label_column": "what", "patient_column": "who", "centre_column": "site"}
    lines: list[str] = []
    for data, table in ((folders, "list.csv"), (folders / "list.csv", "other.csv")):
        tiles = read(data, "table", lines=lines, table=table, **names)
        check(tiles)
        assert tiles.images.tolist() == ["yes/d.bmp", "no/a.PNG", "no/b.png"]
        assert tiles.labels.tolist() == [1, 0, 0]
        assert tiles.patients.tolist() == ["p", "q", "p"]
        assert tiles.centres.tolist() == ["x", "x", ""]
        assert tiles.parts.tolist() == ["train", "val", "test"]
    assert re.search(r"\b1 patients .*\bp$", lines[0])


def test_without_patients_every_file_is_a_patient(read: Read, folders: Path) -> None:
    (folders / "metadata.csv").write_text("file,label\nno/a.PNG,no\nyes/d.bmp,yes\n")
    lines: list[str] = []
    assert read(folders, "table", lines=lines).patients.tolist() == ["no/a.PNG", "yes/d.bmp"]
    assert "patient" in lines[0]
    with pytest.raises(SplitError, match="who"):
        read(folders, "table", patient_column="who")


def test_npz(read: Read, write_npz: Callable[..., Path]) -> None:
    folder = write_npz()
    for data in (folder, folder / "data.npz"):
        tiles = read(data, "npz")
        check(tiles)
        assert tiles.parts.tolist() == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
        assert tiles.images.tolist()[3:6] == ["train_3", "val_0", "val_1"]
        assert tiles.patients.tolist() == tiles.images.tolist()
        assert tiles.labels.tolist() == [0, 1] * 4
        assert np.array_equal(tiles.tiles[4], grey(50))


def test_coloured_npz_and_flat_labels(read: Read, write_npz: Callable[..., Path]) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    tiles = read(write_npz(test_images=colours, test_labels=np.array([1, 0])), "npz")
    assert np.array_equal(tiles.tiles[-2:], colours)
    assert tiles.labels.tolist()[-2:] == [1, 0]


def test_pictures_without_pixels_are_refused(read: Read, write_npz: Callable[..., Path]) -> None:
    with pytest.raises(SplitError):
        read(write_npz(val_images=np.zeros((2, 0, 16, 3), np.uint8)), "npz")


@pytest.mark.parametrize(
    ("file", "row"),
    [("a\u0301.png", "no/\u00e1.png"), ("\u00e1.png", "no/a\u0301.png"), ("a.png", "no\\a.png")],
)
def test_a_table_may_write_names_as_another_system_does(read: Read, tmp_path: Path, file: str, row: str) -> None:
    draw(tmp_path / "no" / file, 10)
    draw(tmp_path / "yes" / "b.png", 20)
    (tmp_path / "metadata.csv").write_text(f"file,patient\n{row},p\nyes/b.png,q\n")
    assert read(tmp_path, "folders").patients.tolist() == ["p", "q"]


def test_one_patient_in_two_forms_of_unicode_is_one(read: Read, tmp_path: Path) -> None:
    draw(tmp_path / "no" / "a.png", 10)
    draw(tmp_path / "yes" / "b.png", 20)
    (tmp_path / "metadata.csv").write_text("file,patient,centre\nno/a.png,\u00e1,\u00e1\nyes/b.png,a\u0301,a\u0301\n")
    tiles = read(tmp_path, "folders")
    assert (len(set(tiles.patients)), len(set(tiles.centres))) == (1, 1)


def test_a_file_that_has_two_rows_in_two_forms_is_refused(read: Read, tmp_path: Path) -> None:
    draw(tmp_path / "no" / "a.png", 10)
    draw(tmp_path / "yes" / "b.png", 20)
    (tmp_path / "metadata.csv").write_text("file,patient\nno/a.png,p\nno\\a.png,r\nyes/b.png,q\n")
    with pytest.raises(SplitError) as raised:
        read(tmp_path, "folders")
    assert missing_from(raised.value, ("metadata.csv", "no/a.png", "2")) == []


def test_limit_counts_each_class_in_each_part(read: Read, write_npz: Callable[..., Path], folders: Path) -> None:
    assert read(write_npz(), "npz", limit=1).images.tolist() == [
        "train_0", "train_1", "val_0", "val_1", "test_0", "test_1"
    ]  # fmt: skip
    assert read(folders, "folders", limit=1).images.tolist() == ["no/a.PNG", "yes/d.bmp"]
    assert len(read(folders, "folders", limit=9)) == 5


def test_pictures_of_several_tiles(read: Read, tmp_path: Path) -> None:
    draw(tmp_path / "no" / "a.png", 200, side=32)
    draw(tmp_path / "yes" / "b.png", 100, side=16)
    tiles = read(tmp_path, "folders", tiler="parts")
    check(tiles)
    assert tiles.images.tolist() == ["no/a.png"] * 4 + ["yes/b.png"]
    assert tiles.labels.tolist() == [0] * 4 + [1]
    edges = read(tmp_path, "folders", tiler="edges")
    assert edges.tiles[:, 0, 0, 0].tolist() == [200] * 4 + [0]


def test_an_unreadable_picture_is_skipped_by_name(read: Read, folders: Path) -> None:
    (folders / "no" / "b.png").write_bytes((folders / "no" / "b.png").read_bytes()[:45])
    lines: list[str] = []
    assert read(folders, "folders", lines=lines).images.tolist()[:2] == ["no/a.PNG", "no/deeper/c.jpg"]
    assert lines[1].startswith("no/b.png ")
    for path in (folders / "yes").iterdir():
        path.write_text("")
    with pytest.raises(SplitError, match="class yes has 0"):
        read(folders, "folders")
    for path in folders.rglob("*.*"):
        path.write_text("")
    with pytest.raises(SplitError, match="5 pictures"):
        read(folders, "folders")


def test_slides_keep_their_facts_and_a_broken_one_is_skipped(
    make_split: Callable[..., Path], strip_ai: Competition, recipe: Path, tmp_path: Path
) -> None:
    data = make_split(tmp_path / "train", strip_ai, split="train", slides=4)
    slides = {slide.image_id: slide for slide in read_slides(data, "train", strip_ai)}
    many = max((0, 1), key=[slide.label for slide in slides.values()].count)
    broken = next(slide for slide in slides.values() if slide.label == many)
    broken.path.write_bytes(broken.path.read_bytes()[:2000])
    lines: list[str] = []
    tiles = read_source(load_recipe(recipe), data, strip_ai, None, lines.append)
    assert tiles.classes == strip_ai.classes.names
    for index in range(len(tiles)):
        slide = slides[str(tiles.images[index])]
        assert (tiles.labels[index], tiles.patients[index]) == (slide.label, slide.patient_id)
        assert tiles.centres[index] == slide.centre != ""
        assert tiles.parts[index] == ""
    assert set(tiles.images) == set(slides) - {broken.image_id}
    assert lines[0].startswith(f"{broken.image_id} ")
    with pytest.raises(SplitError, match="has 0 slides"):
        read_source(load_recipe(recipe), data, strip_ai, 1, lines.append)  # the broken one is the first of its class


@pytest.mark.parametrize(
    ("source", "settings", "named"),
    [
        ("folders", {"tiler": "patches"}, ("tiling.name", "patches", "edges, parts, whole")),
        ("slides", {"tiler": "whole"}, ("tiling.name", "whole", "chunks, darkest")),
        ("table", {"classes": ()}, ("data.classes", "0", "2")),
        ("folders", {"classes": (), "positive_class": "maybe"}, ("data.positive_class", "'maybe'", "no, yes")),
        ("folders", {"classes": ("no", "patient")}, ("'patient'", "image, patient, centre, label, fold")),
        ("npz", {"classes": ("a", "a")}, ("data.classes", "1", "2")),
    ],
)
def test_a_recipe_that_does_not_fit_its_source(
    read: Read, folders: Path, source: str, settings: dict[str, str], named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as raised:
        read(folders, source, **settings)
    assert missing_from(raised.value, named) == []


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("file,label\nno/a.PNG,no\nyes/x.png,yes\nyes/y.png,yes\n", ("2 of 3", "yes/x.png")),
        ("file,label\nno/a.PNG,no\nyes/d.bmp,Yes\n", ("yes/d.bmp", "'Yes'", "no, yes")),
        ("file,label\nno/a.PNG,no\nno/b.png,no\n", ("class yes", "0", "1", "no, yes")),
        ("file,label\nno/a.PNG,no\n./no/a.PNG,yes\n", ("no/a.PNG", "2")),
        ("file,label\n,no\n", ("file", "empty")),
        ("file,label,patient\nno/a.PNG,no,\nyes/d.bmp,yes,p\n", ("no/a.PNG", "patient")),
        ("file,label,part\nno/a.PNG,no,train\nyes/d.bmp,yes,all\n", ("yes/d.bmp", "'all'", "train, val, test")),
        ("file,kind\nno/a.PNG,no\n", ("label", "file, kind")),
        ("file,label\n", ("0 rows", "1")),
    ],
)
def test_a_mistake_in_a_table_is_named(read: Read, folders: Path, table: str, named: tuple[str, ...]) -> None:
    (folders / "metadata.csv").write_text(table)
    with pytest.raises(SplitError) as raised:
        read(folders, "table")
    assert missing_from(raised.value, (str(folders), *named)) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"val_labels": None}, ("val_labels", "train, val, test")),
        ({"val_labels": np.array([0, 2])}, ("val_labels", "2", "0 to 1", "no, yes")),
        ({"val_labels": np.array([0, 1, 1])}, ("val_labels", "int64[3]", "2")),
        ({"val_labels": np.zeros((2, 14), np.uint8)}, ("val_labels", "uint8[2, 14]")),
        ({"val_labels": np.array(["a", "b"])}, ("val_labels", "<U1[2]")),
        ({"val_images": np.zeros((2, 8, 8, 8), np.uint8)}, ("val_images", "uint8[2, 8, 8, 8]", "uint8[n, H, W]")),
        ({"val_images": np.zeros((2, 8, 8))}, ("val_images", "float64[2, 8, 8]", "uint8[n, H, W]")),
        ({"val_images": np.array([None, {}])}, ("data.npz",)),
    ],
)
def test_a_mistake_in_an_npz_is_named(
    read: Read, write_npz: Callable[..., Path], changes: dict[str, npt.NDArray[np.generic]], named: tuple[str, ...]
) -> None:
    with pytest.raises(SplitError) as raised:
        read(write_npz(**changes), "npz")
    assert missing_from(raised.value, ("data.npz", *named)) == []


def missing_from(error: BaseException, named: tuple[str, ...]) -> list[str]:
    """Return the words that the one line of an error does not name."""
    (line,) = str(error).splitlines()
    return [word for word in named if word not in line]


def test_missing_files_and_folders_are_named(
    read: Read, write_npz: Callable[..., Path], folders: Path, tmp_path: Path
) -> None:
    folder = write_npz()
    (folder / "data.npz").write_bytes((folder / "data.npz").read_bytes()[:500])
    cases = [
        (folder, "npz", ("data.npz",)),
        (folders, "npz", ("0 .npz files", "1")),
        (tmp_path / "none", "npz", ("0 .npz files", "1")),
        (tmp_path / "none", "folders", ("none", "no, yes")),
        (tmp_path / "none", "table", ("none", "metadata.csv")),
    ]
    for data, source, named in cases:
        with pytest.raises(ClotkitError) as raised:
            read(data, source)
        assert missing_from(raised.value, named) == []


@pytest.mark.skipif(not (DATA / "breastmnist").is_dir(), reason="needs the breast pictures of the shared data")
def test_breast_pictures(read: Read, strip_ai: Competition) -> None:
    config = DataConfig(source="npz", classes=("malignant", "benign"))
    tiles = read_source(recipe_of(config, tile_px=28), DATA / "breastmnist", strip_ai, None, lambda _: None)
    assert [int((tiles.parts == part).sum()) for part in ("train", "val", "test")] == [546, 78, 156]
    assert tiles.tiles.shape == (780, 28, 28, 3)


@pytest.mark.skipif(not (DATA / "breakhis").is_dir(), reason="needs the BreakHis fields of the shared data")
def test_breakhis_fields(strip_ai: Competition) -> None:
    config = DataConfig(
        source="table", classes=("benign", "malignant"), table="labels.csv", patient_column="patient_slide"
    )
    tiles = read_source(recipe_of(config), DATA / "breakhis", strip_ai, 20, lambda _: None)
    assert len(tiles) == 40
    assert 2 <= len(set(tiles.patients)) <= 27
