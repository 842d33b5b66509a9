"""clotkit: Kaggle code competitions over whole-slide images, from slides to a validated submission.csv."""

__version__ = "0.1.0"
