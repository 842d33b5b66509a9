"""Build the one script that Kaggle runs."""
