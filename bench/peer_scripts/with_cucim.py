"""Cut a job's tiles with cuCIM on the CPU, which only reads: the naive loop."""

import importlib
from typing import Any

from bench.peer_scripts.common import Run, Tiles, measured, naive_loop


def load() -> Run:
    """Import cuCIM."""
    cucim: Any = importlib.import_module("cucim")
    numpy: Any = importlib.import_module("numpy")

    def run(path: str, job: Tiles) -> int:
        slide = cucim.CuImage(path)
        levels = slide.resolutions
        downsamples = list(levels["level_downsamples"])

        def read(left: int, top: int, level: int, width: int, height: int) -> Any:
            corner = round(left * downsamples[level]), round(top * downsamples[level])  # in the slide
            return numpy.asarray(slide.read_region(location=corner, size=(width, height), level=level))

        return naive_loop(tuple(levels["level_dimensions"][0]), downsamples, read, job)

    return run


if __name__ == "__main__":
    measured(load)
