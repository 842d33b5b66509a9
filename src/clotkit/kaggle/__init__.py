"""Deliver to Kaggle: push datasets and kernels, follow a run, submit it, read its score."""
