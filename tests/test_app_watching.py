"""Watch a folder on the page: how many files arrive, how large they are, and what cannot be read."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import psutil
import pytest

from clotkit.app import uploads
from clotkit.app.prediction import load
from clotkit.app.uploads import MOST_UPLOAD_MB, Answer, classify_files
from clotkit.app.web import watching
from clotkit.app.web.jobs import Job
from clotkit.app.web.watching import AT_A_TIME
from clotkit.competitions import Competition
from clotkit.reasons import Reason
from clotkit.units import MB

from .app_pages import WAIT_S, Client, serving
from .conftest import ROOT
from .test_app import png

WEIGHTS = ROOT / "weights"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Serve the kit's members and an empty folder."""
    with serving(WEIGHTS, (tmp_path_factory.mktemp("root"),)) as visitor:
        yield visitor


@contextmanager
def watched(client: Client, member: str) -> Iterator[tuple[Path, Job]]:
    """Watch a new folder until the end of the block; give it and the job, once it waits for files."""
    root = client.app.state.shared.roots.folders[0]
    folder = Path(mkdtemp(dir=root))
    begun = client.post("/watch", data={"member": member, "folder": folder.name})
    job = client.app.state.shared.jobs.find(begun.url.rpartition("/")[2])
    until(lambda: job.result is not None)
    yield folder, job
    assert client.post(f"/watch/{job.key}").status_code == 200


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    pause, end = threading.Event(), time.monotonic() + 4 * WAIT_S
    while not holds():
        assert time.monotonic() < end
        pause.wait(0.02)


def arrive(folder: Path, name: str, write: Callable[[Path], object]) -> None:
    """Let a whole file appear at once."""
    write(folder / f".{name}")
    (folder / f".{name}").rename(folder / name)


def answers(job: Job, count: int) -> dict[str, Answer]:
    """Return the answers by name, once there are `count`."""
    until(lambda: job.result.count >= count)  # type: ignore[attr-defined]
    return {one.name: one for _, one in job.result.answers}  # type: ignore[attr-defined]


def test_more_pictures_than_a_form_takes_are_all_answered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_UPLOADS", 3)  # a dozen processes are enough to wait for
    with watched(client, "double_contour") as (folder, job):
        names = {f"{number:03d}.png" for number in range(AT_A_TIME + 3)}
        for name in names:
            (folder / f".{name}").write_bytes(png(40 + int(name[:3]), 40))
        for name in names:
            (folder / f".{name}").rename(folder / name)
        found = answers(job, len(names))
        assert found.keys() == names
        assert not [one for one in found.values() if one.refused is not None]


def test_a_watch_takes_turns_from_its_first_prediction_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles_in_turn: list[int] = []
    monkeypatch.setattr(watching, "predict_tiles", lambda _, tiles: tiles_in_turn.append(len(tiles)))
    with watched(client, "brain"):
        assert tiles_in_turn == [1]


def test_a_picture_larger_than_an_upload_is_read_where_it_lies(client: Client) -> None:
    def write(path: Path) -> None:
        path.write_bytes(png(96, 96))
        os.truncate(path, 4 * 2**30)  # a picture may have anything after its end

    with watched(client, "double_contour") as (folder, job):
        before = psutil.Process().memory_info().rss
        arrive(folder, "large.png", write)
        assert answers(job, 1)["large.png"].label
        assert psutil.Process().memory_info().rss - before < 2**30


def test_a_slide_larger_than_an_upload_is_read_where_it_lies(client: Client, slides: list[Path]) -> None:
    def write(path: Path) -> None:
        shutil.copy(slides[0], path)
        os.truncate(path, (MOST_UPLOAD_MB + 1) * MB)

    with watched(client, "demo") as (folder, job):
        arrive(folder, "slide.tif", write)
        assert answers(job, 1)["slide.tif"].label


def test_what_cannot_be_read_gets_its_line_and_the_others_their_answers(client: Client, tmp_path: Path) -> None:
    with watched(client, "double_contour") as (folder, job):
        (tmp_path / "outside.png").write_bytes(png(96, 96))
        (folder / "link.png").symlink_to(tmp_path / "outside.png")
        (folder / "kept").mkdir()
        (folder / "kept" / "picture").write_bytes(png(96, 97))
        (folder / "linked.png").symlink_to("kept/picture")
        arrive(folder, "words.png", lambda path: path.write_text("no picture"))
        found = answers(job, 3)
        assert found.keys() == {"link.png", "words.png", "linked.png"}
        assert {name: one.refused.code for name, one in found.items() if one.refused is not None} == {
            "link.png": Reason.DAMAGED,
            "words.png": Reason.DAMAGED,
        }
        assert found["linked.png"].label
        assert str(tmp_path) not in client.get(f"/watch/{job.key}").text


@pytest.mark.parametrize("member", ["double_contour", "demo"])
def test_a_file_that_the_system_refuses_is_refused_with_a_code(
    member: str, strip_ai: Competition, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    paths = [tmp_path / "folder.png", tmp_path / "gone.png"]
    found = dict(classify_files(load(WEIGHTS / member), {path: path for path in paths}, strip_ai))
    assert {path: one.refused and one.refused.code for path, one in found.items()} == dict.fromkeys(
        paths, Reason.DAMAGED
    )
    assert not [one for one in found.values() if one.refused and str(tmp_path) in one.refused.sentence]
