"""Write one tile or strip as a small TIFF of its own, for decoders that read whole files.

libtiff's LZW decoder takes a third of the time of imagecodecs's own, and undoes the predictor on the way.
"""

import struct
from functools import lru_cache

LZW = 5
LZW_START = b"\x80"  # the first byte of the code that every stream begins with; old streams have the bits reversed
COUNT, PREDICTOR = 279, 317  # tags


def small_tiff(
    data: bytes, codec: int, size_px: tuple[int, int], samples: int, bits: int = 8, predictor: int = 1, options: int = 0
) -> bytes:
    """Return a TIFF with one strip of `data`.

    Args:
        data: The compressed bytes.
        codec: The compression tag.
        size_px: Width and height.
        samples: Per pixel: 1 grey, 3 RGB, 4 CMYK.
        bits: Of a sample.
        predictor: The predictor tag; 1 takes the samples as they are.
        options: Of CCITT T4.
    """
    before, after = _directory(codec, size_px, samples, bits, predictor, options)
    return before + struct.pack("<I", len(data)) + after + data


@lru_cache(maxsize=16)
def _directory(
    codec: int, size_px: tuple[int, int], samples: int, bits: int, predictor: int, options: int
) -> tuple[bytes, bytes]:
    """Return what is before and after the number of compressed bytes."""
    width, height = size_px
    photometric = 1 if samples == 1 else 2 if samples == 3 else 5
    numbers = {256: width, 257: height, 258: bits, 259: codec, 262: photometric, 273: 0, 277: samples, 278: height}
    numbers |= {COUNT: 0} | ({292: options} if codec == 3 else {}) | ({PREDICTOR: predictor} if predictor != 1 else {})
    end = 8 + 2 + 12 * len(numbers) + 4  # of the directory; bits per sample and the data follow
    numbers[273] = end + 8
    entries = {tag: struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items()}
    entries[258] = (
        struct.pack("<HHIHH", 258, 3, 1, bits, 0) if samples == 1 else struct.pack("<HHII", 258, 3, samples, end)
    )
    ordered = sorted(entries)
    directory = b"".join(entries[tag] for tag in ordered)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    at = len(head) + 12 * ordered.index(COUNT) + 8
    whole = head + directory + bytes(4) + struct.pack("<4H", *(bits,) * 4)
    return whole[:at], whole[at + 4 :]
