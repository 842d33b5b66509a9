"""Score a test split."""
