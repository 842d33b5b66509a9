"""Stores: a local folder, S3 and Google Cloud Storage behave alike; the last two run on loopback."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clotkit.competitions import Competition
from clotkit.errors import StoreError
from clotkit.scratch import scratch, scratch_base
from clotkit.shards.tile import TileSettings, tile_split
from clotkit.stores import Entry, Folder, Place, Store, StoredFile, place, store_of

from .cluster import KEYS, copy_in, google_store, object_store
from .conftest import RECIPE, ROOT

# Ask no other service for credentials.
GOOGLE = {"NO_GCE_CHECK": "true", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """Return a folder of each kind."""
    with pytest.MonkeyPatch.context() as patch, object_store() as s3, google_store() as google:
        for name, value in (KEYS | GOOGLE | {"AWS_ENDPOINT_URL": s3, "STORAGE_EMULATOR_HOST": google}).items():
            patch.setenv(name, value)
        yield {"local": tmp_path_factory.mktemp("local"), "s3": "s3://bucket/top", "gs": "gs://bucket/top"}


@pytest.fixture(params=["local", "s3", "gs"])
def store(request: pytest.FixtureRequest, urls: dict[str, Place]) -> Iterator[Store]:
    """Yield an empty store of each kind."""
    found = store_of(urls[request.param])
    yield found
    for name in found.entries():
        found.remove(name)


def test_written_files_are_read_back(store: Store, tmp_path: Path) -> None:
    assert store.entries() == {}
    store.atomic_write_text("a.txt", "Blutgefäß\n")
    with store.atomic_write("below/b.npy") as path:
        path.write_bytes(bytes(range(256)) * 40)
        assert set(store.entries()) == {"a.txt"}
    assert {name: entry.size_bytes for name, entry in store.entries().items()} == {"a.txt": 12, "below/b.npy": 10_240}
    assert store.read_text("a.txt") == "Blutgefäß\n"
    with store.open("below/b.npy") as file:
        assert file.seek(-3, os.SEEK_END) == 10_237
        assert file.read(3) == b"\xfd\xfe\xff"
        file.seek(5)
        assert file.read(2) == b"\x05\x06"
    store.fetch("below/b.npy", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == bytes(range(256)) * 40
    store.atomic_write_text("a.txt", "")
    assert store.read_text("a.txt") == ""
    store.remove("a.txt")
    store.remove("a.txt")
    assert set(store.entries()) == {"below/b.npy"}


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    def half() -> None:
        with store.atomic_write("a.npy") as path:
            path.write_bytes(b"half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        half()
    assert store.entries() == {}


def test_a_missing_file_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_text("none")
    with pytest.raises(FileNotFoundError), store.open("none"):
        pass
    with pytest.raises(FileNotFoundError):
        store.fetch("none", tmp_path / "none")


def test_a_store_can_be_pickled(store: Store) -> None:
    store.atomic_write_text("a.txt", "a")
    there = pickle.loads(pickle.dumps(store.absolute()))
    assert there.read_text("a.txt") == "a"
    assert there.local("a.txt") == (store.local("a.txt") if isinstance(store, Folder) else None)


def test_a_changed_object_has_another_version(urls: dict[str, Place]) -> None:
    for kind in ("s3", "gs"):
        store = store_of(urls[kind])
        versions = set()
        for text in ("one", "two"):
            store.atomic_write_text("v.txt", text)
            versions.add(store.entries()["v.txt"].version)
        assert len(versions) == 2, kind
        store.remove("v.txt")


def test_a_file_whose_size_has_changed_is_refused(urls: dict[str, Place], tmp_path: Path) -> None:
    store = store_of(urls["s3"])
    store.atomic_write_text("a.tif", "longer now")
    with pytest.raises(StoreError, match=r"\b10 bytes.*\b4\b"):
        StoredFile(store, "a.tif", Entry(4)).fetch(tmp_path / "a.tif")


def test_a_missing_bucket_is_one_line(urls: dict[str, Place], monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from clotkit.stores import store_of\nfrom clotkit.errors import ClotkitError\n"
        "try: store_of('s3://nobucket/x').atomic_write_text('a', 'a')\n"
        "except ClotkitError as error: print(error)\n"
        "except FileNotFoundError as error: print('missing', error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert len(ended.stdout.splitlines()) == 1
    assert "bucket" in ended.stdout


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_tiling_reads_and_writes_object_stores(
    kind: str,
    urls: dict[str, Place],
    make_split: Callable[..., Path],
    strip_ai: Competition,
    tmp_path: Path,
) -> None:
    split = make_split(tmp_path / "train", strip_ai, split="train", slides=2)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    top = str(urls[kind])
    copy_in(split, f"{top}/train")

    def tile(source: Place, out: Place) -> dict[str, int]:
        recipe = str(tmp_path / "tiny.toml")
        settings = TileSettings(source, out, recipe, None, 2, 2048, preview=True, use_mtime=False)
        return tile_split(settings, strip_ai, lambda _: None)

    assert tile(f"{top}/train", f"{top}/out") == {"new": 2, "up_to_date": 0, "failed": 0}
    assert tile(f"{top}/train", f"{top}/out") == {"new": 0, "up_to_date": 2, "failed": 0}
    assert tile(split, tmp_path / "out")["new"] == 2
    out = store_of(f"{top}/out")
    for name in out.entries():
        out.fetch(name, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert set(out.entries()) == set(store_of(tmp_path / "out").entries())


def test_scratch_of_a_killed_process_is_removed_by_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "import os, signal\nfrom clotkit.scratch import scratch\nwith scratch() as f:\n"
    code += "    (f / 'big').write_bytes(b'1'); os.kill(os.getpid(), signal.SIGKILL)\n"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    assert len(list(scratch_base().glob("*/big"))) == 1
    with scratch() as mine, scratch() as other:
        assert set(scratch_base().iterdir()) == {mine, other}
    assert list(scratch_base().iterdir()) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a/b", Path("a/b")), ("s3://b/a/", "s3://b/a"), ("file:///a/b", Path("/a/b")), ("gs://b", "gs://b")],
)
def test_a_folder_is_a_path_or_a_url(text: str, wanted: Place) -> None:
    assert place(text) == wanted
