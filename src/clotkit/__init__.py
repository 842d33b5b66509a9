"""Kaggle code competitions over whole-slide images, from slides to a validated submission.csv."""

__version__ = "0.2.0"
