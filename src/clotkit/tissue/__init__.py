"""Tell tissue from what surrounds it: glass, padding, pen marks and black surrounds."""
