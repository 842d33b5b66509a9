"""Load trained models (members), predict with them, pool tiles, calibrate, and combine members."""
