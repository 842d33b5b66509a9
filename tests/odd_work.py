"""Read odd files with two decoders, each in a process of its own, and print what becomes of each file.

python -m tests.odd_work > docs/explanation/odd_tiffs.md
"""

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.config import TilingConfig
from clotkit.reasons import Reason
from clotkit.slides.reader import open_slide
from clotkit.tiling.overview import read_overview
from clotkit.tiling.tilers import Batch
from clotkit.workers import Ended, Limits, Task, stream

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDERS = ("odd_tiffs", "bad_tiffs")
TILING = TilingConfig("patches", tile_px=64, downsample=1, max_tiles=1, batch_tiles=1)
LIMITS = Limits(slide_s=20.0, memory_mb=2048)
# Reasons that a bad file must never have.
HARM = {Reason.TIMEOUT, Reason.STALLED, Reason.OUT_OF_MEMORY, Reason.CRASHED}


def work(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Yield an overview's tile, the mean colour, and Pillow's mean colour if it reads the file."""
    slide = open_slide(task.path)
    view = read_overview(slide, 8, (255, 255, 255))
    (tile,) = slide.tiles([(0, 0)], TILING.tile_px, 1, (255, 255, 255))
    assert view.shape == (-(-slide.height_px // 8), -(-slide.width_px // 8), 3)
    yield 0, Batch(tile[None], np.zeros((1, 2), np.int32))
    mean = read_overview(slide, 1, (255, 255, 255)).mean(axis=(0, 1)).round(1).tolist()
    yield 0, {"decoder": slide.decoder, "size": [slide.width_px, slide.height_px], "mean": mean}
    yield 0, {"pillow": pillow_mean(task.path, slide.facts.get("page", 0))}


def pillow_mean(path: Path, page: int) -> list[float] | None:
    """Return the mean colour that Pillow reads, transparency on white; None if it cannot read the file."""
    try:
        return [round(float(value), 1) for value in pillow(path, page).mean(axis=(0, 1))]
    except Exception:  # noqa: BLE001 - any failure means no second opinion
        return None


def pillow(path: Path, page: int = 0) -> np.ndarray:
    """Return a page as Pillow reads it, uint8[h, w, 3].

    It is upright, on white where transparent, and 16-bit grey is shifted by 8 bits.
    """
    import warnings

    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = 50_000_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as file:
            if page:
                file.seek(page)
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.dstack([grey] * 3)
            if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.asarray(image.convert("RGB"))


def outcomes(paths: Sequence[Path]) -> list[Ended]:
    """Read each file in a process of its own; return their ends, sorted by name.

    The `facts` of an end hold what was read.
    """
    tasks = [Task(path.name, path, (TILING,)) for path in paths]
    ended = [event for event in stream(tasks, LIMITS, 2, work) if isinstance(event, Ended)]
    return sorted(ended, key=lambda end: end.image_id)


def table(folder: str, ends: Sequence[Ended]) -> str:
    """Return a Markdown table of one folder's outcomes."""
    lines = [f"## {folder}", "", "| file | outcome | reason |", "|---|---|---|"]
    for end in ends:
        outcome = "refused" if end.code else "read"
        size = " x ".join(map(str, end.facts.get("size", [])))
        why = end.reason or f"{end.facts['decoder']}, {size} px, mean colour {' '.join(map(str, end.facts['mean']))}"
        lines.append(f"| {end.image_id} | {outcome} | {why.replace('|', '/')} |")
    return "\n".join(lines)


def main() -> None:
    """Print the document."""
    import pyvips

    version = ".".join(str(pyvips.version(part)) for part in range(3))
    found = {folder: outcomes(sorted((SHARED / folder).iterdir())) for folder in FOLDERS}
    counts = {name: Counter("refused" if end.code else "read" for end in ends) for name, ends in found.items()}
    summary = "; ".join(f"{name}: {count['read']} read, {count['refused']} refused" for name, count in counts.items())
    harmed = sum(end.code in HARM for ends in found.values() for end in ends)
    compared = sum(end.facts.get("pillow") is not None for ends in found.values() for end in ends)
    print(
        "# Odd TIFFs\n\n"
        f"{datetime.date.today()}, libvips {version}. {summary}.\n"
        f"{harmed} files crashed a process, hung it or exceeded 2048 MB.\n"
        f"Pillow reads {compared} of the files that were read; tests/test_odd_slides.py compares the two results.\n\n"
        "- odd_tiffs: unusual files, most of them valid (libtiff's picture set, image-tiff, Pillow).\n"
        "- bad_tiffs: files that broke other readers (image-tiff, Pillow, openslide-python, histolab).\n\n"
        "Each file is opened in a process of its own, limited to 20 s and 2048 MB. It reads an overview, a\n"
        "tile and the whole slide. 16-bit samples are shifted to 8 bits, so files with 8 or 12 bits in 16\n"
        "look dark.\n\n"
        "This page is the output of `python -m tests.odd_work > docs/explanation/odd_tiffs.md`.\n"
    )
    print("\n\n".join(table(name, ends) for name, ends in found.items()))


if __name__ == "__main__":
    import_module("tests.odd_work").main()  # slides' processes find the work by the name of its module
