"""Turn the bytes of one tile or strip into pixels: codecs, pixel formats, JPEG streams."""
