"""Object discovery: frames, segment proposals, and the training of slot models."""
