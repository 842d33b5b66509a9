"""Check that a slide may have its size, before a decoder is chosen or a pixel is allocated."""

from pathlib import Path

from clotkit.errors import SlideUnreadable

# Limits of a slide. Real slides compress 2.4 to 159 fold; an all-white one reaches 931 with deflate, 840 with LZW, 511
# with JPEG. The other codecs have no such bound: a real ZSTD file reaches 6,214, white lossless WebP tiles of 1024 px
# reach 31,566, and a row of CCITT G4 can take one bit whatever its width.
MAX_SIDE_PX, MAX_PX, MAX_TILE_PX = 1_000_000, 500 * 10**9, 2**26
MAX_EXPANSION, MAX_EXPANSION_UNBOUND, BOUND_CODECS = 2_000, 200_000, {1, 5, 7, 8, 32773, 32946}
SMALL_BYTES = 2**26  # raw size up to which any expansion is harmless


def check_size(width: int, height: int, bits: int, path: Path, expansion: int) -> None:
    """Check that a slide may have this size and that its file can hold it.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        bits: Bits per pixel.
        path: The file.
        expansion: Allowed ratio of raw bytes to file bytes.

    Raises:
        SlideUnreadable: A side or the area is too small or too large, or the ratio is.
    """
    if min(width, height) < 1:
        raise SlideUnreadable(f"no pixels: {width} x {height} px")
    size = f"{width:,} x {height:,} px"
    if max(width, height) > MAX_SIDE_PX:
        raise SlideUnreadable(f"{size}; {MAX_SIDE_PX:,} px per side are allowed")
    if width * height > MAX_PX:
        raise SlideUnreadable(f"{size} are {width * height / 1e9:,.0f} Gpx; {MAX_PX // 10**9} Gpx are allowed")
    raw, stored = width * height * bits // 8, path.stat().st_size
    if raw > SMALL_BYTES and raw > expansion * stored:
        raise SlideUnreadable(
            f"{size} in {stored:,} bytes would expand {raw // stored:,}-fold; {expansion:,}-fold is allowed"
        )
