"""Register the verb `clotkit rehearse`."""

import argparse
import json
from functools import partial
from pathlib import Path

from clotkit.containers.verbs import add_sockets
from clotkit.options import (
    DONE,
    FALLBACKS,
    Result,
    Verbs,
    add_backbones_dir,
    add_inputs,
    add_kernel_type,
    add_verb,
    out_folder,
    refuse_unused,
)

OPTIONS = {  # that one arena alone has, by their dest
    "kaggle": ("wheels", "tiles", "backbones", "kernel", "kernel_type", "weights_as", "wheels_as", "layout"),
    "grand-challenge": (
        "image_socket", "probability_socket", "number_of", "label_socket", "api", "time_limit", "container_memory",
        "per_job",
    ),
}  # fmt: skip


def register(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    _add_rehearse(verbs)


def _add_rehearse(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "rehearse", "run the bundle over a split as Kaggle does: isolated, offline, with read-only inputs"
    )
    verb.add_argument(
        "--split",
        help="a split folder, or public: the competition's public test slides, fetched with the Kaggle API "
        "(default: build/phantom; for a kernel that tiles build/phantom-tile; of another competition with its name)",
    )
    verb.add_argument(
        "--weights",
        type=Path,
        help="default: weights/demo; of another competition build/weights-NAME, which make trains",
    )
    verb.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="default: build/wheels")
    verb.add_argument("--tiles", type=Path, metavar="DIR",
        help="for a kernel that trains: the tiles of a rehearsal of tiling (default: those of the last one)",
    )  # fmt: skip
    add_backbones_dir(verb)
    verb.add_argument("--kernel", type=Path, default=Path("kernels/infer"), help="default: kernels/infer")
    add_kernel_type(verb)
    add_inputs(verb)
    verb.add_argument(
        "--layout",
        choices=("both", "old", "new"),
        default="both",
        help="Kaggle's two layouts of /kaggle/input (default: both)",
    )
    verb.add_argument(
        "--out",
        type=out_folder,
        help="default: build/rehearsal, with a hyphen and the name of another kernel, of another competition",
    )
    verb.add_argument(
        "--arena",
        choices=("kaggle", "grand-challenge"),
        default="kaggle",
        help="kaggle: the bundle of a kernel; grand-challenge: jobs in the container of clotkit container, whose "
        "options follow (default: kaggle)",
    )
    add_sockets(verb)
    verb.add_argument(
        "--per-job", type=int, default=0, metavar="N", help="slides in a job of a container (default: a patient's)"
    )
    verb.set_defaults(verb=partial(_rehearse, verb))


def _rehearse_container(arguments: argparse.Namespace) -> Result:
    from clotkit.bundle.places import build_path, demo_weights
    from clotkit.containers.config import config_of
    from clotkit.rehearsal.grand_challenge import rehearse_container

    competition: str = arguments.competition
    split = Path(arguments.split or build_path("phantom", competition))
    weights = arguments.weights or demo_weights(competition)
    out = arguments.out or build_path("rehearsal-grand-challenge", competition)
    config, log = config_of(arguments), partial(print, flush=True)
    return _result(rehearse_container(split, weights, config, out, log, arguments.per_job), out)


def _rehearse(verb: argparse.ArgumentParser, arguments: argparse.Namespace) -> Result:
    other = next(arena for arena in OPTIONS if arena != arguments.arena)
    refuse_unused(verb, arguments, OPTIONS[other], f"needs --arena {other}")
    if arguments.arena == "grand-challenge":
        return _rehearse_container(arguments)
    from clotkit.bundle.build import read_settings, rehearsal_dir
    from clotkit.bundle.checkout import in_checkout
    from clotkit.bundle.places import build_path, demo_weights
    from clotkit.competitions import load_competition
    from clotkit.kaggle.metadata import Inputs
    from clotkit.rehearsal.sandbox import Rehearsal
    from clotkit.rehearsal.scoring import rehearse
    from clotkit.rehearsal.serving import rehearse_serving
    from clotkit.rehearsal.training import rehearse_tiling, rehearse_training

    log = partial(print, flush=True)
    kernel = in_checkout(arguments.kernel, "--kernel DIR")
    competition: str = arguments.competition
    job = read_settings(kernel, load_competition(competition)).job
    out = arguments.out or rehearsal_dir(kernel.name, competition)
    inputs = Inputs.of(load_competition(competition), arguments.weights_as, arguments.wheels_as)
    how = Rehearsal(kernel, competition, arguments.wheels, arguments.layout, out, log, arguments.kernel_type, inputs)
    if job == "tile":
        clean = rehearse_tiling(Path(arguments.split or build_path("phantom-tile", competition)), how)
    elif job == "train":
        tiles = arguments.tiles or rehearsal_dir("tile", competition) / "tiles"
        clean = rehearse_training(tiles, arguments.backbones, how)
    else:
        split = arguments.split or str(build_path("phantom", competition))
        play = rehearse_serving if job == "serve" else rehearse
        clean = play(split, arguments.weights or demo_weights(competition), how)
    return _result(clean, out)


def _result(clean: bool, out: Path) -> Result:
    from clotkit.rehearsal.sandbox import REHEARSAL

    passed = json.loads((out / REHEARSAL).read_text(encoding="utf-8"))
    return Result(DONE if clean else FALLBACKS, {"out": out, "rehearsal": passed})
