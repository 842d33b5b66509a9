"""The bundle: the same bytes from the same files, everything in it, within Kaggle's limit."""

import hashlib
import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.errors import RehearsalError
from clotkit.kaggle import bundle

from .conftest import ROOT
from .test_architecture import MODULES, imports_of, top_level_imports_of

KERNEL = ROOT / "kernels" / "infer"


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        assert main(["bundle", "--kernel", str(KERNEL), "--out", str(tmp_path / name)]) == 0
    one, two = (tmp_path / name for name in ("one.py", "two.py"))
    assert one.read_bytes() == two.read_bytes()
    assert len(one.read_bytes()) < bundle.LIMIT_BYTES


def test_the_header_has_the_hash_of_what_follows() -> None:
    script = bundle.build_bundle(KERNEL, "strip_ai")
    body = script.split("\n", 2)[2]
    assert bundle.bundle_sha256(script) == hashlib.sha256(body.encode()).hexdigest()
    assert importlib.metadata.version("clotkit") in script.splitlines()[0]


def test_the_modules_in_it_are_the_modules(tmp_path: Path) -> None:
    space: dict[str, object] = {"__name__": "bundle"}
    exec(compile(bundle.build_bundle(KERNEL, "strip_ai"), "script.py", "exec"), space)
    files = space["FILES"]
    assert isinstance(files, dict)
    for name, text in files.items():
        assert text == (ROOT / "src" / name).read_text(encoding="utf-8")
    assert "clotkit/competitions/strip_ai.toml" in files
    assert not any("phantom" in name or "/kaggle/" in name or "train" in name for name in files)


def test_what_its_modules_import_is_in_it() -> None:
    """The kit's own imports, lazy ones too; of the command line only what it imports at once."""
    carried = {
        name.removesuffix(".py").replace("/", ".").removesuffix("__init__").rstrip(".") for name in bundle.MODULES
    }
    carried = {f"clotkit.{name}".rstrip(".") for name in carried}
    for name in carried:
        read = top_level_imports_of if name == "clotkit.cli" else imports_of
        assert read(MODULES[name]) & set(MODULES) <= carried, name


def test_another_competition_travels_with_it(other_toml: Path) -> None:
    script = bundle.build_bundle(KERNEL, str(other_toml))
    assert "clotkit/competitions/three_moulds.toml" in script
    assert "strip_ai.toml" not in script


def test_one_byte_changes_the_hash(tmp_path: Path) -> None:
    changed = tmp_path / "infer"
    shutil.copytree(KERNEL, changed)
    with (changed / "main.py").open("a") as file:
        file.write("# one more line\n")
    hashes = {bundle.bundle_sha256(bundle.build_bundle(kernel, "strip_ai")) for kernel in (KERNEL, changed)}
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("main_py", "words"),
    [
        (None, "No such file"),
        ("print('no place for the modules')\n", "0 times"),
        (bundle.FILES_LINE + bundle.SETTINGS_LINE + "def (:\n", "no Python: line"),
        (bundle.FILES_LINE + bundle.SETTINGS_LINE + "# " + "x" * bundle.LIMIT_BYTES + "\n", "Kaggle takes 1,000,000"),
    ],
)
def test_what_kaggle_would_refuse_is_refused(main_py: str | None, words: str, tmp_path: Path) -> None:
    if main_py is not None:
        (tmp_path / "main.py").write_text(main_py)
    with pytest.raises(RehearsalError, match=words):
        bundle.build_bundle(tmp_path, "strip_ai")


def test_kernel_metadata_is_what_the_kernel_needs(strip_ai: Competition) -> None:
    metadata = json.loads((KERNEL / "kernel-metadata.json").read_text())
    slug = metadata["id"].split("/")[1]
    assert re.sub(r"[^a-z0-9]+", "-", metadata["title"].lower()) == slug  # else Kaggle files it under the title's slug
    assert 5 <= len(metadata["title"]) <= 50
    assert metadata["enable_internet"] is False
    assert metadata["competition_sources"] == [strip_ai.slug]
    datasets = [json.loads(path.read_text()) for path in sorted((ROOT / "datasets_meta").glob("*/*.json"))]
    known = {dataset["id"] for dataset in datasets}
    needed = {name for name in known if not name.endswith("-imagenet")}  # that one is for training
    assert set(metadata["dataset_sources"]) == needed
    for dataset in datasets:
        assert 6 <= len(dataset["title"]) <= 50
        assert 20 <= len(dataset["subtitle"]) <= 80
        assert len(dataset["licenses"]) == 1
