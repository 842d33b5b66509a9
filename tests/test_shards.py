"""Shards are read back as written, and a damaged one is never accepted."""

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clotkit.config import TilingConfig
from clotkit.errors import NoTissue, SlideUnreadable
from clotkit.files import sha256
from clotkit.shards.shard import ShardFile, metadata_in, read_shard, shard_key, write_shard
from clotkit.splits import SlideRow
from clotkit.stores import Folder
from clotkit.tiling.tilers import Batch
from clotkit.versions import code_version, without_docstrings

from .conftest import ROOT

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TILING = TilingConfig("patches", tile_px=32, downsample=8, max_tiles=6, batch_tiles=4)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_shard_is_read_back_as_written(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    side = data.draw(st.integers(1, 9))
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any))
    pieces: list[dict[str, Any] | Batch] = [
        Batch(
            data.draw(arrays(np.uint8, (count, side, side, 3))), data.draw(arrays(np.int32, (count, 2)))
        )
        for count in sizes
    ]  # fmt: skip
    names = st.text(max_size=5)
    facts = data.draw(st.dictionaries(names, st.integers() | names | st.lists(st.booleans()), max_size=3))
    place = data.draw(st.integers(0, len(pieces)))
    path = tmp_path_factory.mktemp("shard") / "a.npy"
    batches = [piece for piece in pieces if isinstance(piece, Batch)]
    written = write_shard(Folder(path.parent), path.name, [*pieces[:place], facts, *pieces[place:]], "the key")
    assert written == ShardFile(sum(sizes), path.stat().st_size, sha256(path))
    shard = read_shard(path)
    assert np.array_equal(shard.tiles, np.concatenate([batch.tiles for batch in batches]))
    assert np.array_equal(shard.xy, np.concatenate([batch.xy for batch in batches]))
    assert (shard.tiles.dtype.name, shard.xy.dtype.name, shard.facts) == ("uint8", "int32", facts)
    assert shard.key == "the key" == getattr(metadata_in(Folder(path.parent), path.name), "key", None)
    assert np.array_equal(np.load(path, mmap_mode="r"), shard.tiles)
    assert [file.name for file in path.parent.iterdir()] == ["a.npy"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a sound shard of three tiles; read-only."""
    path = tmp_path_factory.mktemp("whole") / "a.npy"
    rng = np.random.default_rng(1)
    tiles = rng.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    write_shard(Folder(path.parent), path.name, [Batch(tiles, np.zeros((3, 2), np.int32)), {"decoder": "none"}], "key")
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(whole: Path, tmp_path: Path, place: int, flip: int) -> None:
    damaged = bytearray(whole.read_bytes())
    damaged[place % len(damaged)] ^= flip
    (tmp_path / "a.npy").write_bytes(damaged)
    with pytest.raises(SlideUnreadable, match=r"a\.npy") as raised:
        read_shard(tmp_path / "a.npy")
    assert "\n" not in str(raised.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, 2**12), more=st.binary(max_size=300))
def test_a_shard_of_another_length_is_refused(whole: Path, tmp_path: Path, length: int, more: bytes) -> None:
    sound = whole.read_bytes()
    (tmp_path / "a.npy").write_bytes(changed := sound[:length] + more)
    if changed != sound:
        assert metadata_in(Folder(tmp_path), "a.npy") is None
        with pytest.raises(SlideUnreadable):
            read_shard(tmp_path / "a.npy", verify=False)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(SlideUnreadable):
        read_shard(tmp_path / "plain.npy")
    with pytest.raises(SlideUnreadable, match="No such file"):
        read_shard(tmp_path / "none.npy")
    with pytest.raises(SlideUnreadable, match="Is a directory"):
        read_shard(tmp_path)


def test_without_tiles_nothing_is_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(NoTissue):
        write_shard(folder, "a.npy", [{"decoder": "none"}], "key")
    with pytest.raises(ValueError, match="a batch is"):
        write_shard(folder, "a.npy", [Batch(np.zeros((1, 4, 5, 3), np.uint8), np.zeros((1, 2), np.int32))], "key")
    assert list(tmp_path.iterdir()) == []


def test_tiles_are_memory_mapped_and_read_only(whole: Path) -> None:
    tiles = read_shard(whole).tiles
    assert isinstance(tiles, np.memmap)
    assert not tiles.flags.writeable


def test_the_key_depends_on_slide_time_and_tiling(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    slide = SlideRow("a", "p", path, None)
    path.write_bytes(b"12")
    os.utime(path, ns=(0, 1_000_000_000))
    key = shard_key(slide, TILING)
    assert key == shard_key(slide, TILING)
    assert key != shard_key(slide, TilingConfig("patches", tile_px=32, downsample=8, max_tiles=7, batch_tiles=4))
    os.utime(path, ns=(0, 1_000_000_001))
    later = shard_key(slide, TILING)
    path.write_bytes(b"123")
    os.utime(path, ns=(0, 1_000_000_001))
    assert len({key, later, shard_key(slide, TILING)}) == 3


def test_the_code_that_cuts_is_part_of_the_key(tmp_path: Path) -> None:
    folders = [tmp_path / name / "tiling" for name in ("one", "same", "cuts", "draws", "says", "below")]
    for folder in folders:
        (folder / "codecs").mkdir(parents=True)
        (folder / "codecs" / "raw.py").write_text("bits = 8\n")
        (folder / "tiling.py").write_text("cuts = 1\n")
        (folder / "preview.py").write_text("draws = 1\n")
    (tmp_path / "cuts" / "tiling" / "tiling.py").write_text("cuts = 2\n")
    (tmp_path / "draws" / "tiling" / "preview.py").write_text("draws = 2\n")
    (tmp_path / "says" / "tiling" / "tiling.py").write_text('"""Cut."""\n\ncuts = 1\n')
    (tmp_path / "below" / "tiling" / "codecs" / "raw.py").write_text("bits = 16\n")
    one, same, cuts, draws, says, below = (code_version((folder,), "1.0") for folder in folders)
    assert one == same == draws == says
    assert len({one, cuts, below}) == 3
    assert one != code_version((folders[0],), "1.1")


def test_a_module_without_docstrings_is_the_same_code() -> None:
    """Each line keeps its number, and leaving out docstrings twice changes nothing more."""
    for path in (ROOT / "src").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        bare = without_docstrings(source)
        assert bare.count("\n") == source.count("\n")
        assert without_docstrings(bare) == bare
        assert stripped(ast.parse(source)) == ast.dump(ast.parse(bare)), path


def stripped(tree: ast.Module) -> str:
    """Return a module's tree as text, without docstrings; `pass` is in place of one that is all there is."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.dump(tree)
