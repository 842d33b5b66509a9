"""Make a container for Grand Challenge, and do its jobs inside."""
