"""Let Kaggle's own clients reach only the loopback server; it is put first on a child's path.

Python imports a module of this name when it starts; every address that the library knows becomes the given one.
"""

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

ENDPOINT = os.environ.get("CLOTKIT_KAGGLE_ENDPOINT", "")


class Finder(MetaPathFinder):
    """Overwrites the library's table of addresses as soon as it is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Find that one module, and let its loader end with the change."""
        spec = PathFinder.find_spec(name, path, target) if name == "kagglesdk.kaggle_env" else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_change(module: Any) -> None:
            load(module)
            for key in module._env_to_endpoint:
                module._env_to_endpoint[key] = ENDPOINT

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def _stay_on_loopback() -> Any:
    spec = importlib.util.spec_from_file_location("_loopback_guard", Path(__file__).parents[1] / "guard.py")
    assert spec is not None
    assert spec.loader is not None
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    staying = guard.only_loopback()
    staying.__enter__()
    return staying


if ENDPOINT:
    sys.meta_path.insert(0, Finder())
    _staying = _stay_on_loopback()  # kept: the guard would end with it
