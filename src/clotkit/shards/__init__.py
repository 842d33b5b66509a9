"""Tiles on disk: one file (a shard) for each slide, and the table that lists them."""
