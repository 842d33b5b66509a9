"""Find the inference server of a competition, and make one that calls a function of ours.

Standard library only.
"""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.errors import ConfigError

PACKAGE, BASE, SUFFIX = "kaggle_evaluation", "InferenceServer", "_inference_server"


def marker(folder: Path) -> Path:
    """Return the file that tells the data of a competition with a gateway."""
    return folder / PACKAGE / "core" / "templates.py"


def make_server(split: Path, competition: Competition, predict: Callable[..., Any]) -> Any:
    """Return the competition's inference server, which calls `predict` for each batch.

    Raises ConfigError if the data has no such server, or several and the competition names none.
    """
    folder = split / PACKAGE
    sys.path[:0] = [str(split)]
    sys.path.append(str(folder))  # an inference server imports the gateway beside it by its bare name
    module = import_module(f"{PACKAGE}.{_module_name(folder, competition)}")
    return _server_class(module, competition)(predict)


def _module_name(folder: Path, competition: Competition) -> str:
    """Return the name of the module below kaggle_evaluation that has the inference server."""
    if competition.serving.module:
        return competition.serving.module.removeprefix(f"{PACKAGE}.").removesuffix(".py")
    found = sorted(path.stem for path in folder.glob(f"*{SUFFIX}.py"))
    if len(found) != 1:
        listed = ", ".join(found) or ", ".join(sorted(path.name for path in folder.iterdir()))
        raise ConfigError(
            f"{folder}: {len(found)} files *{SUFFIX}.py, 1 is needed; it has {listed}: "
            f"name one as serving.module in {competition.source.name}"
        )
    return found[0]


def _server_class(module: Any, competition: Competition) -> Any:
    """Return the class of the inference server in a module."""
    wanted = competition.serving.server
    found = {
        name: one
        for name, one in vars(module).items()
        if inspect.isclass(one) and wanted in {"", name} and any(base.__name__ == BASE for base in one.__mro__[1:])
    }
    if len(found) != 1:
        raise ConfigError(
            f"{module.__file__}: {len(found)} classes made of {BASE}{f' named {wanted}' if wanted else ''}, 1 is "
            f"needed; name one as serving.server in {competition.source.name}"
        )
    return next(iter(found.values()))


def run_local_gateway(server: Any, split: Path, competition: Competition) -> None:
    """Play the competition's own gateway on the data that is here, as every commit does.

    Older gateways take the paths of files, newer ones the folder of the data. Without `serving.data_paths` older ones
    use their own.
    """
    parameters = inspect.signature(server.run_local_gateway).parameters
    if "competition_data_folder" in parameters:
        server.run_local_gateway(competition_data_folder=split)
    elif competition.serving.data_paths:
        server.run_local_gateway(tuple(str(split / name) for name in competition.serving.data_paths))
    else:
        server.run_local_gateway()
