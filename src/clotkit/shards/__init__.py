"""Tiles on disk, one file per slide."""
