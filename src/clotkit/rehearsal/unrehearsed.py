"""Name what a rehearsal here cannot try of a kernel's run on Kaggle."""

import sys
from collections.abc import Mapping
from pathlib import Path

from clotkit.bundle.build import read_settings
from clotkit.competitions import Competition
from clotkit.kaggle.datasets import PLACEHOLDER, read_metadata
from clotkit.kaggle.kernels import METADATA
from clotkit.kaggle.metadata import accelerator_of
from clotkit.reasons import NotRehearsed


def not_rehearsed(kernel: Path, competition: Competition) -> Mapping[NotRehearsed, str]:
    """Return the codes of what is not rehearsed of a kernel, each with what stands in."""
    metadata = read_metadata(kernel / METADATA, competition, "a kernel folder has it beside main.py")
    settings = read_settings(kernel, competition)
    python = ".".join(map(str, sys.version_info[:2]))
    missing = {NotRehearsed.IMAGE: f"Kaggle's image; here the locked packages, on Python {python}"}
    if accelerator_of(metadata):
        shape = metadata.get("machine_shape") or accelerator_of(metadata)
        missing[NotRehearsed.ACCELERATOR] = f"{shape}; here the same bundle runs on the CPU"
    if settings.job in ("tile", "train"):
        names = settings.bundled
        missing[NotRehearsed.RECIPES] = f"{', '.join(names['recipes'])}; here {', '.join(names['rehearse'])}"
    if settings.job == "train":
        missing[NotRehearsed.DATASETS] = "the tiles dataset; here the tiles of a rehearsal"
    if settings.job == "serve":
        missing[NotRehearsed.GATEWAY] = "the competition's own gateway, and its mounts; here a stand-in, and links"
    others = [source for source in metadata.get("model_sources", ()) if not source.startswith(f"{PLACEHOLDER}/")]
    if others:
        missing[NotRehearsed.MODELS] = f"{', '.join(others)}; here it is not attached"
    return missing
