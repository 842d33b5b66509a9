"""The tiler against other readers, in CPU seconds and memory: `python -m bench`. Not part of the package."""
