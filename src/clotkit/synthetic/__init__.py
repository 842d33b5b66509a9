"""Synthetic slides and pictures."""
