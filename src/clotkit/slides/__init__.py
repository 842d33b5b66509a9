"""Read whole-slide images: decode pixels from TIFF, PNG, JPEG and OpenSlide formats."""
