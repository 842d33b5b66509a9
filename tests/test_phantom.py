"""Test synthetic splits: the competition's shape, reproducible bytes, and pixels that match the plan."""

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile

from clotkit.competitions import Classes, Columns, Competition, Files, Form, Ids, Submission, Unit, load_competition
from clotkit.errors import ConfigError, UsageError
from clotkit.files import sha256
from clotkit.splits import read_slides
from clotkit.synthetic.phantom import read_plans, slide_plan, tissue_mask, write_split
from clotkit.synthetic.phantom_patients import draw_patients, patient_ids, stratified_labels
from clotkit.synthetic.phantom_pixels import EDGE_PX, Painter, encode_tile
from clotkit.synthetic.phantom_sizes import DEFAULT_SIZES, slide_sizes
from clotkit.synthetic.phantom_tissue import BACKGROUNDS

STRIP_AI = load_competition()
OTHER = replace(
    STRIP_AI,
    slug="three-things",
    title="Three Things",
    files=Files(
        sample="sheets/blank.csv",
        submission="out.csv",
        table="sheets/{split}_rows.csv",
        slide=("{split}_pixels/img-{image_id}.tiff",),
    ),
    columns=Columns(image="picture", patient="who", center="where", number="nth", label="kind"),
    ids=Ids(patient="[A-Z0-9]{4}", image="{patient}-{number}"),
    classes=Classes(names=("a", "b", "c"), weights=(1.0, 1.0, 1.0), priors=(0.9, 0.07, 0.03), fallback=(0.2, 0.3, 0.5)),
    submission=Submission(id="who", unit=Unit.PATIENT, columns=("a", "b", "c")),
)


PATIENTS = replace(  # patients of several slides, a row a slide, and ids of no declared form
    STRIP_AI,
    slug="patients",
    files=replace(STRIP_AI.files, slide=("{site}/{patient_id}/{split}-{image_id}.svs",)),
    columns=Columns(image="slide", patient="case", label="grade"),
    ids=Ids(),
    submission=Submission(form=Form.PROBABILITY, id="slide", unit=Unit.IMAGE, columns=("p",)),
)
HASHES = ["c59eb44240cc", "13d7b803e427", "3cd5d469d2ff", "ff17c31c6e4a"]
FORMS = {  # of each competition: the header of train's labels, of the test table, and of the sample
    "panda": ("train.csv", "image_id,data_provider,isup_grade", "image_id,data_provider", "image_id,isup_grade"),
    "ubc_ocean": ("train.csv", "image_id,is_tma,label", "image_id", "image_id,label"),
    "visiomel": ("train_labels.csv", "filename,relapse", "filename", "filename,relapse"),
    "camelyon16": ("train.csv", "image,label", "", "image,p"),
}


def write(
    out: Path,
    split: str = "train",
    slides: int = 1,
    seed: int = 5,
    competition: Competition = STRIP_AI,
    size: str = "500x512",
    separation: float = 1.0,
) -> list[str]:
    lines: list[str] = []
    write_split(out, split, slides, seed, competition, size=size, separation=separation, log=lines.append)
    return lines


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def truth(out: Path) -> dict[str, Any]:
    """Return the marker's entries for the folder and for its only split."""
    marker = json.loads((out / "phantom.json").read_text(encoding="utf-8"))
    (split,) = marker.pop("splits").values()
    return marker | split


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "train_split"
    lines = write(out, slides=8)
    assert len(lines) == 9  # one per slide, and a summary
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "small"
    write(out, "test", slides=2, seed=1, size="small")
    return out


def test_train_has_the_competitions_shape(train: Path) -> None:
    raw = (train / "train.csv").read_bytes()
    rows = table(train / "train.csv")
    assert raw.startswith(b"image_id,center_id,patient_id,image_num,label\n")
    assert b"\r" not in raw
    assert not (train / "sample_submission.csv").exists()
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)
    assert {path.stem for path in (train / "train").glob("*.tif")} == {row["image_id"] for row in rows}
    assert {row["label"] for row in rows} == {"CE", "LAA"}
    for row in rows:
        assert re.fullmatch("[0-9a-f]{6}", row["patient_id"])
        assert row["image_id"] == f"{row['patient_id']}_{row['image_num']}"
        assert row["label"] == truth(train)["labels"][row["patient_id"]]
        assert 1 <= int(row["center_id"]) <= 11
    assert any(re.fullmatch("00[0-9]{4}", row["patient_id"]) for row in rows)
    for patient in {row["patient_id"] for row in rows}:
        own = [row for row in rows if row["patient_id"] == patient]
        assert sorted(int(row["image_num"]) for row in own) == list(range(len(own)))
        assert len({(row["label"], row["center_id"]) for row in own}) == 1


def test_test_split_has_a_sample_of_fallbacks_and_no_labels(small: Path) -> None:
    rows, sample = table(small / "test.csv"), table(small / "sample_submission.csv")
    assert list(rows[0]) == ["image_id", "center_id", "patient_id", "image_num"]
    assert tuple(sample[0]) == STRIP_AI.header
    assert [row["patient_id"] for row in sample] == sorted({row["patient_id"] for row in rows})
    assert {(row["CE"], row["LAA"]) for row in sample} == {("0.5", "0.5")}


def test_the_folder_says_that_it_is_synthetic(train: Path) -> None:
    assert "synthetic" in (train / "README.txt").read_text()
    marker = truth(train)
    assert marker["synthetic"] is True
    assert (marker["seed"], marker["size"], marker["separation"], marker["linear_scale"]) == (5, "500x512", 1.0, 1.0)
    for entry in marker["slides"].values():
        assert {"width_px", "height_px", "background", "tissue_share", "sections"} <= set(entry)


def test_the_same_arguments_give_the_same_bytes_and_slides_do_not_depend_on_each_other(
    train: Path, tmp_path: Path
) -> None:
    write(tmp_path / "again", slides=8)
    names = sorted(path.relative_to(train) for path in train.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    assert all(sha256(train / name) == sha256(tmp_path / "again" / name) for name in names)
    image_id = table(train / "train.csv")[3]["image_id"]
    plan = read_plans(train)[image_id]
    alone = slide_plan(5, "train", image_id, 500, 512, red_share=plan.red_share)
    with tifffile.TiffFile(train / "train" / f"{image_id}.tif") as tiff:
        page = tiff.pages[0]
        handle = tiff.filehandle
        for tile, offset, count in zip(Painter(alone).tiles(), page.dataoffsets, page.databytecounts, strict=True):
            handle.seek(offset)
            assert handle.read(count) == tile


def test_no_patient_is_in_both_splits() -> None:
    ids = {
        (split, seed): {person.id for person in draw_patients(split, 300, seed, STRIP_AI)}
        for split in ("train", "test")
        for seed in (1, 2)
    }
    assert not (ids["train", 1] | ids["train", 2]) & (ids["test", 1] | ids["test", 2])
    assert ids["train", 1] != ids["train", 2]


def test_patients_have_the_real_numbers_of_slides_and_the_priors() -> None:
    people = draw_patients("train", 754, 3, STRIP_AI)
    slides = Counter(person.slides for person in people)
    assert sum(person.slides for person in people) == 754
    assert 0.80 < slides[1] / len(people) < 0.92
    assert set(slides) == {1, 2, 3, 4, 5}
    assert abs(sum(person.label for person in people) / len(people) - 0.277) < 0.002


@pytest.mark.parametrize(
    ("patients", "priors", "wanted"),
    [
        (1, (0.723, 0.277), [1, 0]),
        (2, (0.723, 0.277), [1, 1]),
        (4, (0.723, 0.277), [3, 1]),
        (8, (0.9, 0.1), [6, 2]),
        (100, (0.723, 0.277), [72, 28]),
        (2, (0.2, 0.5, 0.3), [0, 1, 1]),
        (12, (0.98, 0.01, 0.01), [8, 2, 2]),
    ],
)
def test_labels_are_stratified(patients: int, priors: tuple[float, ...], wanted: list[int]) -> None:
    labels = stratified_labels(patients, priors)
    assert [labels.count(index) for index in range(len(priors))] == wanted


def test_sizes_are_the_real_ones() -> None:
    real = slide_sizes("real", 754, np.random.default_rng(0), STRIP_AI.sizes)
    area = sorted(width * height for width, height in real)
    assert (48_284, 101_408) in real
    assert area[-1] == 48_284 * 101_408
    assert abs(area[377] / 680e6 - 1) < 0.05
    assert abs(np.median([width for width, _ in real]) / 18_702 - 1) < 0.1
    assert min(map(min, real)) >= 4_420
    assert max(map(max, real)) <= 118_076
    assert slide_sizes("small", 1, np.random.default_rng(0), STRIP_AI.sizes) == [(6_036, 12_676)]
    assert slide_sizes("300x400", 2, np.random.default_rng(0), STRIP_AI.sizes) == [(300, 400)] * 2


def test_tiffs_have_the_real_layout(small: Path) -> None:
    marker = truth(small)
    assert marker["linear_scale"] == 1 / 8
    assert (6_036, 12_676) in {(entry["width_px"], entry["height_px"]) for entry in marker["slides"].values()}
    for image_id, entry in marker["slides"].items():
        with tifffile.TiffFile(small / "test" / f"{image_id}.tif") as tiff:
            assert len(tiff.pages) == 1
            assert not tiff.is_bigtiff
            page = tiff.pages[0]
            assert page.shape == (entry["height_px"], entry["width_px"], 3)
            assert (page.tilewidth, page.tilelength, page.compression, page.predictor) == (128, 128, 8, 2)
            assert (page.dtype, page.photometric) == (np.uint8, 2)
            assert page.tags["XResolution"].value == (10, 1)
            assert page.tags["ResolutionUnit"].value == 3
            assert page.tags["Software"].value == "clotkit phantom, synthetic"
            assert "DateTime" not in page.tags
            blank = np.quantile(page.databytecounts, 0.25)
            assert 200 < blank < 400
        assert entry["background"] in [list(colour) for colour in BACKGROUNDS]


def test_two_readers_see_the_same_pixels_and_the_truth_holds(train: Path) -> None:
    for image_id, plan in read_plans(train).items():
        path = train / "train" / f"{image_id}.tif"
        pixels = tifffile.imread(path)
        assert np.array_equal(pixels, pyvips.Image.new_from_file(str(path)).numpy())
        assert pixels.min() > 0
        mask = tissue_mask(plan, 1)
        assert mask.shape == pixels.shape[:2]
        off = np.abs(pixels.astype(np.int16) - np.array(plan.background)).max(axis=2)
        assert off[~mask].max() <= 1
        assert (off[mask] > 3).mean() > 0.99
        assert abs(mask.mean() - plan.tissue_share) < 0.1 * plan.tissue_share + 1e-3


def test_a_coarse_mask_is_the_fine_one_sampled() -> None:
    plan = slide_plan(0, "test", "any_0", 1500, 2100)
    fine, coarse = tissue_mask(plan, 1), tissue_mask(plan, 8)
    assert coarse.shape == (263, 188)
    assert abs(coarse.mean() - fine.mean()) < 0.002
    block = fine[:2096, :1496].reshape(262, 8, 187, 8).mean(axis=(1, 3))
    assert np.all(coarse[:262, :187][(block == 0) | (block == 1)] == block[(block == 0) | (block == 1)])


def test_tissue_shares_and_sections_follow_the_real_ones() -> None:
    plans = [slide_plan(0, "test", f"{number}_0", 500, 500) for number in range(600)]
    low, middle, high = np.quantile([plan.tissue_share for plan in plans], [0.05, 0.5, 0.95])
    assert (low, middle, high) == pytest.approx((0.034, 0.1245, 0.27), rel=0.2)
    assert 0.3 < np.mean([plan.sections > 1 for plan in plans]) < 0.5
    assert {plan.background for plan in plans} == set(BACKGROUNDS)


def test_whole_tiles_are_the_composed_ones() -> None:
    plan = replace(slide_plan(0, "test", "any_0", 4096, 4096), tissue_share=0.45, sections=1)
    painter = Painter(plan)
    kinds = painter.kind
    row, column = np.argwhere(kinds == 1)[0]
    assert painter.read_field(painter.field.inside, row, column).min() >= EDGE_PX
    whole = painter.whole_tile(bool(painter.all_red[row, column]), row, column)
    assert whole == encode_tile(painter.composed_tile(row, column, painter.blank[0]))
    assert set(np.unique(kinds)) == {0, 1, 2}


def redness(separation: float, out: Path) -> dict[str, float]:
    """Return the mean of red minus blue, relative to the background, over the tissue of each class."""
    write(out, slides=16, seed=2, size="384x384", separation=separation)
    marker, values = truth(out), dict[str, list[float]](CE=[], LAA=[])
    for image_id, plan in read_plans(out).items():
        pixels = tifffile.imread(out / "train" / f"{image_id}.tif")[tissue_mask(plan, 1)] / np.array(plan.background)
        values[marker["labels"][image_id.split("_")[0]]].append(float(np.mean(pixels[:, 0] - pixels[:, 2])))
    return {name: float(np.mean(per_slide)) for name, per_slide in values.items()}


@pytest.mark.slow
def test_separation_sets_the_difference_between_classes(tmp_path: Path) -> None:
    apart, alike = redness(2.0, tmp_path / "apart"), redness(0.0, tmp_path / "alike")
    assert apart["CE"] - apart["LAA"] > 0.08
    assert abs(alike["CE"] - alike["LAA"]) < 0.05


def test_any_competition_is_supported(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "three"
    write(out, slides=9, competition=OTHER, size="256x256")
    rows = table(out / "sheets" / "train_rows.csv")
    assert list(rows[0]) == ["picture", "where", "who", "nth", "kind"]
    assert {row["kind"] for row in rows} == {"a", "b", "c"}
    for row in rows:
        assert re.fullmatch("[A-Z0-9]{4}", row["who"])
        assert (out / "train_pixels" / f"img-{row['who']}-{row['nth']}.tiff").is_file()
    assert any(re.fullmatch("00[0-9]{2}", row["who"]) for row in rows)
    write(out, "test", slides=1, competition=OTHER, size="256x256")
    assert (out / "sheets" / "blank.csv").read_text().startswith("who,a,b,c\n")
    assert table(out / "sheets" / "blank.csv")[0]["c"] == "0.5"


@pytest.mark.parametrize("name", FORMS)
def test_a_split_has_the_declared_form(name: str, tmp_path: Path) -> None:
    competition = load_competition(name)
    for split in ("train", "test"):
        write(tmp_path, split, slides=3, competition=competition, size="256x256")
    labels, header, test_header, sample_header = FORMS[name]
    sample = competition.sample_path(tmp_path)
    assert (tmp_path / labels).read_text().splitlines()[0] == header
    assert sample.read_text().splitlines()[0] == sample_header
    test_table = competition.table_path(tmp_path, "test")
    assert (test_table.read_text().splitlines()[0] if test_table.exists() else "") == test_header
    known = json.loads((tmp_path / "phantom.json").read_text())["splits"]
    train, test = (read_slides(tmp_path, split, competition) for split in ("train", "test"))
    assert all(slide.path.is_file() and slide.path.match(f"*{Path(slide.names[0]).suffix}") for slide in train + test)
    assert [competition.classes.names[slide.label or 0] for slide in train] == [
        known["train"]["labels"][slide.patient_id] for slide in train
    ]
    assert {slide.image_id for slide in test} == {Path(row[sample_header.split(",")[0]]).stem for row in table(sample)}
    assert not {slide.image_id for slide in train} & {slide.image_id for slide in test}


@pytest.mark.parametrize(("name", "answer"), [("panda", "2"), ("ubc_ocean", "HGSC"), ("visiomel", "0.157")])
def test_a_sample_has_the_fallback_in_the_submissions_form(name: str, answer: str, tmp_path: Path) -> None:
    competition = load_competition(name)
    write(tmp_path, "test", slides=2, competition=competition, size="256x256")
    assert {row[competition.header[1]] for row in table(competition.sample_path(tmp_path))} == {answer}


def test_facts_and_the_class_that_train_lacks(tmp_path: Path) -> None:
    ubc = load_competition("ubc_ocean")
    for split in ("train", "test"):
        write(tmp_path, split, slides=8, competition=ubc, size="256x256")
        marker = json.loads((tmp_path / "phantom.json").read_text())["splits"][split]
        cores = {image_id for image_id, entry in marker["slides"].items() if entry["facts"]["is_tma"]}
        assert len(cores) == 2
        assert cores == {one.image_id for one in read_slides(tmp_path, split, ubc) if one.facts["is_tma"] == "True"}
        thumbnails = {path.name.removesuffix("_thumbnail.png") for path in (tmp_path / f"{split}_thumbnails").iterdir()}
        assert thumbnails == set(marker["slides"]) - cores
        outliers = {image_id for image_id, entry in marker["slides"].items() if entry.get("is_outlier")}
        assert outliers == {image_id for image_id, label in marker["labels"].items() if label == "Other"}
        assert len(outliers) == (1 if split == "test" else 0)
    plans = read_plans(tmp_path)
    tissue = {
        plan.is_outlier: np.median(
            pyvips.Image.new_from_file(str(tmp_path / "test_images" / f"{name}.png")).numpy()[tissue_mask(plan, 1)], 0
        )
        for name, plan in plans.items()
        if plan.split == "test"
    }
    assert tissue[False][0] > tissue[False][2]  # red tissue, but that of the outlier is blue
    assert tissue[True][0] < tissue[True][2]
    write(tmp_path, "test", slides=1, competition=ubc, size="256x256")
    assert len(list((tmp_path / "test_images").iterdir())) == 1
    assert len(list((tmp_path / "test_thumbnails").iterdir())) == 1
    assert len(list((tmp_path / "train_images").iterdir())) == 8


def test_patients_whose_ids_have_no_form_and_a_column_in_the_names_of_files(tmp_path: Path) -> None:
    write(tmp_path, "train", slides=12, competition=PATIENTS, size="256x256")
    slides = read_slides(tmp_path, "train", PATIENTS)
    assert len({slide.patient_id for slide in slides}) < 12
    assert {slide.path.parent.parent.name for slide in slides} == {"site_1", "site_2"}
    assert all(slide.path.is_file() for slide in slides)
    with tifffile.TiffFile(slides[0].path) as tiff:
        assert tiff.is_svs
    write(tmp_path, "train", slides=1, competition=PATIENTS, size="256x256")
    assert len(list(tmp_path.rglob("*.svs"))) == 1


def test_every_extension_has_the_same_pixels(tmp_path: Path) -> None:
    pixels = []
    for suffix in (".tif", ".svs", ".png"):
        files = replace(OTHER.files, slide=("{image_id}" + suffix,))
        write(tmp_path / suffix[1:], competition=replace(OTHER, files=files), size="300x400")
        (path,) = (tmp_path / suffix[1:]).glob(f"*{suffix}")
        pixels.append(pyvips.Image.new_from_file(str(path)).numpy())
    assert pixels[0].shape == (400, 300, 3)
    assert all(np.array_equal(pixels[0], other) for other in pixels[1:])
    files = replace(OTHER.files, slide=("{image_id}.mrxs",))
    with pytest.raises(ConfigError, match=r"mrxs"):
        write(tmp_path / "other", competition=replace(OTHER, files=files))
    files = replace(OTHER.files, slide=("{kind}/{image_id}.tif",))
    with pytest.raises(ConfigError, match=r"\{kind\}"):
        write(tmp_path / "other", competition=replace(OTHER, files=files))
    assert not (tmp_path / "other").exists()


def test_more_than_two_classes_are_evenly_spaced(tmp_path: Path) -> None:
    panda = load_competition("panda")
    write(tmp_path, slides=24, competition=panda, size="256x256", separation=4.0)
    marker = truth(tmp_path)
    shares: dict[str, list[float]] = {name: [] for name in panda.classes.names}
    for image_id, entry in marker["slides"].items():
        shares[marker["labels"][image_id]].append(entry["red_share"])
    steps = np.diff([np.mean(values) for values in shares.values()])
    assert (steps < -0.1).all()
    assert max(map(np.std, shares.values())) < 0.05


def test_the_default_sizes_can_be_drawn() -> None:
    drawn = slide_sizes("real", 200, np.random.default_rng(0), DEFAULT_SIZES)
    assert max(width * height for width, height in drawn) == 60_000 * 66_000
    assert 300e6 < np.median([width * height for width, height in drawn]) < 700e6


def test_the_default_competitions_splits_are_the_same_in_every_version(tmp_path: Path) -> None:
    write(tmp_path, slides=9, seed=3, size="256x256")
    write(tmp_path, "test", slides=5, seed=4, size="256x256", separation=3.0)
    names = ("phantom.json", "train.csv", "test.csv", "sample_submission.csv")
    assert [sha256(tmp_path / name)[:12] for name in names] == HASHES


def test_a_split_is_replaced_with_nothing_left_over_and_the_other_stays(tmp_path: Path) -> None:
    write(tmp_path, slides=3, size="256x256")
    write(tmp_path, "test", slides=2, seed=6, size="256x256")
    train = (tmp_path / "train.csv").read_bytes()
    write(tmp_path, "test", slides=1, seed=7, size="256x256")
    assert (tmp_path / "train.csv").read_bytes() == train
    assert len(list((tmp_path / "train").iterdir())) == 3
    assert len(list((tmp_path / "test").iterdir())) == 1
    assert len(read_plans(tmp_path)) == 4
    assert not list(tmp_path.rglob(".*"))
    with pytest.raises(UsageError, match=r"phantom\.json"):
        write(tmp_path, competition=OTHER, size="256x256")


def test_anything_else_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("mine\n")
    with pytest.raises(UsageError, match=r"phantom\.json"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]
    (tmp_path / "phantom.json").write_text('{"synthetic": false, "competition": "mayo-clinic-strip-ai", "splits": {}}')
    with pytest.raises(UsageError, match=r"phantom\.json"):
        write(tmp_path)


@pytest.mark.parametrize("number", ["../../victim", "/victim"])
def test_a_tampered_marker_deletes_nothing_outside(tmp_path: Path, number: str) -> None:
    victim = tmp_path / "victim.tif"
    victim.write_text("keep me")
    out = tmp_path / "out"
    out.mkdir()
    image_id = number if number.startswith("..") else str(tmp_path) + number
    marker = {"synthetic": True, "competition": STRIP_AI.slug, "splits": {"train": {"slides": {image_id: {}}}}}
    (out / "phantom.json").write_text(json.dumps(marker))
    write(out, size="256x256")
    assert victim.read_text() == "keep me"


@pytest.mark.parametrize(
    "settings",
    [
        {"split": "valid"},
        {"slides": 0},
        {"size": "huge"},
        {"size": "100x2000"},
        {"size": "2000"},
        {"separation": -0.1},
        {"separation": 4.1},
        {"separation": float("nan")},
    ],
)
def test_bad_arguments_are_refused_in_one_line(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        write(tmp_path / "out", **settings)
    ((name, value),) = settings.items()
    assert name in str(caught.value)
    assert str(value) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["P-[0-9]{4}", "[0-9]{1}", "[0-9"])
def test_ids_that_cannot_be_made_are_a_config_error(pattern: str) -> None:
    """The pattern has an unsupported form, allows too few ids, or is not a regular expression."""
    with pytest.raises(ConfigError, match=re.escape(pattern)):
        patient_ids("train", 40, np.random.default_rng(0), pattern)


def test_ids_of_another_form_are_hex_digits_where_those_match() -> None:
    names = patient_ids("test", 5, np.random.default_rng(0), r"\w+")
    assert len(set(names)) == 5
    assert all(re.fullmatch("[0-9a-f]{6}", name) for name in names)
