"""The house's rules, read off the imports: who may import what, and what a light import must not bring."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

SRC = ROOT / "src"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in SRC.rglob("*.py")
}

# what is kept in one place: the import's top name, and the modules that may have it
KEPT = {
    "pyvips": {"clotkit.slides.reader"},
    "openslide": {"clotkit.slides.reader"},
    "tensorflow": {"clotkit.learn.devices", "clotkit.learn.feed", "clotkit.learn.heat", "clotkit.learn.loop"},
    "keras": {
        "clotkit.learn.augment",
        "clotkit.learn.backbones",
        "clotkit.learn.devices",
        "clotkit.learn.evaluate",
        "clotkit.learn.fit",
        "clotkit.learn.heat",
        "clotkit.learn.loop",
        "clotkit.learn.models",
        "clotkit.learn.networks",
        "clotkit.learn.train",
    },
    "fsspec": {"clotkit.stores"},
    "distributed": {"clotkit.engines"},
    "dask": {"clotkit.engines"},
    "joblib": {"clotkit.engines"},
    "fcntl": {"clotkit.scratch", "clotkit.learn.shard_folder"},
    "matplotlib": {"clotkit.learn.plots"},
    "imblearn": {"clotkit.learn.fit"},
    "imagehash": {"clotkit.learn.twins"},
    "jinja2": {"clotkit.learn.errors_page"},
    "streamlit": {
        "clotkit.app.common",
        "clotkit.app.pages",
        "clotkit.app.page_classify",
        "clotkit.app.page_slides",
        "clotkit.app.page_submission",
        "clotkit.app.page_training",
        "clotkit.app.serve",
    },
    "multiprocessing": {"clotkit.infer.workers"},
    "signal": {"clotkit.infer.workers", "clotkit.learn.meeting", "clotkit.supervise"},
    "resource": {"clotkit.infer.workers"},
    "subprocess": {"clotkit.kaggle.rehearse", "clotkit.kaggle.environment", "clotkit.supervise"},
    "psutil": {"clotkit.kaggle.rehearse"},
    "kagglesdk": {"clotkit.kaggle.client", "clotkit.kaggle.credentials"},  # credentials: where they are looked for
    "kaggle": set(),
    "requests": {"clotkit.kaggle.client"},
    "urllib": {"clotkit.kaggle.client"},
    "urllib3": {"clotkit.kaggle.client"},
    "http": set(),
    "socket": {"clotkit.learn.meeting"},  # workers that train together
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
    return found


def top_level_imports_of(path: Path) -> set[str]:
    """The kit's own modules that a file imports when it is imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(MODULES)


@pytest.mark.parametrize("kept", KEPT)
def test_each_heavy_or_risky_thing_has_one_home(kept: str) -> None:
    users = {name for name, path in MODULES.items() if kept in {found.split(".")[0] for found in imports_of(path)}}
    assert users <= KEPT[kept]


def test_no_cycle() -> None:
    graph = {name: top_level_imports_of(path) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_data_flows_one_way() -> None:
    for name, path in MODULES.items():
        imported = imports_of(path)
        if name.startswith("clotkit.slides"):
            assert not [other for other in imported if other.startswith(("clotkit.learn", "clotkit.infer"))], name
        if not name.startswith(("clotkit.app", "clotkit.cli")):
            assert not [other for other in imported if other.startswith("clotkit.app")], name
        if not name.startswith(("clotkit.kaggle", "clotkit.cli")):
            assert not [other for other in imported if other.startswith("clotkit.kaggle")], name


@pytest.mark.parametrize(
    "module",
    ["clotkit.cli", "clotkit.infer.workers", "clotkit.slides.tiling", "clotkit.slides.reader",
     "clotkit.infer.pipeline", "clotkit.learn.models", "clotkit.kaggle.client", "clotkit.kaggle.rehearse",
     "clotkit.kaggle.datasets", "clotkit.kaggle.kernels", "clotkit.kaggle.submissions", "clotkit.kaggle.verbs"],
)  # fmt: skip
def test_light_imports_bring_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([name for name in ('tensorflow', 'keras', 'pyvips', 'kaggle', 'sklearn') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    ["clotkit.infer.submission", "clotkit.competitions", "clotkit.infer.report", "clotkit.splits", "clotkit.supervise"],
)
def test_what_the_supervisor_needs_is_standard_library(module: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); import {module}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.mark.parametrize(
    "word", ["strip_ai", "strip-ai", "mayo", '"CE"', "LAA", '"image_id"', '"patient_id"', "006388"]
)
def test_nothing_but_its_toml_knows_the_competition(word: str) -> None:
    report_keys = {"clotkit/infer/report.py"}  # image_id and patient_id are the report's own names
    knowing = [
        str(path.relative_to(SRC))
        for path in [*SRC.rglob("*.py"), *(ROOT / "kernels").glob("*/main.py")]
        if word in code_of(path)
        and str(path.relative_to(ROOT / "src" if SRC in path.parents else ROOT)) not in report_keys
    ]
    allowed = {"strip_ai": {"clotkit/competitions/__init__.py", "clotkit/cli.py"}}
    assert set(knowing) <= allowed.get(word, set()), f"{word} stands in {knowing}"


def code_of(path: Path) -> str:
    """A module's code without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree).replace("'", '"')
