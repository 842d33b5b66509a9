"""Cut a job's tiles with fastslide, which only reads: the naive loop."""

import importlib
from typing import Any

from bench.peer_scripts.common import Run, Tiles, measured, naive_loop


def load() -> Run:
    """Import fastslide."""
    fastslide: Any = importlib.import_module("fastslide")

    def run(path: str, job: Tiles) -> int:
        slide = fastslide.FastSlide.from_file_path(path)

        def read(left: int, top: int, level: int, width: int, height: int) -> Any:
            return slide.read_region((left, top), level, (width, height)).numpy()

        return naive_loop(tuple(slide.dimensions), list(slide.level_downsamples), read, job)

    return run


if __name__ == "__main__":
    measured(load)
