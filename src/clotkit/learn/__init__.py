"""Learning: models, training, calibration."""
