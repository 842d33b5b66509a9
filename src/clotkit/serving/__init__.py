"""Serve members to the gateway of a competition, which sends the test set in batches."""
