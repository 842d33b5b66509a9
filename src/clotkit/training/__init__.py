"""Train members: from labelled tiles to a member folder. The training loop is epochs.run_epochs."""
