"""Fit an ensemble to out-of-fold predictions."""
