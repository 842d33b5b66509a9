"""Kaggle: the bundle, its rehearsal, the client."""
