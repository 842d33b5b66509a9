"""Benchmarks: clotkit against other readers, and what its runs cost. Not part of the package."""
