"""Draw synthetic slides and pictures."""
