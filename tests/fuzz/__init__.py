"""Fuzz the reader with mutations of small valid TIFFs.

Each is read in a limited process, and its pixels are compared with those of other decoders.

`python -m tests.fuzz` reads 20,000 mutations and prints what became of them.
"""
