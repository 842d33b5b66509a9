"""Test pushes of datasets: refusals here, the requests that are sent, and the failures on the way."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clotkit.competitions import load_competition
from clotkit.errors import UsageError
from clotkit.kaggle import datasets
from clotkit.kaggle.client import DryRun, Kaggle
from clotkit.kaggle.datasets import (
    PushedDataset,
    Stage,
    check_files,
    content_of,
    files_in,
    pack,
    push_dataset,
    read_stage,
    weights_files,
    wheels_files,
)
from clotkit.kaggle.failures import LONGEST_WAIT_S
from clotkit.kaggle.listing import CONTENT, differences
from clotkit.kaggle.login.credentials import Credentials
from clotkit.reasons import RemoteKind

from .conftest import ROOT
from .delivery import TOKEN, Clock, one_line, remote_error, write_members
from .kaggle_server import Fault, KaggleServer, Version

REF = "alice/clotkit-weights"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make two members with a manifest."""
    return write_members(tmp_path / "weights")


def stage_of(folder: Path) -> Stage:
    return read_stage(ROOT / "datasets_meta" / "weights", weights_files(folder), load_competition())


def push(client: Kaggle, folder: Path, clock: Clock) -> PushedDataset:
    return push_dataset(client, stage_of(folder), clock)


def newest(server: KaggleServer) -> Version:
    return server.datasets[REF].versions[-1]


def in_tar(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive.getmembers()}  # type: ignore[union-attr]


# What is sent


def test_a_new_dataset_has_every_file_and_is_private(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, lines: list[str]
) -> None:
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=True)
    files = newest(server).files
    assert sorted(files) == [CONTENT, "MANIFEST.json", "one.tar", "two.tar"]
    assert in_tar(files["one.tar"]) == {path.name: path.read_bytes() for path in (folder / "one").iterdir()}
    dataset = server.datasets[REF]
    assert (dataset.private, dataset.license, dataset.title) == (True, "CC0-1.0", "clotkit weights")
    assert json.loads(files[CONTENT])["files"]["one/recipe.toml"]["bytes"] == 13
    assert lines[-1].startswith(f"{REF}: version 1 ")


def test_the_same_content_is_not_pushed_again(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, lines: list[str]
) -> None:
    push(client, folder, clock)
    server.calls.clear()
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=False)
    assert server.count("StartBlobUpload") == server.count("CreateDatasetVersion") == server.count("CreateDataset") == 0
    assert lines[-1].startswith(f"{REF}: unchanged, version 1")


def test_new_content_is_a_new_version_with_everything_in_it(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    push(client, folder, clock)
    (folder / "two" / "recipe.toml").write_text("changed")
    assert push(client, folder, clock) == PushedDataset(REF, 2, new=True)
    assert sorted(newest(server).files) == [CONTENT, "MANIFEST.json", "one.tar", "two.tar"]
    assert in_tar(newest(server).files["two.tar"])["recipe.toml"] == b"changed"
    assert newest(server).notes == f"sha256 {json.loads(newest(server).files[CONTENT])['hash']}"
    assert len(server.datasets[REF].versions) == 2  # the old one stays


def test_the_same_files_give_the_same_bytes_whenever_they_were_written(folder: Path, tmp_path: Path) -> None:
    def packed(where: str) -> dict[str, bytes]:
        (tmp_path / where).mkdir()
        files = files_in(folder)
        if where == "b":  # in another order
            files = dict(reversed(files.items()))
        uploads = pack(files, content_of(stage_of(folder)), tmp_path / where)
        return {name: path.read_bytes() for name, path in uploads.items()}

    first = packed("a")
    for path in folder.rglob("*"):
        path.touch()
        path.chmod(0o700)
    assert packed("b") == first


def test_the_hash_knows_names_contents_and_metadata(folder: Path) -> None:
    stage = stage_of(folder)
    hashes = {content_of(stage)["hash"]}
    hashes.add(content_of(replace(stage, title="another title"))["hash"])
    hashes.add(content_of(replace(stage, license="other"))["hash"])
    (folder / "two" / "recipe.toml").rename(folder / "two" / "renamed.toml")
    hashes.add(content_of(stage_of(folder))["hash"])
    (folder / "two" / "renamed.toml").write_text("x")
    hashes.add(content_of(stage_of(folder))["hash"])
    assert len(hashes) == 5


def test_one_member_is_staged_under_its_name_as_the_rehearsal_has_it(folder: Path) -> None:
    shutil.copyfile(ROOT / "weights" / "demo" / "recipe.toml", folder / "one" / "recipe.toml")
    assert sorted(weights_files(folder / "one")) == ["MANIFEST.json", "one/model.weights.h5", "one/recipe.toml"]
    (folder / CONTENT).write_text("of a download")
    assert CONTENT not in weights_files(folder)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    for make in (files_in, wheels_files, weights_files):
        with pytest.raises(UsageError, match="nothing"):
            make(tmp_path / "nothing")


def test_a_dry_run_changes_nothing(server: KaggleServer, folder: Path, clock: Clock) -> None:
    said: list[str] = []
    dry = Kaggle(Credentials(TOKEN), server.endpoint, clock.wait, log=said.append, dry=True)
    with pytest.raises(DryRun):
        push(dry, folder, clock)
    assert server.datasets == {}
    assert server.count("StartBlobUpload") == server.count("PUT") == server.count("CreateDataset") == 0
    assert any("would send datasets.DatasetApiService/CreateDataset {" in line for line in said)


# What is refused before anything is asked


@pytest.mark.parametrize("name", ["weights", "wheels", "imagenet", "tiles", "progress"])
def test_the_metadata_that_ships_is_sound(name: str, folder: Path) -> None:
    assert read_stage(ROOT / "datasets_meta" / name, files_in(folder), load_competition()).slug == f"clotkit-{name}"


@pytest.mark.parametrize(
    ("change", "values"),
    [
        ({"licenses": []}, ["0", "1"]),
        ({"licenses": [{"name": "CC0-1.0"}, {"name": "other"}]}, ["2", "1"]),
        ({"licenses": [{}]}, ["1"]),
        ({"licenses": "CC0-1.0"}, ["1"]),
        ({"title": "short"}, ["5", "6", "50"]),
        ({"title": "x" * 51}, ["51", "50"]),
        ({"subtitle": "x" * 19}, ["19", "20", "80"]),
        ({"subtitle": "x" * 81}, ["81", "80"]),
        ({"id": "OWNER/abc"}, ["OWNER/abc", "6", "50"]),
        ({"id": "OWNER/Bad_Slug"}, ["OWNER/Bad_Slug"]),
        ({"id": "clotkit-weights"}, ["'clotkit-weights'"]),
        ({"id": "OWNER/a/b"}, ["OWNER/a/b"]),
        ({"isPrivate": True}, []),
    ],
)
def test_metadata_that_kaggle_would_refuse(
    tmp_path: Path, folder: Path, change: dict[str, Any], values: list[str]
) -> None:
    raw = json.loads((ROOT / "datasets_meta" / "weights" / datasets.METADATA).read_text())
    (tmp_path / datasets.METADATA).write_text(json.dumps(raw | change))
    with pytest.raises(UsageError) as caught:
        read_stage(tmp_path, files_in(folder), load_competition())
    message = one_line(caught)
    assert [name for name in [datasets.METADATA, *change, *values] if name not in message] == []


@pytest.mark.parametrize("text", ["", "[", "3", "[3]"])
def test_metadata_that_is_none(tmp_path: Path, folder: Path, text: str) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_stage(tmp_path, files_in(folder), load_competition())
    (tmp_path / datasets.METADATA).write_text(text)
    with pytest.raises(UsageError, match=datasets.METADATA):
        read_stage(tmp_path, files_in(folder), load_competition())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        # Names of files with secrets.
        ("kaggle.json", b"{}"),
        ("one/.env", b"A=1"),
        ("access_token", b"x"),
        ("credentials.json", b"x"),
        ("one/id_rsa", b"x"),
        ("server.pem", b"x"),
        # Secrets in files.
        ("one/notes.txt", b"token = KGAT_abcdef0123456789"),
        ("one/notes.txt", b"-----BEGIN RSA PRIVATE KEY-----\nx"),
        ("one/notes.txt", b'{"username":"a","key":"0123456789abcdef0123456789abcdef"}'),
        ("one/notes.txt", b"the key is s3cret-of-the-user"),
        # Kaggle loses empty files, and cannot handle other characters in names.
        ("empty.txt", b""),
        ("a@b.txt", b"x"),
        ("a b.txt", b"x"),
        ("one/caf\u00e9.txt", b"x"),
        (".hidden", b"x"),
    ],
)
def test_files_that_must_not_be_published(
    server: KaggleServer, clock: Clock, folder: Path, name: str, content: bytes
) -> None:
    (folder / name).write_bytes(content)
    client = Kaggle(Credentials("s3cret-of-the-user", "alice"), server.endpoint, clock.wait)
    with pytest.raises(UsageError) as caught:
        push(client, folder, clock)
    assert name in one_line(caught)
    assert "s3cret" not in str(caught.value)
    assert server.calls == []


def test_the_limits_are_held(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = files_in(folder)
    check_files(files)
    flat = {f"{number}.txt": folder / "MANIFEST.json" for number in range(datasets.MAX_FILES)}
    with pytest.raises(UsageError, match=r"1001 .*1000 "):
        check_files(flat)
    check_files({f"tiles/{name}": path for name, path in flat.items()})  # one tar
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(datasets.MAX_FILE_BYTES + 1)  # a hole: it takes no place on the disk
    with pytest.raises(UsageError, match=f"{datasets.MAX_FILE_BYTES:,}"):
        check_files({"large.bin": large})
    with pytest.raises(UsageError, match=f"{datasets.MAX_BYTES:,}"):
        check_files({f"{number}.bin": large for number in range(6)})


# What goes wrong on the way


@pytest.mark.parametrize("method", ["CreateDataset", "CreateDatasetVersion"])
@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize(("kind", "status"), [("reset", None), ("html", 200), ("status", 500), ("status", 503)])
def test_nothing_is_pushed_twice(
    server: KaggleServer,
    client: Kaggle,
    folder: Path,
    clock: Clock,
    method: str,
    after_effect: bool,
    kind: str,
    status: int | None,
) -> None:
    if method == "CreateDatasetVersion":
        push(client, folder, clock)
        (folder / "two" / "recipe.toml").write_text("changed")
    number = server.count("CreateDataset") + 1
    server.faults.add(Fault(method, kind, after_effect=after_effect, status=status))
    assert push(client, folder, clock) == PushedDataset(REF, number, new=True)
    assert [version.number for version in server.datasets[REF].versions] == list(range(1, number + 1))
    assert server.count(method) == (1 if after_effect else 2)


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("polls", [0, 1, 6])
def test_it_waits_until_the_new_version_is_ready_and_shows(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, lag: int, polls: int
) -> None:
    push(client, folder, clock)
    server.dataset_polls, server.version_lag_polls = polls, lag
    (folder / "two" / "recipe.toml").write_text("changed")
    server.faults.add(Fault("CreateDatasetVersion", "reset", after_effect=True))
    assert push(client, folder, clock).version == 2
    assert server.datasets[REF].current == 2
    assert len(server.datasets[REF].versions) == 2


def test_a_number_alone_is_not_enough(server: KaggleServer, client: Kaggle, folder: Path, clock: Clock) -> None:
    server.dataset_polls = 6
    at_first_wait(client, clock, lambda: setattr(server.datasets[REF], "current", 1))  # it shows before it is ready
    assert push(client, folder, clock).version == 1
    assert newest(server).status == "READY"


def test_404_for_a_while_after_the_creation_is_waited_for(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    server.unseen_polls = 5
    assert push(client, folder, clock).version == 1
    assert server.count("CreateDataset") == 1


def test_defaults_that_are_left_out_of_answers_do_no_harm(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    server.leave_out_defaults = True
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=True)
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=False)


def test_a_push_that_was_cut_short_is_waited_for_and_not_repeated(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    server.stuck_datasets.add(REF)
    with remote_error(RemoteKind.TIMEOUT, "60 minutes"):
        push(client, folder, clock)
    server.stuck_datasets.clear()
    server.dataset_polls = 8
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=False)
    assert server.count("CreateDataset") == 1


def test_a_version_that_fails_is_one_line_and_the_next_push_is_a_new_one(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    server.failed_datasets.add(REF)
    with remote_error(RemoteKind.FAILED, "FAILED"):
        push(client, folder, clock)
    server.failed_datasets.clear()
    assert push(client, folder, clock) == PushedDataset(REF, 2, new=True)


@pytest.mark.parametrize("status", [200, 409])
def test_a_name_that_is_taken_is_one_line(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, status: int
) -> None:
    push(client, folder, clock)
    server.name_taken_status = status
    for method in ("GetDatasetStatus", "GetDataset"):  # Kaggle hides it, but has it
        server.faults.add(Fault(method, "status", status=404))
    with remote_error(RemoteKind.REFUSED, "already in use"):
        push(client, folder, clock)
    assert len(server.datasets[REF].versions) == 1


@pytest.mark.parametrize(
    ("method", "status"),
    [("GetDatasetStatus", 400), ("GetDatasetStatus", 401),  # 403 is also the answer for one that does not exist yet
     *((method, status) for method in ("StartBlobUpload", "CreateDataset", "ListDatasetFiles")
       for status in (400, 401, 403))],
)  # fmt: skip
def test_a_refusal_is_one_line(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, method: str, status: int
) -> None:
    server.faults.add(Fault(method, "status", None, status=status))
    kinds = {401: RemoteKind.CREDENTIALS, 403: RemoteKind.FORBIDDEN}
    with remote_error(kinds.get(status, RemoteKind.REFUSED), str(status)):
        push(client, folder, clock)
    assert server.count(method) == 1


def test_a_blob_that_fails_makes_no_version(server: KaggleServer, client: Kaggle, folder: Path, clock: Clock) -> None:
    server.faults.add(Fault("PUT", "status", None, status=403, where="two.tar"))
    with remote_error(RemoteKind.REFUSED, "two.tar", "403"):
        push(client, folder, clock)
    assert server.datasets == {}


def test_an_upload_that_breaks_midway_loses_nothing(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    for status in (503, 0):
        server.faults.add(Fault("PUT", "midway", status=status, where="one.tar"))
    server.faults.add(Fault("PUT", "expired", where="two.tar"))
    push(client, folder, clock)
    assert in_tar(newest(server).files["one.tar"])["model.weights.h5"] == (folder / "one/model.weights.h5").read_bytes()
    assert in_tar(newest(server).files["two.tar"])["model.weights.h5"] == (folder / "two/model.weights.h5").read_bytes()


def lose(files: dict[str, bytes]) -> None:
    del files["MANIFEST.json"]


def cut(files: dict[str, bytes]) -> None:
    files["MANIFEST.json"] = b"{"


def lose_content(files: dict[str, bytes]) -> None:
    del files[CONTENT]


def unpack_short(files: dict[str, bytes]) -> None:
    unpack(files)
    del files["one/recipe.toml"]


def unpack(files: dict[str, bytes], deeper: str = "") -> None:
    for name in ("one", "two"):
        for inner, content in in_tar(files.pop(f"{name}.tar")).items():
            files[f"{name}/{deeper and name + '/'}{inner}"] = content


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lose, ["MANIFEST.json"]),
        (cut, ["MANIFEST.json", "1 bytes", "3 "]),
        (lose_content, ["CONTENT.json"]),
        (unpack_short, ["one/recipe.toml"]),
    ],
)
def test_what_is_listed_otherwise_than_sent_is_one_line(
    server: KaggleServer,
    client: Kaggle,
    folder: Path,
    clock: Clock,
    change: Callable[[dict[str, bytes]], None],
    names: list[str],
) -> None:
    at_first_wait(client, clock, lambda: change(newest(server).files))
    with remote_error(RemoteKind.MISMATCH, *names):
        push(client, folder, clock)


def test_the_size_of_a_tar_is_known_without_making_it(folder: Path, tmp_path: Path) -> None:
    long = "deep/" * 30 + "a_name_of_more_than_a_hundred_characters.bin"
    for number, name in enumerate((f"one/{long}", "two/a.bin", "two/b/c.bin")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(511 + 5_000 * number))
    stage = stage_of(folder)
    (tmp_path / "packed").mkdir()
    uploads = pack(stage.files, content_of(stage), tmp_path / "packed")
    listed = [(name, path.stat().st_size) for name, path in uploads.items()]
    files = content_of(stage)["files"]
    assert list(differences(listed, files)) == []
    for name, _ in listed:
        changed = [(other, size + (other == name) * 512) for other, size in listed]
        assert len(list(differences(changed, files))) == (name != CONTENT), name
        assert list(differences([(name, 0)] + [one for one in listed if one[0] != name], files)) == []  # 0: unknown
        assert list(differences([one for one in listed if one[0] != name], files)) != []


@pytest.mark.parametrize("deeper", ["", "yes"])
def test_a_tar_may_be_listed_unpacked_and_one_folder_deeper(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, deeper: str
) -> None:
    at_first_wait(client, clock, lambda: unpack(newest(server).files, deeper))
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=True)
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=False)


def at_first_wait(client: Kaggle, clock: Clock, change: Callable[[], None]) -> None:
    """Let Kaggle change a version's files during the first wait for it."""
    changes = [change]

    def wait(seconds: float) -> None:
        clock.wait(seconds)
        if changes:
            changes.pop()()

    client.wait = wait


@pytest.mark.parametrize("kind", ["status", "html", "reset", "truncated"])
@pytest.mark.parametrize(
    "method", ["GetDatasetStatus", "GetDataset", "ListDatasetFiles", "StartBlobUpload", "DownloadDataset"]
)
def test_a_read_that_fails_once_does_not_show(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, method: str, kind: str
) -> None:
    push(client, folder, clock)
    (folder / "two" / "recipe.toml").write_text("changed")
    server.faults.add(Fault(method, kind, status=503 if kind == "status" else None))
    assert push(client, folder, clock).version == 2
    assert server.faults.pending == []
    assert len(server.datasets[REF].versions) == 2
    assert max(clock.waits) <= LONGEST_WAIT_S


@pytest.mark.parametrize("status", [403, 404])
def test_a_dataset_that_does_not_exist_yet_is_created(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, status: int
) -> None:
    server.absent_status = status
    assert push(client, folder, clock) == PushedDataset(REF, 1, new=True)
    assert server.count("CreateDataset") == 1


def test_metadata_of_another_owner_is_refused(server: KaggleServer, client: Kaggle, folder: Path, clock: Clock) -> None:
    with pytest.raises(UsageError, match="bob/"):
        push_dataset(client, replace(stage_of(folder), owner="bob"), clock)
    assert server.count("StartBlobUpload") == 0
    assert push_dataset(client, replace(stage_of(folder), owner="alice"), clock).version == 1
