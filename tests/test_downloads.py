"""Test that an object is fetched whole or not at all, whatever its server answers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from clotkit import downloads
from clotkit.errors import StoreError
from clotkit.stores import Entry, StoredFile, store_of

from .cluster import KEYS, clear_filesystems
from .object_server import Handler, Objects, object_server

SIZE_BYTES = 3 * 2**20


def short_ranges(handler: Handler, content: bytes) -> None:
    """Answer a range with half of what was asked, correctly labelled as such."""
    if handler.first_byte is None:
        handler.right(content)
        return
    first, end = handler.bounds(content)
    handler.send(206, content[first : first + (end - first) // 2], whole=content)


def cut_once(handler: Handler, content: bytes) -> None:
    """Cut the first connection after a third."""
    if handler.objects.gets[handler.name] == 1:
        handler.send(200, content[: len(content) // 3], whole=content, length=len(content))
    else:
        handler.right(content)


def cut_always(handler: Handler, content: bytes) -> None:
    handler.send(200, content[: len(content) // 3], whole=content, length=len(content))


def shorter(handler: Handler, content: bytes) -> None:
    """Send a whole answer that is shorter than the object."""
    handler.send(200, content[:-7], whole=content)


def longer(handler: Handler, content: bytes) -> None:
    handler.send(200, content + b"more", whole=content)


def other_bytes(handler: Handler, content: bytes) -> None:
    """Send the right number of other bytes, once."""
    zeros = b"\0" * 1000 + content[1000:]
    handler.send(200, zeros if handler.objects.gets[handler.name] == 1 else content, whole=content)


def changed_once(handler: Handler, content: bytes) -> None:
    """Change the object while it is sent for the first time."""
    if handler.objects.gets[handler.name] == 1:
        handler.objects.content[handler.name] = content[::-1]
    handler.right(content)


def always_changed(handler: Handler, content: bytes) -> None:
    handler.objects.content[handler.name] = content[1:] + content[:1]
    handler.right(content)


def ranges_ignored(handler: Handler, content: bytes) -> None:
    """Answer every request with the whole object, and cut the first connection."""
    if handler.objects.gets[handler.name] == 1:
        cut_once(handler, content)
    else:
        handler.send(200, content)


def slow_down(handler: Handler, content: bytes) -> None:
    """Refuse twice, as a busy bucket does."""
    if handler.objects.gets[handler.name] <= 2:
        handler.send(503, b"<Error><Code>SlowDown</Code></Error>")
    else:
        handler.right(content)


def expired(handler: Handler, content: bytes) -> None:
    handler.send(400, b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>")


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """Serve an object as s3://bucket/top/a.tif; nothing waits between attempts."""
    from fsspec import get_filesystem_class

    found = Objects({"a.tif": np.random.default_rng(4).bytes(SIZE_BYTES)})
    with object_server(found) as url:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": url}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
        monkeypatch.setattr(get_filesystem_class("s3"), "default_block_size", 2**20)  # so that this object is above it
        clear_filesystems()
        yield found


@pytest.mark.parametrize(
    "answer", [Handler.right, short_ranges, cut_once, other_bytes, changed_once, ranges_ignored, slow_down]
)
def test_the_object_comes_whole(answer: Callable[[Handler, bytes], None], objects: Objects, tmp_path: Path) -> None:
    objects.answers["a.tif"] = answer
    store_of("s3://bucket/top").fetch("a.tif", tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_bytes() == objects.content["a.tif"]


@pytest.mark.parametrize("answer", [cut_always, shorter, longer, always_changed, expired])
def test_or_not_at_all(answer: Callable[[Handler, bytes], None], objects: Objects, tmp_path: Path) -> None:
    objects.answers["a.tif"] = answer
    with pytest.raises(StoreError, match=r"s3://bucket/top/a\.tif") as caught:
        store_of("s3://bucket/top").fetch("a.tif", tmp_path / "a.tif")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.tif").exists()


def test_an_object_that_changed_after_it_was_listed_is_refused(objects: Objects, tmp_path: Path) -> None:
    store = store_of("s3://bucket/top")
    stored = StoredFile(store, "a.tif", store.entries()["a.tif"])
    stored.fetch(tmp_path / "a.tif")
    objects.content["a.tif"] = objects.content["a.tif"][::-1]
    with pytest.raises(StoreError):
        stored.fetch(tmp_path / "a.tif")
    del objects.content["a.tif"]
    with pytest.raises(StoreError):
        stored.fetch(tmp_path / "a.tif")


def test_two_downloads_that_agree_are_believed_where_the_etag_is_no_hash(objects: Objects, tmp_path: Path) -> None:
    """An encrypted object has an ETag that looks like an MD5."""

    def encrypted(handler: Handler, content: bytes) -> None:
        handler.send(200, content[::-1], whole=content)

    objects.answers["a.tif"] = encrypted
    store_of("s3://bucket/top").fetch("a.tif", tmp_path / "a.tif")
    assert (tmp_path / "a.tif").read_bytes() == objects.content["a.tif"][::-1]
    assert objects.gets["a.tif"] == 2


def test_a_read_of_a_part_is_never_short(objects: Objects) -> None:
    content = objects.content["a.tif"]
    with store_of("s3://bucket/top").open("a.tif") as file:
        file.seek(100)
        assert file.read(50) == content[100:150]
        assert file.read()[-9:] == content[-9:]
        assert file.read(10) == b""
    objects.answers["a.tif"] = short_ranges
    with pytest.raises(StoreError), store_of("s3://bucket/top").open("a.tif") as file:
        file.read(50)


def test_a_text_is_read_whole(objects: Objects) -> None:
    objects.content["t.csv"], objects.answers["t.csv"] = b"image_id\na\nb\n", shorter
    with pytest.raises(StoreError):
        store_of("s3://bucket/top").read_text("t.csv")
    del objects.answers["t.csv"]
    assert store_of("s3://bucket/top").read_text("t.csv") == "image_id\na\nb\n"


def test_a_listing_is_that_of_the_server(objects: Objects) -> None:
    entries = store_of("s3://bucket/top").entries()
    assert {name: entry.size_bytes for name, entry in entries.items()} == {"a.tif": SIZE_BYTES}
    objects.content["b.tif"] = b"new"
    assert store_of("s3://bucket/top").entries()["b.tif"].size_bytes == 3
    assert isinstance(entries["a.tif"], Entry)
