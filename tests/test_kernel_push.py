"""Test pushes of kernels: refusals here, what Kaggle must not do to a push, and that it happens once."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clotkit.bundle.build import LIMIT_BYTES
from clotkit.bundle.notebook import KernelType, as_notebook, code_of
from clotkit.competitions import FOLDER, load_competition
from clotkit.errors import ClotkitError, RehearsalError, RemoteFull, RemoteMissing, UsageError
from clotkit.kaggle import client as module
from clotkit.kaggle import kernels
from clotkit.kaggle.client import DryRun, Kaggle
from clotkit.kaggle.datasets import Stage, push_dataset, read_metadata
from clotkit.kaggle.kernels import Kernel, push_kernel, read_kernel, read_record, running_on
from clotkit.kaggle.login.credentials import Credentials
from clotkit.kaggle.metadata import (
    GPU_SHAPES,
    RESERVED,
    RETIRED,
    SAVED,
    SHAPES,
    TPU_SHAPES,
    Accelerator,
    metadata_problems,
    missing_sources,
    normalised,
    same_sources,
)
from clotkit.reasons import RehearsalKind, RemoteKind

from .conftest import ROOT
from .delivery import TOKEN, Clock, one_line, rehearsed, remote_error
from .kaggle_server import Fault, KaggleServer

INFER, IMAGENET = ROOT / "kernels" / "infer", ROOT / "kernels" / "imagenet"
REF = "alice/clotkit-strip-ai-infer"
SOUND = read_metadata(INFER / kernels.METADATA, load_competition("strip_ai"), "")
GPU = {"enable_gpu": True, "machine_shape": "NvidiaTeslaT4"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The script of kernels/infer, and the folder of its rehearsal."""
    out = tmp_path_factory.mktemp("rehearsal")
    return rehearsed(INFER, out), out


@pytest.fixture
def kernel(script: tuple[str, Path], server: KaggleServer, client: Kaggle, clock: Clock, tmp_path: Path) -> Kernel:
    """Return the rehearsed kernels/infer, with its datasets on Kaggle."""
    (tmp_path / "a.txt").write_text("a")
    for slug in ("clotkit-weights", "clotkit-wheels"):
        push_dataset(client, Stage(slug, slug, "", "", "other", {"a.txt": tmp_path / "a.txt"}), clock)
    server.calls.clear()
    return read_kernel(INFER, "strip_ai", script[1])


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "build" / "kernel" / "pushed.json"


def push(client: Kaggle, kernel: Kernel, record: Path, again: bool = False) -> kernels.PushedKernel:
    return push_kernel(client, kernel, record, again, client.log)


# What Kaggle gets


def test_a_push_is_the_rehearsed_script_with_its_settings(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, script: tuple[str, Path], lines: list[str]
) -> None:
    pushed = push(client, kernel, record)
    version = server.kernels[REF].versions[0]
    assert version.source == script[0]
    assert version.source.encode() == (script[1] / "script.py").read_bytes()
    assert {name: value for name, value in version.body.items() if name != "text"} == {
        "slug": REF,
        "newTitle": "clotkit strip ai infer",
        "language": "python",
        "kernelType": "script",
        "datasetDataSources": ["alice/clotkit-weights", "alice/clotkit-wheels"],
        "competitionDataSources": ["mayo-clinic-strip-ai"],
        "isPrivate": True,
        "enableGpu": False,
        "enableTpu": False,
        "enableInternet": False,
    }
    assert version.mounted == {"alice/clotkit-weights": 1, "alice/clotkit-wheels": 1}
    assert (pushed.ref, pushed.version, read_record(record)) == (REF, 1, pushed)
    assert f"{REF}: version 1 is pushed" in lines[-1]
    assert pushed.url in lines[-1]


def test_a_notebook_is_pushed_as_one(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, script: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="notebook"):  # what was rehearsed is a script
        read_kernel(INFER, "strip_ai", script[1], "notebook")
    source = rehearsed(INFER, tmp_path / "out", kernel_type=KernelType.NOTEBOOK)
    with pytest.raises(UsageError, match="notebook"):
        read_kernel(INFER, "strip_ai", tmp_path / "out")
    notebook = read_kernel(INFER, "strip_ai", tmp_path / "out", "notebook")
    assert push(client, notebook, record).version == 1
    version = server.kernels[REF].versions[0]
    assert (version.source, version.body["kernelType"]) == (source, "notebook")
    assert code_of(version.source) == script[0]
    version.source = json.dumps(json.loads(source), indent=1)  # Kaggle may write it out in another way
    record.unlink()
    assert push(client, notebook, record).version == 1
    with pytest.raises(UsageError, match="KERNEL_TYPE=notebook"):
        push(client, kernel, record)
    assert server.count("SaveKernel") == 1


def test_a_notebook_that_is_no_bundle_is_pushed_without_its_outputs(tmp_path: Path) -> None:
    raw = json.loads((IMAGENET / kernels.METADATA).read_text())
    (tmp_path / kernels.METADATA).write_text(json.dumps(raw | {"kernel_type": "notebook", "code_file": "a.ipynb"}))
    content = json.loads(as_notebook("print(1)"))
    content["cells"][0] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}], "execution_count": 1}
    (tmp_path / "a.ipynb").write_text(json.dumps(content))
    assert read_kernel(tmp_path, "strip_ai", tmp_path).source == as_notebook("print(1)")
    for text in ("print(1)", "{}", "[]"):
        (tmp_path / "a.ipynb").write_text(text)
        with pytest.raises(UsageError, match=r"a\.ipynb: not a notebook"):
            read_kernel(tmp_path, "strip_ai", tmp_path)


def test_the_same_kernel_is_not_pushed_again(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, lines: list[str]
) -> None:
    first = push(client, kernel, record)
    assert push(client, kernel, record) == first
    assert "unchanged, version 1" in lines[-1]
    record.unlink()
    assert push(client, kernel, record) == replace(first)  # by Kaggle's record alone
    assert read_record(record) == first
    assert server.count("SaveKernel") == 1
    assert push(client, kernel, record, again=True).version == 2


def test_a_new_source_new_settings_or_new_data_is_a_new_version(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, clock: Clock, tmp_path: Path
) -> None:
    push(client, kernel, record)
    assert push(client, replace(kernel, source=kernel.source + "# more\n"), record).version == 2
    assert push(client, kernel, record).version == 3
    assert push(client, replace(kernel, metadata={**kernel.metadata, "is_private": False}), record).version == 4
    (tmp_path / "a.txt").write_text("new weights")
    push_dataset(
        client, Stage("clotkit-weights", "clotkit weights", "", "", "other", {"a.txt": tmp_path / "a.txt"}), clock
    )
    assert push(client, replace(kernel, metadata={**kernel.metadata, "is_private": False}), record).version == 5
    assert server.kernels[REF].versions[-1].mounted["alice/clotkit-weights"] == 2


def test_a_kernel_without_a_bundle_is_its_code_file(server: KaggleServer, client: Kaggle, record: Path) -> None:
    kernel = read_kernel(IMAGENET, "strip_ai", record.parent)
    push(client, kernel, record)
    version = server.kernels["alice/clotkit-imagenet-fetch"].versions[0]
    assert version.source == (IMAGENET / "main.py").read_text()
    assert version.body["enableInternet"] is True


def test_a_kernel_has_no_word_of_another_competition(
    server: KaggleServer, client: Kaggle, clock: Clock, record: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    for slug in ("clotkit-panda-weights", "clotkit-wheels"):
        push_dataset(client, Stage(slug, slug, "", "", "other", {"a.txt": tmp_path / "a.txt"}), clock)
    server.competition.slug = "prostate-cancer-grade-assessment"
    rehearsed(INFER, tmp_path / "rehearsal", competition="panda")
    pushed = push(client, read_kernel(INFER, "panda", tmp_path / "rehearsal"), record)
    version = server.kernels["alice/clotkit-panda-infer"].versions[0]
    assert (pushed.ref, version.body["newTitle"]) == ("alice/clotkit-panda-infer", "clotkit panda infer")
    assert version.body["competitionDataSources"] == ["prostate-cancer-grade-assessment"]
    assert version.body["datasetDataSources"] == ["alice/clotkit-panda-weights", "alice/clotkit-wheels"]
    assert version.source.count("isup_grade") > 0
    assert re.findall(r"(?i:mayo|strip[ _-]?ai\b|clotkit-strip)|\bSTRIP\b", json.dumps(version.body)) == []


def test_a_dry_run_changes_nothing(server: KaggleServer, kernel: Kernel, record: Path) -> None:
    said: list[str] = []
    dry = Kaggle(Credentials(TOKEN), server.endpoint, log=said.append, dry=True)
    with pytest.raises(DryRun):
        push(dry, kernel, record)
    assert (server.count("SaveKernel"), server.kernels, record.exists()) == (0, {}, False)
    assert f'"text": "{len(kernel.source.encode()):,} bytes, sha256 {kernel.sha256}"' in said[-1]


# What is refused before anything is asked


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (shutil.rmtree, "rehearsal.json"),
        (lambda out: (out / "rehearsal.json").write_text("{"), "rehearsal.json"),
        (lambda out: (out / "rehearsal.json").write_text('{"bundle_sha256": "0123"}'), "0123"),
        (lambda out: (out / "script.py").write_text("another"), "script.py"),
        (lambda out: (out / "script.py").unlink(), "script.py"),
    ],
)
def test_what_was_not_rehearsed_is_refused(script: tuple[str, Path], tmp_path: Path, change: Any, file: str) -> None:
    out = Path(shutil.copytree(script[1], tmp_path / "rehearsal"))
    read_kernel(INFER, "strip_ai", out)
    change(out)
    with pytest.raises(UsageError) as caught:
        read_kernel(INFER, "strip_ai", out)
    assert file in one_line(caught)
    assert "make dry-run" in str(caught.value)


def test_a_rehearsal_without_a_slide_done_does_not_count(script: tuple[str, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(script[1], tmp_path / "rehearsal"))
    facts = json.loads((out / "rehearsal.json").read_text())
    (out / "rehearsal.json").write_text(json.dumps(facts | {"slides": {"done": 0, "fallback": 4}}))
    with pytest.raises(UsageError, match=r"rehearsal\.json: 0 slides"):
        read_kernel(INFER, "strip_ai", out)


@contextmanager
def of_another_competition(*names: str) -> Iterator[None]:
    """Expect that a kernel is refused because something is of another competition."""
    with pytest.raises(RehearsalError) as caught:
        yield
    message = one_line(caught)
    assert caught.value.kind is RehearsalKind.COMPETITION, message
    assert [name for name in names if name not in message] == [], message


def test_the_rehearsal_of_another_competition_is_refused(script: tuple[str, Path], tmp_path: Path) -> None:
    with of_another_competition("strip_ai", "panda", "make dry-run COMPETITION=panda"):
        read_kernel(INFER, "panda", script[1])
    own = tmp_path / "mine" / "panda.toml"  # the same name, other content: the bundle is another one
    own.parent.mkdir()
    own.write_text((FOLDER / "panda.toml").read_text().replace("min_tiles = 4", "min_tiles = 3"))
    rehearsed(INFER, tmp_path / "rehearsal", competition="panda")
    read_kernel(INFER, "panda", tmp_path / "rehearsal")
    with pytest.raises(UsageError, match="the rehearsal was of the bundle"):
        read_kernel(INFER, str(own), tmp_path / "rehearsal")


@pytest.mark.parametrize(
    ("name", "change", "names"),
    [
        ("infer", {"competition_sources": ["mayo-clinic-strip-ai"]}, ["mayo-clinic-strip-ai", "prostate-cancer"]),
        ("infer", {"competition_sources": []}, ["nothing", "prostate-cancer-grade-assessment"]),
        ("infer", {"dataset_sources": ["OWNER/clotkit-weights"]}, ["clotkit-weights", "clotkit-panda-weights"]),
        ("train", {"dataset_sources": ["OWNER/clotkit-tiles/2"]}, ["clotkit-tiles", "clotkit-panda-tiles"]),
        ("train", {"competition_sources": ["UBC-OCEAN"]}, ["UBC-OCEAN"]),
    ],
)
def test_sources_of_another_competition_are_refused(
    tmp_path: Path, name: str, change: dict[str, Any], names: list[str]
) -> None:
    folder = Path(shutil.copytree(ROOT / "kernels" / name, tmp_path / name))
    settings = folder / "settings.toml"
    if settings.is_file():
        settings.write_text(settings.read_text().replace("{competition}", "demo"))
    raw = json.loads((folder / kernels.METADATA).read_text())
    (folder / kernels.METADATA).write_text(json.dumps(raw | change))
    with of_another_competition("panda", *names):
        read_kernel(folder, "panda", tmp_path)


def test_a_competition_of_another_platform_is_refused(tmp_path: Path) -> None:
    with remote_error(RemoteKind.MISSING, "camelyon16", "kaggle.hosted"):
        read_kernel(INFER, "camelyon16", tmp_path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"id_no": 3}, "id_no"),
        ({"machineshape": "x"}, "machineshape"),
        ({"id": "clotkit-strip-ai-infer"}, "id is"),
        ({"id": "OWNER/Bad_Slug!!"}, "id is"),
        ({"id": "OWNER/clotkit-strip-ai-infer/3"}, "id is"),
        ({"title": "abcd"}, "title has 4 "),
        ({"title": "x" * 51}, "title has 51 "),
        ({"title": None}, "title has None"),
        ({"title": "another title"}, "another-title"),
        ({"code_file": "../main.py"}, "code_file"),
        ({"code_file": None}, "code_file"),
        ({"language": "r"}, "language"),
        ({"kernel_type": "app"}, "kernel_type"),
        ({"enable_internet": None}, "enable_internet"),
        ({"enable_internet": True}, "enable_internet"),
        ({"enable_internet": "false"}, "'false'"),
        ({"is_private": 1}, "is_private"),
        ({"enable_gpu": True}, "machine_shape"),
        ({**GPU, "machine_shape": "NvidiaTeslaP100"}, "NvidiaTeslaP100"),
        ({**GPU, "machine_shape": "T4"}, "'T4'"),
        *(({**GPU, "machine_shape": shape}, f"{shape}, which Kaggle no longer has") for shape in RETIRED),
        ({**GPU, "machine_shape": "nvidiateslap100"}, "no longer has"),
        ({**GPU, "machine_shape": "NvidiaTeslaT4Highmem"}, "staff"),
        ({**GPU, "machine_shape": "TpuV5E8"}, "enable_gpu"),
        ({"enable_tpu": True, "machine_shape": "NvidiaTeslaT4"}, "enable_tpu"),
        ({"enable_tpu": True, "enable_gpu": True, "machine_shape": "TpuV5E8"}, "enable_gpu"),
        ({"docker_image": "gcr.io/kaggle-images/python"}, "docker_image"),
        ({**GPU, "docker_image": f"gcr.io/kaggle-images/python@sha256:{'0' * 64}"}, "docker_image"),
        ({"docker_image_pinning_type": "newest"}, "docker_image_pinning_type"),
        ({"dataset_sources": ["clotkit-weights"]}, "'clotkit-weights'"),
        ({"dataset_sources": ["a/b", "a/b"]}, "dataset_sources"),
        ({"dataset_sources": "a/b"}, "'a/b'"),
        ({"dataset_sources": [3]}, "dataset_sources has 3"),
        ({"competition_sources": ["a/b"]}, "competition_sources"),
        ({"kernel_sources": ["a"]}, "kernel_sources"),
        ({"model_sources": ["a/b/keras"]}, "model_sources"),
    ],
)
def test_metadata_with_a_trap_is_refused(
    script: tuple[str, Path], tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    folder = Path(shutil.copytree(INFER, tmp_path / "infer"))
    (folder / kernels.METADATA).write_text(json.dumps(SOUND | change))
    with pytest.raises(UsageError) as caught:
        read_kernel(folder, "strip_ai", script[1])
    assert name in one_line(caught)


@pytest.mark.parametrize("shape", [*RETIRED, *RESERVED, "nvidiateslap100", "T4", 3])
def test_a_machine_shape_that_cannot_be_had_is_one_problem(shape: Any) -> None:
    assert list(metadata_problems(SOUND)) == []
    assert len(list(metadata_problems(SOUND | GPU | {"machine_shape": shape}))) == 1


@pytest.mark.parametrize("shape", [*SHAPES, "none"])
def test_each_machine_shape_goes_with_the_push(
    shape: str, server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, lines: list[str]
) -> None:
    push(client, running_on(kernel, shape), record)
    sent = server.asked("SaveKernel")[0]
    tpu = shape in TPU_SHAPES
    assert sent.get("machineShape") == (None if shape == "none" else shape)
    assert (sent["enableGpu"], sent["enableTpu"]) == (shape in GPU_SHAPES, tpu)
    asked_quota = [line for line in lines if "quota" in line]
    assert [line.partition(" ")[0] for line in asked_quota] == ([] if shape == "none" else ["TPU" if tpu else "GPU"])


def test_a_shape_that_kaggle_does_not_have_is_refused_with_the_list(kernel: Kernel) -> None:
    with pytest.raises(UsageError) as caught:
        running_on(kernel, "NvidiaTeslaV100")
    assert [shape for shape in SHAPES if shape not in one_line(caught)] == []


def test_tpu_hours_that_are_used_up_stop_a_push(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path
) -> None:
    server.tpu_used_s = server.tpu_allowed_s
    with remote_error(RemoteKind.NO_QUOTA, "TPU"):
        push(client, running_on(kernel, "TpuV5E8"), record)
    push(client, running_on(kernel, "NvidiaTeslaT4"), record)


def test_hours_that_are_reserved_are_not_left() -> None:
    quota = {"gpuQuota": {"timeUsed": "3600s", "timeReserved": "1800.5s", "totalTimeAllowed": "7200s"}}
    assert Accelerator.GPU.week(quota) == pytest.approx((0.5, 2.0), abs=0.01)
    assert Accelerator.TPU.week(quota) is None


@pytest.mark.parametrize("name", ["infer", "imagenet", "tile", "train"])
def test_the_metadata_that_ships_is_sound(name: str) -> None:
    for path in sorted(FOLDER.glob("*.toml")):
        raw = read_metadata(ROOT / "kernels" / name / kernels.METADATA, load_competition(path.stem), "")
        assert list(metadata_problems(normalised(raw))) == []


@pytest.mark.parametrize(
    "change",
    [
        GPU,
        {"docker_image": f"gcr.io/kaggle-images/python@sha256:{'0' * 64}", "docker_image_pinning_type": "original"},
        {"dataset_sources": ["OWNER/clotkit-weights/3"], "keywords": ["gpu"]},
        {"model_sources": ["a/b/keras/base/2"], "kernel_sources": ["a/b"]},
    ],
)
def test_sound_metadata_is_taken(change: dict[str, Any]) -> None:
    assert list(metadata_problems(normalised(SOUND | change))) == []


def test_prefixes_of_pulled_metadata_are_taken_off() -> None:
    pulled = {
        "dataset_sources": ["datasets/a/b", "d/a/c"],
        "competition_sources": ["c/x", "competitions/y"],
        "kernel_sources": ["code/a/k"],
    }
    assert normalised(pulled) == {
        "dataset_sources": ["a/b", "a/c"],
        "competition_sources": ["x", "y"],
        "kernel_sources": ["a/k"],
        "model_sources": [],
    }


@pytest.mark.parametrize(
    ("key", "asked", "saved", "same"),
    [
        ("dataset_sources", "alice/a", "datasets/Alice/A", True),
        ("dataset_sources", "alice/a/2", "alice/a", True),
        ("dataset_sources", "alice/a/2", "alice/a/3", False),
        ("dataset_sources", "alice/a", "alice/a/versions/3", True),
        ("dataset_sources", "alice/a", "https://www.kaggle.com/datasets/alice/a/", True),
        ("dataset_sources", "alice/a", "alice/ab", False),
        ("dataset_sources", "alice/a", "bob/a", False),
        ("competition_sources", "a-comp", "/competitions/a-comp", True),
        ("competition_sources", "a-comp", "a-comp-2", False),
        ("kernel_sources", "alice/k", "code/alice/k", True),
        ("model_sources", "bob/m/keras/base/2", "models/bob/m/Keras/base", True),
        ("model_sources", "bob/m/keras/base/2", "bob/m/keras/base/1", False),
        ("model_sources", "bob/m/keras/base/2", "bob/m/pytorch/base/2", False),
    ],
)
def test_a_source_is_the_same_however_it_is_spelt(key: str, asked: str, saved: str, same: bool) -> None:
    metadata = {**{other: [] for other in SAVED}, key: [asked]}
    record = {SAVED[key]: [saved]}
    assert (missing_sources(record, metadata) == []) is same_sources(record, metadata) is same
    assert missing_sources({}, metadata) != []
    assert not same_sources({SAVED[key]: [asked, "bob/another"]}, metadata)


def test_a_folder_that_is_no_kernel_is_one_line(tmp_path: Path) -> None:
    for text in (None, "[", "3"):
        if text is not None:
            (tmp_path / kernels.METADATA).write_text(text)
        with pytest.raises(UsageError, match=kernels.METADATA):
            read_kernel(tmp_path, "strip_ai", tmp_path)
    raw = json.loads((IMAGENET / kernels.METADATA).read_text())
    (tmp_path / kernels.METADATA).write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=r"code_file main.py: No such file"):
        read_kernel(tmp_path, "strip_ai", tmp_path)
    (tmp_path / "main.py").write_text("def")
    with pytest.raises(UsageError, match=r"main\.py"):
        read_kernel(tmp_path, "strip_ai", tmp_path)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("#" * (LIMIT_BYTES + 1), "1,000,001 "),
        ("", "0 bytes"),
        ("token = 'KGAT_abcdef0123456789'", "secret"),
        (f"key = '{TOKEN}'", "secret"),
    ],
)
def test_a_source_that_must_not_go_out(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, source: str, name: str
) -> None:
    with pytest.raises(UsageError) as caught:
        push(client, replace(kernel, source=source), record)
    assert name in one_line(caught)
    assert server.calls == []


def test_the_longest_source_goes_out(server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path) -> None:
    assert push(client, replace(kernel, source="#" * LIMIT_BYTES), record).version == 1


def test_somebody_elses_kernel_is_refused(client: Kaggle, kernel: Kernel, record: Path) -> None:
    metadata = {**kernel.metadata, "id": "bob/clotkit-strip-ai-infer"}
    with pytest.raises(UsageError, match="alice"):
        push(client, replace(kernel, metadata=metadata), record)


# What is asked of Kaggle before the push


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"dataset_sources": ["OWNER/not-there-yet"]}, "alice/not-there-yet"),
        ({"competition_sources": ["no-such-comp"]}, "no-such-comp"),
        ({"kernel_sources": ["alice/no-such-kernel"]}, "alice/no-such-kernel"),
    ],
)
def test_a_source_that_is_not_there_is_refused(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, change: dict[str, Any], name: str
) -> None:
    with pytest.raises(RemoteMissing) as caught:
        push(client, replace(kernel, metadata={**kernel.metadata, **change}), record)
    assert name in one_line(caught)
    assert server.count("SaveKernel") == 0


def test_a_dataset_that_is_not_ready_is_refused(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path
) -> None:
    server.datasets["alice/clotkit-weights"].versions[-1].status = "BLOBS_RECEIVED"
    server.stuck_datasets.add("alice/clotkit-weights")
    with remote_error(RemoteKind.NOT_READY, "READY"):
        push(client, kernel, record)
    assert server.count("SaveKernel") == 0


def test_rules_that_were_not_accepted_are_said_so(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path
) -> None:
    server.competition.entered = False
    server.leave_out_defaults = True
    with remote_error(RemoteKind.RULES):
        push(client, kernel, record)


def test_other_weights_than_were_rehearsed_are_refused(
    server: KaggleServer, client: Kaggle, tmp_path: Path, kernel: Kernel, record: Path
) -> None:
    def with_datasets(files: dict[str, Path]) -> Kernel:
        rehearsed(INFER, tmp_path / "again", {"clotkit-weights": files})
        return read_kernel(INFER, "strip_ai", tmp_path / "again")

    assert push(client, with_datasets({"a.txt": tmp_path / "a.txt"}), record).version == 1
    (tmp_path / "a.txt").write_text("others")
    for files in ({"a.txt": tmp_path / "a.txt"}, {"b.txt": tmp_path / "a.txt"}, {}):
        with remote_error(RemoteKind.MISMATCH, "alice/clotkit-weights"):
            push(client, with_datasets(files), record)
    assert server.count("SaveKernel") == 1


def test_a_gpu_asks_for_the_quota_first(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, lines: list[str]
) -> None:
    gpu = replace(kernel, metadata={**kernel.metadata, **GPU})
    push(client, gpu, record)
    assert "GPU quota: 29.0 of 30 hours left this week" in lines
    server.gpu_used_s = server.gpu_allowed_s
    with remote_error(RemoteKind.NO_QUOTA, "GPU quota: all of 30 hours"):
        push(client, replace(gpu, source="2"), record)
    assert server.count("SaveKernel") == 1


# What Kaggle may do to a push


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize(("kind", "status"), [("reset", None), ("html", 200), ("status", 500), ("status", 503)])
def test_nothing_is_pushed_twice(
    server: KaggleServer,
    client: Kaggle,
    kernel: Kernel,
    record: Path,
    before: int,
    after_effect: bool,
    kind: str,
    status: int | None,
) -> None:
    if before:
        push(client, replace(kernel, source="print(1)\n"), record)
    server.faults.add(Fault("SaveKernel", kind, after_effect=after_effect, status=status))
    assert push(client, kernel, record).version == before + 1
    assert [version.source for version in server.kernels[REF].versions][before:] == [kernel.source]
    assert server.count("SaveKernel") == before + (1 if after_effect else 2)


def test_somebody_elses_push_is_not_taken_for_ours(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path
) -> None:
    push(client, replace(kernel, source="1"), record)
    server.faults.add(Fault("SaveKernel", "reset"))
    asked, others = client.wait, list[int]()

    def wait(seconds: float) -> None:
        asked(seconds)
        if not others:
            others.append(server.push_elsewhere(REF))

    client.wait = wait
    assert push(client, kernel, record).version == 3
    assert server.kernels[REF].versions[-1].source == kernel.source


def test_a_lost_answer_does_not_hide_what_was_left_out(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults.add(Fault("SaveKernel", "reset", after_effect=True))
    asked = client.wait

    def wait(seconds: float) -> None:  # Kaggle removes a dataset from the kernel during the wait
        asked(seconds)
        server.kernels[REF].versions[-1].body["datasetDataSources"] = ["alice/clotkit-weights"]

    client.wait = wait
    with remote_error(RemoteKind.MISMATCH, "version 1 ", "dataset_sources", "alice/clotkit-wheels"):
        push(client, kernel, record)


@pytest.mark.parametrize("answer", ["403", "404", "earlier"])
def test_a_push_that_does_not_show_yet_is_not_repeated(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, answer: str
) -> None:
    push(client, replace(kernel, source="1"), record)
    server.unseen_kernel, server.unseen_kernel_polls = answer, 3
    assert push(client, kernel, record).version == 2
    server.kernels[REF].unseen_polls = 3
    assert push(client, kernel, record).version == 2
    assert server.count("SaveKernel") == 2


def test_a_version_that_never_shows_is_said_not_to_be_checked(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, lines: list[str]
) -> None:
    server.unseen_kernel_polls = 10**9
    assert push(client, kernel, record).version == 1
    assert any("not checked" in line for line in lines)


def test_a_dataset_that_is_attached_for_the_first_time_is_a_new_version(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, clock: Clock, tmp_path: Path
) -> None:
    push(client, kernel, record)
    push_dataset(client, Stage("more-tiles", "more tiles", "", "", "other", {"a.txt": tmp_path / "a.txt"}), clock)
    assert push(client, kernels.attaching(kernel, ["more-tiles"]), record).version == 2
    assert push(client, kernel, record).version == 3


def test_busy_is_waited_for(server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, clock: Clock) -> None:
    server.faults.add(Fault("SaveKernel", "status", status=429, headers={"Retry-After": "9"}))
    server.faults.add(Fault("SaveKernel", "status", status=429))
    clock.waits.clear()
    assert push(client, kernel, record).version == 1
    assert clock.waits == [9.5, 4]
    assert len(server.kernels[REF].versions) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 409])
def test_a_refusal_is_one_line_and_final(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, status: int
) -> None:
    server.faults.add(Fault("SaveKernel", "status", None, status=status, message="no, not this"))
    kinds = {401: RemoteKind.CREDENTIALS, 403: RemoteKind.FORBIDDEN}
    with remote_error(kinds.get(status, RemoteKind.REFUSED), "no, not this"):
        push(client, kernel, record)
    assert (server.count("SaveKernel"), record.exists()) == (1, False)


def test_gpu_sessions_that_are_full_are_waited_for(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, lines: list[str]
) -> None:
    server.gpu_sessions = 1
    gpu = replace(kernel, metadata={**kernel.metadata, **GPU})
    push(client, replace(gpu, source="1"), record)
    assert push(client, gpu, record).version == 2
    assert any("Maximum batch GPU session count of 1 reached" in line for line in lines)
    assert len(server.kernels[REF].versions) == 2


def test_gpu_sessions_that_stay_full_are_an_error_of_their_own(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path
) -> None:
    server.gpu_sessions = 0
    with pytest.raises(RemoteFull, match="60 minutes") as caught:
        push(client, replace(kernel, metadata={**kernel.metadata, **GPU}), record)
    one_line(caught)
    assert server.count("SaveKernel") == kernels.SESSION_TRIES


def test_a_version_that_jumps_is_said_and_followed(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, lines: list[str]
) -> None:
    push(client, replace(kernel, source="1"), record)
    server.version_jump = 3
    assert push(client, kernel, record).version == 4
    assert f"{REF}: 2 other versions were pushed meanwhile; this one is 4" in lines


@pytest.mark.parametrize(
    ("change", "kind", "name"),
    [
        ({"error": "Something is wrong"}, RemoteKind.REFUSED, "Something is wrong"),
        ({"ref": "/code/alice/elsewhere"}, RemoteKind.MISMATCH, "alice/elsewhere"),
        ({"ref": ""}, RemoteKind.MISMATCH, REF),
        ({"versionNumber": 1}, RemoteKind.MISMATCH, "version 1"),
        ({"versionNumber": None}, RemoteKind.MISMATCH, "version 0"),
    ],
)
def test_an_answer_that_is_not_what_was_meant_is_an_error(change: dict[str, Any], kind: RemoteKind, name: str) -> None:
    sound = {"ref": f"/code/{REF}", "versionNumber": 2, "error": "", "invalidTags": []}
    assert kernels.check_answer(sound, {"id": REF}, 1) == 2
    with remote_error(kind, name):
        kernels.check_answer(sound | change, {"id": REF}, 1)


def test_a_source_that_arrived_otherwise_is_an_error(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path
) -> None:
    log = client.log
    server.on_run = None
    changed = replace(kernel, source=kernel.source)

    class Changing(Kaggle):
        def save_kernel(self, lookup: Any, fields: Any) -> Any:
            answer = super().save_kernel(lookup, fields)
            server.kernels[REF].versions[-1].source += "# changed on the way\n"
            return answer

    changing = Changing(Credentials(TOKEN), server.endpoint, client.wait, log=log)
    with remote_error(RemoteKind.MISMATCH, "version 1"):
        push(changing, changed, record)


@pytest.mark.parametrize("kind", ["status", "html", "reset", "truncated"])
@pytest.mark.parametrize("method", ["GetKernel", "GetDatasetStatus", "GetDataset", "GetCompetition"])
def test_a_read_that_fails_once_does_not_show(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path, method: str, kind: str
) -> None:
    server.faults.add(Fault(method, kind, status=503 if kind == "status" else None))
    assert push(client, kernel, record).version == 1
    assert (server.faults.pending, server.count("SaveKernel")) == ([], 1)


def test_what_never_gets_through_is_one_line(
    server: KaggleServer, client: Kaggle, kernel: Kernel, record: Path
) -> None:
    server.faults.add(Fault("SaveKernel", "status", None, status=500))
    with remote_error(RemoteKind.UNCLEAR, f"sent {module.CHANGE_TRIES} times"):
        push(client, kernel, record)
    assert (server.count("SaveKernel"), record.exists()) == (module.CHANGE_TRIES, False)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ref": 3}', '{"ref":"a/b","version":"x"}'])
def test_a_damaged_record_is_one_line(record: Path, text: str) -> None:
    assert read_record(record) is None
    record.parent.mkdir(parents=True)
    record.write_text(text)
    with pytest.raises(ClotkitError, match="damaged") as caught:
        read_record(record)
    one_line(caught)


def test_a_record_that_cannot_be_written_is_one_line_with_the_way_on(
    server: KaggleServer, client: Kaggle, kernel: Kernel, tmp_path: Path
) -> None:
    (tmp_path / "build").write_text("a file")
    with pytest.raises(UsageError, match=f"--kernel {REF} --version 1") as caught:
        push(client, kernel, tmp_path / "build" / "kernel" / "pushed.json")
    one_line(caught)
    assert len(server.kernels[REF].versions) == 1
