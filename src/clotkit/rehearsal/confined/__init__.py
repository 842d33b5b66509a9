"""Run a command as a container platform does: in a root of its own, under limits."""
