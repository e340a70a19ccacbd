"""Training: the loop, updates, replay, checkpoints and logs."""
