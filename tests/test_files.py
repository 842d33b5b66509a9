"""Atomic writes leave the old file or the new one, and no temporary file."""

import json
import os
from pathlib import Path

import pytest

from clotkit.files import atomic_write, atomic_write_json, atomic_write_text, sha256


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    atomic_write_text(path, "old\n")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_the_temporary_keeps_the_suffixes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "model.weights.h5") as temporary:
        assert temporary.name.endswith(".weights.h5")
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert (tmp_path / "model.weights.h5").stat().st_mode & 0o777 == 0o644


def test_line_ends_and_letters_are_kept(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a", "a\nb\r\né")
    assert (tmp_path / "a").read_bytes() == "a\nb\r\né".encode()
    atomic_write_json(tmp_path / "b", {"é": 1})
    assert (tmp_path / "b").read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    assert len(sha256(tmp_path / "a")) == 64


@pytest.mark.parametrize("name", ["é" * 125 + ".json", "a." + "b" * 248 + ".npy"])
def test_the_longest_names_are_written(name: str, tmp_path: Path) -> None:
    atomic_write_text(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_not_utf8_is_written_so_that_json_reads_it_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    atomic_write_json(tmp_path / "run.json", {"split": name})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"split": name}
