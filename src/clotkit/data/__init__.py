"""Labelled tiles: their sources, near-duplicates and folds."""
