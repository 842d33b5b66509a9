"""Decode the tissue of a slide and nothing else: what no reader of these files can go below."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.peer_scripts.common import THRESHOLD, Pixels, best_level
from clotkit.slides.codecs.small_tiff import small_tiff

DEFLATE, LZW, JPEG = {8, 32946}, 5, 7  # compression tags


def tissue_decode(path: Path, downsample: int) -> Callable[[Path], int]:
    """Return a function that decodes each tile or strip with any tissue once, and returns their number.

    The level is the best for `downsample`. To find the tissue, every tile of it is decoded here, before the clock.
    """
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = _level(tiff, downsample)
        decode = _decoder(page)
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("rb") as file:
        first = _pixels(file.fileno(), places[0], decode)
        background = np.median(first.reshape(-1, 3)[: first.shape[1]], axis=0).astype(np.int16)
        tissue = [place for place in places if _has_tissue(_pixels(file.fileno(), place, decode), background)]

    def run(path: Path) -> int:
        with path.open("rb") as file:
            for place in tissue:
                _pixels(file.fileno(), place, decode)
        return len(tissue)

    return run


def _level(tiff: Any, downsample: int) -> Any:
    """Return the page to read for a downsample; thumbnails are not tiled."""
    first = tiff.pages.first
    pages = [first, *(page for page in [*tiff.pages[1:], *(first.pages or ())] if page.is_tiled)]
    return pages[best_level([first.imagewidth / page.imagewidth for page in pages], downsample)]


def _pixels(file: int, place: tuple[int, int], decode: Callable[[bytes], Pixels]) -> Pixels:
    offset, count = place
    return decode(os.pread(file, count, offset))


def _has_tissue(pixels: Pixels, background: Any) -> bool:
    return bool((np.abs(pixels.astype(np.int16) - background) >= THRESHOLD).any())


def _decoder(page: Any) -> Callable[[bytes], Pixels]:
    """Return what decodes a tile or strip of a page, with the codecs that clotkit has."""
    imagecodecs: Any = importlib.import_module("imagecodecs")
    simplejpeg: Any = importlib.import_module("simplejpeg")

    if page.compression == JPEG:
        tables = (page.jpegtables or b"\xff\xd8\xff\xd9")[:-2]  # without the marker of the end
        return lambda packed: np.asarray(simplejpeg.decode_jpeg(tables + packed[2:], "RGB"))
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    buffer = np.empty((height, width, 3), np.uint8)
    if page.compression == LZW and page.is_tiled:
        size, predictor = (width, height), int(page.predictor)
        return lambda packed: np.asarray(
            imagecodecs.tiff_decode(small_tiff(packed, LZW, size, 3, predictor=predictor), out=buffer)
        )
    unpack = imagecodecs.lzw_decode if page.compression == LZW else imagecodecs.deflate_decode

    def decode(packed: bytes) -> Pixels:
        unpacked = len(unpack(packed, out=buffer.reshape(-1)))
        rows = buffer[: unpacked // (width * 3)]  # the last strip is shorter
        return np.asarray(imagecodecs.delta_decode(rows, axis=1, out=rows))

    return decode
