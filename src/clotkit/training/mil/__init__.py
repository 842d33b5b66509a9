"""Train heads over the features of an encoder, with bags of tiles (multiple instance learning)."""
