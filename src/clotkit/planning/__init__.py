"""Plans of runs and of tiling on a cluster, before they start."""
