"""Test containers for Grand Challenge: inputs and outputs, one job, the folder to build."""

import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from packaging.utils import canonicalize_name

from clotkit.cli import main
from clotkit.competitions import FOLDER, Competition, load_competition
from clotkit.containers.build import BASE, Image, check_out, kit_files, write_container
from clotkit.containers.case import as_case, convert, fallback_of, jobs_of, read_answer
from clotkit.containers.config import FACTS, Api, ContainerConfig, read_config, write_config
from clotkit.containers.entry import Places, run_job
from clotkit.containers.jobs import Job, uuid_of, write_input
from clotkit.containers.jobs import jobs_of as split_jobs
from clotkit.containers.mha import MetaImageError, mha_to_tiff
from clotkit.containers.sockets import find_images
from clotkit.errors import ConfigError, UsageError
from clotkit.reasons import Reason
from clotkit.splits import read_slides
from clotkit.supervise import State
from clotkit.workers import Limits

from .conftest import ROOT
from .test_package import locked

CONFIG = ContainerConfig("strip_ai")


def listed(*slugs: str, key: str = "socket", **facts: Any) -> str:
    """Return an inputs.json with image sockets of these slugs."""
    return json.dumps([{key: {"slug": slug, "relative_path": f"images/{slug}"} | facts} for slug in slugs])


def touch(top: Path, *names: str) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()


# Inputs


@pytest.mark.parametrize(
    ("inputs", "wanted", "found"),
    [
        (listed("wsi"), (), ["a"]),
        (listed("wsi", key="interface"), (), ["a"]),
        (listed("wsi", "wsi-1", "tissue-mask"), (), ["a", "b"]),
        (listed("tissue-mask"), ("tissue-mask",), ["c"]),
        (listed("wsi", "wsi-1", "ct"), ("wsi",), ["a", "b"]),
        (listed("ct"), ("wsi",), []),
        (listed("gone"), (), []),
        (listed("tissue-mask"), (), ["c"]),
        (listed("tissue-mask", "age-mask"), (), []),
        (None, (), ["d", "a", "b"]),
        ("{", (), ["d", "a", "b"]),
        ("3", (), ["d", "a", "b"]),
        ('[3, {"socket": 3}, {"socket": {"slug": 1}}, {"socket": {"slug": "age", "relative_path": "age.json"}}]', (),
         ["d", "a", "b"]),
    ],
)  # fmt: skip
def test_the_images_of_a_job_are_found(
    inputs: str | None, wanted: tuple[str, ...], found: list[str], tmp_path: Path
) -> None:
    touch(tmp_path, "images/wsi/a.tif", "images/wsi-1/b.TIFF", "images/tissue-mask/c.tif", "images/ct/d.mha")
    touch(tmp_path, "images/wsi/a.json")
    if inputs is not None:
        (tmp_path / "inputs.json").write_text(inputs)
    assert [image.name for image in find_images(tmp_path, wanted)] == found


@given(st.lists(st.sampled_from(["x", "x-1", "x-2", "x-1-1", "y"]), min_size=1, max_size=8))
def test_images_of_one_name_have_names_of_their_own(stems: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        touch(Path(folder), *(f"images/{n}/{stem}.tif" for n, stem in enumerate(stems)))
        images = find_images(Path(folder), ())
    assert len({image.name for image in images}) == len({image.path for image in images}) == len(stems)


@pytest.mark.parametrize(
    ("names", "carried", "others"),
    [
        (["a.svs"], [], ["a"]),
        (["a.tif", "a.PNG", "b.mha", "c.ndpi"], ["a", "b"], ["a-1", "c"]),
        (["a.mhd", "a.raw"], [], ["a", "a-1"]),
        (["a.tiff", "a.json", "a.XML", "notes.txt", ".hidden.png", "folder.dcm/1.txt", "t.csv", "LICENSE"], ["a"], []),
    ],
)  # fmt: skip
def test_images_that_no_socket_carries_are_known(
    names: list[str], carried: list[str], others: list[str], tmp_path: Path
) -> None:
    touch(tmp_path, *(f"images/wsi/{name}" for name in names), "images/tissue-mask/m.png")
    images = find_images(tmp_path, ())
    assert [image.name for image in images if image.is_carried] == carried
    assert [image.name for image in images if not image.is_carried] == others


# MetaImages


def meta_image(pixels: np.ndarray, compressed: bool = False, **keys: str) -> bytes:
    """Return the bytes of a MetaImage of these pixels."""
    height, width, channels = pixels.shape
    data = zlib.compress(pixels.tobytes()) if compressed else pixels.tobytes()
    lines = {
        "ObjectType": "Image", "NDims": "2", "DimSize": f"{width} {height}", "ElementType": "MET_UCHAR",
        "ElementNumberOfChannels": str(channels), "CompressedData": str(compressed), "ElementSpacing": "0.0005 0.00025",
    }  # fmt: skip
    lines |= keys
    lines["ElementDataFile"] = lines.pop("ElementDataFile", "LOCAL")
    return "".join(f"{name} = {value}\n" for name, value in lines.items()).encode() + data


SHAPES = st.tuples(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1, 3]))


@given(
    pixels=SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 255), fill=st.just(7))),
    compressed=st.booleans(),
)
def test_a_metaimage_is_the_same_as_a_tiff(pixels: np.ndarray, compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.mha", Path(folder) / "a.tif"
        source.write_bytes(meta_image(pixels, compressed))
        mha_to_tiff(source, target)
        with tifffile.TiffFile(target) as file:
            page = file.pages[0]
            np.testing.assert_array_equal(page.asarray(), np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
            numbers = [page.tags[name].value for name in ("XResolution", "YResolution")]
            assert [one[0] / one[1] for one in numbers] == pytest.approx([20_000, 40_000], rel=1e-6)


BLACK = np.zeros((3, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 99,
        b"NDims = 2\n",
        meta_image(BLACK)[:-1],
        meta_image(BLACK)[:80],
        meta_image(BLACK, True)[:-8],
        meta_image(BLACK[:, :, :2]),
        meta_image(BLACK, ElementType="MET_SHORT"),
        meta_image(BLACK, DimSize="4 3 2"),
        meta_image(BLACK, DimSize="x"),
        meta_image(BLACK, DimSize="0 3"),
        meta_image(BLACK, ElementDataFile="a.raw"),
        meta_image(BLACK, CompressedData="True"),
    ],
)
def test_a_damaged_metaimage_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(data)
    with pytest.raises(MetaImageError) as caught:
        mha_to_tiff(tmp_path / "a.mha", tmp_path / "a.tif")
    assert caught.value.reason is Reason.DAMAGED


# One job


def places_of(folder: Path, member: Path, config: ContainerConfig = CONFIG) -> Places:
    """Make the folders of a container below `folder`."""
    places = Places(folder / "input", folder / "output", folder / "model", folder / "app")
    for path in (places.input, places.output, places.app):
        path.mkdir(parents=True)
    shutil.copytree(member, places.model / member.name)
    write_config(places.app / "container.json", config)
    return places


def answer_of(places: Places) -> tuple[Any, Any, dict[str, Any]]:
    probability, label, facts = (
        json.loads((places.output / f"{name}.json").read_text()) for name in ("probability", "label", "clotkit")
    )
    return probability, label, facts


def test_a_job_has_the_answer_of_a_run_and_a_broken_slide_costs_nothing(
    test_split: Path, member: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    assert main(["run", str(test_split), "--weights", str(member), "--out", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "report.jsonl").read_text().splitlines()]
    slides = read_slides(test_split, "test", strip_ai)
    places = places_of(tmp_path / "job", member)
    job = Job("a", slides[:2])
    write_input(places.input, job, "wsi")
    broken = next(places.input.glob("images/wsi-1/*"))
    broken.unlink()
    broken.write_bytes(b"II*\0" + bytes(50))
    (places.input / "images" / "wsi-2").mkdir()
    (places.input / "images" / "wsi-2" / "m.mha").write_bytes(b"no MetaImage")
    entries = json.loads((places.input / "inputs.json").read_text())
    entries.append({"socket": {"slug": "wsi-2", "relative_path": "images/wsi-2"}})
    (places.input / "inputs.json").write_text(json.dumps(entries))
    assert run_job(places) == 0
    probability, label, facts = answer_of(places)
    assert (facts["state"], sorted(facts["codes"])) == (State.PARTIAL, [Reason.DAMAGED])
    assert [slide["state"] for slide in facts["slides"]] == ["done", "fallback", "fallback"]
    (wanted,) = [line["p"] for line in lines if line["image_id"] == slides[0].image_id]
    (scored,) = [slide["p"] for slide in facts["slides"] if slide["image"] == uuid_of(slides[0])]
    assert scored["tiny"] == pytest.approx(wanted["tiny"], abs=1e-6)
    assert sum(probability.values()) == pytest.approx(1, abs=1e-5)
    assert label == max(probability, key=lambda name: probability[name])


def test_a_job_whose_last_file_cannot_be_written_has_its_answer(member: Path, tmp_path: Path) -> None:
    places = places_of(tmp_path, member)
    (places.input / "inputs.json").write_text("[]")
    (places.output / FACTS / "x").mkdir(parents=True)
    assert run_job(places) == 0
    assert sum(json.loads((places.output / f"{CONFIG.probability}.json").read_text()).values()) == pytest.approx(1)


def test_a_metaimage_is_scored(slides: list[Path], member: Path, tmp_path: Path) -> None:
    pixels = tifffile.imread(slides[0])
    states = []
    for name, data in (("a.tif", slides[0].read_bytes()), ("a.mha", meta_image(pixels, True))):
        places = places_of(tmp_path / name, member)
        (places.input / "images" / "wsi").mkdir(parents=True)
        (places.input / "images" / "wsi" / name).write_bytes(data)
        assert run_job(places) == 0
        states.append(answer_of(places))
    assert [one[2]["state"] for one in states] == [State.DONE] * 2
    assert states[0][0] == pytest.approx(states[1][0], abs=1e-6)


@pytest.mark.parametrize(("left_s", "sound"), [(60.0, True), (-1.0, False)])
def test_a_metaimage_beyond_a_slides_limits_costs_itself(left_s: float, sound: bool, tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(meta_image(np.full((600, 700, 3), 9, np.uint8), True))
    with (tmp_path / "b.mha").open("wb") as file:  # 512 rows take 2 GB, and are in the file
        file.write(meta_image(BLACK[:0], DimSize="1400000 512"))
        file.truncate(file.tell() + 1_400_000 * 512 * 3)
    convert(tmp_path, Limits(60.0, 1_024, time.monotonic() + left_s), 1)
    assert [(tmp_path / name).is_symlink() for name in ("a.tif", "b.tif")] == [not sound, True]
    assert {path.suffix for path in tmp_path.iterdir()} == {".mha", ".tif"}


def test_a_metaimage_that_fills_the_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(meta_image(BLACK[:0], DimSize="30000000 30000000"))
    with pytest.raises(MetaImageError, match="allowed"):
        mha_to_tiff(tmp_path / "a.mha", tmp_path / "a.tif")


KILLED_ONCE = """
import os, pathlib, sys
mark = pathlib.Path(MARK)
if "clotkit.containers.case" in sys.orig_argv and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), 9)
"""


def test_a_pipeline_that_is_killed_is_started_once_more(
    test_split: Path, member: Path, strip_ai: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "killed"
    (tmp_path / "sitecustomize.py").write_text(KILLED_ONCE.replace("MARK", repr(str(mark))))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    places = places_of(tmp_path / "job", member)
    write_input(places.input, Job("a", read_slides(test_split, "test", strip_ai)[:1]), "wsi")
    assert run_job(places) == 0
    assert mark.exists()
    assert (answer_of(places)[2]["state"], answer_of(places)[2]["codes"]) == (State.DONE, [])


@pytest.mark.parametrize(
    ("config", "spoil", "code"),
    [
        (CONFIG, lambda places: shutil.rmtree(places.input / "images"), Reason.NO_SOCKET),
        (CONFIG, lambda places: shutil.rmtree(places.input), Reason.NO_DATA),
        (ContainerConfig("strip_ai", ("other",)), lambda _: None, Reason.NO_SOCKET),
        (CONFIG, lambda places: shutil.rmtree(places.model / "tiny"), Reason.NO_MEMBER),
        (CONFIG, lambda places: shutil.rmtree(places.model), Reason.NO_MEMBER),
        (CONFIG, lambda places: (places.model / "tiny" / "model.weights.h5").write_bytes(b"x"), Reason.NO_MEMBER),
        (ContainerConfig("strip_ai", time_limit_s=0.5), lambda _: None, Reason.DEADLINE),
    ],
)
def test_a_job_that_cannot_be_scored_has_the_fallback(
    config: ContainerConfig, spoil: Callable[[Places], None], code: Reason, test_split: Path, member: Path,
    strip_ai: Competition, tmp_path: Path,
) -> None:  # fmt: skip
    places = places_of(tmp_path, member, config)
    write_input(places.input, Job("a", read_slides(test_split, "test", strip_ai)[:1]), "wsi")
    spoil(places)
    assert run_job(places) == 0
    probability, label, facts = answer_of(places)
    assert (facts["state"], code in facts["codes"]) == (State.FALLBACK, True)
    assert probability == {"CE": 0.5, "LAA": 0.5}
    assert label in probability


@pytest.mark.parametrize(
    ("scored", "suffix", "spoil", "state", "codes", "by_slide"),
    [
        (0, ".png", False, State.FALLBACK, ["unsupported"], [["unsupported"]]),
        (0, ".svs", True, State.FALLBACK, ["no_member", "unsupported"], [["unsupported"]]),
        (1, ".jpeg", False, State.PARTIAL, ["unsupported"], [[], ["unsupported"]]),
        (2, "", True, State.FALLBACK, ["no_member"], [["no_member"], ["no_member"]]),
    ],
)
def test_each_image_of_a_job_is_listed(
    scored: int, suffix: str, spoil: bool, state: State, codes: list[str], by_slide: list[list[str]],
    slides: list[Path], member: Path, tmp_path: Path,
) -> None:  # fmt: skip
    places = places_of(tmp_path, member)
    folder = places.input / "images" / "wsi"
    folder.mkdir(parents=True)
    for number in range(scored):
        shutil.copyfile(slides[0], folder / f"{number}.tif")
    if suffix:
        shutil.copyfile(slides[0], folder / f"other{suffix}")
    if spoil:
        shutil.rmtree(places.model)
    assert run_job(places) == 0
    _, _, facts = answer_of(places)
    assert (facts["state"], facts["codes"]) == (state, codes)
    assert [slide["codes"] for slide in facts["slides"]] == by_slide
    assert [slide["state"] for slide in facts["slides"]] == ["fallback" if own else "done" for own in by_slide]


def test_without_settings_or_an_output_folder_a_job_fails(member: Path, tmp_path: Path) -> None:
    places = places_of(tmp_path, member)
    places.output.rmdir()
    assert run_job(places) == 1
    places.output.mkdir()
    (places.app / "container.json").write_text('{"competition": "strip_ai", "colour": 1}')
    assert run_job(places) == 1


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.toml"))])
def test_every_competition_has_a_fallback_for_a_job(name: str, tmp_path: Path) -> None:
    case = as_case(load_competition(name))
    probabilities, label = read_answer(tmp_path, case)
    assert (probabilities, label) == fallback_of(case)
    assert len(probabilities) == len(case.classes.names)
    assert label in case.answers


def test_slides_at_a_time_follow_from_the_memory() -> None:
    assert jobs_of(ContainerConfig("strip_ai", memory_mb=1_000), 4_096) == 1
    assert 1 <= jobs_of(ContainerConfig("strip_ai", memory_mb=2**20), 4_096) <= 4


def test_a_job_is_a_patient_or_a_number_of_slides(test_split: Path, strip_ai: Competition) -> None:
    slides = read_slides(test_split, "test", strip_ai)
    patients = {slide.patient_id for slide in slides}
    assert {job.name for job in split_jobs(slides)} == patients
    assert [len(job.slides) for job in split_jobs(slides, 3)] == [3, 1]


# The folder


def container_of(out: Path, member: Path, *options: str) -> Path:
    assert main(["container", "--weights", str(member), "--out", str(out), *options]) == 0
    return out


def test_a_container_has_a_pinned_base_locked_packages_and_no_root(member: Path, tmp_path: Path) -> None:
    out = container_of(tmp_path / "out", member)
    lines = (out / "Dockerfile").read_text().splitlines()
    assert re.fullmatch(r"FROM --platform=linux/amd64 \S+@sha256:[0-9a-f]{64}", lines[1])
    assert BASE in lines[1]
    assert lines.index("USER user") < next(n for n, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert (out / "requirements.txt").read_bytes() == (ROOT / "requirements" / "container.txt").read_bytes()
    assert all("--require-hashes" in line for line in lines if "pip install" in line)
    assert 'LABEL org.grand-challenge.api-method="exec"' in lines
    assert "COPY model/ /opt/app/model/" in lines
    assert (out / "model" / "tiny" / "recipe.toml").is_file()
    assert read_config(out / "app" / "container.json") == CONFIG
    for script in out.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert "@" not in re.sub(r'"\$@"|\[@\]', "", script.read_text())
    for flag in ("--network none", "--cap-drop ALL", "no-new-privileges", "--pids-limit 256", "--shm-size 128m",
                 "--memory 16384m --memory-swap 16384m", "--read-only"):  # fmt: skip
        assert flag in (out / "do_test_run.sh").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--tag", "Bad Tag"],
        ["--tag", "a/b:v1"],
        ["--tag", ""],
        ["--tag", "a" * 101],
        ["--base", ""],
        ["--base", "a b"],
        ["--probability-socket", "../../x"],
        ["--probability-socket", ""],
        ["--probability-socket", "clotkit"],
        ["--label-socket", "probability"],
        ["--label-socket", "a/b"],
        ["--image-socket", ""],
        ["--time-limit", "1s"],
        ["--container-memory", "1MB"],
    ],
)
def test_an_option_that_makes_no_container_is_refused(words: list[str], member: Path, tmp_path: Path) -> None:
    assert main(["container", "--weights", str(member), "--out", str(tmp_path / "out"), *words]) == 2
    assert not (tmp_path / "out").exists()


def test_options_reach_the_container(member: Path, tmp_path: Path) -> None:
    words = (
        "--model tarball --api invoke --image-socket wsi --number-of LAA --probability-socket p-laa --time-limit 90m"
    )
    words += " --container-memory 8GB --base python:3.13-slim --tag mine"
    out = container_of(tmp_path / "out", member, "--label-socket", "", *words.split())
    config = read_config(out / "app" / "container.json")
    assert config == ContainerConfig("strip_ai", ("wsi",), "p-laa", "LAA", "", Api.INVOKE, 5_400, 8_192)
    dockerfile = (out / "Dockerfile").read_text()
    assert "FROM --platform=linux/amd64 python:3.13-slim\n" in dockerfile
    assert "COPY model/" not in dockerfile
    assert "/opt/ml/model:ro" in (out / "do_test_run.sh").read_text()
    assert "/invoke" in (out / "do_test_run.sh").read_text()
    assert "model.tar.gz" in (out / "do_save.sh").read_text()
    assert re.findall(r"/output/(\S*)\.json", (out / "README.md").read_text()) == ["p-laa", "clotkit"]
    for script in out.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)


def contents(top: Path) -> dict[str, bytes]:
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("names", [["thesis.tex"], ["Dockerfile", "src/mine.py", ".git/HEAD"], ["app/mine.py"]])
def test_a_folder_that_is_no_container_is_not_overwritten(names: list[str], member: Path, tmp_path: Path) -> None:
    touch(tmp_path / "out", *names)
    with pytest.raises(UsageError, match="out: not empty"):
        write_container(member, CONFIG, Image("a"), tmp_path / "out", print)
    assert sorted(contents(tmp_path / "out")) == sorted(names)


def test_a_container_is_written_anew_but_for_files_of_the_user(member: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'XX' is not a class"):
        write_container(member, ContainerConfig("strip_ai", number_of="XX"), Image("a"), tmp_path / "o", print)
    out = container_of(tmp_path / "mine", member)
    touch(out, "app/stale.py")
    touch(out, "test/input/inputs.json", "clotkit-algorithm.tar.gz")
    assert not (container_of(out, member) / "app" / "stale.py").exists()
    assert (out / "test" / "input" / "inputs.json").is_file()
    assert not (out / "clotkit-algorithm.tar.gz").exists()
    touch(out, "notes.txt")
    with pytest.raises(UsageError, match=r"notes\.txt would be deleted"):
        write_container(member, CONFIG, Image("a"), out, print)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("first", "mine", "theirs"),
    [
        ("", "clotkit-algorithm.tar.gz", ["data.tar.gz"]),
        ("--tag a.b-c", "a.b-c.tar.gz", ["clotkit-algorithm.tar.gz", "aXb-c.tar.gz"]),
        ("--tag x --model tarball", "model.tar.gz", ["clotkit-algorithm.tar.gz", "my-model.tar.gz"]),
        ("--tag x --model tarball", "x.tar.gz", ["x.tar.gz.bak", "old/x.tar.gz"]),
        ("", "clotkit-algorithm.tar.gz", ["model.tar.gz"]),
    ],
)
def test_only_the_archives_of_a_containers_own_script_are_replaced(
    first: str, mine: str, theirs: list[str], member: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = container_of(tmp_path / "out", member, *first.split())
    for name in theirs:
        touch(out, mine, name)
        before = contents(out)
        capsys.readouterr()
        assert main(["container", "--weights", str(member), "--out", str(out), "--tag", "new"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert Path(name).parts[0] in re.split(r"[\s,]+", line)
        assert mine not in re.split(r"[\s,]+", line)
        assert contents(out) == before
        (out / name).unlink()
        if (out / name).parent != out:
            (out / name).parent.rmdir()
    assert not (container_of(out, member, "--tag", "new") / mine).exists()


def test_without_its_script_a_container_has_no_archive(member: Path, tmp_path: Path) -> None:
    out = container_of(tmp_path / "out", member)
    touch(out, "clotkit-algorithm.tar.gz")
    (out / "do_save.sh").write_bytes(b"\xff")
    assert main(["container", "--weights", str(member), "--out", str(out)]) == 2
    assert (out / "clotkit-algorithm.tar.gz").is_file()


def test_a_container_is_apart_from_its_members_and_no_file(member: Path, tmp_path: Path) -> None:
    out = container_of(tmp_path / "out", member)
    before = contents(out)
    shutil.copytree(member, tmp_path / "weights" / "tiny")
    for weights, place in ((out / "model", out), (out / "model", out / "model"), (tmp_path, tmp_path / "new")):
        with pytest.raises(UsageError, match="folder of the members"):
            check_out(place, weights)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="file"):
            write_container(member, CONFIG, Image("a"), place, print)
    assert contents(out) == before


def test_a_container_that_cannot_be_finished_leaves_the_earlier_one(member: Path, tmp_path: Path) -> None:
    out = container_of(tmp_path / "out", member)
    before = contents(out)
    limits = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    code = f"{limits}; from clotkit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "container", "--weights", str(member), "--out", str(out)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_image_has_every_package_that_the_kit_in_it_imports() -> None:
    files = kit_files(load_competition("strip_ai"))
    packages = locked(ROOT / "requirements" / "container.txt")
    optional = {"dask", "distributed", "fsspec", "aiohttp"}  # a cluster, a store
    elsewhere = {"PIL": "pillow", "openslide": "openslide-python"}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())) if name.endswith(".py") else ():
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {module.split(".")[0] for module in modules} - {"clotkit"} - set(sys.stdlib_module_names):
                assert top in optional or canonicalize_name(elsewhere.get(top, top)) in packages, f"{name}: {top}"


def test_locked_versions_are_those_that_are_tested() -> None:
    runtime = locked(ROOT / "requirements" / "runtime.txt")
    for name, versions in locked(ROOT / "requirements" / "container.txt").items():
        assert set(versions) <= set(runtime.get(name, versions)), name


def test_the_parent_of_a_job_needs_the_standard_library_alone(member: Path, tmp_path: Path) -> None:
    app = container_of(tmp_path / "out", member) / "app"
    code = f"import sys; sys.path.insert(0, {str(app)!r}); import clotkit.containers.entry as e; print(e.APP)"
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert io.StringIO(ended.stdout).readline().strip() == str(app)
