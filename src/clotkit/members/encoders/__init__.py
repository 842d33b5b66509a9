"""Encoders: networks that turn tiles into features."""
