"""Slides: reading, tissue, tiling, and synthetic slides."""
