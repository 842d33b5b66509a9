"""Decompress one tile or strip with tifffile, imagecodecs, Pillow or the standard library."""

import io
import lzma
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from clotkit.errors import CodecUnsupported
from clotkit.slides.codecs.formats import Encoding, Pixels, Samples, Tags
from clotkit.slides.codecs.small_tiff import small_tiff

RAW, LZW, PACKBITS, DEFLATE, LZMA, LERC, WEBP = 1, 5, 32773, (8, 32946, 50013), 34925, 34887, (50001, 34927)
CCITT = (2, 3, 4)
JPEG2000_YCBCR = 33003
BYTE_CODECS = {RAW, LZW, PACKBITS, *DEFLATE, LZMA, 50000, 34926, *CCITT}  # the others give samples, not bytes
PILLOW_CODECS = {*CCITT, LZW, PACKBITS}  # read through Pillow where tifffile has no codec
T4_OPTIONS, LERC_PARAMETERS = 292, 50674


def reversed_bits(data: bytes) -> bytes:
    """Return bytes with their bits in the other order."""
    return data.translate(_REVERSED)


_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def decompressed(data: bytes, encoding: Encoding, width_px: int, rows: Sequence[int]) -> Pixels:
    """Return the bytes of a segment in one of BYTE_CODECS, exactly those of the first number of rows.

    Args:
        data: As they are in the file.
        encoding: The page's pixel format.
        width_px: Width of the segment.
        rows: Numbers of rows that the data may hold, the needed one first.

    Raises:
        ValueError: The data are damaged or have another length.
        RuntimeError: A codec cannot decode them.
        CodecUnsupported: No package here has the codec.
    """
    if encoding.lsb_first:
        data = reversed_bits(data)
    needed, *others = (encoding.raw_bytes(width_px, count) for count in rows)
    if encoding.codec == RAW:
        return _first(np.frombuffer(data, np.uint8), needed)
    if encoding.codec in DEFLATE or encoding.codec == LZMA:
        return _first(np.frombuffer(_streamed(data, encoding.codec, needed), np.uint8), needed)
    if encoding.codec in CCITT:
        return by_pillow(data, encoding, width_px, rows[0])
    decode = codec_function(encoding.codec)
    if decode is None:
        return by_pillow(data, encoding, width_px, rows[0])
    try:
        return _first(_exactly(decode, data, needed), needed)
    except (ValueError, RuntimeError):
        if not others:
            raise
    return _first(_exactly(decode, data, others[0]), needed)


def _exactly(decode: Any, data: bytes, size: int) -> Pixels:
    """Decode into `size` bytes.

    Raises:
        ValueError: The data hold fewer.
    """
    out = np.zeros(size, np.uint8)
    decoded = decode(data, out=out)
    if len(decoded) != size:
        raise ValueError(f"{len(decoded):,} bytes of pixels; {size:,} expected")
    return np.frombuffer(decoded, np.uint8)


def _first(decoded: Pixels, size: int) -> Pixels:
    if len(decoded) < size:
        raise ValueError(f"{len(decoded):,} bytes of pixels; {size:,} expected")
    return decoded[:size]


def _streamed(data: bytes, codec: int, size: int) -> bytes:
    """Decode deflate or LZMA to at most `size` bytes, then to the end, where the checksum is compared."""
    stream: Any = lzma.LZMADecompressor() if codec == LZMA else zlib.decompressobj()
    try:
        decoded = bytes(stream.decompress(data, size))
        for _ in range(64):
            if stream.eof:
                return decoded
            rest = b"" if codec == LZMA else stream.unconsumed_tail
            if not stream.decompress(rest, 2**20) and not stream.eof:
                break
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(str(error)) from error
    raise ValueError("the data end before their checksum")


def codec_function(codec: int) -> Any | None:
    """Return tifffile's decoder of a codec; None if Pillow reads it instead.

    Raises:
        CodecUnsupported: No package here has the codec.
    """
    try:
        import tifffile
    except ImportError:
        missing = "tifffile is not installed"
    else:
        try:
            return tifffile.TIFF.DECOMPRESSORS[codec]
        except KeyError:
            missing = "tifffile does not read it" if _has_imagecodecs() else "imagecodecs is not installed"
    if codec in PILLOW_CODECS:
        return None
    raise CodecUnsupported(missing)


def _has_imagecodecs() -> bool:
    try:
        import imagecodecs
    except ImportError:
        return False
    return bool(imagecodecs)


def image_samples(data: bytes, encoding: Encoding) -> Samples:
    """Return the samples of a segment in an image codec, [h, w, samples].

    Raises:
        ValueError: The data are damaged.
        RuntimeError: A codec cannot decode them.
        CodecUnsupported: No package here has the codec.
    """
    decode, options = codec_function(encoding.codec), dict[str, Any]()
    assert decode is not None, encoding.codec
    if encoding.codec in WEBP:
        options["hasalpha"] = encoding.samples == 4
    if encoding.codec == LERC:
        data = _lerc_unwrapped(data, encoding.tags)
    samples = np.asarray(decode(data, **options))
    if samples.dtype not in (np.uint8, np.uint16):
        raise CodecUnsupported(f"samples of {samples.dtype} are not read")
    return np.atleast_3d(samples)


def _lerc_unwrapped(data: bytes, tags: Tags) -> bytes:
    """Return LERC data without the deflate or ZSTD around them."""
    parameters = tags.get(LERC_PARAMETERS, np.zeros(0, np.int64))
    inner = int(parameters[1]) if len(parameters) > 1 else 0
    if not inner:
        return data
    decode = codec_function(8 if inner == 1 else 50000)
    assert decode is not None
    return bytes(decode(data))


def by_pillow(data: bytes, encoding: Encoding, width_px: int, rows: int) -> Pixels:
    """Return the bytes of a segment that Pillow decodes as a small TIFF of its own.

    Raises:
        ValueError: The data are damaged.
        CodecUnsupported: Pillow is not installed, or does not read such samples.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise CodecUnsupported("Pillow is not installed") from error
    samples = 1 if encoding.planar else encoding.samples
    if (encoding.bits, samples) not in ((1, 1), (8, 1), (8, 3), (8, 4)):
        raise CodecUnsupported(f"{encoding.bits}-bit samples, {samples} per pixel, through Pillow")
    options = int(encoding.tags.get(T4_OPTIONS, np.zeros(1, np.int64))[0])
    small = small_tiff(data, encoding.codec, (width_px, rows), samples, encoding.bits, options=options)
    try:
        with Image.open(io.BytesIO(small)) as image:
            return np.frombuffer(bytes(image.tobytes()), np.uint8)
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error
