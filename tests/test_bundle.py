"""Test the bundle: the same bytes from the same files, all modules in it, within Kaggle's limit."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clotkit import __version__
from clotkit.bundle import build, checkout
from clotkit.bundle.notebook import KernelType, as_notebook, code_of, type_of, without_outputs
from clotkit.cli import main
from clotkit.competitions import FOLDER as COMPETITIONS
from clotkit.competitions import Competition
from clotkit.errors import ConfigError, RehearsalError
from clotkit.kaggle.datasets import read_metadata
from clotkit.reasons import RehearsalKind
from clotkit.versions import without_docstrings

from .conftest import ROOT
from .test_architecture import MODULES, imports_of

KERNEL = ROOT / "kernels" / "infer"
KERNELS = [ROOT / "kernels" / name for name in ("infer", "tile", "train")]
MAX_BYTES = 950_000  # our own limit; Kaggle takes 1,000,000


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_same_files_give_the_same_bytes(kernel: Path, tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        assert main(["bundle", "--kernel", str(kernel), "--out", str(tmp_path / name)]) == 0
    one, two = (tmp_path / name for name in ("one.py", "two.py"))
    assert one.read_bytes() == two.read_bytes()
    assert len(one.read_bytes()) < MAX_BYTES < build.LIMIT_BYTES


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_bundle_unpacks_itself(kernel: Path, tmp_path: Path) -> None:
    script = build.build_bundle(kernel, "strip_ai")
    assert build.UNPACK_LINE not in script
    space: dict[str, Any] = {"__name__": "bundle"}
    exec(compile(script, "script.py", "exec"), space)
    before = list(sys.path)
    assert space["unpack"](space["FILES"], tmp_path / "code") == tmp_path / "code"
    added, sys.path[:] = sys.path[:1], before
    assert added == [str(tmp_path / "code")]
    carried = {name: (tmp_path / "code" / name).read_text(encoding="utf-8") for name in space["FILES"]}
    assert carried == space["FILES"]
    assert "clotkit/bundle/build.py" not in carried


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_notebook_is_one_cell_with_the_script(kernel: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.ipynb"
    assert main(["bundle", "--kernel", str(kernel), "--kernel-type", "notebook", "--out", str(out)]) == 0
    script = build.build_bundle(kernel, "strip_ai")
    assert out.read_text(encoding="utf-8") == as_notebook(script)
    assert len(out.read_bytes()) < MAX_BYTES
    notebook = nbformat.read(out, as_version=4)
    nbformat.validate(notebook)
    assert [cell.source for cell in notebook.cells] == [script]
    assert build.bundle_sha256(out.read_text(encoding="utf-8")) == build.bundle_sha256(script)


@given(st.text())
def test_a_notebook_gives_its_script_back(text: str) -> None:
    assert code_of(as_notebook(text)) == text
    assert json.loads(without_outputs(as_notebook(text))) == json.loads(as_notebook(text))
    assert code_of("\ufeff" + as_notebook(text)) == text
    assert without_outputs("\ufeff" + as_notebook(text)) == without_outputs(as_notebook(text))


CELL_KEYS = st.sampled_from(["cell_type", "source", "outputs"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELL_KEYS | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON | st.dictionaries(CELL_KEYS, JSON), max_size=3))
@example([1])
@example([{"cell_type": "code", "source": None}])
@example([{"cell_type": "code", "source": [1]}])
def test_a_file_that_is_no_notebook_is_a_value_error(cells: list[Any]) -> None:
    text = json.dumps({"cells": cells})
    try:
        without_outputs(text)
    except ValueError:
        assert code_of(text) == text
    else:
        assert isinstance(code_of(text), str)


def test_a_notebook_nested_too_deeply_is_a_value_error() -> None:
    text = '{"cells": ' + "[" * 200_000
    with pytest.raises(ValueError, match="nested"):
        without_outputs(text)


@pytest.mark.parametrize(
    ("metadata", "kernel_type"),
    [
        (None, KernelType.SCRIPT),
        (b"{}", KernelType.SCRIPT),
        (b'{"kernel_type": "notebook"}', KernelType.NOTEBOOK),
        (b'\xef\xbb\xbf{"kernel_type": "notebook"}', KernelType.NOTEBOOK),
        (b'{"kernel_type": "notebook"', None),
        (b'{"kernel_type": "colab"}', None),
        (b'{"kernel_type": ["script"]}', None),
        (b"[]", None),
        (b"\xff", None),
    ],
)
def test_the_type_of_a_kernel_is_that_of_its_metadata(
    metadata: bytes | None, kernel_type: KernelType | None, tmp_path: Path
) -> None:
    if metadata is not None:
        (tmp_path / "kernel-metadata.json").write_bytes(metadata)
    assert type_of(tmp_path, "script") is KernelType.SCRIPT
    if kernel_type is None:
        with pytest.raises(ConfigError):
            type_of(tmp_path, None)
    else:
        assert type_of(tmp_path, None) is kernel_type


@pytest.mark.parametrize("main_py", sorted(ROOT.glob("kernels/*/main.py")), ids=lambda path: path.parent.name)
def test_a_kernel_that_succeeds_does_not_call_exit(main_py: Path) -> None:
    assert "sys.exit(main())" not in main_py.read_text(encoding="utf-8")  # a notebook would end with an error


def test_a_second_run_of_the_cell_has_its_modules(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(build.build_bundle(KERNEL, "strip_ai"))
    code = (
        "import runpy, shutil, sys; from pathlib import Path\n"
        "unpack, files = map(runpy.run_path(sys.argv[1], run_name='cell').get, ('unpack', 'FILES'))\n"
        "for name in 'ab':\n"
        "    folder = unpack(files, Path(sys.argv[2]) / name)\n"
        "    from clotkit.competitions import load_competition\n"
        "    load_competition('strip_ai')\n"
        "    shutil.rmtree(folder)\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(script), str(tmp_path)], check=True)


def test_the_header_has_the_hash_of_what_follows() -> None:
    script = build.build_bundle(KERNEL, "strip_ai")
    body = script.split("\n", 2)[2]
    assert build.bundle_sha256(script) == hashlib.sha256(body.encode()).hexdigest()
    assert __version__ in script.splitlines()[0]


def test_a_bundle_carries_its_own_competition_alone(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text((COMPETITIONS / "panda.toml").read_text())
    for competition in ("panda", str(own)):
        files, settings = carried_by(KERNEL, competition)
        stem = Path(competition).stem
        assert settings == {"competition": stem}
        assert [name for name in files if "competitions/" in name and not name.endswith(".py")] == [
            "clotkit/competitions/default.txt", f"clotkit/competitions/{stem}.toml"
        ]  # fmt: skip
        assert files["clotkit/competitions/default.txt"].strip() == stem
    with pytest.raises(ConfigError, match="known: "):
        build.build_bundle(KERNEL, "none")


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_bundle_has_no_word_of_the_default_competition(kernel: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(kernel, tmp_path / kernel.name))
    if (own / "settings.toml").is_file():
        (own / "settings.toml").write_text((kernel / "settings.toml").read_text().replace("{competition}", "demo"))
    script = build.build_bundle(own, "ubc_ocean")
    assert re.findall(r"(?i:mayo|strip[ _-]?ai\b|clotkit-strip)|\bSTRIP\b", script) == []


def carried_by(kernel: Path, competition: str = "strip_ai") -> tuple[dict[str, str], dict[str, object]]:
    """Return FILES and SETTINGS of a kernel's bundle."""
    space: dict[str, object] = {"__name__": "bundle"}
    exec(compile(build.build_bundle(kernel, competition), "script.py", "exec"), space)
    files, settings = space["FILES"], space["SETTINGS"]
    assert isinstance(files, dict)
    assert isinstance(settings, dict)
    return files, settings


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_modules_in_it_are_the_modules(kernel: Path) -> None:
    files, _ = carried_by(kernel)
    for name, text in files.items():
        source = (ROOT / "src" / name).read_text(encoding="utf-8")
        assert text == (without_docstrings(source) if name.endswith(".py") else source)
    assert "clotkit/competitions/strip_ai.toml" in files
    assert not any("phantom" in name or "/kaggle/" in name for name in files)
    assert any("train" in name for name in files) == (kernel.name == "train")


def test_recipes_travel_with_the_kernels_that_need_them(recipe: Path, tmp_path: Path) -> None:
    for name in ("tile", "train"):
        files, settings = carried_by(ROOT / "kernels" / name)
        assert {"clotkit/recipes/strip_ai.toml", "clotkit/recipes/demo.toml"} <= set(files)
        assert (settings["recipes"], settings["rehearse"]) == (["strip_ai"], ["demo"])
    assert carried_by(KERNEL)[1] == {"competition": "strip_ai"}
    own = Path(shutil.copytree(ROOT / "kernels" / "tile", tmp_path / "own"))
    shutil.copyfile(recipe, own / "tiny.toml")
    settings_toml = own / "settings.toml"
    settings_toml.write_text(settings_toml.read_text().replace('"{competition}"', '"tiny.toml"'))
    files, settings = carried_by(own)
    assert settings["recipes"] == ["tiny"]
    assert files["clotkit/recipes/tiny.toml"] == recipe.read_text()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('job = "fly"\n', "'fly'"),
        ('job = "tile"\nrecipes = ["demo"]\n', "rehearse"),
        ('job = "tile"\nspeed = 1\n', "speed"),
        ("job = \n", "settings.toml"),
        ('job = "tile"\nrecipes = ["none"]\nrehearse = ["demo"]\ndeadline_s = 1\n', "none.toml"),
    ],
)
def test_wrong_settings_are_one_line(text: str, name: str, tmp_path: Path) -> None:
    kernel = Path(shutil.copytree(ROOT / "kernels" / "tile", tmp_path / "tile"))
    (kernel / "settings.toml").write_text(text)
    with pytest.raises(ConfigError, match=name) as caught:
        build.build_bundle(kernel, "strip_ai")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("job", build.VERBS_OF)
def test_what_its_modules_import_is_in_it(job: str) -> None:
    """Check the kit's own imports, lazy ones too; verbs that a kernel does not run are not carried."""
    files = build.module_files(job, "from clotkit.supervise import say\n")
    modules = [name for name in files if name.endswith(".py")]
    carried = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in modules}
    for name in carried:
        assert imports_of(name) & set(MODULES) <= carried, name
    assert {name for name in carried if name.endswith("verbs")} == {build.VERBS_OF[job]}
    assert ("clotkit/report/report.html.j2" in files) == ("clotkit.report.page" in carried)


def test_another_competition_travels_with_it(other_toml: Path) -> None:
    script = build.build_bundle(KERNEL, str(other_toml))
    assert "clotkit/competitions/three_moulds.toml" in script
    assert "strip_ai.toml" not in script


def test_one_byte_changes_the_hash(tmp_path: Path) -> None:
    changed = tmp_path / "infer"
    shutil.copytree(KERNEL, changed)
    with (changed / "main.py").open("a") as file:
        file.write("# one more line\n")
    hashes = {build.bundle_sha256(build.build_bundle(kernel, "strip_ai")) for kernel in (KERNEL, changed)}
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("main_py", "kind"),
    [
        (None, RehearsalKind.SOURCE),
        ("print('no place for the modules')\n", RehearsalKind.SOURCE),
        (build.FILES_LINE + build.SETTINGS_LINE + "def (:\n", RehearsalKind.SOURCE),
        (build.FILES_LINE + build.SETTINGS_LINE + "# " + "x" * build.LIMIT_BYTES + "\n", RehearsalKind.TOO_LARGE),
    ],
    ids=["no main.py", "no marker lines", "not Python", "too large"],
)
def test_what_kaggle_would_refuse_is_refused(main_py: str | None, kind: RehearsalKind, tmp_path: Path) -> None:
    if main_py is not None:
        (tmp_path / "main.py").write_text(main_py)
    with pytest.raises(RehearsalError, match=r"main\.py|1,000,000") as caught:
        build.build_bundle(tmp_path, "strip_ai")
    assert caught.value.kind is kind


def test_outside_a_checkout_one_line_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bundle", "--out", "script.py"]) == 0  # from the checkout that the package is imported from
    monkeypatch.setattr(checkout, "SOURCE", tmp_path)  # as an installed package
    capsys.readouterr()
    for words in (["bundle"], ["rehearse"], ["kaggle", "kernel-push"], ["kaggle", "datasets-push"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "git clone" in line
        assert "kernels" in line or "datasets_meta" in line


def test_kernel_metadata_is_what_the_kernel_needs(strip_ai: Competition) -> None:
    metadata = read_metadata(KERNEL / "kernel-metadata.json", strip_ai, "")
    slug = metadata["id"].split("/")[1]
    assert re.sub(r"[^a-z0-9]+", "-", metadata["title"].lower()) == slug  # else Kaggle files it under the title's slug
    assert 5 <= len(metadata["title"]) <= 50
    assert metadata["enable_internet"] is False
    assert metadata["competition_sources"] == [strip_ai.slug]
    datasets = [read_metadata(path, strip_ai, "") for path in sorted((ROOT / "datasets_meta").glob("*/*.json"))]
    known = {dataset["id"] for dataset in datasets}
    assert set(metadata["dataset_sources"]) == {"OWNER/clotkit-weights", "OWNER/clotkit-wheels"} <= known
    for dataset in datasets:
        assert 6 <= len(dataset["title"]) <= 50
        assert 20 <= len(dataset["subtitle"]) <= 80
        assert len(dataset["licenses"]) == 1


@given(texts=st.dictionaries(st.text("ab/.", min_size=1), st.text("a'\\\"\r\n {}é\u2028", max_size=12)))
def test_every_text_is_carried_as_it_is(texts: dict[str, str]) -> None:
    names: dict[str, dict[str, str]] = {}
    exec("".join(build.literal(texts)), names)
    assert names["FILES"] == texts
