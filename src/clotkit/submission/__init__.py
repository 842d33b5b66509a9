"""The form of a submission: its cells, writing it, and checking it against the sample."""
