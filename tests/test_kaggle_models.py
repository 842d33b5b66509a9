"""Test Kaggle Models: pushes of members as a model, and kernels that attach one."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clotkit.competitions import load_competition
from clotkit.errors import ConfigError, RemoteMissing, UsageError
from clotkit.files import sha256
from clotkit.kaggle.client import DryRun, Kaggle, Variation, framework_name
from clotkit.kaggle.datasets import Stage, push_dataset, weights_files
from clotkit.kaggle.kernels import METADATA, PushedKernel, push_kernel, read_kernel, read_record
from clotkit.kaggle.listing import CONTENT
from clotkit.kaggle.login.credentials import Credentials
from clotkit.kaggle.metadata import Inputs, normalised
from clotkit.kaggle.models import METADATA as MODEL_METADATA
from clotkit.kaggle.models import VARIATION_METADATA, ModelStage, PushedModel, place_of, push_model, read_model_stage
from clotkit.reasons import RehearsalKind, RemoteKind

from .conftest import ROOT
from .delivery import TOKEN, Clock, one_line, rehearsed, remote_error, write_members
from .kaggle_server import Fault, KaggleServer, Version

INFER, META = ROOT / "kernels" / "infer", ROOT / "models_meta" / "weights"
MODEL, NAME, KERNEL = "alice/clotkit-members", "keras/default", "alice/clotkit-strip-ai-infer"
REF = f"{MODEL}/{NAME}"
AS_MODEL = Inputs(weights="model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make two members with a manifest."""
    return write_members(tmp_path / "weights")


def stage_of(folder: Path) -> ModelStage:
    return read_model_stage(META, weights_files(folder), load_competition())


def push(client: Kaggle, folder: Path, clock: Clock) -> PushedModel:
    return push_model(client, stage_of(folder), clock)


def versions(server: KaggleServer) -> list[Version]:
    return server.made_models[MODEL].variations[NAME].versions


# What is sent


def test_a_new_model_has_every_file_and_is_private(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, lines: list[str]
) -> None:
    assert push(client, folder, clock) == PushedModel(REF, 1, new=True)
    assert sorted(versions(server)[0].files) == [CONTENT, "MANIFEST.json", "one.tar", "two.tar"]
    model = server.made_models[MODEL]
    assert (model.private, model.title, model.variations[NAME].license) == (True, "clotkit members", "Apache 2.0")
    assert {call["type"] for call in server.asked("StartBlobUpload")} == {"MODEL"}
    assert lines[-1].startswith(f"{REF}: version 1 ")


def test_the_same_content_is_not_pushed_again(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, lines: list[str]
) -> None:
    push(client, folder, clock)
    server.calls.clear()
    assert push(client, folder, clock) == PushedModel(REF, 1, new=False)
    assert not [call for call in server.calls if call.method.startswith(("Start", "Create"))]
    assert lines[-1].startswith(f"{REF}: unchanged, version 1")


def test_new_content_is_a_new_version_with_everything_in_it(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    push(client, folder, clock)
    (folder / "two" / "recipe.toml").write_text("changed")
    assert push(client, folder, clock) == PushedModel(REF, 2, new=True)
    newest = versions(server)[-1]
    assert sorted(newest.files) == [CONTENT, "MANIFEST.json", "one.tar", "two.tar"]
    assert newest.notes == f"sha256 {json.loads(newest.files[CONTENT])['hash']}"
    assert server.count("CreateModel") == server.count("CreateModelInstance") == 1


def test_another_variation_is_added_to_the_model(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    push(client, folder, clock)
    stage = stage_of(folder)
    other = replace(stage, place=stage.place._replace(framework="onnx", variation="small"))
    assert push_model(client, other, clock) == PushedModel(f"{MODEL}/onnx/small", 1, new=True)
    assert list(server.made_models[MODEL].variations) == [NAME, "onnx/small"]
    assert server.count("CreateModel") == 1


def test_a_dry_run_changes_nothing(server: KaggleServer, folder: Path, clock: Clock) -> None:
    dry = Kaggle(Credentials(TOKEN), server.endpoint, clock.wait, dry=True)
    with pytest.raises(DryRun):
        push(dry, folder, clock)
    assert server.made_models == {}
    assert not server.count("StartBlobUpload")


# Failures on the way


@pytest.mark.parametrize("method", ["CreateModel", "CreateModelInstance", "CreateModelInstanceVersion"])
@pytest.mark.parametrize("after_effect", [False, True])
def test_a_lost_answer_makes_nothing_twice(
    method: str, after_effect: bool, server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    expected = 1
    if method == "CreateModelInstanceVersion":
        push(client, folder, clock)
        (folder / "two" / "recipe.toml").write_text("changed")
        expected = 2
    server.faults.add(Fault(method, "reset", after_effect=after_effect))
    assert push(client, folder, clock) == PushedModel(REF, expected, new=True)
    assert len(versions(server)) == expected
    assert server.faults.pending == []


@pytest.mark.parametrize("absent", [403, 404])
def test_a_version_that_shows_late_is_waited_for(
    absent: int, server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    server.absent_status, server.model_lag_polls = absent, 3
    assert push(client, folder, clock) == PushedModel(REF, 1, new=True)
    (folder / "two" / "recipe.toml").write_text("changed")
    assert push(client, folder, clock) == PushedModel(REF, 2, new=True)
    server.model_lag_polls = 10**9
    (folder / "two" / "recipe.toml").write_text("changed again")
    with remote_error(RemoteKind.TIMEOUT, REF):
        push(client, folder, clock)


def test_a_refusal_is_one_line(server: KaggleServer, client: Kaggle, folder: Path, clock: Clock) -> None:
    server.faults.add(Fault("CreateModelInstance", "status", status=400, message="no such license"))
    with remote_error(RemoteKind.REFUSED, "no such license"):
        push(client, folder, clock)


@pytest.mark.parametrize("changes", [{"one.tar": 512}, {"MANIFEST.json": None}, {"more.txt": 3}])
def test_another_list_of_files_is_an_error_and_not_unchanged(
    changes: dict[str, int | None], server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    push(client, folder, clock)
    server.list_changes = changes
    with remote_error(RemoteKind.MISMATCH, f"{REF} version 2"):
        push(client, folder, clock)
    server.list_changes = {}
    assert push(client, folder, clock) == PushedModel(REF, 2, new=False)


def test_secrets_and_empty_files_are_refused_before_anything_is_asked(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock
) -> None:
    for name, content in (("kaggle.json", b"{}"), ("empty.txt", b""), ("note.txt", TOKEN.encode())):
        (folder / "one" / name).write_bytes(content)
        with pytest.raises(UsageError, match=name):
            push(client, folder, clock)
        (folder / "one" / name).unlink()
    assert server.calls == []


@pytest.mark.parametrize(
    ("file", "change", "name"),
    [
        (MODEL_METADATA, {"slug": "No Slug"}, "slug"),
        (MODEL_METADATA, {"title": ""}, "title"),
        (MODEL_METADATA, {"isPrivate": False}, "isPrivate"),
        (MODEL_METADATA, {"more": 1}, "more"),
        (MODEL_METADATA, {"ownerSlug": "Alice"}, "Alice"),
        (VARIATION_METADATA, {"modelSlug": "another"}, "modelSlug"),
        (VARIATION_METADATA, {"framework": "caffe"}, "keras"),
        (VARIATION_METADATA, {"framework": "unspecified"}, "keras"),
        (VARIATION_METADATA, {"instanceSlug": "a/b"}, "instanceSlug"),
        (VARIATION_METADATA, {"licenseName": ""}, "licenseName"),
        (VARIATION_METADATA, {"more": 1}, "more"),
    ],
)
def test_metadata_that_kaggle_would_refuse_is_refused(
    file: str, change: dict[str, Any], name: str, folder: Path, tmp_path: Path
) -> None:
    metadata = Path(shutil.copytree(META, tmp_path / "meta"))
    (metadata / file).write_text(json.dumps(json.loads((metadata / file).read_text()) | change))
    with pytest.raises(UsageError) as caught:
        read_model_stage(metadata, weights_files(folder), load_competition())
    assert name in one_line(caught)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("keras", "KERAS"),
        ("Keras", "KERAS"),
        ("pyTorch", "PY_TORCH"),
        ("tensorFlow2", "TENSOR_FLOW_2"),
        ("onnx", "ONNX"),
    ],
)
def test_frameworks_are_named_as_in_addresses(word: str, name: str) -> None:
    assert framework_name(word) == f"MODEL_FRAMEWORK_{name}"


def test_each_competition_has_a_model_of_its_own(folder: Path) -> None:
    stages = [read_model_stage(META, weights_files(folder), load_competition(name)) for name in ("strip_ai", "panda")]
    assert len({stage.source for stage in stages}) == 2


# Kernels with a model


@pytest.fixture
def rehearsal(folder: Path, tmp_path: Path) -> Path:
    """Return the folder of a rehearsal with the members as a model."""
    out = tmp_path / "rehearsal"
    wheels = {"clotkit-wheels": {"a.whl": folder / "MANIFEST.json"}}
    rehearsed(INFER, out, wheels)
    facts = json.loads((out / "rehearsal.json").read_text())
    facts |= {"inputs": {"weights": "model", "wheels": "dataset"}}
    facts |= {
        "models": {f"clotkit-members/{NAME}": {name: sha256(path) for name, path in weights_files(folder).items()}}
    }
    (out / "rehearsal.json").write_text(json.dumps(facts))
    return out


@pytest.fixture
def attached(client: Kaggle, server: KaggleServer, folder: Path, clock: Clock) -> None:
    """Push the wheels as a dataset, and the members as a model."""
    wheels = {"a.whl": folder / "MANIFEST.json"}
    push_dataset(client, Stage("clotkit-wheels", "clotkit wheels", "", "", "other", wheels), clock)
    push(client, folder, clock)


def push_infer(client: Kaggle, rehearsal: Path, record: Path) -> PushedKernel:
    return push_kernel(client, read_kernel(INFER, "strip_ai", rehearsal, inputs=AS_MODEL), record, log=client.log)


@pytest.mark.usefixtures("attached")
def test_a_kernel_attaches_the_newest_version_of_the_model_in_place_of_the_dataset(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, rehearsal: Path, tmp_path: Path
) -> None:
    record = tmp_path / "pushed.json"
    pushed = push_infer(client, rehearsal, record)
    body = server.kernels[KERNEL].versions[0].body
    assert body["modelDataSources"] == [f"{REF}/1"]
    assert body["datasetDataSources"] == ["alice/clotkit-wheels"]
    assert pushed.datasets == {"alice/clotkit-wheels": 1, REF: 1}
    assert push_infer(client, rehearsal, record) == read_record(record) == pushed
    record.unlink()
    assert push_infer(client, rehearsal, record).version == 1  # by Kaggle's record alone
    versions(server).append(replace(versions(server)[0], number=2))
    assert push_infer(client, rehearsal, record).version == 2
    assert server.kernels[KERNEL].versions[-1].body["modelDataSources"] == [f"{REF}/2"]


@pytest.mark.usefixtures("attached")
def test_another_model_than_was_rehearsed_is_refused(
    server: KaggleServer, client: Kaggle, folder: Path, clock: Clock, rehearsal: Path, tmp_path: Path
) -> None:
    (folder / "two" / "recipe.toml").write_text("changed")
    push(client, folder, clock)
    with remote_error(RemoteKind.MISMATCH, f"{REF}/2", "two/recipe.toml"):
        push_infer(client, rehearsal, tmp_path / "pushed.json")
    versions(server).pop()
    versions(server)[0].files["one.tar"] = b"cut"
    with remote_error(RemoteKind.MISMATCH, f"{REF}/1", "one.tar"):
        push_infer(client, rehearsal, tmp_path / "pushed.json")
    assert not server.count("SaveKernel")


@pytest.mark.usefixtures("attached")
def test_a_model_that_kaggle_does_not_have_is_refused(
    server: KaggleServer, client: Kaggle, rehearsal: Path, tmp_path: Path
) -> None:
    kernel = read_kernel(INFER, "strip_ai", rehearsal, inputs=AS_MODEL)
    later = replace(kernel, metadata={**kernel.metadata, "model_sources": [f"OWNER/clotkit-members/{NAME}/7"]})
    with pytest.raises(RemoteMissing, match="1 versions"):
        push_kernel(client, later, tmp_path / "pushed.json")
    server.made_models.clear()
    with pytest.raises(RemoteMissing, match="models-push"):
        push_kernel(client, kernel, tmp_path / "pushed.json")
    assert not server.count("SaveKernel")


@pytest.mark.usefixtures("attached")
def test_a_model_of_somebody_else_is_taken_by_its_version_or_its_newest(
    server: KaggleServer, client: Kaggle, rehearsal: Path, tmp_path: Path
) -> None:
    kernel = read_kernel(INFER, "strip_ai", rehearsal, inputs=AS_MODEL)
    server.models.add("bob/a-model/keras/base/2")
    mine = kernel.metadata["model_sources"]
    sources = [*mine, "bob/a-model/keras/base/2"]
    push_kernel(
        client, replace(kernel, metadata={**kernel.metadata, "model_sources": sources}), tmp_path / "pushed.json"
    )
    assert server.kernels[KERNEL].versions[0].body["modelDataSources"] == [f"{REF}/1", "bob/a-model/keras/base/2"]
    server.made_models["carol/more"] = server.made_models[MODEL]
    sources = [*mine, "carol/more/keras/default"]
    push_kernel(
        client, replace(kernel, metadata={**kernel.metadata, "model_sources": sources}), tmp_path / "pushed.json"
    )
    assert server.kernels[KERNEL].versions[1].body["modelDataSources"] == [f"{REF}/1", "carol/more/keras/default/1"]


def test_what_was_rehearsed_in_another_form_is_refused(rehearsal: Path) -> None:
    with pytest.raises(UsageError, match="WEIGHTS_AS=dataset"):
        read_kernel(INFER, "strip_ai", rehearsal)
    with pytest.raises(UsageError, match="WHEELS_AS=script"):
        read_kernel(INFER, "strip_ai", rehearsal, inputs=Inputs("model", "script"))


def test_a_model_of_another_competition_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(INFER, tmp_path / "infer"))
    raw = json.loads((folder / METADATA).read_text())
    (folder / METADATA).write_text(json.dumps(raw | {"model_sources": [f"OWNER/clotkit-panda-members/{NAME}"]}))
    rehearsed(folder, tmp_path / "out")
    with pytest.raises(Exception, match="clotkit-panda-members") as caught:
        read_kernel(folder, "strip_ai", tmp_path / "out")
    assert getattr(caught.value, "kind", None) is RehearsalKind.COMPETITION


# The choice


def test_the_form_is_the_competitions_unless_an_option_says_otherwise(tmp_path: Path) -> None:
    text = load_competition("strip_ai").source.read_text()
    for key, value in (("weights_as", "model"), ("wheels_as", "script"), ("weights_as", "tar")):
        path = tmp_path / f"{key}-{value}.toml"
        table = text.replace("[kaggle]\n", f'[kaggle]\n{key} = "{value}"\n')
        path.write_text(table if table != text else f'{text}\n[kaggle]\n{key} = "{value}"\n')
    assert Inputs.of(load_competition("strip_ai")) == Inputs("dataset", "dataset")
    assert Inputs.of(load_competition(str(tmp_path / "weights_as-model.toml"))) == Inputs("model", "dataset")
    script = load_competition(str(tmp_path / "wheels_as-script.toml"))
    assert Inputs.of(script) == Inputs("dataset", "script")
    assert Inputs.of(script, "model", "dataset") == Inputs("model", "dataset")
    with pytest.raises(ConfigError, match="weights_as"):
        load_competition(str(tmp_path / "weights_as-tar.toml"))


def test_only_what_a_kernel_has_is_replaced() -> None:
    competition = load_competition("strip_ai")
    sources = partial(normalised, {"dataset_sources": ["OWNER/clotkit-tiles", "OWNER/clotkit-wheels"]})
    applied = Inputs("model", "script").applied(sources(), competition)
    assert (applied["dataset_sources"], applied["model_sources"]) == (["OWNER/clotkit-tiles"], [])


@pytest.mark.parametrize(("source", "version"), [(f"{REF}/3", 3), (REF, 0)])
def test_a_source_may_name_a_version(source: str, version: int) -> None:
    assert place_of(source) == (Variation("alice", "clotkit-members", "keras", "default"), version)
