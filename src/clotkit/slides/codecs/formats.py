"""Turn decoded samples of any TIFF pixel format into 8-bit RGB, with the rules that libvips has."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import CodecUnsupported

Pixels = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.unsignedinteger[Any]]  # uint8 or uint16[h, w, samples per pixel]
Tags = dict[int, npt.NDArray[np.int64]]

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6  # photometric interpretations
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
HORIZONTAL = 2  # predictor
WITHOUT_PREDICTOR = {1, 2, 3, 4, 32773}  # codecs for which libtiff ignores the tag


@dataclass(frozen=True)
class Encoding:
    """The pixel format of a page, as its tags say."""

    codec: int = 1  # TIFF compression tag
    bits: int = 8
    samples: int = 3  # per pixel
    photometric: int = RGB
    planar: bool = False  # each sample has segments of its own
    predictor: int = 1
    lsb_first: bool = False  # the bits of each byte are reversed
    big_endian: bool = False
    extra: int | None = None  # the first extra sample: 1 premultiplied, 2 plain transparency, 0 something else
    subsampling: tuple[int, int] = (2, 2)  # of the chroma of YCbCr, horizontal and vertical
    palette: Pixels = field(default_factory=lambda: np.zeros((0, 3), np.uint8))  # [n, 3]
    tags: Tags = field(default_factory=dict)  # of the directory: what single codecs need is looked up there

    @property
    def packed_chroma(self) -> bool:
        """True if chroma samples are packed with blocks of luma: YCbCr that is not in an image codec."""
        return self.photometric == YCBCR and self.subsampling != (1, 1) and not self.planar

    def raw_bytes(self, width_px: int, rows: int) -> int:
        """Return the decoded size of a segment of one plane."""
        if self.packed_chroma:
            across, down = self.subsampling
            return -(-width_px // across) * -(-rows // down) * (across * down + 2)
        return -(-width_px * (1 if self.planar else self.samples) * self.bits // 8) * rows


def unpacked(data: Pixels, encoding: Encoding, width_px: int, rows: int) -> Samples:
    """Return the samples of one plane of a segment, [rows, width, samples], from its decoded bytes.

    Raises:
        CodecUnsupported: The predictor or the number of bits is one that is not read here.
    """
    if encoding.packed_chroma:
        return _chroma_spread(data, encoding.subsampling, width_px, rows)
    samples = 1 if encoding.planar else encoding.samples
    predictor = 1 if encoding.codec in WITHOUT_PREDICTOR else encoding.predictor
    if encoding.bits < 8:
        if predictor != 1 or samples != 1:
            raise CodecUnsupported(f"{encoding.bits}-bit samples, {samples} per pixel, predictor {predictor}")
        return _bits(data.reshape(rows, -1), encoding.bits, width_px)
    kind = np.dtype("u1") if encoding.bits == 8 else np.dtype(">u2" if encoding.big_endian else "<u2")
    values = data.view(kind).reshape(rows, width_px, samples)
    if predictor == HORIZONTAL:
        native = kind.newbyteorder("=")
        return np.asarray(np.add.accumulate(values.astype(native), axis=1, dtype=native))
    if predictor != 1:
        raise CodecUnsupported(f"predictor {predictor} of integer samples is not read")
    return values


def _bits(data: Pixels, bits: int, width_px: int) -> Samples:
    """Return samples of less than 8 bits, [h, w, 1]; each row begins with a byte."""
    single = np.unpackbits(data, axis=1).reshape(len(data), -1, bits)
    weights = (1 << np.arange(bits)[::-1]).astype(np.uint8)
    return np.asarray((single * weights).sum(axis=2, dtype=np.uint8)[:, :width_px, None])


def _chroma_spread(data: Pixels, subsampling: tuple[int, int], width_px: int, rows: int) -> Samples:
    """Return YCbCr samples [h, w, 3] from blocks of luma that share one chroma sample."""
    across, down = subsampling
    blocks = data.reshape(-(-rows // down), -(-width_px // across), across * down + 2)
    parts = blocks[..., :-2].reshape(*blocks.shape[:2], down, across).swapaxes(1, 2)
    luma = parts.reshape(blocks.shape[0] * down, blocks.shape[1] * across)
    chroma = blocks[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    return np.dstack([luma, chroma])[:rows, :width_px]


NO_PHOTOMETRIC = -1  # the tag is missing: whether 0 is black or white would be a guess


def colours_of(photometric: int, samples: int) -> int:
    """Return how many of a pixel's samples are its colour.

    Raises:
        CodecUnsupported: The photometric interpretation is none of COLOURS, or has another number of samples.
    """
    colours = COLOURS.get(photometric, 0)
    if not colours or samples < colours or (colours == 1 and samples > 2):
        raise CodecUnsupported(
            f"{samples} samples per pixel, photometric interpretation {photometric}, "
            "are not grey, RGB, YCbCr, a palette or CMYK"
        )
    return colours


def to_rgb(samples: Samples, encoding: Encoding, background: tuple[int, int, int], ycbcr: bool) -> Pixels:
    """Convert samples [h, w, n] to RGB; transparent pixels show the background, 16 bits are shifted to 8.

    Args:
        samples: As many as the photometric interpretation needs; further ones are transparency or left out.
        encoding: The page's pixel format.
        background: Colour behind transparent pixels.
        ycbcr: The samples are YCbCr; false if the codec has converted them.

    Raises:
        CodecUnsupported: They are of no colour model that is read here.
    """
    colours = colours_of(encoding.photometric, samples.shape[2])
    if encoding.photometric == PALETTE:
        if not len(encoding.palette):
            raise CodecUnsupported("a palette without colours")
        return np.asarray(encoding.palette[np.minimum(samples[..., 0], len(encoding.palette) - 1)])
    pixels = np.asarray(samples >> 8 if samples.dtype.itemsize == 2 else samples).astype(np.uint8)
    if encoding.bits < 8:
        pixels = pixels * np.uint8(255 // (2**encoding.bits - 1))
    rgb = _colours(pixels[..., :colours], encoding.photometric, ycbcr)
    if pixels.shape[2] > colours and encoding.extra != 0:
        return _over(rgb, pixels[..., colours : colours + 1], background, premultiplied=encoding.extra == 1)
    return rgb


def _colours(pixels: Pixels, photometric: int, ycbcr: bool) -> Pixels:
    if photometric == WHITE_IS_ZERO:
        pixels = 255 - pixels
    if pixels.shape[2] == 1:
        return pixels.repeat(3, axis=2)
    if photometric == CMYK:  # without a profile: each ink, black too, darkens
        light = 255 - pixels.astype(np.float32)
        return np.rint(light[..., :3] * light[..., 3:] / 255).astype(np.uint8)
    return ycbcr_to_rgb(pixels) if ycbcr else np.ascontiguousarray(pixels)


def ycbcr_to_rgb(pixels: Pixels) -> Pixels:
    """Convert full-range YCbCr of ITU-R BT.601 to RGB."""
    luma, blue, red = (pixels[..., i].astype(np.float32) for i in range(3))
    blue, red = blue - 128, red - 128
    channels = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    return np.asarray(np.rint(np.clip(np.stack(channels, axis=2), 0, 255)), np.uint8)


def _over(rgb: Pixels, alpha: Pixels, background: tuple[int, int, int], premultiplied: bool) -> Pixels:
    share = alpha.astype(np.float32) / 255
    front = rgb.astype(np.float32) * (1 if premultiplied else share)
    mixed = front + np.array(background, np.float32) * (1 - share)
    return np.asarray(np.rint(np.clip(mixed, 0, 255)), np.uint8)
