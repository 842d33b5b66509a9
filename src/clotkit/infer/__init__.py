"""Inference: slide workers, pipeline, submission, report."""
