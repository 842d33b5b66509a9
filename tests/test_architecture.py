"""Hold the code to its rules: imports, sizes of packages and functions, first lines of docstrings."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

from tools import docstrings, functions

from .conftest import ROOT

SRC = ROOT / "src"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in SRC.rglob("*.py")
}
MOST_MODULES, MOST_SHARE = 15, 0.15  # of one package: modules, and its share of the lines of src/
HEAVY = ("tensorflow", "keras", "pyvips", "kaggle", "sklearn", "onnxruntime")
LIGHT = [
    "clotkit.cli", "clotkit.workers", "clotkit.tiling.tilers", "clotkit.slides.reader", "clotkit.scoring.pipeline",
    "clotkit.members.loading", "clotkit.kaggle.client", "clotkit.rehearsal.scoring", "clotkit.kaggle.datasets",
    "clotkit.kaggle.kernels", "clotkit.kaggle.submissions", "clotkit.kaggle.verbs",
]  # fmt: skip
SUPERVISOR = [
    "clotkit.submission.writing", "clotkit.competitions", "clotkit.report.records", "clotkit.splits",
    "clotkit.supervise", "clotkit.serving.predictor", "clotkit.serving.discovery",
]  # fmt: skip
ONLY_IN_ITS_TOML = ["strip_ai", "strip-ai", "mayo", '"CE"', "LAA", '"image_id"', '"patient_id"', "006388"]
MAY_KNOW = {
    ("clotkit/synthetic/phantom_tables.py", '"image_id"'),  # placeholders of the TOML
    ("clotkit/synthetic/phantom_tables.py", '"patient_id"'),
    ("clotkit/report/records.py", '"image_id"'),  # the report's own field names
    ("clotkit/report/records.py", '"patient_id"'),
    ("clotkit/report/page.py", '"image_id"'),
    ("clotkit/report/page.py", '"patient_id"'),
}

# {top-level name of an import: the modules that may import it}
HOMES: dict[str, set[str]] = {
    "pyvips": {"clotkit.slides.reader"},
    "openslide": {"clotkit.slides.reader"},
    "tensorflow": {
        "clotkit.training.devices",
        "clotkit.training.feed",
        "clotkit.members.heat",
        "clotkit.training.trainers",
    },
    "keras": {
        "clotkit.training.augment",
        "clotkit.members.backbones",
        "clotkit.training.devices",
        "clotkit.evaluation.loaded_member",
        "clotkit.training.epochs",
        "clotkit.training.fit",
        "clotkit.training.frozen",
        "clotkit.members.heads",
        "clotkit.members.heat",
        "clotkit.training.trainers",
        "clotkit.members.loading",
        "clotkit.members.networks",
        "clotkit.training.cross_validation",
        "clotkit.members.encoders.heads",
        "clotkit.training.mil.fit",
        "clotkit.training.mil.linear",
        "clotkit.training.mil.losses",
    },
    "onnxruntime": {"clotkit.members.onnx.session"},
    "tf2onnx": {"clotkit.importing.exporting"},
    "onnx": set(),  # no dependency of the kit: it reads files by members.onnx.header
    "fsspec": {"clotkit.stores"},
    "distributed": {"clotkit.engines"},
    "dask": {"clotkit.engines"},
    "joblib": {"clotkit.engines"},
    "fcntl": {"clotkit.scratch", "clotkit.locks", "clotkit.rehearsal.confined.jail"},
    "matplotlib": {"clotkit.evaluation.plots", "clotkit.tuning.plots"},
    "optuna": {"clotkit.tuning.objective", "clotkit.tuning.study", "clotkit.tuning.tune", "clotkit.tuning.verbs"},
    "imblearn": {"clotkit.training.resampling"},
    "imagehash": {"clotkit.data.near_duplicates"},
    "jinja2": {
        "clotkit.evaluation.errors_page",
        "clotkit.report.page",
        "clotkit.app.web.rendering",
    },
    "uvicorn": {"clotkit.app.web.server"},
    "anyio": {"clotkit.app.deepzoom.routes"},
    "starlette": {
        "clotkit.app.security",
        "clotkit.app.deepzoom.routes",
        "clotkit.app.web.shared",
        "clotkit.app.web.rendering",
        "clotkit.app.web.server",
        "clotkit.app.web.home",
        "clotkit.app.web.classify",
        "clotkit.app.web.slides",
        "clotkit.app.web.runs",
        "clotkit.app.web.submission",
        "clotkit.app.web.training",
        "clotkit.app.web.competition",
        "clotkit.app.web.watching",
        "clotkit.app.web.view",
    },
    "multiprocessing": {"clotkit.workers", "clotkit.forking", "clotkit.app.deepzoom.process"},
    "signal": {
        "clotkit.forking",
        "clotkit.locks",
        "clotkit.workers",
        "clotkit.training.rendezvous",
        "clotkit.supervise",
        "clotkit.containers.entry",
    },
    "resource": {"clotkit.workers"},
    "subprocess": {
        "clotkit.rehearsal.sandbox",
        "clotkit.rehearsal.server",  # only an exception
        "clotkit.rehearsal.environment",
        "clotkit.rehearsal.execute_notebook",
        "clotkit.rehearsal.confined.container",
        "clotkit.rehearsal.grand_challenge",
        "clotkit.rehearsal.confined.invoke",
        "clotkit.rehearsal.confined.jail",
        "clotkit.supervise",
        "clotkit.app.starting",
        "clotkit.serving.backend",  # the process that has the members
        "clotkit.looking",  # a process that may be left behind while it looks at a file
    },
    "nbclient": {"clotkit.rehearsal.execute_notebook"},
    "psutil": {"clotkit.rehearsal.confined.trees", "clotkit.rehearsal.server", "clotkit.rehearsal.confined.container"},
    "grpc": {"clotkit.rehearsal.standin.relay"},
    "polars": {"clotkit.submission.parquet"},  # frames of a gateway are told by their methods
    "kagglesdk": {"clotkit.kaggle.client"},
    "kaggle": set(),
    "requests": {"clotkit.kaggle.client", "clotkit.kaggle.failures"},  # the second: only the exceptions
    "urllib": {
        "clotkit.kaggle.client",
        "clotkit.rehearsal.confined.invoke",
    },  # the second: loopback, inside a container
    "urllib3": {"clotkit.kaggle.client", "clotkit.kaggle.failures"},
    "http": {"clotkit.containers.entry"},
    # The second: a pair of this machine; the third: its loopback device.
    "socket": {"clotkit.training.rendezvous", "clotkit.forking", "clotkit.rehearsal.confined.jail"},
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return every module that a module imports, inside functions too."""
    return _imported(ast.walk(tree_of(MODULES[module])))


@cache
def top_level_imports_of(module: str) -> frozenset[str]:
    """Return the kit's modules that a module imports when it is imported itself."""
    return _imported(tree_of(MODULES[module]).body) & MODULES.keys()


def _imported(nodes: Iterable[ast.AST]) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
    return frozenset(found)


@cache
def code_of(path: Path) -> str:
    """Return a module's code without comments and docstrings, its strings in double quotes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree).replace("'", '"')


def package_of(module: str) -> str:
    """Return the package that a module is in; a top-level module counts as a package of its own."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return module if package == "clotkit" else package


def assert_no_cycle(graph: Mapping[str, set[str] | frozenset[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", HOMES)
def test_each_heavy_or_risky_import_has_its_homes(name: str) -> None:
    users = {module for module in MODULES if name in {found.split(".")[0] for found in imports_of(module)}}
    assert users <= HOMES[name]


def test_no_cycle_between_modules() -> None:
    assert_no_cycle({module: top_level_imports_of(module) for module in MODULES})


def test_imports_run_one_way_between_packages() -> None:
    """For every pair of packages, imports inside functions included, no path leads back."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        others = {package_of(other) for other in imports_of(module) & MODULES.keys()}
        graph.setdefault(package_of(module), set()).update(others - {package_of(module), "clotkit"})
    assert_no_cycle(graph)


def test_no_package_is_crowded() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    packages = {package_of(module) for module, path in MODULES.items() if path.name == "__init__.py"}
    for package in packages - {"clotkit"}:
        inside = [module for module in MODULES if package_of(module) == package]
        assert len(inside) <= MOST_MODULES, package
        assert sum(lines[module] for module in inside) <= MOST_SHARE * sum(lines.values()), package


def test_light_imports_bring_nothing_heavy() -> None:
    code = "; ".join(
        ["import sys", *(f"import {name}; print({name!r}, [h for h in {HEAVY} if h in sys.modules])" for name in LIGHT)]
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [f"{name} []" for name in LIGHT]


def test_the_supervisor_needs_the_standard_library_alone() -> None:
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); import {', '.join(SUPERVISOR)}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.mark.parametrize("word", ONLY_IN_ITS_TOML)
def test_only_its_toml_knows_the_competition(word: str) -> None:
    paths = {str(path.relative_to(SRC)): path for path in MODULES.values()}
    paths |= {str(path.relative_to(ROOT)): path for path in (ROOT / "kernels").glob("*/main.py")}
    knowing = {(name, word) for name, path in paths.items() if word in code_of(path)}
    assert knowing <= MAY_KNOW


def test_functions_are_short() -> None:
    assert functions.faults() == []


def test_docstrings_open_with_a_sentence() -> None:
    assert docstrings.faults() == []
