"""Estimate a run before it starts."""
