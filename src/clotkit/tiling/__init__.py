"""Turn the pixels of a slide into tiles."""
