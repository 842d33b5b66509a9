"""Trained models: a folder each, loaded, asked, pooled, calibrated, averaged."""
