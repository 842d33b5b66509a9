"""Score a member on labelled data."""
