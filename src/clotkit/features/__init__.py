"""Features of slides: one HDF5 file a slide, written with any encoder, read from other tools too."""
