"""Watching a folder: each new picture is found once, and only when it is complete."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.cli import main
from clotkit.evaluation import watch
from clotkit.evaluation.watch import GIVE_UP_S, SETTLE_S, NewPictures
from clotkit.locks import ignore_lease_breaks, is_written_to

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.s


@pytest.fixture
def clock() -> Clock:
    """Make a clock."""
    return Clock()


@pytest.fixture(autouse=True)
def _lease_breaks() -> Iterator[None]:
    before = signal.getsignal(signal.SIGIO)
    ignore_lease_breaks()
    yield
    signal.signal(signal.SIGIO, before)


def names(paths: list[Path]) -> list[str]:
    """Return the names of files."""
    return [path.name for path in paths]


def test_only_new_pictures_once(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "old.png").write_bytes(b"1")
    new = NewPictures(tmp_path, now=clock)
    for name in ("a.png", "b.JPG", "notes.txt", ".hidden.png", "c.png.part"):
        (tmp_path / name).write_bytes(b"2")
    (tmp_path / "folder.png").mkdir()
    assert new.poll() == []  # they may still change
    clock.s += SETTLE_S
    assert names(new.poll()) == ["a.png", "b.JPG"]
    (tmp_path / "a.png").rename(tmp_path / "z.png")
    os.utime(tmp_path / "b.JPG", (5, 5))
    os.utime(tmp_path / "old.png", (5, 5))
    (tmp_path / "c.png.part").rename(tmp_path / "c.png")
    found = []
    for _ in range(4):
        clock.s += SETTLE_S
        found += names(new.poll())
    assert sorted(found) == ["c.png", "old.png"]  # that one's content is not known, and it may be another


def test_odd_names_and_links_do_not_end_it(tmp_path: Path, clock: Clock) -> None:
    new = NewPictures(tmp_path, now=clock)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "nowhere.png").symlink_to("absent.png")
    os.mkfifo(tmp_path / "pipe.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"1")
    assert [new.poll(), len(new.poll())] == [[], 1]
    (tmp_path / "a.png").write_bytes(b"same")
    assert [new.poll(), names(new.poll())] == [[], ["a.png"]]
    (tmp_path / "a.png").unlink()
    new.poll()
    (tmp_path / "b.png").write_bytes(b"same")  # perhaps in the place of the other on the disk
    assert [new.poll(), names(new.poll())] == [[], ["b.png"]]


def test_a_file_that_is_written_to_is_not_complete(tmp_path: Path, clock: Clock) -> None:
    new, path = NewPictures(tmp_path, now=clock), tmp_path / "a.png"
    with path.open("wb") as file:
        file.write(b"half")
        file.flush()
        if is_written_to(path) is None:
            pytest.skip("this file system gives no leases")
        for _ in range(5):
            clock.s += 10
            assert new.poll() == []
        file.write(b"whole")
    assert is_written_to(path) is False
    assert new.poll() == []  # it has changed
    assert names(new.poll()) == ["a.png"]
    assert new.poll() == []


def test_without_leases_a_file_must_be_quiet(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "is_written_to", lambda _: None)
    new, path = NewPictures(tmp_path, now=clock), tmp_path / "a.png"
    for size in range(1, 5):
        path.write_bytes(b"x" * size)
        clock.s += SETTLE_S / 2
        assert new.poll() == []
    clock.s += 2 * SETTLE_S
    assert names(new.poll()) == ["a.png"]


def test_one_that_cannot_be_read_gets_time(tmp_path: Path, clock: Clock) -> None:
    new, path = NewPictures(tmp_path, now=clock), tmp_path / "a.png"
    path.write_bytes(b"half")
    assert [new.poll(), names(new.poll())] == [[], ["a.png"]]
    assert not new.failed(path)  # perhaps the rest comes
    clock.s += GIVE_UP_S / 2
    assert new.poll() == []
    clock.s += GIVE_UP_S
    assert names(new.poll()) == ["a.png"]
    assert new.failed(path)
    path.write_bytes(b"half")  # once more, by a writer who may have been in the middle of it
    os.utime(path, (1, 1))
    assert [new.poll(), names(new.poll())] == [[], ["a.png"]]
    assert new.poll() == []
    path.write_bytes(b"whole")
    assert [new.poll(), names(new.poll())] == [[], ["a.png"]]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["write", "touch", "rename", "remove", "poll"]))))
def test_no_content_is_found_twice_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, orders: list[tuple[str, str]]
) -> None:
    folder, clock = tmp_path_factory.mktemp("watched"), Clock()
    new, contents, found = NewPictures(folder, now=clock), list[bytes](), list[bytes]()

    def poll() -> None:
        clock.s += GIVE_UP_S
        found.extend(path.read_bytes() for path in new.poll())

    for number, (name, order) in enumerate(orders):
        path = folder / f"{name}.png"
        if order == "write":
            path.write_bytes(str(number).encode())
            os.utime(path, ns=(number, number))  # a clock ticks less often than this loop
        elif order == "poll":
            poll()
        elif path.exists() and order == "touch":
            os.utime(path, ns=(-number, -number))
        elif path.exists() and order == "remove":
            path.unlink()
        elif path.exists():
            path.rename(folder / f"{name}{number}.png")
        contents = [one.read_bytes() for one in folder.iterdir()]
    poll()
    poll()
    assert len(found) == len(set(found))
    assert set(contents) <= set(found)


def test_wrong_words(tmp_path: Path) -> None:
    member = str(ROOT / "weights" / "double_contour")
    assert main(["predict", member]) == 2
    assert main(["predict", member, "a.png", "--watch", str(tmp_path)]) == 2
    assert main(["predict", member, "--watch", str(tmp_path / "absent")]) == 2


@pytest.mark.slow
def test_the_verb_answers_until_it_is_interrupted(tmp_path: Path) -> None:
    from PIL import Image

    folder, whole = tmp_path / "pictures", tmp_path / "whole.png"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (192, 192), np.uint8)).save(whole)
    shutil.copy(whole, folder / "before.png")
    command = [sys.executable, "-m", "clotkit.cli", "predict", str(ROOT / "weights" / "double_contour")]
    verb = subprocess.Popen(
        [*command, "--watch", str(folder), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert verb.stdout is not None
    assert verb.stderr is not None
    with verb:
        verb.stderr.readline()  # it is ready
        with (folder / "half.png").open("wb") as half:
            half.write(whole.read_bytes()[:1000])
            half.flush()
            shutil.copy(whole, folder / "next.png")
            first = json.loads(verb.stdout.readline())
            half.write(whole.read_bytes()[1000:])
        second = json.loads(verb.stdout.readline())
        Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.png")).write_bytes(b"no picture")
        third = json.loads(verb.stdout.readline())
        verb.send_signal(signal.SIGINT)
        last = json.loads(verb.stdout.readline())
        assert verb.stdout.read() == ""
    assert [Path(one["image"]).name for one in (first, second, third)] == [
        "next.png",
        "half.png",
        os.fsdecode(b"bad\xff.png"),
    ]
    assert first["probabilities"] == second["probabilities"]
    assert third["code"] == "damaged"
    assert (last["exit_code"], verb.returncode, last["counts"]) == (3, 3, {"predictions": 2, "failed": 1})
