"""Test the whole delivery as typed: make datasets-push kernel-push submit, in processes, to a score."""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clotkit.competitions import load_competition
from clotkit.errors import UsageError
from clotkit.kaggle import verbs
from clotkit.kaggle.datasets import read_metadata, weights_files, wheels_files
from clotkit.kaggle.login.credentials import NO_CREDENTIALS
from clotkit.kaggle.states import SubmissionFailure
from clotkit.kaggle.submissions import MEANINGS
from clotkit.options import Result

from .conftest import ROOT
from .delivery import quiet, rehearsed
from .kaggle_server import Fault, KaggleServer, KernelVersion

REF = "alice/clotkit-strip-ai-infer"
Run = Callable[..., "subprocess.CompletedProcess[str]"]
# -o FILE: make takes FILE as up to date, so nothing is installed
KEEP = ("-o", ".venv/.python", "-o", ".venv/.runtime", "-o", "build/.wheels", "-o", "build/phantom/test.csv")
CHAIN = ("datasets-push", "kernel-push", "submit")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the files of a delivery, with a passed rehearsal and a submit.py that prints its arguments."""
    checkout = tmp_path / "checkout"
    for name in ("kernels", "datasets_meta"):
        shutil.copytree(ROOT / name, checkout / name)
    shutil.copy2(ROOT / "Makefile", checkout)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    (checkout / "submit.py").write_text("import sys\nprint('submit.py', *sys.argv[1:])\n")
    shutil.copytree(ROOT / "weights" / "demo", checkout / "weights" / "demo")
    shutil.copy2(ROOT / "weights" / "MANIFEST.json", checkout / "weights")
    (checkout / "build" / "wheels").mkdir(parents=True)
    for name in ("pyvips-1-py3-none-any.whl", "cffi-1-cp312-cp312-manylinux_2_28_x86_64.whl"):
        (checkout / "build" / "wheels" / name).write_bytes(b"PK\x03\x04 " + name.encode())
    datasets = {
        "clotkit-weights": weights_files(checkout / "weights" / "demo"),
        "clotkit-wheels": wheels_files(checkout / "build" / "wheels"),
    }
    rehearsed(checkout / "kernels" / "infer", checkout / "build" / "rehearsal", datasets)
    return checkout


@pytest.fixture
def environment(server: KaggleServer, tmp_path: Path) -> dict[str, str]:
    return {
        name: value
        for name, value in quiet(server).environment(tmp_path / "home").items()
        if not name.startswith(("MAKE", "MFLAGS", "WEIGHTS", "SPLIT", "KERNEL"))
    }


@pytest.fixture
def make(checkout: Path, environment: dict[str, str]) -> Run:
    """Run make as a person does, without repeating the setup."""
    if not (ROOT / ".venv" / "bin" / "clotkit").exists():
        pytest.skip("the kit is not set up by make")

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = ["make", *KEEP, *words]
        return subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture
def kaggle(checkout: Path, environment: dict[str, str]) -> Run:
    """Run `clotkit kaggle …` in a process of its own."""

    def run(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "clotkit.cli", "kaggle", *words]
        return subprocess.run(
            command, cwd=checkout, env=environment | more, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def changes(server: KaggleServer) -> list[str]:
    """Return the calls that have changed something."""
    return [
        call.method for call in server.calls if re.match(r"StartBlob|PUT|Create|Save|Delete|Update|Cancel", call.method)
    ]


def fails(done: "subprocess.CompletedProcess[str]", *names: str) -> None:
    """Expect exit code 2 and one line on stderr, with these names but without a traceback or a secret."""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("clotkit: ")
    assert [name for name in names if name not in lines[0]] == [], lines[0]
    assert not [
        secret for secret in ("Signature", "upload_id", "0123456789abcdef0123") if secret in done.stderr + done.stdout
    ]


def test_from_nothing_to_a_score_and_the_second_time_nothing_is_pushed(
    server: KaggleServer, checkout: Path, make: Run
) -> None:
    done = make(*CHAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "score 0.65432" in done.stdout
    assert "submit: on Kaggle" in done.stdout
    assert (checkout / "build/kernel/output/clotkit-strip-ai-infer-v1/submission.csv").is_file()
    version = server.kernels[REF].versions[0]
    assert version.source.encode() == (checkout / "build/rehearsal/script.py").read_bytes()
    assert version.mounted == {"alice/clotkit-weights": 1, "alice/clotkit-wheels": 1}
    assert sorted(server.datasets["alice/clotkit-wheels"].versions[0].files) == [
        "CONTENT.json", "cffi-1-cp312-cp312-manylinux_2_28_x86_64.whl", "pyvips-1-py3-none-any.whl"
    ]  # fmt: skip
    assert changes(server).count("SaveKernel") == changes(server).count("CreateCodeSubmission") == 1

    server.calls.clear()
    done = make(*CHAIN, "WEIGHTS=weights/demo")  # with kernel-push, submit is on Kaggle whatever WEIGHTS is
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing pushed") == 3
    assert "nothing is sent" in done.stdout
    assert "score 0.65432" in done.stdout
    assert changes(server) == []
    assert server.leaks == []


def test_submit_is_here_until_a_kernel_was_pushed_and_where_it_is_told_so(checkout: Path, make: Run) -> None:
    assert "submit.py --split build/phantom --weights weights/demo" in make("submit").stdout
    (checkout / "build" / "kernel").mkdir()
    (checkout / "build" / "kernel" / "pushed.json").write_text("{}")
    for word, said in (
        ("SPLIT=a", "--split a --weights weights/demo"),
        ("WEIGHTS=b", "--split build/phantom --weights b"),
    ):
        done = make("submit", word)
        assert "submit: here" in done.stdout
        assert f"submit.py {said}" in done.stdout
    fails(make("submit"), "pushed.json")


@pytest.mark.slow
def test_another_competition_has_paths_and_names_of_its_own(
    server: KaggleServer, checkout: Path, make: Run, kaggle: Run
) -> None:
    slug, build = "prostate-cancer-grade-assessment", checkout / "build"
    answers = b"image_id,isup_grade\n0a,3\n0b,0\n"
    server.competition.slug, server.competition.files = slug, {"sample_submission.csv": answers}
    server.on_run = lambda version: setattr(version, "outputs", {"submission.csv": answers})
    chain = (*CHAIN, "COMPETITION=panda", "-o", "build/phantom-train-panda/.made")
    fails(make(*chain, "WEIGHTS=weights/demo"), "demo", "mayo-clinic-strip-ai", slug)
    member = Path(shutil.copytree(checkout / "weights" / "demo", build / "weights-panda"))
    metrics = json.loads((member / "metrics.json").read_text()) | {"competition": slug}
    (member / "metrics.json").write_text(json.dumps(metrics))
    fails(make("kernel-push", "COMPETITION=panda"), "build/rehearsal-panda", "COMPETITION=panda")
    datasets = {"clotkit-panda-weights": weights_files(member), "clotkit-wheels": wheels_files(build / "wheels")}
    rehearsed(checkout / "kernels" / "infer", build / "rehearsal-panda", datasets, "panda")
    done = make(*chain)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "score 0.65432 (quadratic_weighted_kappa, higher is better)" in done.stdout
    assert (build / "kernel/output/clotkit-panda-infer-v1/submission.csv").read_bytes() == answers
    assert [path.name for path in (build / "kernel").glob("*.json")] == ["pushed-panda.json"]
    assert server.kernels["alice/clotkit-panda-infer"].versions[0].mounted == {
        "alice/clotkit-panda-weights": 1, "alice/clotkit-wheels": 1
    }  # fmt: skip
    fails(kaggle("wait"), "pushed.json")  # nothing was pushed for the default competition
    fails(kaggle("submit", "--competition", "visiomel"), "visiomel", "kaggle.hosted")


def test_a_kernel_that_was_not_rehearsed_stops_the_chain(server: KaggleServer, checkout: Path, make: Run) -> None:
    main = checkout / "kernels" / "infer" / "main.py"
    main.write_text(main.read_text() + "# changed since\n")
    fails(make(*CHAIN), "make dry-run")
    assert "SaveKernel" not in changes(server)


@pytest.mark.slow
def test_other_weights_than_were_rehearsed_stop_the_chain(server: KaggleServer, checkout: Path, make: Run) -> None:
    (checkout / "weights" / "demo" / "README.md").write_text("changed since")
    fails(make(*CHAIN), "clotkit-weights", "1 files", "demo/README.md")
    assert "SaveKernel" not in changes(server)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("CreateDataset", "status", None, status=400, message="not this"),
        Fault("SaveKernel", "status", None, status=409, message="not this"),
        Fault("CreateCodeSubmission", "status", None, status=403, message="not this"),
        Fault("GetDatasetStatus", "status", None, status=401, message="not this"),
    ],
)
def test_a_no_stops_the_chain_with_one_line(server: KaggleServer, make: Run, fault: Fault) -> None:
    server.faults.add(fault)
    fails(make(*CHAIN), str(fault.status), "not this")


@pytest.mark.slow
def test_a_run_that_fails_is_not_submitted(server: KaggleServer, make: Run) -> None:
    server.kernel_fate[REF] = "ERROR"
    fails(make(*CHAIN), "Your notebook threw an exception")
    assert server.submissions == []


@pytest.mark.slow
def test_a_scoring_error_is_translated(server: KaggleServer, make: Run) -> None:
    server.submission_error = "Notebook Timeout"
    fails(make(*CHAIN), MEANINGS[SubmissionFailure.TIMEOUT])


@pytest.mark.slow
def test_a_submission_that_is_not_valid_is_not_sent(server: KaggleServer, make: Run) -> None:
    def on_run(version: object) -> None:
        version.outputs = {"submission.csv": b"patient_id,CE,LAA\n006388,0.5,nan\n"}  # type: ignore[attr-defined]

    server.on_run = on_run
    fails(make(*CHAIN), "submission.csv")
    assert server.submissions == []


def test_without_credentials_one_line_says_how_to_get_them(kaggle: Run) -> None:
    for words in (["datasets-push"], ["kernel-push"], ["wait"], ["submit"], ["doctor"]):
        fails(kaggle(*words, KAGGLE_USERNAME="", KAGGLE_KEY=""), NO_CREDENTIALS[:60])


def test_a_file_that_cannot_be_read_is_one_line(server: KaggleServer, checkout: Path, kaggle: Run) -> None:
    (checkout / "weights" / "demo").rename(checkout / "weights" / "other")
    fails(kaggle("datasets-push"), "weights/demo")
    assert changes(server) == []
    with pytest.raises(UsageError, match="no/weights: No such file or directory"):
        verbs.run_verb(lambda _: Result(len(list(Path(checkout / "no" / "weights").iterdir()))), argparse.Namespace())


def test_another_endpoint_is_refused(kaggle: Run) -> None:
    fails(kaggle("doctor", CLOTKIT_KAGGLE_ENDPOINT="https://kaggle.example.org"), "kaggle.example.org")


def test_the_doctor_says_what_there_is(server: KaggleServer, kaggle: Run) -> None:
    done = kaggle("doctor")
    assert done.returncode == 0, done.stderr
    for said in ("kagglesdk ", "certifi ", "a legacy key of alice", server.endpoint, "5 left"):
        assert said in done.stdout
    assert "GPU: 29.0 of 30 hours" in done.stdout
    assert "TPU: 20.0 of 20 hours" in done.stdout
    server.faults.add(Fault("GetCompetition", "status", None, status=403, message="rules"))
    assert "(403, rules)" in kaggle("doctor").stdout
    assert changes(server) == []


def test_the_doctor_and_a_push_have_facts(server: KaggleServer, kaggle: Run, make: Run) -> None:
    facts = json.loads(kaggle("doctor", "--json").stdout)
    assert facts["credentials"]["kind"] == "legacy_key"
    assert facts["credentials"]["username"] == "alice"
    assert (facts["submissions"]["left"], facts["quota"]["gpu"]["left_h"]) == (5, 29.0)
    server.faults.add(Fault("GetCompetition", "status", None, status=403, message="rules"))
    assert json.loads(kaggle("doctor", "--json").stdout)["competition"]["error"]["code"] == "rules"
    server.faults.clear()
    pushed = json.loads(kaggle("datasets-push", "--json").stdout)["datasets"]
    assert [(one["ref"], one["version"], one["new"]) for one in pushed] == [
        ("alice/clotkit-weights", 1, True), ("alice/clotkit-wheels", 1, True)
    ]  # fmt: skip
    pushed = json.loads(kaggle("kernel-push", "--json").stdout)
    assert (pushed["ref"], pushed["version"], pushed["missing"]) == (REF, 1, [])
    submitted = json.loads(kaggle("submit", "--json").stdout)
    assert (submitted["version"], submitted["submission"], submitted["score"]) == (1, 1001, "0.65432")
    again = json.loads(kaggle("kernel-push", "--again", "--dry-run", "--json").stdout)
    assert again["dry_run"] is True


def test_members_as_a_model_from_nothing_to_a_score(server: KaggleServer, checkout: Path, make: Run) -> None:
    path = checkout / "build" / "rehearsal" / "rehearsal.json"
    facts = json.loads(path.read_text())
    facts["models"] = {"clotkit-members/keras/default": facts["datasets"].pop("clotkit-weights")}
    path.write_text(json.dumps(facts | {"inputs": {"weights": "model", "wheels": "dataset"}}))
    chain = ("models-push", *CHAIN)
    fails(make(*chain), "WEIGHTS_AS=dataset")
    server.datasets.clear()
    done = make(*chain, "WEIGHTS_AS=model")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "score 0.65432" in done.stdout
    body = server.kernels[REF].versions[0].body
    assert body["modelDataSources"] == ["alice/clotkit-members/keras/default/1"]
    assert (body["datasetDataSources"], list(server.datasets)) == (["alice/clotkit-wheels"], ["alice/clotkit-wheels"])
    server.calls.clear()
    assert make(*chain, "WEIGHTS_AS=model").stdout.count("nothing pushed") == 3
    assert changes(server) == []


def test_every_verb_of_the_chain_has_a_dry_run(server: KaggleServer, checkout: Path, kaggle: Run, make: Run) -> None:
    assert kaggle("datasets-push", "--dry-run").returncode == 0
    assert changes(server) == []
    make("datasets-push")
    server.calls.clear()
    done = kaggle("kernel-push", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would send kernels.KernelsApiService/SaveKernel" in done.stdout
    assert changes(server) == []
    assert not (checkout / "build" / "kernel").exists()
    make("kernel-push")
    server.calls.clear()
    done = kaggle("submit", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would send competitions.CompetitionApiService/CreateCodeSubmission" in done.stdout
    assert changes(server) == []


@pytest.mark.slow
def test_one_step_at_a_time(server: KaggleServer, checkout: Path, kaggle: Run, make: Run) -> None:
    fails(kaggle("wait"), "pushed.json", "make kernel-push")
    fails(kaggle("wait", "--kernel", REF), "--version N")
    assert make("datasets-push", "kernel-push").returncode == 0
    fails(kaggle("score"), REF)
    assert "COMPLETE" in kaggle("wait").stdout
    assert "  | 4 patients scored" in kaggle("logs", "--kernel", REF, "--version", "1").stdout
    assert kaggle("output", "--out", "here").returncode == 0
    assert (checkout / "here" / "submission.csv").is_file()
    fails(kaggle("output", "--file", "nothing.csv"), "nothing.csv")
    assert "score 0.65432" in kaggle("submit", "--sample", "here/submission.csv").stdout
    assert "score 0.65432" in kaggle("score").stdout
    assert "score 0.65432" in kaggle("score", "--ref", "1001").stdout
    assert len(server.submissions) == 1


def test_another_kernel_has_a_record_of_its_own(server: KaggleServer, checkout: Path, make: Run) -> None:
    assert make("kernel-push", "KERNEL=imagenet").returncode == 0
    assert [path.name for path in (checkout / "build" / "kernel").iterdir()] == ["pushed-imagenet.json"]
    assert list(server.kernels) == ["alice/clotkit-imagenet-fetch"]


LITE0 = "build/backbones/efficientnet_lite0_notop.weights.h5"


def left_by(version: KernelVersion) -> dict[str, bytes]:
    """Return small output files of a run of the tiling or the training kernel."""
    if version.ref.endswith("-tile"):
        return {"tiles/strip_ai.tar": packed({"shards.csv": b"image_id"}), "tiles/MANIFEST.json": b"{}"}
    member = {f"weights/strip_ai/{path.name}": path.read_bytes() for path in (ROOT / "weights" / "demo").iterdir()}
    return member | {"weights/MANIFEST.json": b"{}", "summary.json": b"{}"}


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.slow
def test_from_slides_to_weights_on_kaggle_alone(server: KaggleServer, checkout: Path, make: Run) -> None:
    for name in ("tile", "train"):
        rehearsed(checkout / "kernels" / name, checkout / "build" / f"rehearsal-{name}")
    (checkout / LITE0).parent.mkdir(parents=True)
    (checkout / LITE0).write_bytes(b"weights")
    server.on_run = lambda version: setattr(version, "outputs", left_by(version))
    steps: list[tuple[str, ...]] = [
        ("datasets-push", "DATASET=wheels"),
        ("kernel-push", "KERNEL=tile"),
        ("kernel-output", "KERNEL=tile"),
        ("datasets-push", "DATASET=tiles"),
        ("-o", LITE0, "datasets-push", "DATASET=imagenet"),
        ("kernel-push", "KERNEL=train"),
        ("kernel-output", "KERNEL=train"),
        ("datasets-push", "DATASET=weights", "WEIGHTS=build/kaggle/train/weights"),
        ("kernel-push", "KERNEL=tile", "ATTACH=tiles"),
        ("datasets-push", "DATASET=progress"),
        ("kernel-push", "KERNEL=train", "ATTACH=progress"),
    ]
    for step in steps:
        done = make(*step)
        assert done.returncode == 0, (step, done.stdout + done.stderr)
    tile, learn = (server.kernels[f"alice/clotkit-strip-ai-{name}"].versions for name in ("tile", "train"))
    assert tile[0].mounted == {"alice/clotkit-wheels": 1}
    assert tile[1].mounted == {"alice/clotkit-wheels": 1, "alice/clotkit-tiles": 1}
    asked = {f"alice/clotkit-{name}": 1 for name in ("tiles", "imagenet", "wheels")}
    assert learn[0].mounted == asked
    assert learn[1].mounted == asked | {"alice/clotkit-progress": 1}
    assert learn[0].body["machineShape"] == "NvidiaTeslaT4"
    assert (checkout / "build/kaggle/tile/tiles/strip_ai.tar").is_file()
    files = {name: set(server.datasets[f"alice/clotkit-{name}"].versions[0].files) for name in ("tiles", "weights")}
    assert any("strip_ai" in name for name in files["tiles"])
    assert any("strip_ai" in name for name in files["weights"])


@pytest.mark.slow
def test_a_kernel_of_the_chain_asks_for_its_own_rehearsal_and_its_data(
    server: KaggleServer, checkout: Path, make: Run
) -> None:
    fails(make("kernel-push", "KERNEL=tile"), "make dry-run KERNEL=tile")
    rehearsed(checkout / "kernels" / "train", checkout / "build" / "rehearsal-train")
    fails(make("kernel-push", "KERNEL=train"), "clotkit-tiles", "make datasets-push")
    fails(make("datasets-push", "DATASET=tiles"), "build/kaggle/tile/tiles")
    assert changes(server) == []


def official(checkout: Path, environment: dict[str, str], *words: str) -> str:
    """Run Kaggle's own command line, which the kit does not use, and return what it prints."""
    command = [sys.executable, "-m", "kaggle.cli", *words]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_kaggles_own_command_line_says_the_same_over_the_wire(
    server: KaggleServer, checkout: Path, environment: dict[str, str], make: Run
) -> None:
    assert make("datasets-push", "kernel-push").returncode == 0
    folder = checkout / "build" / "official"
    folder.mkdir()
    strip_ai = load_competition()
    metadata = read_metadata(checkout / "kernels" / "infer" / "kernel-metadata.json", strip_ai, "")
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata).replace("OWNER", "alice"))
    shutil.copyfile(checkout / "build" / "rehearsal" / "script.py", folder / "script.py")
    official(checkout, environment, "kernels", "push", "-p", str(folder))
    ours, theirs = server.asked("SaveKernel")
    assert ours == theirs
    metadata = read_metadata(checkout / "datasets_meta" / "weights" / "dataset-metadata.json", strip_ai, "")
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata).replace("OWNER/clotkit", "alice/other"))
    (folder / "kernel-metadata.json").unlink()
    official(checkout, environment, "datasets", "create", "-p", str(folder))
    created = {str(said["slug"]): said for said in server.asked("CreateDataset")}
    ours, theirs = created["clotkit-weights"], created["other-weights"]
    left_out = {"slug", "files"}
    assert {name: value for name, value in theirs.items() if name not in left_out} == {
        name: value for name, value in ours.items() if name not in left_out
    }
    assert {name for file in ours["files"] for name in file} == {"token"}
    listed = official(checkout, environment, "datasets", "files", "alice/clotkit-weights")
    assert [name for name in ("CONTENT.json", "MANIFEST.json", "demo.tar") if name not in listed] == []
