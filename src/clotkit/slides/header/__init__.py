"""Read the header of a slide file, before a pixel is decoded: pages, levels, tables of tiles."""
