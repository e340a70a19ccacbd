"""The reparameterized policy gradient over several steps, through a known model."""
