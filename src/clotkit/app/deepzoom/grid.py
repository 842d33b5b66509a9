"""Count the levels and tiles of a slide as Deep Zoom does.

Source: Deep Zoom Image, the format that OpenSeadragon reads. Level 0 is 1 px, the last level is the slide itself, and
each level has half the sides of the next one, rounded up.
"""

from dataclasses import dataclass

TILE_PX = 512  # side of a tile: fewer requests than with 256 px, and a whole number of most files' own tiles


@dataclass(frozen=True)
class Grid:
    """The levels of a slide."""

    width_px: int
    height_px: int

    @property
    def last(self) -> int:
        """The level at full resolution."""
        return (max(self.width_px, self.height_px) - 1).bit_length()

    @property
    def first(self) -> int:
        """The finest level that is a single tile; coarser ones are not served."""
        return max(0, self.last - ((max(self.width_px, self.height_px) - 1) // TILE_PX).bit_length())

    @property
    def downsamples(self) -> list[int]:
        """The downsamples of all levels that are served, the finest first."""
        return [1 << step for step in range(self.last - self.first + 1)]

    def downsample(self, level: int) -> int:
        """Return the full-resolution pixels per pixel of a level."""
        return 1 << (self.last - level)

    def size_px(self, level: int) -> tuple[int, int]:
        """Return width and height of a level, in its own pixels."""
        downsample = self.downsample(level)
        return -(-self.width_px // downsample), -(-self.height_px // downsample)

    def counts(self, level: int) -> tuple[int, int]:
        """Return the columns and rows of tiles of a level."""
        width, height = self.size_px(level)
        return -(-width // TILE_PX), -(-height // TILE_PX)

    def has(self, level: int, column: int, row: int) -> bool:
        """Return whether the slide has this tile, on a level that is served."""
        if not self.first <= level <= self.last:
            return False
        columns, rows = self.counts(level)
        return 0 <= column < columns and 0 <= row < rows

    def tile_size_px(self, level: int, column: int, row: int) -> tuple[int, int]:
        """Return width and height of a tile: less than TILE_PX at the right and lower edge."""
        width, height = self.size_px(level)
        return min(TILE_PX, width - column * TILE_PX), min(TILE_PX, height - row * TILE_PX)
