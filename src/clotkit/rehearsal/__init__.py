"""Run a bundle here as Kaggle runs it."""
