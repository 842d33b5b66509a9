"""Train a member from a recipe."""
